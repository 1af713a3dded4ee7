// Dot products with cached adjoints, and sums of them: what turns a direction into coefficients and
// coefficients into cotangents (eq. 18, 19). Compiled once per level, like dense_layer.cpp.
//
// Both touch every adjoint once and do one multiply-add with it: they run at the speed of the memory
// that holds the adjoints. The row of x, and the sums, stay in registers or the first-level cache.
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/vector_math.hpp"

namespace NATGRAD_NAMESPACE {
namespace {

using natgrad::kernels::Adjoints;

typedef ptrdiff_t Index;

constexpr int kTogether = 4;  // rows of d, or vectors of a row, whose sums are independent

template <class T>
inline __attribute__((always_inline)) Vec<T> load(const T* p) {
  return *(const typename Simd<T>::loose*)p;
}

// x[i] + x[i ^ bit] in lane i.
template <class T, int bit>
inline __attribute__((always_inline)) Vec<T> add_partner(Vec<T> x) {
  IVec<T> partner;
#pragma GCC unroll 16
  for (int i = 0; i < Simd<T>::lanes; ++i) partner[i] = i ^ bit;
#ifdef __clang__
  Vec<T> other;
  for (int i = 0; i < Simd<T>::lanes; ++i) other[i] = x[partner[i]];
  return x + other;
#else
  return x + __builtin_shuffle(x, partner);
#endif
}

template <class T, int bit>
inline __attribute__((always_inline)) T lane_sum(Vec<T> x) {
  if constexpr (bit == 0) {
    return x[0];
  } else {
    return lane_sum<T, bit / 2>(add_partner<T, bit>(x));
  }
}

// M rows of d from row i on, each against its row of x: column k of row `row` comes first.
template <class T, int M>
inline __attribute__((always_inline)) void dots_of(const Adjoints<T>& p, Index i, const T*& row,
                                                   Index& k) {
  constexpr int lanes = Simd<T>::lanes;
  const T* d = p.d + i * p.ldd;
  const T* x[M];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    x[m] = row;
    if (++k < p.columns) continue;
    k = 0;
    row += p.ldx;
  }
  Vec<T> acc[M] = {};
  Index c = 0;
  for (; c + lanes <= p.width; c += lanes) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) acc[m] += load<T>(d + m * p.ldd + c) * load<T>(x[m] + c);
  }
  if (c < p.width) {  // what pads the rows may be anything, NaN too
    IVec<T> inside;
#pragma GCC unroll 16
    for (int j = 0; j < lanes; ++j) inside[j] = c + j < p.width ? -1 : 0;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const Vec<T> last = load<T>(d + m * p.ldd + c) * load<T>(x[m] + c);
      acc[m] += (Vec<T>)((IVec<T>)last & inside);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    const T dot = lane_sum<T, lanes / 2>(acc[m]);
    p.s[i + m] = p.overwrite ? dot : p.s[i + m] + dot;
  }
}

template <class T>
void dots(const Adjoints<T>& p) {
  const Index count = p.rows * p.columns;
  const T* row = p.x;
  Index i = 0, k = 0;
  for (; i + kTogether <= count; i += kTogether) dots_of<T, kTogether>(p, i, row, k);
  for (; i < count; ++i) dots_of<T, 1>(p, i, row, k);
}

// V vectors of one row of x.
template <class T, int V>
inline __attribute__((always_inline)) void sum_of(const Adjoints<T>& p, Index r, Index c) {
  const T* d = p.d + r * p.columns * p.ldd + c;
  const T* s = p.s + r * p.columns;
  Vec<T> acc[V] = {};
  for (Index k = 0; k < p.columns; ++k, d += p.ldd) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[v] += s[k] * load<T>(d + v * Simd<T>::lanes);
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    *(typename Simd<T>::loose*)(p.x + r * p.ldx + c + v * Simd<T>::lanes) = acc[v];
  }
}

template <class T>
void sums(const Adjoints<T>& p) {
  constexpr int lanes = Simd<T>::lanes;
  for (Index r = 0; r < p.rows; ++r) {
    Index c = 0;
    for (; c + kTogether * lanes <= p.width; c += kTogether * lanes) sum_of<T, kTogether>(p, r, c);
    for (; c < p.width; c += lanes) sum_of<T, 1>(p, r, c);
  }
}

}  // namespace

extern const natgrad::kernels::AdjointTable<float> adjoints_f32;
extern const natgrad::kernels::AdjointTable<double> adjoints_f64;
constexpr natgrad::kernels::AdjointTable<float> adjoints_f32 = {dots<float>, sums<float>};
constexpr natgrad::kernels::AdjointTable<double> adjoints_f64 = {dots<double>, sums<double>};

}  // namespace NATGRAD_NAMESPACE
