// What one core can do at most at this level: independent chains of fused multiply-adds in registers.
// Compiled once per level, like dense_layer.cpp. The baseline level multiplies and adds in turn.
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/vector_math.hpp"

namespace NATGRAD_NAMESPACE {

// As many accumulators as a register block of dense_layer.cpp: more than latency times issue width
// on any machine so far (4 cycles, 2 a cycle), and two registers are left for the factors.
constexpr int kChains = NATGRAD_VECTOR_BYTES == 64 ? 24 : 12;

// x = x a + b converges to 1, so that no value ever overflows or becomes subnormal. The compiler must not
// know where a chain starts: it would leave one out that starts at 1.
template <class T>
double fma_chains(ptrdiff_t steps, T* sink) {
  const Vec<T> a = T(0.75) - Vec<T>{}, b = T(0.25) - Vec<T>{};
  Vec<T> x[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) x[i] = (*sink + T(i)) - Vec<T>{};
  for (ptrdiff_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) x[i] = x[i] * a + b;
  }
  Vec<T> sum{};
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sum += x[i];
  *sink = sum[0];
  return 2.0 * kChains * Simd<T>::lanes * (double)steps;
}

double fma_chains_f32(ptrdiff_t steps, float* sink) {
  return fma_chains<float>(steps, sink);
}
double fma_chains_f64(ptrdiff_t steps, double* sink) {
  return fma_chains<double>(steps, sink);
}

}  // namespace NATGRAD_NAMESPACE
