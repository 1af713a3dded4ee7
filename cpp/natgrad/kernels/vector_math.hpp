// Elementary functions on vectors, for the kernel translation units only.
//
// Written with the compilers' vector extensions and templated on the scalar; the width comes from
// NATGRAD_VECTOR_BYTES. At most 2 ulp at every level over the whole range, with infinities, NaN,
// signed zeros and denormal numbers as the mathematics has them: tests/cpp/test_vector_math.cpp
// measures it. No branches. The bounds hold without FMA too.
//
//   exp, elu     x = n ln 2 + r, |r| <= ln(2)/2, ln 2 in two parts (Cody and Waite 1980)
//   tanh         |x| = n ln(2)/2 + r: with w = tanh(r) and s = 2^n the addition theorem reads
//                y / (y + 2 (1 - w)), y = (s - 1) + (s + 1) w. One division, and an error of y nearly
//                cancels. -1/4 < 2 r / ln 2 < 3/4, so that little cancels in y at n = 1. ln 2 in one
//                part: the condition number x tanh'(x) / tanh(x) falls from 1 as n grows
//   log          x = 2^k m, log m = 2 artanh(s) with s = f / (2 + f), f = m - 1; summed as fdlibm
//                does (f - (f^2/2 - ...)), so that the first term is exact
//   normal_cdf   1/2 + x P(x^2) near 0; tails exp(-z^2/2 + L(t)) / (2 z + 2), t = (z - 3) / (z + 3)
//                (the variable of Shepherd and Laframboise 1981). |L| < 0.23 and the rounding error
//                of z^2 join the small part of the exponent, where they cost little
//
// The polynomials are minimax; tools/minimax.py prints them.
#pragma once

#include <stdint.h>
#if defined(__x86_64__)
#if NATGRAD_VECTOR_BYTES == 16
#include <emmintrin.h>  // a tenth of a second less for each file
#else
#include <immintrin.h>
#endif
#endif

#define NATGRAD_LAMBDA __attribute__((always_inline))
#define NATGRAD_INLINE inline NATGRAD_LAMBDA

namespace NATGRAD_NAMESPACE {

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float vec __attribute__((vector_size(NATGRAD_VECTOR_BYTES)));
  typedef float loose __attribute__((vector_size(NATGRAD_VECTOR_BYTES), aligned(4)));
  typedef int32_t ivec __attribute__((vector_size(NATGRAD_VECTOR_BYTES)));
  typedef uint32_t uvec __attribute__((vector_size(NATGRAD_VECTOR_BYTES)));
  static constexpr int lanes = NATGRAD_VECTOR_BYTES / 4;
  static constexpr int mantissa = 23;
  static constexpr int32_t exponent_bias = 127;
  static constexpr int32_t sign_bit = INT32_MIN;
  static constexpr int32_t mantissa_bits = 0x7fffff, infinity_bits = 0x7f800000;
  static constexpr int32_t one_bits = 0x3f800000, half_root_bits = 0x3f3504f3;  // sqrt(1/2)
  static constexpr int32_t high_half = ~0xfff;
  static constexpr float round_magic = 12582912.0f;  // 1.5 * 2^23
  static constexpr float smallest_normal = 1.17549435e-38f;
  static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860682030941723212e-6f;
  static constexpr float exp_max = 89.0f, exp_min = -104.5f;
  static constexpr float tanh_is_one = 10.0f, cdf_is_zero = 14.5f;
};

template <>
struct Simd<double> {
  typedef double vec __attribute__((vector_size(NATGRAD_VECTOR_BYTES)));
  typedef double loose __attribute__((vector_size(NATGRAD_VECTOR_BYTES), aligned(8)));
  typedef int64_t ivec __attribute__((vector_size(NATGRAD_VECTOR_BYTES)));
  typedef uint64_t uvec __attribute__((vector_size(NATGRAD_VECTOR_BYTES)));
  static constexpr int lanes = NATGRAD_VECTOR_BYTES / 8;
  static constexpr int mantissa = 52;
  static constexpr int64_t exponent_bias = 1023;
  static constexpr int64_t sign_bit = INT64_MIN;
  static constexpr int64_t mantissa_bits = 0xfffffffffffff, infinity_bits = 0x7ff0000000000000;
  static constexpr int64_t one_bits = 0x3ff0000000000000, half_root_bits = 0x3fe6a09e667f3bcd;
  static constexpr int64_t high_half = ~int64_t{0x7ffffff};
  static constexpr double round_magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double smallest_normal = 2.2250738585072014e-308;
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr double exp_max = 710.0, exp_min = -746.0;
  static constexpr double tanh_is_one = 20.0, cdf_is_zero = 38.7;
};

template <class T>
using Vec = typename Simd<T>::vec;
template <class T>
using IVec = typename Simd<T>::ivec;

// --- polynomials, constant first -----------------------------------------------------------------

template <class T>
struct Polynomials;

template <>
struct Polynomials<float> {
  static constexpr float expm1[] = {0.4999999814719572f, 0.16666543174079912f, 0.04166720166482252f,
                                    0.008366580899835312f, 0.001388249922860086f};
  static constexpr float tanh[] = {-0.3333321533888116f, 0.13322700273669985f,
                                   -0.05122656652536303f};
  static constexpr float log[] = {0.6666677639232352f, 0.3997753021925016f, 0.2987224507979062f};
  static constexpr float cdf_middle[] = {0.39894228017422423f, -0.06649035301637204f,
                                         0.009973041350428527f, -0.001183878185714491f,
                                         0.00010593874938144857f};
  static constexpr float cdf_tail[] = {
      -0.02828468034736394f,  -0.19859179162050405f,  -0.05352651386535087f,
      0.08358962860979106f,   -0.03060467447304902f,  -0.0005969198877072943f,
      0.0007569936271515257f, 0.0026978180322429638f, -0.001225831317185763f};
};

template <>
struct Polynomials<double> {
  static constexpr double expm1[] = {
      0.5000000000000006,    0.16666666666666588,   0.041666666666576105,  0.008333333333389962,
      0.0013888888931795674, 0.0001984126971832878, 2.480150497793488e-05, 2.755740787930159e-06,
      2.762616181503197e-07, 2.50537717780417e-08};
  static constexpr double tanh[] = {
      -0.3333333333333241,   0.1333333333298484,    -0.05396825352281282,  0.021869461506415843,
      -0.008862356368352822, 0.0035763439800295094, -0.0013073679056992064};
  static constexpr double log[] = {0.6666666666666735,  0.3999999999941279,  0.28571428742888255,
                                   0.22222198513869382, 0.18183567805913858, 0.15313951757854732,
                                   0.14797032162147875};
  static constexpr double cdf_middle[] = {
      0.3989422804014327,     -0.06649038006690532,   0.009973557010027645,
      -0.0011873282152813575, 0.00011543468518546657, -9.444639575351488e-06,
      6.659019718490142e-07,  -4.106755202240097e-08, 2.0691807103882812e-09};
  static constexpr double cdf_tail[] = {
      -0.028284679830513613,   -0.19859192958261898,   -0.053526567447793834,
      0.08359457277669484,     -0.030603965396871803,  -0.0006462221889014953,
      0.0007554158301814193,   0.002895747517911687,   -0.0012349677375017396,
      -0.000341942283051484,   3.6436918906957424e-05, 0.0002239284377469416,
      -2.6056770183430574e-05, -4.296955022476291e-05, -1.4273720965015333e-05,
      1.4317111462773046e-05,  4.87508623095515e-06,   -1.3040530366585366e-06,
      -2.2613051943449875e-06, 1.1808440108690528e-09, 4.6583623281120873e-07,
      1.261388756195297e-07,   -9.961619554309037e-08};
};

template <class T, int N>
NATGRAD_INLINE Vec<T> horner(const T (&coefficients)[N], Vec<T> x) {
  Vec<T> p = coefficients[N - 1] - Vec<T>{};
#pragma GCC unroll 32
  for (int i = N - 2; i >= 0; --i) p = p * x + coefficients[i];
  return p;
}

// --- pieces --------------------------------------------------------------------------------------

// The leading bits, few enough that their square is exact.
template <class T>
inline Vec<T> high_half(Vec<T> x) {
  return (Vec<T>)((IVec<T>)x & Simd<T>::high_half);
}

// The smaller or the larger of two; x where it is NaN. On x86 this is one instruction, which returns its
// second operand then; compilers turn the portable form into a comparison and a blend.
#if defined(__x86_64__)
#if NATGRAD_VECTOR_BYTES == \
    64  // masked: GCC 12 warns about its own header in the form without a mask
#define NATGRAD_X86(name, all_lanes, a, b) _mm512_maskz_##name(all_lanes, a, b)
#elif NATGRAD_VECTOR_BYTES == 32
#define NATGRAD_X86(name, all_lanes, a, b) _mm256_##name(a, b)
#else
#define NATGRAD_X86(name, all_lanes, a, b) _mm_##name(a, b)
#endif
inline Vec<float> smaller(Vec<float> bound, Vec<float> x) {
  return NATGRAD_X86(min_ps, 0xffff, bound, x);
}
inline Vec<double> smaller(Vec<double> bound, Vec<double> x) {
  return NATGRAD_X86(min_pd, 0xff, bound, x);
}
inline Vec<float> larger(Vec<float> bound, Vec<float> x) {
  return NATGRAD_X86(max_ps, 0xffff, bound, x);
}
inline Vec<double> larger(Vec<double> bound, Vec<double> x) {
  return NATGRAD_X86(max_pd, 0xff, bound, x);
}
#undef NATGRAD_X86
#else
template <class V>
inline V smaller(V bound, V x) {
  return bound < x ? bound : x;
}
template <class V>
inline V larger(V bound, V x) {
  return bound > x ? bound : x;
}
#endif

template <class T>
inline Vec<T> clamp(Vec<T> x, T low, T high) {
  return larger(low - Vec<T>{}, smaller(high - Vec<T>{}, x));
}

template <class T>
inline Vec<T> magnitude(Vec<T> x) {
  return (Vec<T>)((IVec<T>)x & ~Simd<T>::sign_bit);
}

template <class T>
inline IVec<T> shifted_right(IVec<T> n, int bits) {  // n >= 0
  return (IVec<T>)((typename Simd<T>::uvec)n >> bits);
}

// 2^n for integral n in the normal range of the exponent.
template <class T>
inline Vec<T> power_of_two(IVec<T> n) {
  return (Vec<T>)((n + Simd<T>::exponent_bias) << Simd<T>::mantissa);
}

// x + tail = n ln 2 + r; returns expm1(r) and writes n. Without a tail there is none to add.
template <class T>
NATGRAD_INLINE Vec<T> reduced_expm1(Vec<T> x, IVec<T>* n, const Vec<T>* tail = nullptr) {
  using S = Simd<T>;
  const Vec<T> shifted =
      (tail != nullptr ? x + *tail : x) * T(1.44269504088896340736) + S::round_magic;
  const Vec<T> rounded = shifted - S::round_magic;
  *n = (IVec<T>)shifted - (IVec<T>)(S::round_magic - Vec<T>{});
  const Vec<T> high = x - rounded * S::ln2_high;
  const Vec<T> r =
      tail != nullptr ? high + (*tail - rounded * S::ln2_low) : high - rounded * S::ln2_low;
  return horner<T>(Polynomials<T>::expm1, r) * (r * r) + r;
}

// x 2^n, in two factors, so that results below the smallest normal number round once.
template <class T>
inline Vec<T> scaled(Vec<T> x, IVec<T> n) {
  constexpr int even = 4096;  // makes n positive: few machines shift wide signed integers
  const IVec<T> half = shifted_right<T>(n + even, 1) - even / 2;
  return x * power_of_two<T>(half) * power_of_two<T>(n - half);
}

// --- functions -----------------------------------------------------------------------------------

template <class T>
inline Vec<T> exp(Vec<T> x) {
  IVec<T> n;
  const Vec<T> em1 = reduced_expm1<T>(clamp<T>(x, Simd<T>::exp_min, Simd<T>::exp_max), &n);
  return scaled<T>(em1 + T(1), n);
}

// For x <= 80; 3 ulp above zero, where terms cancel.
template <class T>
inline Vec<T> expm1(Vec<T> x) {
  IVec<T> n;
  const Vec<T> em1 = reduced_expm1<T>(larger(T(-44) - Vec<T>{}, x), &n);
  const Vec<T> scale = power_of_two<T>(n);
  return x == T(0) ? x : em1 * scale + (scale - T(1));  // a zero keeps its sign
}

template <class T>
inline Vec<T> tanh(Vec<T> x) {
  using S = Simd<T>;
  // The magic number leaves n + bias in the low bits: shifted into place they are 2^n.
  constexpr T magic = S::round_magic + T(S::exponent_bias);
  const IVec<T> sign = (IVec<T>)x & S::sign_bit;
  const Vec<T> y = smaller(S::tanh_is_one - Vec<T>{}, magnitude<T>(x));
  const Vec<T> shifted = (y * T(2.88539008177792681472) - T(0.25)) + magic;
  const Vec<T> s = (Vec<T>)((IVec<T>)shifted << S::mantissa);
  const Vec<T> r = y - (shifted - magic) * T(0.34657359027997265471);
  const Vec<T> r2 = r * r;
  const Vec<T> w = r + (r * r2) * horner<T>(Polynomials<T>::tanh, r2);
  const Vec<T> numerator = (s - T(1)) + (s + T(1)) * w;
  const Vec<T> t = numerator / (numerator + (T(2) - T(2) * w));
  return (Vec<T>)((IVec<T>)t | sign);
}

template <class T>
inline Vec<T> log(Vec<T> x) {
  using S = Simd<T>;
  const IVec<T> denormal = x < S::smallest_normal;  // and what is replaced below
  const Vec<T> normal = denormal ? x * T(int64_t{1} << S::mantissa) : x;
  typedef typename S::uvec Unsigned;  // NaN may overflow
  const IVec<T> bits =
      (IVec<T>)((Unsigned)normal + (Unsigned)(S::one_bits - S::half_root_bits + IVec<T>{}));
  const Vec<T> m = (Vec<T>)((bits & S::mantissa_bits) + S::half_root_bits);
  // A small integer becomes a number in the low bits of the magic number.
  const Vec<T> unbiased = (Vec<T>)(shifted_right<T>(bits & S::infinity_bits, S::mantissa) +
                                   (IVec<T>)(S::round_magic - Vec<T>{})) -
                          (S::round_magic + T(S::exponent_bias));
  const Vec<T> k = denormal ? unbiased - T(S::mantissa) : unbiased;
  const Vec<T> f = m - T(1), s = f / (T(2) + f), s2 = s * s;
  const Vec<T> half_square = T(0.5) * f * f;
  const Vec<T> rest = s * (half_square + s2 * horner<T>(Polynomials<T>::log, s2));
  const Vec<T> y = k * S::ln2_high - ((half_square - (rest + k * S::ln2_low)) - f);
  const Vec<T> infinity = (Vec<T>)(S::infinity_bits + IVec<T>{});
  const Vec<T> not_positive = x == T(0) ? -infinity : infinity - infinity;
  return x > T(0) ? (x < infinity ? y : x) : (x != x ? x : not_positive);
}

// log(1 + x) for finite x > -1: what is lost in 1 + x is put back to first order.
template <class T>
inline Vec<T> log1p(Vec<T> x) {
  const Vec<T> u = T(1) + x;
  return u == T(1) ? x : log<T>(u) + (x - (u - T(1))) / u;
}

// 1 / (1 + exp(-x)), and the same of -x. exp(-|x|) keeps both tails down to the denormal numbers.
template <class T>
inline Vec<T> sigmoid(Vec<T> x, Vec<T>* complement) {
  const Vec<T> e = exp<T>(-magnitude<T>(x)), q = e / (T(1) + e);
  const Vec<T> above = T(1) - q, below = e - e * q;
  *complement = x < T(0) ? above : below;
  return x < T(0) ? below : above;
}

// Phi(-z) for z >= 0.
template <class T>
inline Vec<T> normal_tail(Vec<T> z) {
  using S = Simd<T>;
  z = smaller(S::cdf_is_zero - Vec<T>{}, z);
  const Vec<T> zh = high_half<T>(z), zl = z - zh;
  const Vec<T> tail =
      horner<T>(Polynomials<T>::cdf_tail, T(1) - T(6) / (z + T(3))) - T(0.5) * zl * (z + zh);
  IVec<T> n;
  const Vec<T> em1 = reduced_expm1<T>(T(-0.5) * zh * zh, &n, &tail);
  // (1 + em1) / (1 + z) without an intermediate rounding: inverse (1 + z) is 1 - rest.
  const Vec<T> sum = z + T(1), inverse = T(1) / sum;
  const Vec<T> ih = high_half<T>(inverse), il = inverse - ih;
  const Vec<T> sh = high_half<T>(sum), sl = (T(1) - sum) + z + (sum - sh);
  const Vec<T> rest = (((T(1) - ih * sh) - ih * sl) - il * sh) - il * sl;
  return scaled<T>(T(0.5) * (inverse + inverse * (em1 + rest)), n);
}

// The normal distribution function.
template <class T>
inline Vec<T> normal_cdf(Vec<T> x) {
  const Vec<T> z = magnitude<T>(x);
  const Vec<T> tail = normal_tail<T>(z);
  const Vec<T> middle = T(0.5) + x * horner<T>(Polynomials<T>::cdf_middle, x * x);
  return z < T(0.65) ? middle : (x < T(0) ? tail : T(1) - tail);
}

// --- activations ---------------------------------------------------------------------------------
//
// act'(z) is a function of h = act(z) for tanh, relu and elu; silu and gelu give both at once. The
// slopes pass through zero: their bound of 2 ulp is absolute, in ulps of max(|act'|, 1). silu and gelu
// are products of two rounded factors: 3 ulp, and absolute below 2^10 times the smallest normal
// number, where a factor is denormal.

template <class T>
inline Vec<T> tanh_slope(Vec<T> h) {
  return T(1) - h * h;
}

template <class T>
inline Vec<T> relu(Vec<T> z) {
  return z < T(0) ? Vec<T>{} : z;  // this way round NaN stays NaN
}
template <class T>
inline Vec<T> relu_slope(Vec<T> h) {
  return h > T(0) ? T(1) - Vec<T>{} : Vec<T>{};
}

template <class T>
inline Vec<T> elu(Vec<T> z) {
  return z < T(0) ? expm1<T>(z) : z;
}
template <class T>
inline Vec<T> elu_slope(Vec<T> h) {
  return (h > T(0) ? Vec<T>{} : h) + T(1);
}

// Infinite z are bounded where they would meet a factor of 0.
template <class T>
inline Vec<T> silu(Vec<T> z, Vec<T>* slope) {
  Vec<T> complement;
  const Vec<T> s = sigmoid<T>(z, &complement), bounded = clamp<T>(z, T(-1e3), T(1e3));
  *slope = s * (T(1) + bounded * complement);
  return larger(T(-1e3) - Vec<T>{}, z) * s;
}

template <class T>
inline Vec<T> gelu(Vec<T> z, Vec<T>* slope) {
  const Vec<T> cdf = normal_cdf<T>(z), bounded = clamp<T>(z, T(-1e3), T(1e3));
  const Vec<T> density = T(0.39894228040143267794) * exp<T>(T(-0.5) * bounded * bounded);
  *slope = cdf + bounded * density;
  return larger(T(-1e3) - Vec<T>{}, z) * cdf;
}

}  // namespace NATGRAD_NAMESPACE
