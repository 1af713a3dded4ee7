// Vectors in memory, and sums across the lanes of vectors, for the kernel translation units only.
#pragma once

#include "natgrad/kernels/vector_math.hpp"

namespace NATGRAD_NAMESPACE {

template <class T>
inline __attribute__((always_inline)) Vec<T> load(const T* p) {
  return *(const typename Simd<T>::loose*)p;
}
template <class T>
inline __attribute__((always_inline)) void store(T* p, Vec<T> x) {
  *(typename Simd<T>::loose*)p = x;
}

// A vector of lanes picked from x (0 .. lanes - 1) and y (lanes .. 2 lanes - 1).
template <class T>
inline __attribute__((always_inline)) Vec<T> pick(Vec<T> x, Vec<T> y, IVec<T> from) {
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

// Lane i of the result is x[i] + x[i ^ bit] where `bit` of i is clear, y[i] + y[i ^ bit] where it is
// set: half of an addition across lanes, for two vectors at once.
template <class T, int bit>
inline __attribute__((always_inline)) Vec<T> fold(Vec<T> x, Vec<T> y) {
  constexpr int lanes = Simd<T>::lanes;
  IVec<T> same, other;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) {
    same[i] = (i & bit ? lanes : 0) + i;
    other[i] = (i & bit ? lanes : 0) + (i ^ bit);
  }
  return pick<T>(x, y, same) + pick<T>(x, y, other);
}

// M vectors, a power of two of them, folded into one: the sum of v[m] ends in the lanes whose
// leading bits are those of m.
template <class T, int M, int bit>
inline __attribute__((always_inline)) Vec<T> fold_all(const Vec<T>* v) {
  if constexpr (M > 1) {
    Vec<T> half[M / 2];
#pragma GCC unroll 4
    for (int m = 0; m < M / 2; ++m) half[m] = fold<T, bit>(v[m], v[m + M / 2]);
    return fold_all<T, M / 2, bit / 2>(half);
  } else if constexpr (bit > 0) {
    const Vec<T> sum = fold<T, bit>(v[0], v[0]);
    return fold_all<T, 1, bit / 2>(&sum);
  } else {
    return v[0];
  }
}

// The sum of all lanes of v[o] in lane o, for O vectors; O is at most the number of lanes, and 8.
template <class T, int O>
inline __attribute__((always_inline)) Vec<T> lane_sums(const Vec<T> (&v)[O]) {
  constexpr int lanes = Simd<T>::lanes, M = O > 4 ? 8 : O > 2 ? 4 : O;
  Vec<T> padded[M] = {};
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) padded[o] = v[o];
  const Vec<T> sums = fold_all<T, M, lanes / 2>(padded);
  if constexpr (M == 1 || M == lanes) return sums;
  IVec<T> order;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) order[i] = i * (lanes / M) % lanes;
  return pick<T>(sums, sums, order);
}

}  // namespace NATGRAD_NAMESPACE
