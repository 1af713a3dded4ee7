// Independent binary variables: K = n logits.
//
//   s = p (1 - p),   M = diag(s)                                                            (eq. 2.6)
#pragma once

#include "natgrad/base/random.hpp"
#include "natgrad/model/distributions/diagonal_fisher.hpp"
#include "natgrad/model/distributions/special_functions.hpp"

namespace natgrad {

struct Bernoulli {
  Index n;

  Index parameter_size() const { return n; }
  Index action_size() const { return n; }
  Index fisher_rank() const { return n; }
  Index curvature_size() const { return n; }

  template <class T>
  double log_prob(const T* y, const T* action) const {
    double sum = 0;
    for (Index i = 0; i < n; ++i) {
      const double logit = static_cast<double>(y[i]);
      sum -= softplus(action[i] > T(0.5) ? -logit : logit);
    }
    return sum;
  }

  template <class T>
  double entropy(const T* y) const {
    double sum = 0;
    for (Index i = 0; i < n; ++i) {
      const double logit = static_cast<double>(y[i]);
      sum += softplus(logit) - logit * sigmoid(logit);
    }
    return sum;
  }

  // As for a softmax of the two logits (0, y).
  template <class T>
  double kl(const T* old_y, const T* y) const {
    double kl = 0;
    for (Index i = 0; i < n; ++i) {
      const double old_logit = static_cast<double>(old_y[i]);
      const double e = static_cast<double>(y[i]) - old_logit;
      kl += softplus_change(old_logit, e) - sigmoid(old_logit) * e;
    }
    return kl;
  }

  template <class T>
  void score(const T* y, const T* action, double scale, T* out) const {
    for (Index i = 0; i < n; ++i) {
      const double p = sigmoid(static_cast<double>(y[i]));
      out[i] = static_cast<T>(scale * ((action[i] > T(0.5) ? 1.0 : 0.0) - p));
    }
  }

  template <class T>
  void sample(const T* y, RandomStream random, T* action) const {
    for (Index i = 0; i < n; ++i) {
      action[i] = random.uniform() < sigmoid(static_cast<double>(y[i])) ? T(1) : T(0);
    }
  }

  template <class T>
  void mode(const T* y, T* action) const {
    for (Index i = 0; i < n; ++i) action[i] = y[i] > T(0) ? T(1) : T(0);
  }

  template <class T>
  void curvature(const T* y, T* s) const {
    for (Index i = 0; i < n; ++i) {
      const double logit = static_cast<double>(y[i]);
      s[i] = static_cast<T>(sigmoid(logit) * sigmoid(-logit));
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
};

}  // namespace natgrad
