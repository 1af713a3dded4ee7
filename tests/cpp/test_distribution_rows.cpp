// Rows of a distribution at once give what row functions give one by one, for every family, size and
// number of rows; arrays of actions end where their last row does, for AddressSanitizer to watch.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "natgrad/kernels/kernels.hpp"
#include "natgrad/model/distributions/distribution_rows.hpp"

namespace {

using namespace natgrad;

int failures = 0;

void check(double got, double want, double scale, double tolerance, const std::string& what) {
  if (std::abs(got - want) <= tolerance * scale || got == want) return;
  if (std::isnan(got) && std::isnan(want)) return;
  if (++failures <= 20) std::printf("%s: got %.17g, want %.17g\n", what.c_str(), got, want);
}

template <class T>
struct Case {
  const Distribution& distribution;
  Index rows, columns, stride, width, states;  // states: values of a row's curvature
  Buffer<T> y, old_y;
  std::vector<T> actions;  // (rows, width), nothing after them

  Case(const Distribution& d, Index rows_, double change, RandomStream random)
      : distribution(d),
        rows(rows_),
        columns(parameter_size(d)),
        stride(leading_dimension<T>(columns)),
        width(action_size(d)),
        states(curvature_size(d)),
        y(rows * stride),
        old_y(rows * stride),
        actions(static_cast<std::size_t>(rows * width)) {
    // What pads the rows may be anything.
    std::fill(y.begin(), y.end(), std::numeric_limits<T>::quiet_NaN());
    std::fill(old_y.begin(), old_y.end(), std::numeric_limits<T>::quiet_NaN());
    for (Index r = 0; r < rows; ++r) {
      for (Index k = 0; k < columns; ++k) {
        const bool first = r == 0 || k < columns - free_parameter_size(d);
        old_y[r * stride + k] = first ? static_cast<T>(random.normal()) : old_y[k];
        y[r * stride + k] =
            first ? old_y[r * stride + k] + static_cast<T>(change * random.normal()) : y[k];
      }
      T* action = actions.data() + r * width;
      std::visit([&](const auto& x) { x.sample(y.data() + r * stride, random, action); }, d);
    }
  }
  Matrix<const T> outputs(const Buffer<T>& x) const { return {x.data(), rows, columns, stride}; }
};

// What rows report: under tanh, the volume at the action in place of its mean.
template <class D, class T>
double estimated_entropy(const D& d, const T* y, const T* action) {
  if constexpr (std::is_same_v<D, SquashedGaussian>) {
    return d.DiagonalGaussian::entropy(y) + d.bounds.log_volume(action);
  }
  return d.entropy(y);
}

// What a density under tanh loses to rounding comes from its volume too.
template <class D, class T>
double size_of_volume(const D& d, const T* action) {
  if constexpr (std::is_same_v<D, SquashedGaussian>) {
    return static_cast<double>(d.n) + std::abs(d.bounds.log_volume(action));
  }
  return 0;
}

template <class T>
void compare(const Distribution& distribution, const std::string& name, Index rows, double change) {
  const Case<T> c(distribution, rows, change, RandomStream(1, 2, static_cast<std::uint32_t>(rows)));
  const Matrix<const T> y = c.outputs(c.y), old_y = c.outputs(c.old_y);
  const Matrix<const T> actions{c.actions.data(), rows, c.width, c.width};
  const Index free = c.columns - free_parameter_size(distribution);
  const double size = 1 + change;  // of parameters
  const double one = 20 * std::numeric_limits<double>::epsilon();
  const double rounded = 4 * std::numeric_limits<T>::epsilon();
  const std::string where = name + ", " + std::to_string(rows) + " rows, change " +
                            std::to_string(change) + (sizeof(T) == 4 ? ", float: " : ", double: ");

  DistributionRows<T> many;
  many.attach(distribution, old_y.row(0) + free, y.row(0) + free);
  Buffer<double> log_probs(rows), scale(rows);
  RandomStream random(3, 4, 5);
  for (double& s : scale) s = random.normal();
  double entropy = 0;
  many.log_probs(y, actions, log_probs.data(), &entropy);
  Buffer<T> scores(rows * c.stride), state(rows * c.states), products(rows * c.stride);
  const double norms =
      many.scores(y, actions, scale.data(), {scores.data(), rows, c.columns, c.stride});
  const bool shared = many.has_shared_curvature();
  const Index kept = shared ? 1 : rows, step = shared ? 0 : c.states;
  state.resize(std::max(kept * c.states, c.stride));
  many.curvature(y, {state.data(), kept, c.states, step});
  many.fisher_products({state.data(), rows, c.states, step}, scale.data(), old_y,
                       {products.data(), rows, c.columns, c.stride});

  double want_entropy = 0, want_divergence = 0, want_norms = 0, want_magnified = 0;
  const DiagonalGaussian* gaussian = normal_of(distribution);
  for (Index r = 0; gaussian != nullptr && r < rows; ++r) {
    double sum = 0;
    for (Index i = 0; i < gaussian->n; ++i) {
      const double mean = static_cast<double>(y.row(r)[i]);
      sum += std::abs(mean) * std::exp(-2 * static_cast<double>(y.row(r)[gaussian->n + i]));
    }
    want_magnified += scale[r] * sum * scale[r] * sum;
  }
  std::visit(
      [&](const auto& d) {
        std::vector<T> score(static_cast<std::size_t>(c.columns)), product(score.size()),
            s(static_cast<std::size_t>(c.states));
        for (Index r = 0; r < rows; ++r) {
          const double log_prob = d.log_prob(y.row(r), actions.row(r));
          check(log_probs[r], log_prob,
                size + std::abs(log_prob) + size_of_volume(d, actions.row(r)), one,
                where + "log_prob");
          want_entropy += estimated_entropy(d, y.row(r), actions.row(r));
          want_divergence += d.kl(old_y.row(r), y.row(r));
          d.score(y.row(r), actions.row(r), scale[r], score.data());
          d.curvature(y.row(r), s.data());
          d.fisher_product(s.data(), old_y.row(r), scale[r], product.data());
          double squared = 0;
          for (Index k = 0; k < c.columns; ++k) {
            const auto i = static_cast<std::size_t>(k);
            const double x = static_cast<double>(score[i]), p = static_cast<double>(product[i]);
            squared += x * x;
            check(static_cast<double>(scores[r * c.stride + k]), x, 1 + std::abs(x), rounded,
                  where + "score");
            check(static_cast<double>(products[r * c.stride + k]), p, 10 + std::abs(p), rounded,
                  where + "product");
          }
          for (Index k = 0; k < c.states; ++k) {
            const double x = static_cast<double>(s[static_cast<std::size_t>(k)]);
            check(static_cast<double>(state[r * step + k]), x,
                  std::numeric_limits<T>::min() + std::abs(x), rounded, where + "curvature");
          }
          want_norms += std::sqrt(squared);
        }
      },
      distribution);
  // Of terms, and what their order may cost.
  const double n = static_cast<double>(rows * c.columns), order = one * std::sqrt(n);
  check(entropy, want_entropy, n * size + std::abs(want_entropy), order, where + "entropy");
  check(many.divergence(old_y, y), want_divergence, n * std::max(change, want_divergence), order,
        where + "divergence");
  check(many.magnified_rounding(y, scale.data()), want_magnified, size * want_magnified, order,
        where + "magnified rounding");
  check(norms, want_norms, n + want_norms, rounded + order, where + "norms");
}

// One number that is not finite is found in each sum.
template <class T>
void spoil(const Distribution& distribution, const std::string& name) {
  for (const Index rows : {1, 13, 40}) {
    for (const Index row : {Index(0), rows / 2, rows - 1}) {
      Case<T> c(distribution, rows, 0.1, RandomStream(6, 7, 8));
      c.y[row * c.stride] = std::numeric_limits<T>::quiet_NaN();
      const Matrix<const T> y = c.outputs(c.y), old_y = c.outputs(c.old_y);
      const Index free = c.columns - free_parameter_size(distribution);
      DistributionRows<T> many;
      many.attach(distribution, old_y.row(0) + free, y.row(0) + free);
      Buffer<double> log_probs(rows);
      many.log_probs(y, {c.actions.data(), rows, c.width, c.width}, log_probs.data(), nullptr);
      const bool found = std::isnan(log_probs[row]) && std::isnan(many.divergence(old_y, y));
      check(found, true, 1, 0, name + ": a NaN is found");
    }
  }
}

}  // namespace

int main() {
  std::vector<std::pair<std::string, Distribution>> all;
  for (const Index n : {1, 2, 3, 6, 8, 9, 16, 17, 33}) {
    const std::string size = std::to_string(n);
    all.emplace_back("Gaussian " + size, DiagonalGaussian{n, false});
    all.emplace_back("Gaussian with its own std " + size, DiagonalGaussian{n, true});
    all.emplace_back("Categorical " + size, Categoricals({n}, true));
    all.emplace_back("MultiCategorical " + size, Categoricals({n, 1, 3}, false));
    all.emplace_back("Bernoulli " + size, Bernoulli{n});
    const Bounds bounds{std::vector<double>(static_cast<std::size_t>(n), -2.0),
                        std::vector<double>(static_cast<std::size_t>(n), 0.5)};
    all.emplace_back("Gaussian under tanh " + size, SquashedGaussian{{n, false}, bounds});
    all.emplace_back("the same with its own std " + size, SquashedGaussian{{n, true}, bounds});
    all.emplace_back("Beta " + size, Beta{n, bounds});
  }
  for (const auto& [name, distribution] : all) {
    for (const Index rows : {1, 2, 7, 8, 9, 31, 120, 300}) {
      for (const double change : {0.0, 1e-6, 0.1, 3.0, 300.0}) {
        compare<float>(distribution, name, rows, change);
        compare<double>(distribution, name, rows, change);
      }
    }
    spoil<float>(distribution, name);
    spoil<double>(distribution, name);
  }
  std::printf("%s: %d differences\n", kernels::level().name, failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
