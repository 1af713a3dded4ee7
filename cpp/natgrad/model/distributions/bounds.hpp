// Actions between bounds. What distributions, batches and rollouts have is u; an environment takes a.
#pragma once

#include <vector>

#include "natgrad/base/types.hpp"
#include "natgrad/model/distributions/special_functions.hpp"

namespace natgrad {

// Actions in a box, a = low + (high - low) (1 + tanh u) / 2 per dimension (eq. 2.7). A number a near a bound
// has lost its distance to the bound to rounding; u has not. Densities are those of a.
struct Bounds {
  std::vector<double> low, high;

  // (1 + tanh u) / 2 and its logarithm
  static double fraction(double u) { return sigmoid(2 * u); }
  static double log_fraction(double u) { return -softplus(-2 * u); }

  // a of u, row after row; never beyond the bounds.
  template <class T>
  void apply(Matrix<const T> u, T* a) const;
  // u of a. For the bounds themselves u would be infinite; they get the first u that reaches them in double.
  double invert(double a, std::size_t i) const;

  double log_width() const {
    double sum = 0;
    for (std::size_t i = 0; i < low.size(); ++i) sum += std::log(high[i] - low[i]);
    return sum;
  }
  // log |da/du|                                                                             (eq. 2.8)
  template <class T>
  double log_volume(const T* u) const {
    double sum = log_width();
    for (std::size_t i = 0; i < low.size(); ++i) sum += log_slope(static_cast<double>(u[i]));
    return sum;
  }
  // log(da/du / (high - low)) = log(2 f (1 - f)) with f the fraction
  static double log_slope(double u) {
    constexpr double log_two = 0.69314718055994530942;
    return log_two - 2 * std::abs(u) - 2 * std::log1p(std::exp(-2 * std::abs(u)));
  }
};

}  // namespace natgrad
