// One or several independent categorical variables: K logits, one variable after the other.
//
//   s = p,   M = diag(p) - p p'  per variable                                               (eq. 2.5)
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "natgrad/base/random.hpp"
#include "natgrad/base/types.hpp"

namespace natgrad {

namespace detail {

template <class T>
double largest(const T* y, Index n) {
  return static_cast<double>(*std::max_element(y, y + n));
}

// log sum exp of n logits, by the largest.
template <class T>
double log_sum_exp(const T* y, Index n) {
  const double shift = largest(y, n);
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += std::exp(static_cast<double>(y[i]) - shift);
  return shift + std::log(sum);
}

// visit(i, p_i) for the probabilities of n logits. A few are kept, so that each exponential is taken
// once.
template <class T, class Visit>
void softmax(const T* y, Index n, Visit visit) {
  constexpr Index kKept = 16;
  const double shift = largest(y, n);
  double kept[kKept], sum = 0;
  for (Index i = 0; i < n; ++i) {
    const double weight = std::exp(static_cast<double>(y[i]) - shift);
    if (i < kKept) kept[i] = weight;
    sum += weight;
  }
  for (Index i = 0; i < n; ++i) {
    visit(i, (i < kKept ? kept[i] : std::exp(static_cast<double>(y[i]) - shift)) / sum);
  }
}

}  // namespace detail

struct Categoricals {
  std::vector<Index> sizes;
  Index total = 0;  // sum of sizes
  bool single;      // Categorical(n) rather than MultiCategorical((n,)): actions have no axis

  explicit Categoricals(std::vector<Index> sizes_, bool single_)
      : sizes(std::move(sizes_)), single(single_) {
    for (const Index n : sizes) total += n;
  }

  Index parameter_size() const { return total; }
  Index action_size() const { return static_cast<Index>(sizes.size()); }
  Index fisher_rank() const { return total - action_size(); }
  Index curvature_size() const { return total; }

  template <class T>
  double log_prob(const T* y, const T* action) const {
    double sum = 0;
    for (std::size_t j = 0; j < sizes.size(); y += sizes[j++]) {
      sum +=
          static_cast<double>(y[static_cast<Index>(action[j])]) - detail::log_sum_exp(y, sizes[j]);
    }
    return sum;
  }

  // log Z - sum p y, with both sums over the same exponentials.
  template <class T>
  double entropy(const T* y) const {
    double entropy = 0;
    for (std::size_t j = 0; j < sizes.size(); y += sizes[j++]) {
      const double largest = detail::largest(y, sizes[j]);
      double mass = 0, weighted = 0;
      for (Index i = 0; i < sizes[j]; ++i) {
        const double z = static_cast<double>(y[i]) - largest;
        const double weight = std::exp(z);
        mass += weight;
        if (weight > 0) weighted += weight * z;
      }
      entropy += std::log(mass) - weighted / mass;
    }
    return entropy;
  }

  // KL = sum p (log p - log p_new). Near p both logarithms are nearly equal; with the differences of
  // logits e_i it is log(sum p exp(e)) - sum p e, and log1p and expm1 keep its second order.
  template <class T>
  double kl(const T* old_y, const T* y) const {
    double kl = 0;
    for (std::size_t j = 0; j < sizes.size(); y += sizes[j], old_y += sizes[j++]) {
      const double old_largest = detail::largest(old_y, sizes[j]);
      // A common shift of the logits changes nothing; take the first difference out.
      const double shift = static_cast<double>(y[0]) - static_cast<double>(old_y[0]);
      double largest = 0, mass = 0, mean = 0, mean_expm1 = 0;
      for (Index i = 0; i < sizes[j]; ++i) {
        const double e = static_cast<double>(y[i]) - static_cast<double>(old_y[i]) - shift;
        const double weight = std::exp(static_cast<double>(old_y[i]) - old_largest);
        largest = std::max(largest, std::abs(e));
        mass += weight;
        if (weight > 0) mean += weight * e;
        mean_expm1 += weight * std::expm1(e);
      }
      mean /= mass;
      if (largest < 1) {
        kl += std::log1p(mean_expm1 / mass) - mean;
      } else {
        kl += detail::log_sum_exp(y, sizes[j]) - shift - old_largest - std::log(mass) - mean;
      }
    }
    return kl;
  }

  template <class T>
  void score(const T* y, const T* action, double scale, T* out) const {
    for (std::size_t j = 0; j < sizes.size(); y += sizes[j], out += sizes[j++]) {
      const Index chosen = static_cast<Index>(action[j]);
      detail::softmax(y, sizes[j], [&](Index i, double p) {
        out[i] = static_cast<T>(scale * ((i == chosen ? 1.0 : 0.0) - p));
      });
    }
  }

  // Inverse transform: the first category whose cumulative probability exceeds a uniform number.
  template <class T>
  void sample(const T* y, RandomStream random, T* action) const {
    for (std::size_t j = 0; j < sizes.size(); y += sizes[j++]) {
      const double normalizer = detail::log_sum_exp(y, sizes[j]);
      const double uniform = random.uniform();
      double cumulative = 0;
      Index chosen = 0;
      for (Index i = 0; i < sizes[j]; ++i) {
        const double p = std::exp(static_cast<double>(y[i]) - normalizer);
        if (p > 0) chosen = i;  // rounding may leave the total below the uniform number
        cumulative += p;
        if (uniform < cumulative) break;
      }
      action[j] = static_cast<T>(chosen);
    }
  }

  template <class T>
  void mode(const T* y, T* action) const {
    for (std::size_t j = 0; j < sizes.size(); y += sizes[j++]) {
      action[j] = static_cast<T>(std::max_element(y, y + sizes[j]) - y);
    }
  }

  template <class T>
  void curvature(const T* y, T* s) const {
    for (std::size_t j = 0; j < sizes.size(); y += sizes[j], s += sizes[j++]) {
      detail::softmax(y, sizes[j], [&](Index i, double p) { s[i] = static_cast<T>(p); });
    }
  }

  template <class T>
  void fisher_product(const T* s, const T* u, double scale, T* out) const {
    for (std::size_t j = 0; j < sizes.size(); s += sizes[j], u += sizes[j], out += sizes[j++]) {
      double mean = 0;
      for (Index i = 0; i < sizes[j]; ++i)
        mean += static_cast<double>(s[i]) * static_cast<double>(u[i]);
      for (Index i = 0; i < sizes[j]; ++i) {
        out[i] =
            static_cast<T>(scale * static_cast<double>(s[i]) * (static_cast<double>(u[i]) - mean));
      }
    }
  }

  // out = scale Q z with z(0) .. z(rank - 1): a combination of the columns below.
  template <class T, class Z>
  void fisher_root_product(const T* s, Z z, double scale, T* out) const {
    Index column = 0;
    for (std::size_t j = 0; j < sizes.size(); s += sizes[j], out += sizes[j++]) {
      const Index last = sizes[j] - 1;
      const double q_last = std::sqrt(static_cast<double>(s[last]));
      double along = 0;
      for (Index i = 0; i < last; ++i) {
        along += std::sqrt(static_cast<double>(s[i])) * z(column + i);
      }
      along /= 1 + q_last;
      for (Index i = 0; i < last; ++i) {
        const double q = std::sqrt(static_cast<double>(s[i]));
        out[i] = static_cast<T>(scale * q * (z(column + i) - q * along));
      }
      out[last] = static_cast<T>(-scale * q_last * (q_last + 1) * along);
      column += last;
    }
  }

  // I - q q' = H (I - e e') H with e the last unit vector and H the reflection that takes q to -e,
  // so every column of diag(q) H but the last, one less than there are categories.
  template <class T>
  void fisher_root_column(const T* s, Index column, double scale, T* out) const {
    std::fill_n(out, total, T(0));
    for (std::size_t j = 0; j < sizes.size();
         s += sizes[j], out += sizes[j], column -= sizes[j++] - 1) {
      const Index last = sizes[j] - 1;
      if (column >= last) continue;
      const double q_last = std::sqrt(static_cast<double>(s[last]));
      const double along = std::sqrt(static_cast<double>(s[column])) / (1 + q_last);
      for (Index i = 0; i <= last; ++i) {
        const double q = std::sqrt(static_cast<double>(s[i]));
        const double normal = i == last ? q + 1 : q;
        out[i] = static_cast<T>(scale * q * ((i == column ? 1.0 : 0.0) - normal * along));
      }
      return;
    }
  }
};

}  // namespace natgrad
