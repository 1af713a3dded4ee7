// Dot products with cached adjoints, which turn a direction into coefficients (eq. 4.4), and sums of
// adjoints, which turn coefficients into cotangents (eq. 4.5).
//
// Both read every adjoint once and do one multiply-add with it, so they run at the speed of the memory
// that holds the adjoints. Where a layer is whole vectors or a few columns wide, the product computes the
// dot products itself (Epilogue::dot).
//
// Inner products of Khatri-Rao rows make a dense Fisher matrix (eq. 4.3). A row is the product of two
// features over a tile of observations, so that its vectors are full as well.
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/lanes.hpp"

namespace NATGRAD_NAMESPACE {
namespace {

constexpr int kTogether = 4;  // independent sums: of as many rows of d, or vectors of a row of x

// M rows of d from row i on, each with its row of x; the rows of x are `step` apart.
template <class T, int M>
NATGRAD_INLINE void dots_of(const Adjoints<T>& p, Index i, const T* x, Index step) {
  constexpr int lanes = Simd<T>::lanes;
  const T* d = p.d + i * p.ldd;
  Vec<T> acc[M] = {};
  Index c = 0;
  for (; c + lanes <= p.width; c += lanes) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) acc[m] += load<T>(d + m * p.ldd + c) * load<T>(x + m * step + c);
  }
  if (c < p.width) {  // the padding of a row may be anything, even NaN
    IVec<T> inside;
#pragma GCC unroll 16
    for (int j = 0; j < lanes; ++j) inside[j] = c + j < p.width ? -1 : 0;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const Vec<T> last = load<T>(d + m * p.ldd + c) * load<T>(x + m * step + c);
      acc[m] += (Vec<T>)((IVec<T>)last & inside);
    }
  }
  const Vec<T> sums = lane_sums<T, M>(acc);
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) p.s[i + m] = p.overwrite ? sums[m] : p.s[i + m] + sums[m];
}

// `count` rows of d from row i on.
template <class T>
inline void dots_of_rows(const Adjoints<T>& p, Index i, Index count, const T* x, Index step) {
  constexpr int M = Simd<T>::lanes < kTogether ? Simd<T>::lanes : kTogether;
  const Index end = i + count;
  for (; i + M <= end; i += M, x += M * step) dots_of<T, M>(p, i, x, step);
  if constexpr (M == 4) {
    if (i + 3 == end) return dots_of<T, 3>(p, i, x, step);
    if (i + 2 == end) return dots_of<T, 2>(p, i, x, step);
  }
  if (i < end) dots_of<T, 1>(p, i, x, step);
}

template <class T>
void adjoint_dots(const Adjoints<T>& p) {
  if (p.columns == 1) return dots_of_rows<T>(p, 0, p.rows, p.x, p.ldx);
  for (Index r = 0; r < p.rows; ++r) {
    dots_of_rows<T>(p, r * p.columns, p.columns, p.x + r * p.ldx, 0);
  }
}

// V vectors of columns of x, and their sums over the rows.
template <class T, int V>
inline void sums_of(const Adjoints<T>& p, Index c, bool overwrite, T* column_sums) {
  const T *d = p.d + c, *s = p.s;
  Vec<T> total[V] = {};
  for (Index r = 0; r < p.rows; ++r) {
    Vec<T> acc[V] = {};
    for (Index k = 0; k < p.columns; ++k, d += p.ldd, ++s) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[v] += *s * load<T>(d + v * Simd<T>::lanes);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      store<T>(p.x + r * p.ldx + c + v * Simd<T>::lanes, acc[v]);
      total[v] += acc[v];
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    T* to = column_sums + c + v * Simd<T>::lanes;
    store<T>(to, overwrite ? total[v] : load<T>(to) + total[v]);
  }
}

template <class T>
void adjoint_sums(const Adjoints<T>& p, bool overwrite, T* column_sums) {
  constexpr int lanes = Simd<T>::lanes;
  Index c = 0;
  for (; c + kTogether * lanes <= p.width; c += kTogether * lanes) {
    sums_of<T, kTogether>(p, c, overwrite, column_sums);
  }
  for (; c < p.width; c += lanes) sums_of<T, 1>(p, c, overwrite, column_sums);
}

// M rows of a and G rows of b.
template <class T, int M, int G>
NATGRAD_INLINE void inner_block(const InnerProducts<T>& p, Index i, Index j) {
  constexpr int lanes = Simd<T>::lanes;
  const T *a = p.a + i * p.lda, *b = p.b + j * p.ldb;
  Vec<T> acc[M][G] = {};
  for (Index c = 0; c < p.k; c += lanes) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const Vec<T> row = load<T>(a + m * p.lda + c);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) acc[m][g] += row * load<T>(b + g * p.ldb + c);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    const Vec<T> sums = lane_sums<T, G>(acc[m]);
    T* to = p.c + (i + m) * p.ldc + j;
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const T sum = sums[g];
      to[g] = p.overwrite ? sum : to[g] + sum;
    }
  }
}

template <class T, int M>
inline void inner_rows(const InnerProducts<T>& p, Index i) {
  constexpr int G = Simd<T>::lanes < kTogether ? Simd<T>::lanes : kTogether;
  Index j = 0;
  for (; j + G <= p.rows_b; j += G) inner_block<T, M, G>(p, i, j);
  for (; j < p.rows_b; ++j) inner_block<T, M, 1>(p, i, j);
}

template <class T>
void inner_products(const InnerProducts<T>& p) {
  constexpr int M = NATGRAD_VECTOR_BYTES == 64 ? 4 : 2;  // as many sums as fit into registers
  Index i = 0;
  for (; i + M <= p.rows_a; i += M) inner_rows<T, M>(p, i);
  for (; i < p.rows_a; ++i) inner_rows<T, 1>(p, i);
}

}  // namespace

template <class T>
void add_adjoint(Kernels<T>* kernels) {
  kernels->adjoint_dots = adjoint_dots<T>;
  kernels->adjoint_sums = adjoint_sums<T>;
  kernels->inner_products = inner_products<T>;
}
template void add_adjoint(Kernels<float>*);
template void add_adjoint(Kernels<double>*);

}  // namespace NATGRAD_NAMESPACE
