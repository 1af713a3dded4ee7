// Action distributions in their own parameters: one row y of K parameters for each observation.
//
//   Categoricals      logits of one or several independent categorical variables (softmax each)
//   DiagonalGaussian  K = 2n: means, then log standard deviations
//   Bernoulli         K = n: logits of independent binary variables
//   Beta              K = 2n: softplus gives alpha - 1 of the first n, beta - 1 of the others
//
// Actions of a Beta, and of a Gaussian with bounds, are numbers u that Bounds takes into an interval on
// their way to the environment.
//
// Each row function takes the row of one observation and computes in double. The Fisher information
// M (K, K) of a row is a function of its `curvature` state s, computed once per batch:
//
//   Categoricals      s = p                 M = diag(p) - p p'  per variable     (eq. 6)
//   DiagonalGaussian  s = (1/sigma^2, 2)    M = diag(s)                          (eq. 5)
//   Bernoulli         s = p (1 - p)         M = diag(s)                          (eq. 7)
//   Beta              s = (l11, l21, l22)   M = L L'  per dimension              (eq. 57)
//
// M has a root Q (K, rank), Q Q' = M: diag(sqrt(s)) where M is diagonal, L, and for a softmax
// columns of diag(q) H with q = sqrt(p) and a reflection H, see fisher_root_column.
//
// DistributionRows does the same for many rows at once, by kernels where they pay.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <variant>
#include <vector>

#include "natgrad/base/random.hpp"
#include "natgrad/base/types.hpp"
#include "natgrad/model/special_functions.hpp"

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

}  // namespace detail

// Actions in a box, a = low + (high - low) (1 + tanh u) / 2 per dimension (eq. 50). Distributions,
// batches and rollouts have u: in a number near a bound, its distance to the bound has been rounded
// away. Densities are those of a.
struct Bounds {
  std::vector<double> low, high;

  // (1 + tanh u) / 2 and its logarithm
  static double fraction(double u) { return detail::sigmoid(2 * u); }
  static double log_fraction(double u) { return -detail::softplus(-2 * u); }

  // a of u, row after row; never beyond the bounds.
  template <class T>
  void apply(Matrix<const T> u, T* a) const;
  // u of a. The bounds themselves are infinitely far; they get the first u that reaches them in double.
  double invert(double a, std::size_t i) const;

  double log_width() const {
    double sum = 0;
    for (std::size_t i = 0; i < low.size(); ++i) sum += std::log(high[i] - low[i]);
    return sum;
  }
  // log |da/du|                                                                             (eq. 51)
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

struct DiagonalGaussian {
  Index n;
  bool state_dependent_std;
  std::optional<Bounds> bounds = {};  // SquashedGaussian(n, ...): the variable is u

  Index parameter_size() const { return 2 * n; }
  Index action_size() const { return n; }
  Index fisher_rank() const { return 2 * n; }
  Index curvature_size() const { return 2 * n; }

  template <class T>
  double log_prob(const T* y, const T* action) const {
    return log_prob_of_normal(y, action) - (bounds ? bounds->log_volume(action) : 0);
  }
  template <class T>
  double log_prob_of_normal(const T* y, const T* action) const {
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
    return entropy_of_normal(y) + (bounds ? expected_log_volume(y) : 0);
  }
  template <class T>
  double entropy_of_normal(const T* y) const {
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
    for (Index i = 0; i < 2 * n; ++i) out[i] = static_cast<T>(scale) * s[i] * u[i];
  }

  template <class T, class Z>
  void fisher_root_product(const T* s, Z z, double scale, T* out) const {
    for (Index i = 0; i < 2 * n; ++i) {
      out[i] = static_cast<T>(scale * z(i) * std::sqrt(static_cast<double>(s[i])));
    }
  }

  template <class T>
  void fisher_root_column(const T* s, Index column, double scale, T* out) const {
    std::fill_n(out, 2 * n, T(0));
    out[column] = static_cast<T>(scale * std::sqrt(static_cast<double>(s[column])));
  }

  // E log |da/du| (eq. 55) has no closed form. The trapezoidal rule converges exponentially, with
  // log(1 - tanh^2) analytic within pi/2 of the real line: its error is exp(-pi^2 / (sigma step)).
  // Beyond sigma = 64 the step is no longer shortened and the relative error may reach 1e-6.
  template <class T>
  double expected_log_volume(const T* y) const {
    constexpr double kReach = 8.5, kDensity = 0.39894228040143267794;
    double sum = bounds->log_width();
    for (Index i = 0; i < n; ++i) {
      const double mean = static_cast<double>(y[i]);
      const double std = std::min(std::exp(static_cast<double>(y[n + i])), 1e300);
      const double step = 0.125 / std::clamp(0.5 * std, 1.0, 32.0);
      const Index half = static_cast<Index>(kReach / step);
      for (Index k = -half; k <= half; ++k) {
        const double z = static_cast<double>(k) * step;
        sum += step * kDensity * std::exp(-0.5 * z * z) * Bounds::log_slope(mean + std * z);
      }
    }
    return sum;
  }

  template <class T>
  static double inverse_std(T log_std) {
    return std::exp(-static_cast<double>(log_std));
  }
  // KL of two normal distributions of the same mean.
  template <class T>
  static double divergence_of_std(T old_log_std, T log_std) {
    const double d = static_cast<double>(log_std) - static_cast<double>(old_log_std);
    return 0.5 * (std::expm1(-2 * d) + 2 * d);
  }
};

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
      sum -= detail::softplus(action[i] > T(0.5) ? -logit : logit);
    }
    return sum;
  }

  template <class T>
  double entropy(const T* y) const {
    double sum = 0;
    for (Index i = 0; i < n; ++i) {
      const double logit = static_cast<double>(y[i]);
      sum += detail::softplus(logit) - logit * detail::sigmoid(logit);
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
      kl += detail::softplus_change(old_logit, e) - detail::sigmoid(old_logit) * e;
    }
    return kl;
  }

  template <class T>
  void score(const T* y, const T* action, double scale, T* out) const {
    for (Index i = 0; i < n; ++i) {
      const double p = detail::sigmoid(static_cast<double>(y[i]));
      out[i] = static_cast<T>(scale * ((action[i] > T(0.5) ? 1.0 : 0.0) - p));
    }
  }

  template <class T>
  void sample(const T* y, RandomStream random, T* action) const {
    for (Index i = 0; i < n; ++i) {
      action[i] = random.uniform() < detail::sigmoid(static_cast<double>(y[i])) ? T(1) : T(0);
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
      s[i] = static_cast<T>(detail::sigmoid(logit) * detail::sigmoid(-logit));
    }
  }

  template <class T>
  void fisher_product(const T* s, const T* u, double scale, T* out) const {
    for (Index i = 0; i < n; ++i) out[i] = static_cast<T>(scale) * s[i] * u[i];
  }

  template <class T, class Z>
  void fisher_root_product(const T* s, Z z, double scale, T* out) const {
    for (Index i = 0; i < n; ++i) {
      out[i] = static_cast<T>(scale * z(i) * std::sqrt(static_cast<double>(s[i])));
    }
  }

  template <class T>
  void fisher_root_column(const T* s, Index column, double scale, T* out) const {
    std::fill_n(out, n, T(0));
    out[column] = static_cast<T>(scale * std::sqrt(static_cast<double>(s[column])));
  }
};

// Chou, Maturana and Scherer, "Improving stochastic policy gradients in continuous control with deep
// reinforcement learning using the Beta distribution", ICML 2017: alpha and beta above 1, so that the
// density has one mode and falls to zero at the bounds.
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

  // The Bregman divergence of log B, from remainders of second order                      (eq. 58)
  template <class T>
  double kl(const T* old_y, const T* y) const {
    double kl = 0;
    for (Index i = 0; i < n; ++i) {
      const double a = 1 + excess(old_y[i]), b = 1 + excess(old_y[n + i]);
      const double da = change(old_y[i], y[i]), db = change(old_y[n + i], y[n + i]);
      const double divergence = log_gamma_remainder(a, da) + log_gamma_remainder(b, db) -
                                log_gamma_remainder(a + b, da + db);
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
      const double first = std::sqrt(trigamma_drop(a, b)), across = -both / first;
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

  // alpha - 1 of an output y, its derivative, and its change. Of what is not finite, NaN.
  template <class T>
  static double excess(T y) {
    return detail::softplus(static_cast<double>(y)) + 0 * static_cast<double>(y);
  }
  template <class T>
  static double slope(T y) {
    return detail::sigmoid(static_cast<double>(y));
  }
  template <class T>
  static double change(T old_y, T y) {
    return detail::softplus_change(static_cast<double>(old_y),
                                   static_cast<double>(y) - static_cast<double>(old_y));
  }
};

using Distribution = std::variant<Categoricals, DiagonalGaussian, Bernoulli, Beta>;

inline Index parameter_size(const Distribution& distribution) {
  return std::visit([](const auto& d) { return d.parameter_size(); }, distribution);
}
inline Index action_size(const Distribution& distribution) {
  return std::visit([](const auto& d) { return d.action_size(); }, distribution);
}
inline Index fisher_rank(const Distribution& distribution) {
  return std::visit([](const auto& d) { return d.fisher_rank(); }, distribution);
}
inline Index curvature_size(const Distribution& distribution) {
  return std::visit([](const auto& d) { return d.curvature_size(); }, distribution);
}
inline bool is_discrete(const Distribution& distribution) {
  return std::holds_alternative<Categoricals>(distribution) ||
         std::holds_alternative<Bernoulli>(distribution);
}
// Null where actions reach the environment as they are.
inline const Bounds* bounds_of(const Distribution& distribution) {
  if (const auto* beta = std::get_if<Beta>(&distribution)) return &beta->bounds;
  const auto* gaussian = std::get_if<DiagonalGaussian>(&distribution);
  return gaussian != nullptr && gaussian->bounds ? &*gaussian->bounds : nullptr;
}
// M (K, K) of one row y, and its root Q (K, rank); row-major.
void fisher_matrix(const Distribution& distribution, const double* y, double* m);
void fisher_root(const Distribution& distribution, const double* y, double* q);

// Parameters of the distribution that do not depend on the observation.
inline Index free_parameter_size(const Distribution& distribution) {
  const auto* gaussian = std::get_if<DiagonalGaussian>(&distribution);
  return gaussian != nullptr && !gaussian->state_dependent_std ? gaussian->n : 0;
}

// The distributions of one policy in many rows: tiles of a batch. A standard deviation that is a
// parameter is the same in all of them; what follows from it is computed once.
//
// Outputs y and results (rows, K) are buffers of ours, with leading dimensions as in types.hpp.
template <class T>
class DistributionRows {
 public:
  // `free` (policy.hpp) are the free parameters of this policy, `old_free` those of the one that
  // divergences are taken from. Neither is read where there are none.
  void attach(const Distribution& distribution, const T* old_free, const T* free);

  // out[r] = log p(action[r]); adds the entropies of all rows to `entropy` unless null. That of a
  // Gaussian with bounds is estimated, by the volumes at the actions.
  void log_probs(Matrix<const T> y, Matrix<const T> actions, double* out, double* entropy) const;
  // The same for a Gaussian of a shared standard deviation, from distances(r) = sum_i ((action[r][i] -
  // mean[r][i]) / sigma_i)^2 in `out`.
  void log_probs_by_distances(Matrix<const T> actions, double* out, double* entropy) const;
  // Sum of KL(old || this) over the rows.
  double divergence(Matrix<const T> old_y, Matrix<const T> y) const;
  // out[r] = scale[r] grad log p(action[r]); returns the sum of the rows' 2-norms.
  double scores(Matrix<const T> y, Matrix<const T> actions, const double* scale,
                Matrix<T> out) const;
  // The sum over the rows of the squared norm of such a score if every mean were off by its own size:
  // rounding of a mean is magnified by 1 / sigma^2, and a standard deviation below it leaves scores
  // that are nothing else. 0 without means.
  double magnified_rounding(Matrix<const T> y, const double* scale) const;

  // Whether one state stands for all rows.
  bool has_shared_curvature() const;
  const double* inverse_std() const { return inverse_std_.data(); }
  // What standard deviations alone add to the divergence of a row.
  double divergence_of_std() const { return divergence_; }
  void curvature(Matrix<const T> y, Matrix<T> s) const;
  // out[r] = scale[r] M u[r]. The stride of a shared state is 0.
  void fisher_products(Matrix<const T> s, const double* scale, Matrix<const T> u,
                       Matrix<T> out) const;

 private:
  const DiagonalGaussian* shared_gaussian() const;
  void subtract_volumes(Matrix<const T> actions, double* out, double* entropy) const;

  const Distribution* distribution_ = nullptr;
  Buffer<double> inverse_std_;  // (n)
  double log_normalizer_ = 0;   // sum_i log sigma_i + 1/2 log 2 pi
  double entropy_ = 0;          // of a row, but for bounds
  double divergence_ = 0;       // what the standard deviations alone add to that of a row
};

}  // namespace natgrad
