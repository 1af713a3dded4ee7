// The same product as multiply.cpp for a few columns, where most lanes of its blocks would be padding.
//
// Here the lanes run along the depth: a block of M x O vectors of partial dot products, each added up
// across its lanes at the end.
//
//                   b[0..O)[k, k + lanes)
//                 +-------------+
//   a(m)[k, ..) ->|    M x O    |
//                 +-------------+
#include "natgrad/kernels/epilogue.hpp"
#include "natgrad/kernels/prefetch.hpp"

namespace NATGRAD_NAMESPACE {

// Rows of a block with O columns: as many as there are registers for.
constexpr int narrow_height(int columns) {
  constexpr int by_columns_32[] = {8, 8, 8, 6, 4, 4, 3, 3},
                by_columns_16[] = {8, 6, 4, 3, 2, 2, 1, 1};
  return NATGRAD_VECTOR_BYTES == 64 ? by_columns_32[columns - 1] : by_columns_16[columns - 1];
}

template <class T, int M, int O>
NATGRAD_INLINE void dot_products(Vec<T> (&acc)[M][O], const T* a, Index lda, Index k, const T* b,
                                 Index n, Index first) {
  constexpr Index panel_width = kNarrowPanel<T>, group = kLineVectors * Simd<T>::lanes;
  const Index padded = (k + group - 1) / group * group;
  for (Index panel = 0; panel < padded; panel += panel_width) {
    const Index width = padded - panel < panel_width ? padded - panel : panel_width;
    for (Index i = 0; i < width; i += Simd<T>::lanes) {
      Vec<T> column[O];
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) column[o] = load<T>(b + n * panel + (first + o) * width + i);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Vec<T> row = load<T>(a + m * lda + panel + i);
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) acc[m][o] += row * column[o];
      }
    }
  }
}

// Dot products of these columns with their adjoints: one sum across lanes for each row, rather than one
// for each entry.
template <class T, int M, int O>
NATGRAD_INLINE void narrow_dots(const Multiply<T>& p, const Vec<T> (&acc)[M][O], Index r, Index o) {
  const Adjoints<T>& to = *p.dots;
  const bool overwrite = to.overwrite && o == 0;
  for (Index k = 0; k < to.columns; ++k) {
    Vec<T> products[M];
    T biases[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const T* d = to.d + ((r + m) * to.columns + k) * to.ldd + o;
      products[m] = d[0] * acc[m][0];
      biases[m] = d[0] * p.bias[o];
#pragma GCC unroll 8
      for (int i = 1; i < O; ++i) {
        products[m] += d[i] * acc[m][i];
        biases[m] += d[i] * p.bias[o + i];
      }
    }
    T* s = to.s + r * to.columns + k;
    for_each_lane_sum<T, M>(products, [&](int m, T sum) NATGRAD_LAMBDA {
      T* at = s + m * to.columns;
      *at = (overwrite ? biases[m] : *at + biases[m]) + sum;
    });
  }
}

// Columns o to o + O. The lanes beyond the last column of the product hold their bias.
template <class T, int M, int O>
__attribute__((noinline)) void narrow_block(const Multiply<T>& p, Index r, Index o) {
  constexpr int lanes = Simd<T>::lanes;
  Vec<T> acc[M][O] = {};
  dot_products<T, M, O>(acc, p.a + r * p.lda, p.lda, p.k, p.b, p.n, o);
  dot_products<T, M, O>(acc, p.a2 + r * p.lda2, p.lda2, p.k2, p.b2, p.n, o);
  if (p.epilogue == Epilogue::dot) return narrow_dots<T, M, O>(p, acc, r, o);
  IVec<T> is_column;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) is_column[i] = i < O ? -1 : 0;
  Vec<T> sums[M][1];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    sums[m][0] = load<T>(p.bias + o) + (Vec<T>)((IVec<T>)lane_sums<T, O>(acc[m]) & is_column);
    for (Index i = o + lanes; i < kLineVectors * lanes; i += lanes) {
      store<T>(p.c + (r + m) * p.ldc + i, load<T>(p.bias + i));
    }
  }
  finish_block<T, M, 1>(p, sums, r, o);
}

template <class T, int O>
void narrow_columns(const Multiply<T>& p, Index o) {
  if constexpr (O > 1) {
    if (p.n - o < O) return narrow_columns<T, O - 1>(p, o);
  }
  constexpr int M = narrow_height(O);
  NextTile tile = o == 0 ? NextTile::of(p, p.rows / M + 1) : NextTile{};
  Index r = 0;
  for (; r + M <= p.rows; r += M) {
    tile.fetch();
    narrow_block<T, M, O>(p, r, o);
  }
  for (; r < p.rows; ++r) narrow_block<T, 1, O>(p, r, o);
}

template <class T>
void multiply_narrow(const Multiply<T>& p) {
  constexpr int group = Simd<T>::lanes < 8 ? Simd<T>::lanes : 8;
  for (Index o = 0; o < p.n; o += group) narrow_columns<T, group>(p, o);
}

template <class T>
void add_narrow(Kernels<T>* kernels) {
  kernels->multiply_narrow = multiply_narrow<T>;
}
template void add_narrow(Kernels<float>*);
template void add_narrow(Kernels<double>*);

}  // namespace NATGRAD_NAMESPACE
