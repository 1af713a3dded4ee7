// Independent normal variables: K = 2 n, means, then log standard deviations.
//
//   s = (1 / sigma^2, 2),   M = diag(s)                                                     (eq. 2.4)
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "natgrad/base/random.hpp"
#include "natgrad/model/distributions/diagonal_fisher.hpp"

namespace natgrad {

struct DiagonalGaussian {
  Index n;
  bool state_dependent_std;  // else the log standard deviations are parameters of the policy

  Index parameter_size() const { return 2 * n; }
  Index action_size() const { return n; }
  Index fisher_rank() const { return 2 * n; }
  Index curvature_size() const { return 2 * n; }

  template <class T>
  double log_prob(const T* y, const T* action) const {
    constexpr double half_log_two_pi = 0.91893853320467274178;
    double sum = 0;
    for (Index i = 0; i < n; ++i) {
      const double z =
          (static_cast<double>(action[i]) - static_cast<double>(y[i])) * inverse_std(y[n + i]);
      sum -= 0.5 * z * z + static_cast<double>(y[n + i]) + half_log_two_pi;
    }
    return sum;
  }

  template <class T>
  double entropy(const T* y) const {
    constexpr double half_log_two_pi_e = 1.41893853320467274178;
    double sum = 0;
    for (Index i = 0; i < n; ++i) sum += half_log_two_pi_e + static_cast<double>(y[n + i]);
    return sum;
  }

  template <class T>
  double kl(const T* old_y, const T* y) const {
    double kl = 0;
    for (Index i = 0; i < n; ++i) {
      const double z =
          (static_cast<double>(y[i]) - static_cast<double>(old_y[i])) * inverse_std(y[n + i]);
      kl += 0.5 * z * z + divergence_of_std(old_y[n + i], y[n + i]);
    }
    return kl;
  }

  template <class T>
  void score(const T* y, const T* action, double scale, T* out) const {
    for (Index i = 0; i < n; ++i) {
      const double inverse = inverse_std(y[n + i]);
      const double z = (static_cast<double>(action[i]) - static_cast<double>(y[i])) * inverse;
      out[i] = static_cast<T>(scale * z * inverse);
      out[n + i] = static_cast<T>(scale * (z * z - 1));
    }
  }

  template <class T>
  void sample(const T* y, RandomStream random, T* action) const {
    for (Index i = 0; i < n; ++i) {
      const double std = std::exp(static_cast<double>(y[n + i]));
      action[i] = static_cast<T>(static_cast<double>(y[i]) + std * random.normal());
    }
  }

  template <class T>
  void mode(const T* y, T* action) const {
    std::copy_n(y, n, action);
  }

  template <class T>
  void curvature(const T* y, T* s) const {
    for (Index i = 0; i < n; ++i) {
      const double inverse = inverse_std(y[n + i]);
      s[i] = static_cast<T>(inverse * inverse);
      s[n + i] = T(2);
    }
  }

  template <class T>
  void fisher_product(const T* s, const T* u, double scale, T* out) const {
    diagonal_fisher::product(s, parameter_size(), u, scale, out);
  }
  template <class T, class Z>
  void fisher_root_product(const T* s, Z z, double scale, T* out) const {
    diagonal_fisher::root_product(s, parameter_size(), z, scale, out);
  }
  template <class T>
  void fisher_root_column(const T* s, Index column, double scale, T* out) const {
    diagonal_fisher::root_column(s, parameter_size(), column, scale, out);
  }

  template <class T>
  static double inverse_std(T log_std) {
    return std::exp(std::min(-static_cast<double>(log_std), 350.0));  // 0 times its square is 0
  }
  // KL of two normal distributions of the same mean.
  template <class T>
  static double divergence_of_std(T old_log_std, T log_std) {
    const double d = static_cast<double>(log_std) - static_cast<double>(old_log_std);
    return d < -400 ? std::numeric_limits<double>::infinity() : 0.5 * (std::expm1(-2 * d) + 2 * d);
  }
};

}  // namespace natgrad
