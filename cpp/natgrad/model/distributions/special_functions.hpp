// Special functions of the distributions, in double. A NaN stays one.
//
// The logarithm of the Gamma function, its derivatives, and differences of them that do not cancel take
// arguments z >= 1. Recurrences lead to z >= 10, where Stirling's series (Abramowitz and Stegun 1964, 6.1.40,
// 6.3.18, 6.4.12) is cut off as soon as its next term is below 1e-17 of the whole. Errors are a few 1e-16
// of the largest term.
#pragma once

#include <algorithm>
#include <cmath>

#include "natgrad/base/random.hpp"

namespace natgrad {

namespace detail {

// B_2k / (2k (2k - 1)), the coefficients of z^-(2k - 1) in log Gamma.
constexpr int kStirlingTerms = 8;
constexpr double kStirling[kStirlingTerms] = {1.0 / 12,    -1.0 / 360,      1.0 / 1260,
                                              -1.0 / 1680, 1.0 / 1188,      -691.0 / 360360,
                                              1.0 / 156,   -3617.0 / 122400};
constexpr double kLargeArgument = 10;
constexpr int kMostShifts = 10;  // from 1 to there

// sum_k weight(2k - 1) kStirling[k] z^-2(k - 1)
template <class Weight>
double stirling_sum(double z, Weight weight) {
  const double r = 1 / (z * z);
  double sum = 0;
  for (int k = kStirlingTerms; k >= 1; --k) sum = sum * r + weight(2 * k - 1) * kStirling[k - 1];
  return sum;
}

}  // namespace detail

// log(1 + exp(x)) without overflow.
inline double softplus(double x) {
  return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
}

inline double sigmoid(double x) {
  const double e = std::exp(-std::abs(x));
  return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

// softplus(y + e) - softplus(y), which is e sigmoid(y) for small e.
inline double softplus_change(double y, double e) {
  if (std::abs(e) < 1) return std::log1p(sigmoid(y) * std::expm1(e));
  return softplus(y + e) - softplus(y);
}

// log(1 + x) - x, whose terms cancel for small x: with s = x / (2 + x) it is 2 artanh(s) - x.
inline double log1p_minus(double x) {
  if (!(std::abs(x) < 0.25)) return std::log1p(x) - x;
  const double s = x / (2 + x), s2 = s * s;
  double sum = 0;
  for (int k = 21; k >= 3; k -= 2) sum = sum * s2 + 1.0 / k;
  return s * (2 * s2 * sum - x);
}

inline double log_gamma(double z) {
  constexpr double half_log_two_pi = 0.91893853320467274178;
  double product = 1;
  for (; z < detail::kLargeArgument; ++z) product *= z;
  const double tail = detail::stirling_sum(z, [](int) { return 1; }) / z;
  return (z - 0.5) * std::log(z) - z + half_log_two_pi + tail - std::log(product);
}

inline double log_beta(double a, double b) {
  return log_gamma(a) + log_gamma(b) - log_gamma(a + b);
}

// (log Gamma)'
inline double digamma(double z) {
  double above = 0, below = 1;  // sum 1 / z, as one fraction
  for (; z < detail::kLargeArgument; ++z) {
    above = above * z + below;
    below *= z;
  }
  const double tail = detail::stirling_sum(z, [](int p) { return p; }) / (z * z);
  return std::log(z) - 0.5 / z - tail - above / below;
}

// (log Gamma)''
inline double trigamma(double z) {
  double above = 0, below = 1;  // sum 1 / z^2
  for (; z < detail::kLargeArgument; ++z) {
    above = above * (z * z) + below;
    below *= z * z;
  }
  const double r = 1 / z;
  return above / below + r +
         r * r * (0.5 + r * detail::stirling_sum(z, [](int p) { return p * (p + 1); }));
}

// trigamma(z) - trigamma(z + d), d >= 0. With q = d / (z + d), powers fall by
// z^-p - (z + d)^-p = z^-p g_p, where g_1 = q and g_(p + 1) = q + (1 - q) g_p.
inline double trigamma_drop(double z, double d) {
  double sum = 0;
  for (; z < detail::kLargeArgument; ++z) {
    const double r = 1 / (z * (z + d));
    sum += (d * r) * ((2 * z + d) * r);
  }
  const double r = 1 / z, q = d / (z + d);
  double g = q, power = r;
  sum += power * g;
  g = q + (1 - q) * g;
  power *= r;
  sum += 0.5 * power * g;
  for (int k = 1; k <= detail::kStirlingTerms; ++k) {
    const double factor = 2 * k * (2 * k - 1) * detail::kStirling[k - 1];
    g = q + (1 - q) * g;
    power *= r;
    sum += factor * power * g;
    g = q + (1 - q) * g;
    power *= r;
  }
  return sum;
}

// log Gamma(z + d) - log Gamma(z) - d digamma(z), which is >= 0 and of second order in d; `moved` = z + d >= 1,
// of which nothing may be left in z + d itself. With t = d / z, powers leave
// (1 + t)^-p - 1 + p t = f_p, where f_p = (f_(p-1) + p t^2) / (1 + t).
inline double log_gamma_remainder(double z, double d, double moved) {
  double sum = 0;
  if (moved < 1e-6 * z || moved > 1e3 * z) {  // far apart: nothing cancels but in powers of t
    for (; std::min(moved, z) < detail::kLargeArgument; ++moved, ++z) {
      sum -= std::log(moved / z) - d / z;
    }
    const auto one = [](int) { return 1; };
    const auto power = [](int p) { return p; };
    sum += (moved - 0.5) * std::log(moved / z) - (z - 0.5) * (d / z);
    sum += detail::stirling_sum(moved, one) / moved - detail::stirling_sum(z, one) / z;
    return sum + (d / z) * (detail::stirling_sum(z, power) / z);
  }
  const auto small = [&] { return z < detail::kLargeArgument || z + d < detail::kLargeArgument; };
  if (std::abs(d) < 0.25 * z) {  // the product of all 1 + d / z is 1 + first + second
    double first = 0, second = 0;
    for (int k = 0; k < detail::kMostShifts && small(); ++k, ++z) {
      const double t = d / z;
      second += (first + second) * t;
      first += t;
    }
    sum = -second - log1p_minus(first + second);
  }
  for (int k = 0; k < detail::kMostShifts && small(); ++k, ++z) {
    sum -= log1p_minus(d / z);
  }
  const double t = d / z, r = 1 / (1 + t), square = t * t;
  sum += (z + d - 0.5) * log1p_minus(t) + d * t;
  double f = 0, power = 1 / z;
  for (int k = 1; k <= detail::kStirlingTerms; ++k) {
    f = r * (f + (2 * k - 1) * square);
    sum += detail::kStirling[k - 1] * power * f;
    f = r * (f + 2 * k * square);
    power /= z * z;
  }
  return sum;
}

// The logarithm of a variable with density x^(a - 1) exp(-x) / Gamma(a), a >= 1, by rejection
// (Marsaglia and Tsang, "A simple method for generating gamma variables", 2000).
inline double log_gamma_variate(double a, RandomStream* random) {
  const double d = a - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = random->normal(), y = c * x;
    if (y <= -1) continue;
    const double v_minus_1 = y * (3 + y * (3 + y));
    // Not the other way round: a NaN ends it.
    const bool rejected = std::log(random->uniform()) >= 0.5 * x * x + d * log1p_minus(v_minus_1);
    if (!rejected) return std::log(d) + 3 * std::log1p(y);
  }
}

}  // namespace natgrad
