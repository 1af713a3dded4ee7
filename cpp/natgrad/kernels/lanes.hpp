// Vectors in memory, and sums across the lanes of vectors, for the kernel translation units only.
#pragma once

#include "natgrad/base/index.hpp"
#include "natgrad/kernels/vector_math.hpp"

namespace NATGRAD_NAMESPACE {

constexpr int kLineVectors = 64 / NATGRAD_VECTOR_BYTES;  // vectors in a line

template <class T>
NATGRAD_INLINE Vec<T> load(const T* p) {
  return *(const typename Simd<T>::loose*)p;
}
template <class T>
NATGRAD_INLINE void store(T* p, Vec<T> x) {
  *(typename Simd<T>::loose*)p = x;
}

// Lane i of the result is number from[i] of the lanes of x and then of y.
template <class T>
NATGRAD_INLINE Vec<T> pick(Vec<T> x, Vec<T> y, IVec<T> from) {
#ifdef __clang__
  Vec<T> result;
  for (int i = 0; i < Simd<T>::lanes; ++i) {
    result[i] = from[i] < Simd<T>::lanes ? x[from[i]] : y[from[i] - Simd<T>::lanes];
  }
  return result;
#else
  return __builtin_shuffle(x, y, from);
#endif
}

// Half of an addition across lanes, for two vectors at once: lane i of the result is x[i] + x[i ^ bit]
// where `bit` of i is clear, and y[i] + y[i ^ bit] where it is set.
template <class T, int bit>
NATGRAD_INLINE Vec<T> fold(Vec<T> x, Vec<T> y) {
  constexpr int lanes = Simd<T>::lanes;
  IVec<T> same, other;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) {
    same[i] = (i & bit ? lanes : 0) + i;
    other[i] = (i & bit ? lanes : 0) + (i ^ bit);
  }
  return pick<T>(x, y, same) + pick<T>(x, y, other);
}

// M vectors, a power of two of them, folded into one, from the highest bit down: the sum of v[m] ends in
// the lanes whose leading bits are those of m.
template <class T, int M, int bit>
NATGRAD_INLINE Vec<T> fold_halves(const Vec<T>* v) {
  if constexpr (M > 1) {
    Vec<T> half[M / 2];
#pragma GCC unroll 4
    for (int m = 0; m < M / 2; ++m) half[m] = fold<T, bit>(v[m], v[m + M / 2]);
    return fold_halves<T, M / 2, bit / 2>(half);
  } else if constexpr (bit > 0) {
    const Vec<T> sum = fold<T, bit>(v[0], v[0]);
    return fold_halves<T, 1, bit / 2>(&sum);
  } else {
    return v[0];
  }
}

// The sum of all lanes of v[o] in lane o, for O vectors; O is at most the number of lanes, and 8.
template <class T, int O>
NATGRAD_INLINE Vec<T> lane_sums(const Vec<T> (&v)[O]) {
  constexpr int lanes = Simd<T>::lanes, M = O > 4 ? 8 : O > 2 ? 4 : O;
  Vec<T> padded[M] = {};
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) padded[o] = v[o];
  const Vec<T> sums = fold_halves<T, M, lanes / 2>(padded);
  if constexpr (M == 1 || M == lanes) return sums;
  IVec<T> order;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) order[i] = i * (lanes / M) % lanes;
  return pick<T>(sums, sums, order);
}

// The sum of all lanes of v[m] in lane m, for as many vectors as they have lanes, folded from the lowest
// bit up: neighbours are added first. Fewer shuffles than lane_sums, but a different order of additions.
template <class T, int M = Simd<T>::lanes>
NATGRAD_INLINE Vec<T> fold_neighbours(const Vec<T>* v) {
  if constexpr (M == 1) {
    return v[0];
  } else {
    Vec<T> half[M / 2];
#pragma GCC unroll 4
    for (int m = 0; m < M / 2; ++m) {
      half[m] = fold<T, Simd<T>::lanes / M>(v[2 * m], v[2 * m + 1]);
    }
    return fold_neighbours<T, M / 2>(half);
  }
}

}  // namespace NATGRAD_NAMESPACE
