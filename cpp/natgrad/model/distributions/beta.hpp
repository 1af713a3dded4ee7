// Independent Beta variables between bounds: K = 2 n outputs y, and softplus(y) is alpha - 1 for the first n
// and beta - 1 for the others. Alpha and beta above 1 give a density with one mode that falls to zero at
// the bounds (Chou, Maturana and Scherer, "Improving stochastic policy gradients in continuous control
// with deep reinforcement learning using the Beta distribution", ICML 2017). Actions are u of bounds.hpp.
//
//   s = (l11, l21, l22),   M = L L'  per dimension                                         (eq. 2.14)
#pragma once

#include "natgrad/model/distributions/bounds.hpp"

namespace natgrad {

struct Beta {
  Index n;
  Bounds bounds;

  Index parameter_size() const { return 2 * n; }
  Index action_size() const { return n; }
  Index fisher_rank() const { return 2 * n; }
  Index curvature_size() const { return 3 * n; }

  template <class T>
  double log_prob(const T* y, const T* action) const {
    double sum = -bounds.log_width();
    for (Index i = 0; i < n; ++i) {
      const double u = static_cast<double>(action[i]);
      const double a = excess(y[i]), b = excess(y[n + i]);
      sum += a * Bounds::log_fraction(u) + b * Bounds::log_fraction(-u) - log_beta(1 + a, 1 + b);
    }
    return sum;
  }

  template <class T>
  double entropy(const T* y) const {
    double sum = bounds.log_width();
    for (Index i = 0; i < n; ++i) {
      const double a = excess(y[i]), b = excess(y[n + i]);
      sum += log_beta(1 + a, 1 + b) - a * digamma(1 + a) - b * digamma(1 + b) +
             (a + b) * digamma(2 + a + b);
    }
    return sum;
  }

  // The Bregman divergence of log B, from remainders of second order                      (eq. 2.15)
  template <class T>
  double kl(const T* old_y, const T* y) const {
    double kl = 0;
    for (Index i = 0; i < n; ++i) {
      const double a = 1 + excess(old_y[i]), b = 1 + excess(old_y[n + i]);
      const double da = change(old_y[i], y[i]), db = change(old_y[n + i], y[n + i]);
      const double new_a = 1 + excess(y[i]), new_b = 1 + excess(y[n + i]);
      const double divergence = log_gamma_remainder(a, da, new_a) +
                                log_gamma_remainder(b, db, new_b) -
                                log_gamma_remainder(a + b, da + db, new_a + new_b);
      kl += divergence < 0 ? 0 : divergence;  // rounding; a NaN stays
    }
    return kl;
  }

  template <class T>
  void score(const T* y, const T* action, double scale, T* out) const {
    for (Index i = 0; i < n; ++i) {
      const double u = static_cast<double>(action[i]);
      const double a = 1 + excess(y[i]), b = 1 + excess(y[n + i]), both = digamma(a + b);
      out[i] = static_cast<T>(scale * slope(y[i]) * (Bounds::log_fraction(u) - digamma(a) + both));
      out[n + i] =
          static_cast<T>(scale * slope(y[n + i]) * (Bounds::log_fraction(-u) - digamma(b) + both));
    }
  }

  // x / (1 - x) is the quotient of two Gamma variables, and exp(2 u).
  template <class T>
  void sample(const T* y, RandomStream random, T* action) const {
    for (Index i = 0; i < n; ++i) {
      const double x = log_gamma_variate(1 + excess(y[i]), &random);
      action[i] = static_cast<T>(0.5 * (x - log_gamma_variate(1 + excess(y[n + i]), &random)));
    }
  }

  // The mode of the density of u, which is where x has its mean alpha / (alpha + beta): inside the
  // bounds and continuous for all parameters. The mode of x is neither where alpha or beta is 1.
  template <class T>
  void mode(const T* y, T* action) const {
    for (Index i = 0; i < n; ++i) {
      action[i] = static_cast<T>(0.5 * std::log((1 + excess(y[i])) / (1 + excess(y[n + i]))));
    }
  }

  // Cholesky's factor of M per dimension: rounded to T it leaves M positive semidefinite.
  template <class T>
  void curvature(const T* y, T* s) const {
    for (Index i = 0; i < n; ++i, s += 3) {
      const double a = 1 + excess(y[i]), b = 1 + excess(y[n + i]), both = trigamma(a + b);
      const double first = std::sqrt(trigamma_drop(a, b)), across = first > 0 ? -both / first : 0;
      const double rest = trigamma_drop(b, a) - across * across;
      const double slope_b = slope(y[n + i]);
      s[0] = static_cast<T>(slope(y[i]) * first);
      s[1] = static_cast<T>(slope_b * across);
      s[2] = static_cast<T>(slope_b * std::sqrt(rest < 0 ? 0 : rest));
    }
  }

  template <class T>
  void fisher_product(const T* s, const T* u, double scale, T* out) const {
    for (Index i = 0; i < n; ++i, s += 3) {
      const double l11 = static_cast<double>(s[0]), l21 = static_cast<double>(s[1]);
      const double l22 = static_cast<double>(s[2]), v = static_cast<double>(u[n + i]);
      const double along = scale * (l11 * static_cast<double>(u[i]) + l21 * v);
      out[i] = static_cast<T>(l11 * along);
      out[n + i] = static_cast<T>(l21 * along + scale * l22 * l22 * v);
    }
  }

  template <class T, class Z>
  void fisher_root_product(const T* s, Z z, double scale, T* out) const {
    for (Index i = 0; i < n; ++i, s += 3) {
      const double first = z(i);
      out[i] = static_cast<T>(scale * static_cast<double>(s[0]) * first);
      out[n + i] = static_cast<T>(
          scale * (static_cast<double>(s[1]) * first + static_cast<double>(s[2]) * z(n + i)));
    }
  }

  template <class T>
  void fisher_root_column(const T* s, Index column, double scale, T* out) const {
    std::fill_n(out, 2 * n, T(0));
    const Index i = column % n;
    if (column < n) out[i] = static_cast<T>(scale * static_cast<double>(s[3 * i]));
    out[n + i] = static_cast<T>(scale * static_cast<double>(s[3 * i + (column < n ? 1 : 2)]));
  }

  // alpha - 1 of an output y, its derivative, and its change. They are NaN where y is not finite, and
  // constant beyond 1e300, so that no sum of them overflows.
  template <class T>
  static double bounded(T y) {
    return std::min(static_cast<double>(y), 1e300) + 0 * static_cast<double>(y);
  }
  template <class T>
  static double excess(T y) {
    return softplus(bounded(y));
  }
  template <class T>
  static double slope(T y) {
    return sigmoid(static_cast<double>(y));
  }
  template <class T>
  static double change(T old_y, T y) {
    const double e = bounded(y) - bounded(old_y);
    return std::abs(e) < 1e15 ? softplus_change(bounded(old_y), e) : excess(y) - excess(old_y);
  }
};

}  // namespace natgrad
