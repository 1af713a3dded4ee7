// Sums over the rows of tiles and over shards: gradients of weights (G += D' H), column sums for the
// gradients of biases, and the sum of what the shards have accumulated.
#include "natgrad/kernels/block.hpp"
#include "natgrad/kernels/kernels.hpp"

namespace NATGRAD_NAMESPACE {

// The first M rows and V vectors of G. Its lines are fetched one by one while the sums are computed, and
// G is added at the end.
template <class T, int M, int V>
__attribute__((noinline)) void accumulate_block(const Accumulate<T>& p) {
  Vec<T> acc[M][V] = {};
  const char* row = (const char*)p.g;
  const char* line = row;
  const auto fetch = [&] {
    __builtin_prefetch(line, 1);
    line += 64;
    if (line - row >= V * NATGRAD_VECTOR_BYTES) line = row += p.ldg * (Index)sizeof(T);
  };
  outer_products<T, M, V, M>(acc, p.rows, p.d, p.ldd, 1, p.h, p.ldh, fetch);
  // From here p is read again. Short of registers, GCC would otherwise keep addresses in vector
  // registers, from where they come back only behind the block's products.
  asm volatile("" ::: "memory");
  T* g = p.g;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m, g += p.ldg) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* to = g + v * Simd<T>::lanes;
      store<T>(to, p.overwrite ? acc[m][v] : load<T>(to) + acc[m][v]);
    }
  }
}

// All rows of V vectors of columns of G.
template <class T, int V>
void accumulate_columns(const Accumulate<T>& p, Index i) {
  constexpr int M = block_height(V);
  Accumulate<T> at = p;  // what is left, from row o on
  at.h += i;
  at.g += i;
  Index o = 0;
  const auto next = [&](int rows) {
    o += rows;
    at.d += rows;
    at.g += rows * p.ldg;
  };
  for (; o + M <= p.out; next(M)) accumulate_block<T, M, V>(at);
  if constexpr (M > 6) {
    for (; o + 6 <= p.out; next(6)) accumulate_block<T, 6, V>(at);
  }
  if constexpr (M >= 6) {
    if (o + 5 == p.out) return accumulate_block<T, 5, V>(at);
  }
  for (; o + 4 <= p.out; next(4)) accumulate_block<T, 4, V>(at);
  for (; o + 2 <= p.out; next(2)) accumulate_block<T, 2, V>(at);
  for (; o < p.out; next(1)) accumulate_block<T, 1, V>(at);
}

template <class T>
void accumulate(const Accumulate<T>& p) {
  constexpr int lane_group = kLineVectors * Simd<T>::lanes;
  const Index width = (p.in + lane_group - 1) / lane_group * kLineVectors;
  for (Index v = 0; v < width;) {
    const Index i = v * Simd<T>::lanes;
    const Index vectors = width - v < kMaxVectors ? width - v : kMaxVectors;
    switch (vectors) {
      case 1:
        accumulate_columns<T, 1>(p, i);
        break;
      case 2:
        accumulate_columns<T, 2>(p, i);
        break;
#if NATGRAD_VECTOR_BYTES == 64
      case 3:
        accumulate_columns<T, 3>(p, i);
        break;
      case 4:
        accumulate_columns<T, 4>(p, i);
        break;
#endif
    }
    v += vectors;
  }
}

// V vectors of columns. Where these are few, several rows at once: each addition waits four cycles for the
// one before it.
template <class T, int V>
void sum_columns(const T* d, Index rows, Index ldd, bool overwrite, T* sums) {
  constexpr int R = 8 / V;
  Vec<T> acc[R][V] = {};
  for (; rows >= R; rows -= R, d += R * ldd) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] += load<T>(d + r * ldd + v * Simd<T>::lanes);
    }
  }
  for (; rows > 0; --rows, d += ldd) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[0][v] += load<T>(d + v * Simd<T>::lanes);
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
    for (int r = 1; r < R; ++r) acc[0][v] += acc[r][v];
    T* to = sums + v * Simd<T>::lanes;
    store<T>(to, overwrite ? acc[0][v] : load<T>(to) + acc[0][v]);
  }
}

template <class T>
void column_sums(const T* d, Index rows, Index ldd, Index columns, bool overwrite, T* sums) {
  constexpr Index lanes = Simd<T>::lanes;
  Index c = 0;
  for (; c + 3 * lanes < columns; c += 4 * lanes) {
    sum_columns<T, 4>(d + c, rows, ldd, overwrite, sums + c);
  }
  for (; c + lanes < columns; c += 2 * lanes) {
    sum_columns<T, 2>(d + c, rows, ldd, overwrite, sums + c);
  }
  if (c < columns) sum_columns<T, 1>(d + c, rows, ldd, overwrite, sums + c);
}

// Shard by shard in double, eight vectors of columns at a time. The padding of the columns to whole
// vectors is read but not written.
template <class T>
void sum_shards(const T* shards, Index count, Index stride, Index columns, double* sums) {
  typedef T Narrow __attribute__((vector_size(NATGRAD_VECTOR_BYTES * sizeof(T) / sizeof(double)),
                                  aligned(sizeof(T))));
  constexpr Index lanes = Simd<double>::lanes, width = 8 * lanes;
  Index c = 0;
  for (; c + width <= columns; c += width) {
    Vec<double> acc[8] = {};
    for (Index s = 0; s < count; ++s) {
      const T* from = shards + s * stride + c;
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) {
        acc[v] += __builtin_convertvector(*(const Narrow*)(from + v * lanes), Vec<double>);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) store<double>(sums + c + v * lanes, acc[v]);
  }
  for (; c < columns; c += lanes) {
    Vec<double> acc = {};
    for (Index s = 0; s < count; ++s) {
      acc += __builtin_convertvector(*(const Narrow*)(shards + s * stride + c), Vec<double>);
    }
    for (Index i = 0; i < lanes && c + i < columns; ++i) sums[c + i] = acc[i];
  }
}

template <class T>
void add_accumulate(Kernels<T>* kernels) {
  kernels->accumulate = accumulate<T>;
  kernels->column_sums = column_sums<T>;
  kernels->sum_shards = sum_shards<T>;
}
template void add_accumulate(Kernels<float>*);
template void add_accumulate(Kernels<double>*);

}  // namespace NATGRAD_NAMESPACE
