// Vectors of double over numbers that may be float, for the kernels on rows.
#pragma once

#include "natgrad/base/index.hpp"
#include "natgrad/kernels/vector_math.hpp"

namespace NATGRAD_NAMESPACE {

typedef Vec<double> Wide;

constexpr int kWideLanes = Simd<double>::lanes;

// As many T as a vector has doubles.
template <class T>
struct Narrow {
  typedef T vec __attribute__((vector_size(kWideLanes * sizeof(T)), aligned(sizeof(T))));
};

// Conversions. GCC 12 makes four instructions of the portable form where one of 64 bytes would do.
template <class T>
NATGRAD_INLINE Wide widen(typename Narrow<T>::vec x) {
#if NATGRAD_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_maskz_cvtps_pd(0xff, (__m256)x);
#endif
  return __builtin_convertvector(x, Wide);
}
template <class T>
NATGRAD_INLINE typename Narrow<T>::vec narrow(Wide x) {
#if NATGRAD_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return (typename Narrow<T>::vec)_mm512_maskz_cvtpd_ps(0xff, x);
#endif
  return __builtin_convertvector(x, typename Narrow<T>::vec);
}

template <class T>
NATGRAD_INLINE Wide load_wide(const T* p) {
  return widen<T>(*(const typename Narrow<T>::vec*)p);
}
template <class T>
NATGRAD_INLINE void store_wide(T* p, Wide x) {
  *(typename Narrow<T>::vec*)p = narrow<T>(x);
}

// The first `count` lanes only, or all of them if `whole`. Other lanes are loaded as zero and not stored.
template <bool whole, class T>
NATGRAD_INLINE Wide load_wide(const T* p, Index count) {
  if constexpr (whole) return load_wide(p);
  T there[kWideLanes] = {};
#pragma GCC unroll 1
  for (Index i = 0; i < kWideLanes && i < count; ++i) there[i] = p[i];
  return load_wide(there);
}
template <bool whole, class T>
NATGRAD_INLINE void store_wide(T* p, Wide x, Index count) {
  if constexpr (whole) return store_wide(p, x);
  T there[kWideLanes];
  store_wide(there, x);
#pragma GCC unroll 1
  for (Index i = 0; i < kWideLanes && i < count; ++i) p[i] = there[i];
}

NATGRAD_INLINE IVec<double> first_lanes(Index count) {
  IVec<double> lane;
#pragma GCC unroll 8
  for (int i = 0; i < kWideLanes; ++i) lane[i] = i;
  return lane < (int64_t)count;
}
NATGRAD_INLINE Wide only(Wide x, IVec<double> lanes) {
  return (Wide)((IVec<double>)x & lanes);
}

NATGRAD_INLINE double sum(Wide x) {
  double total = 0;
  for (int i = 0; i < kWideLanes; ++i) total += x[i];
  return total;
}

NATGRAD_INLINE Wide root(Wide x) {
#pragma GCC unroll 8
  for (int i = 0; i < kWideLanes; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}

template <bool value>
struct Whole {
  static constexpr bool is = value;
};

// Calls f(Whole, first row, number of rows) for each strip of as many rows as a vector has lanes. A strip
// that reaches beyond `whole_rows` is not called whole, even if it has all of its rows.
template <class F>
NATGRAD_INLINE void for_each_strip(Index rows, Index whole_rows, F f) {
  Index r = 0;
  for (; r + kWideLanes <= whole_rows; r += kWideLanes) f(Whole<true>{}, r, kWideLanes);
  for (; r < rows; r += kWideLanes)
    f(Whole<false>{}, r, rows - r < kWideLanes ? rows - r : kWideLanes);
}

constexpr Index padded(Index columns) {
  return (columns + kWideLanes - 1) / kWideLanes * kWideLanes;
}

// How many rows of x can be read in whole vectors without passing the end of the last row.
constexpr Index whole_rows(Index rows, Index columns, Index ldx) {
  return rows - (padded(columns) - columns + ldx - 1) / ldx;
}

}  // namespace NATGRAD_NAMESPACE
