// The most that one core can do at this level: independent chains of fused multiply-adds in registers.
// The baseline level multiplies and then adds.
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/vector_math.hpp"

namespace NATGRAD_NAMESPACE {

// As many accumulators as a register block has (block.hpp): more than the latency times the issue width of
// any machine so far (4 cycles, 2 in each), and two registers are left for the factors.
constexpr int kChains = NATGRAD_VECTOR_BYTES == 64 ? 24 : 12;

// x = x a + b converges to 1, so that no value ever overflows or becomes subnormal. The compiler must not
// know where a chain starts: it would drop a chain that starts at 1.
template <class T>
double fma_chains(Index steps, T* sink) {
  const Vec<T> a = T(0.75) - Vec<T>{}, b = T(0.25) - Vec<T>{};
  Vec<T> x[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) x[i] = (*sink + T(i)) - Vec<T>{};
  for (Index step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) x[i] = x[i] * a + b;
  }
  Vec<T> sum{};
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sum += x[i];
  *sink = sum[0];
  return 2.0 * kChains * Simd<T>::lanes * (double)steps;
}

template <class T>
void add_fma_peak(Kernels<T>* kernels) {
  kernels->fma_chains = fma_chains<T>;
}
template void add_fma_peak(Kernels<float>*);
template void add_fma_peak(Kernels<double>*);

}  // namespace NATGRAD_NAMESPACE
