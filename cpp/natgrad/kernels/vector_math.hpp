// Elementary functions on vectors, for the kernel translation units only.
//
// Written with the compilers' vector extensions and templated on the scalar; the width comes from
// NATGRAD_VECTOR_BYTES. exp and expm1 reduce x = n ln 2 + r with |r| <= ln(2)/2 and sum the Taylor
// series of expm1(r) (float: degree 8, double: degree 13; the remainder is below 0.1 ulp). tanh is
// t / (t + 2) with t = expm1(2|x|): no cancellation near 0, no branch. NaN passes through.
#pragma once

#include <stdint.h>

extern "C" {
double erfc(double);
float erfcf(float);
}

namespace NATGRAD_NAMESPACE {

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float vec __attribute__((vector_size(NATGRAD_VECTOR_BYTES)));
  typedef float loose __attribute__((vector_size(NATGRAD_VECTOR_BYTES), aligned(4)));
  typedef int32_t ivec __attribute__((vector_size(NATGRAD_VECTOR_BYTES)));
  static constexpr int lanes = NATGRAD_VECTOR_BYTES / 4;
  static constexpr int mantissa = 23;
  static constexpr int32_t exponent_bias = 127;
  static constexpr int32_t sign_bit = INT32_MIN;
  static constexpr float round_magic = 12582912.0f;  // 1.5 * 2^23
  static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860682030941723212e-6f;
  static constexpr float exp_max = 89.0f, exp_min = -104.5f;
  static constexpr int taylor_degree = 8;
};

template <>
struct Simd<double> {
  typedef double vec __attribute__((vector_size(NATGRAD_VECTOR_BYTES)));
  typedef double loose __attribute__((vector_size(NATGRAD_VECTOR_BYTES), aligned(8)));
  typedef int64_t ivec __attribute__((vector_size(NATGRAD_VECTOR_BYTES)));
  static constexpr int lanes = NATGRAD_VECTOR_BYTES / 8;
  static constexpr int mantissa = 52;
  static constexpr int64_t exponent_bias = 1023;
  static constexpr int64_t sign_bit = INT64_MIN;
  static constexpr double round_magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr double exp_max = 710.0, exp_min = -746.0;
  static constexpr int taylor_degree = 13;
};

template <class T>
using Vec = typename Simd<T>::vec;
template <class T>
using IVec = typename Simd<T>::ivec;

// Bounds are compared so that NaN falls through to x.
template <class T>
inline Vec<T> clamp(Vec<T> x, T low, T high) {
  const Vec<T> lo = low - Vec<T>{}, hi = high - Vec<T>{};
  x = x > hi ? hi : x;
  return x < lo ? lo : x;
}

// 2^n for integral n in the normal range of the exponent.
template <class T>
inline Vec<T> power_of_two(IVec<T> n) {
  return (Vec<T>)((n + Simd<T>::exponent_bias) << Simd<T>::mantissa);
}

// x = n ln 2 + r; returns expm1(r) and writes n.
template <class T>
inline Vec<T> reduced_expm1(Vec<T> x, IVec<T>* n) {
  using S = Simd<T>;
  const Vec<T> shifted = x * T(1.44269504088896340736) + S::round_magic;
  const Vec<T> rounded = shifted - S::round_magic;
  *n = (IVec<T>)shifted - (IVec<T>)(S::round_magic - Vec<T>{});
  const Vec<T> r = (x - rounded * S::ln2_high) - rounded * S::ln2_low;
  T factorial = 1;
  T coefficient[S::taylor_degree + 1] = {1};
  for (int i = 1; i <= S::taylor_degree; ++i) coefficient[i] = 1 / (factorial *= T(i));
  Vec<T> p = coefficient[S::taylor_degree] - Vec<T>{};
#pragma GCC unroll 16
  for (int i = S::taylor_degree - 1; i >= 2; --i) p = p * r + coefficient[i];
  return p * (r * r) + r;
}

template <class T>
inline Vec<T> exp(Vec<T> x) {
  IVec<T> n;
  const Vec<T> em1 = reduced_expm1<T>(clamp<T>(x, Simd<T>::exp_min, Simd<T>::exp_max), &n);
  // Two factors, so that results below the smallest normal number round correctly.
  const IVec<T> half = n >> 1;
  return (em1 + T(1)) * power_of_two<T>(half) * power_of_two<T>(n - half);
}

// For |x| up to 87 (float) or 708 (double), where 2^n is a normal number; callers clamp.
template <class T>
inline Vec<T> expm1_in_range(Vec<T> x) {
  IVec<T> n;
  const Vec<T> em1 = reduced_expm1<T>(x, &n);
  const Vec<T> scale = power_of_two<T>(n);
  return em1 * scale + (scale - T(1));
}

template <class T>
inline Vec<T> tanh(Vec<T> x) {
  const IVec<T> sign = (IVec<T>)x & Simd<T>::sign_bit;
  const Vec<T> magnitude = (Vec<T>)((IVec<T>)x & ~Simd<T>::sign_bit);
  // From 22 on tanh is 1 to the last bit, in both precisions.
  const Vec<T> t = expm1_in_range<T>(clamp<T>(magnitude + magnitude, T(0), T(44)));
  return (Vec<T>)((IVec<T>)(t / (t + T(2))) | sign);
}

template <class T>
inline Vec<T> sigmoid(Vec<T> x) {
  return T(1) / (T(1) + exp<T>(-x));
}

inline float erfc_scalar(float x) {
  return erfcf(x);
}
inline double erfc_scalar(double x) {
  return erfc(x);
}

// Phi(x), the normal distribution function. libm's erfc, lane by lane.
template <class T>
inline Vec<T> normal_cdf(Vec<T> x) {
  Vec<T> y;
  for (int i = 0; i < Simd<T>::lanes; ++i) {
    y[i] = T(0.5) * erfc_scalar(x[i] * T(-0.70710678118654752440));
  }
  return y;
}

}  // namespace NATGRAD_NAMESPACE
