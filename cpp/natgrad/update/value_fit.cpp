#include "natgrad/update/value_fit.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>

namespace natgrad {
namespace {

// The scale moves by this fraction of its difference from the scale of the new targets.
constexpr double kScaleRate = 0.2;

// A rejected step uses up one of few attempts, so damping grows faster than it shrinks.
constexpr LevenbergMarquardt kDampingRule{2, 1.5, 1e-8, 1e6};

struct Moments {
  double mean = 0, variance = 0;
};

template <class F>
Moments moments(Index count, F value) {
  Moments m;
  for (Index i = 0; i < count; ++i) m.mean += value(i) / static_cast<double>(count);
  for (Index i = 0; i < count; ++i) {
    m.variance += (value(i) - m.mean) * (value(i) - m.mean) / static_cast<double>(count);
  }
  return m;
}

// What both fits share: the scale of the targets, the report's figures, and the transaction, which is rolled
// back unless it is closed with a report that accepts it.
template <class T>
class Transaction {
 public:
  Transaction(ValueFunction<T>& value_function, std::span<const double> targets,
              Buffer<double>* scaled, Buffer<T>* saved)
      : value_function_(value_function),
        saved_(*saved),
        mean_(value_function.target_mean()),
        std_(value_function.target_std()),
        start_(std::chrono::steady_clock::now()) {
    saved_.resize(value_function.parameter_count());
    std::copy_n(value_function.parameters(), saved_.size(), saved_.data());
    const auto rows = static_cast<Index>(targets.size());
    const auto target_of = [&](Index i) { return targets[static_cast<std::size_t>(i)]; };
    scaled->resize(rows);
    const Moments target = moments(rows, target_of);
    target_variance_ = target.variance;
    adapt_scale(target);
    for (Index i = 0; i < rows; ++i) {
      (*scaled)[i] = (target_of(i) - value_function.target_mean()) / value_function.target_std();
    }
  }

  ~Transaction() {
    if (accepted_) return;
    std::copy_n(saved_.data(), saved_.size(), value_function_.parameters());
    value_function_.restore_target_scale(mean_, std_);
  }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;

  // 1 - Var(t - V) / Var(t); 0 for constant targets, which leave nothing to explain.
  double explained_variance(const Matrix<const T>& z, const Buffer<double>& scaled) const {
    const double std = value_function_.target_std();
    const Moments residual = moments(
        z.rows, [&](Index i) { return std * (scaled[i] - static_cast<double>(*z.row(i))); });
    return target_variance_ > 0 ? 1 - residual.variance / target_variance_ : 0;
  }

  // Accepts what has not made the loss worse and is `finite`, parameters included.
  FitReport& close(bool finite, FitReport* report) {
    report->accepted = accepted_ = finite && report->loss <= report->loss_before &&
                                   all_finite(value_function_.parameters(), saved_.size());
    std::snprintf(report->message.data(), report->message.size(),
                  "%s: loss %.4g to %.4g in %d steps, explained variance %.3f to %.3f",
                  report->accepted ? "accepted" : "rejected", report->loss_before, report->loss,
                  report->steps, report->explained_variance_before, report->explained_variance);
    const auto elapsed = std::chrono::steady_clock::now() - start_;
    report->seconds = std::chrono::duration<double>(elapsed).count();
    return *report;
  }

 private:
  void adapt_scale(const Moments& target) {
    double mean = target.mean, variance = target.variance;
    const bool first = mean_ == 0 && std_ == 1;  // the scale of a new value function
    if (!first) {
      const double apart = target.mean - mean_;
      mean = mean_ + kScaleRate * apart;
      variance = (1 - kScaleRate) * std_ * std_ +
                 kScaleRate * (target.variance + (1 - kScaleRate) * apart * apart);
    }
    const double std = std::sqrt(variance);
    // Constant targets have no scale of their own, and values must be numbers of type T.
    const bool has_scale = std > 1e-8 * std::abs(mean) && std > 1e-30;
    const bool representable = std::abs(mean) + 1e3 * std < std::numeric_limits<T>::max();
    if (!has_scale || !representable) return;
    if (first) {
      value_function_.restore_target_scale(mean, std);  // V so far means nothing: take new units
    } else {
      value_function_.set_target_scale(mean, std);
    }
  }

  ValueFunction<T>& value_function_;
  Buffer<T>& saved_;
  double mean_, std_, target_variance_ = 0;
  bool accepted_ = false;
  std::chrono::steady_clock::time_point start_;
};

template <class T>
double mean_loss(Matrix<const T> z, const double* targets) {
  double sum = 0;
  for (Index i = 0; i < z.rows; ++i) {
    const double residual = static_cast<double>(*z.row(i)) - targets[i];
    sum += 0.5 * residual * residual;
  }
  return sum / static_cast<double>(z.rows);
}

// The gradient of the mean loss, from the adjoints if they are kept: the rows of the cotangent are
// (z_n - t_n) / N.
template <class T>
void loss_gradient(Linearization<T>* network, CachedAdjoints<T>* adjoints, const double* targets,
                   double* gradient) {
  const Matrix<const T> z = network->outputs();
  const auto fill = [&](Index first, Matrix<T> d, double scale) {
    for (Index r = 0; r < d.rows; ++r) {
      const double residual = static_cast<double>(*z.row(first + r)) - targets[first + r];
      *d.row(r) = static_cast<T>(residual * scale);
    }
  };
  const double rows = static_cast<double>(z.rows);
  if (adjoints != nullptr && adjoints->are_kept()) {  // of z_n / sqrt(N)
    adjoints->sweep(
        nullptr, [&](Index first, Matrix<T> s) { fill(first, s, 1 / std::sqrt(rows)); }, gradient);
  } else {
    network->sweep(
        nullptr, [&](Index first, Matrix<const T>, Matrix<T> d, int) { fill(first, d, 1 / rows); },
        gradient);
  }
}

// The adjoints of z_n / sqrt(N): G is the sum of their outer products.
template <class T>
void keep_adjoints(Linearization<T>* network, CachedAdjoints<T>* adjoints) {
  const T root = static_cast<T>(1 / std::sqrt(static_cast<double>(network->rows())));
  adjoints->keep(network, 1, [&](Index, Index, Matrix<T> d) {
    for (Index r = 0; r < d.rows; ++r) *d.row(r) = root;
  });
}

// out = G v                                                                                (eq. 9.1)
template <class T>
void curvature_product(Linearization<T>* network, CachedAdjoints<T>* adjoints, const double* v,
                       double* out) {
  if (adjoints->are_kept()) return adjoints->sweep(v, [](Index, Matrix<T>) {}, out);
  const T rows = static_cast<T>(network->rows());
  network->sweep(
      v,
      [&](Index, Matrix<const T> u, Matrix<T> d, int) {
        for (Index r = 0; r < d.rows; ++r) *d.row(r) = *u.row(r) / rows;
      },
      out);
}

}  // namespace

template <class T>
FitReport GaussNewtonFit<T>::operator()(ValueFunction<T>& value_function,
                                        Matrix<const T> observations,
                                        std::span<const double> targets) {
  const Index n = value_function.parameter_count();
  gradient_.resize(n);
  solution_.resize(n);
  previous_.resize(n);
  Transaction<T> transaction(value_function, targets, &targets_, &saved_);
  const Network<T>& network = value_function.network();
  T* theta = value_function.parameters();
  const auto linearize = [&] {
    network.pack(theta, true, &packed_);
    network_.evaluate(network, packed_, observations);
    adjoints_.drop();
  };
  const auto with_adjoints = [&] {
    return options_.method == FisherMethod::adjoints ||
           (options_.method == FisherMethod::automatic &&
            kCostModel.adjoints_pay(shape_of(network, observations.rows, 1),
                                    options_.cg_iterations));
  };
  linearize();
  FitReport report;
  report.loss_before = report.loss = mean_loss(network_.outputs(), targets_.data());
  report.explained_variance_before = transaction.explained_variance(network_.outputs(), targets_);
  double damping = damping_;
  bool moved = true;
  for (int attempt = 0; attempt < options_.steps && std::isfinite(report.loss); ++attempt) {
    // ((1/N) sum J'J + damping I) x = g
    if (with_adjoints()) keep_adjoints(&network_, &adjoints_);
    if (moved) loss_gradient(&network_, &adjoints_, targets_.data(), gradient_.data());
    solution_.fill_zero();
    CgOptions cg;
    cg.damping = damping;
    cg.max_iterations = options_.cg_iterations;
    cg.rounding = std::numeric_limits<T>::epsilon();
    const auto product = [&](const double* v, double* out) {
      curvature_product(&network_, &adjoints_, v, out);
    };
    double* x = solution_.data();
    const CgReport solve = conjugate_gradient(product, n, gradient_.data(), x, cg, nullptr, &cg_);
    if (!(solve.quadratic_form > 0)) break;  // the gradient is 0, or not finite

    // At most max_change in the mean square of z; then the reduction that the model predicts.
    const double shrink = std::min(1.0, std::sqrt(options_.max_change / solve.quadratic_form));
    const double predicted =
        shrink * dot(gradient_.data(), x, n) - 0.5 * shrink * shrink * solve.quadratic_form;
    // Linearised at once, because nearly every candidate is taken.
    std::copy_n(theta, n, previous_.data());
    for (Index i = 0; i < n; ++i) {
      theta[i] = static_cast<T>(static_cast<double>(theta[i]) - shrink * x[i]);
    }
    linearize();
    const double loss = mean_loss(network_.outputs(), targets_.data());

    const double ratio = (report.loss - loss) / predicted;
    moved = std::isfinite(loss) && loss < report.loss;
    damping = kDampingRule(damping, ratio);
    if (moved) {
      report.loss = loss;
      ++report.steps;
    } else {
      std::copy_n(previous_.data(), n, theta);
      linearize();
    }
  }
  report.damping = damping;
  report.explained_variance = transaction.explained_variance(network_.outputs(), targets_);
  if (transaction.close(std::isfinite(report.loss), &report).accepted) damping_ = damping;
  return report;
}

template <class T>
FitReport AdamFit<T>::operator()(ValueFunction<T>& value_function, Matrix<const T> observations,
                                 std::span<const double> targets) {
  const Index n = value_function.parameter_count(), rows = observations.rows;
  const Index size = std::min(options_.minibatch_size, rows);
  gradient_.resize(n);
  step_.resize(n);
  order_.resize(rows);
  minibatch_.resize(size * observations.columns);
  minibatch_targets_.resize(size);
  adam_.reserve(n);  // so that nothing can fail once the fit is accepted
  next_ = adam_;
  Transaction<T> transaction(value_function, targets, &targets_, &saved_);
  const Network<T>& network = value_function.network();
  T* theta = value_function.parameters();
  const auto evaluate = [&](Matrix<const T> batch) {
    network.pack(theta, true, &packed_);
    network_.evaluate(network, packed_, batch);
  };
  evaluate(observations);
  FitReport report;
  report.loss_before = mean_loss(network_.outputs(), targets_.data());
  report.explained_variance_before = transaction.explained_variance(network_.outputs(), targets_);
  const auto epochs = static_cast<std::uint64_t>(options_.epochs);
  for (std::uint64_t epoch = epochs_done_; epoch < epochs_done_ + epochs; ++epoch) {
    // Fisher and Yates, in the form of Durstenfeld (1964).
    RandomStream random(options_.seed, 0, epoch);
    for (Index i = 0; i < rows; ++i) order_[i] = i;
    for (Index i = rows - 1; i > 0; --i) {
      const auto j = static_cast<Index>(random.uniform() * static_cast<double>(i + 1));
      std::swap(order_[i], order_[j]);
    }
    for (Index first = 0; first < rows; first += size) {
      const Index count = std::min(size, rows - first);
      for (Index r = 0; r < count; ++r) {
        const Index row = order_[first + r];
        std::copy_n(observations.row(row), observations.columns,
                    minibatch_.data() + r * observations.columns);
        minibatch_targets_[r] = targets_[row];
      }
      evaluate({minibatch_.data(), count, observations.columns, observations.columns});
      loss_gradient<T>(&network_, nullptr, minibatch_targets_.data(), gradient_.data());
      next_.step(gradient_.data(), n, options_.learning_rate, step_.data());
      for (Index i = 0; i < n; ++i) {
        theta[i] = static_cast<T>(static_cast<double>(theta[i]) - step_[i]);
      }
      ++report.steps;
    }
  }
  evaluate(observations);
  report.loss = mean_loss(network_.outputs(), targets_.data());
  report.explained_variance = transaction.explained_variance(network_.outputs(), targets_);
  if (transaction.close(std::isfinite(report.loss) && next_.is_finite(), &report).accepted) {
    adam_ = next_;
    epochs_done_ += epochs;
  }
  return report;
}

template <class T>
bool GaussNewtonFit<T>::set_state(const std::vector<double>& state) {
  if (state.size() != 1 || !(state[0] > 0) || !std::isfinite(state[0])) return false;
  damping_ = state[0];
  return true;
}

template <class T>
std::vector<double> AdamFit<T>::state() const {
  std::vector<double> state = adam_.state();
  state.insert(state.begin(), static_cast<double>(epochs_done_));
  return state;
}

template <class T>
bool AdamFit<T>::set_state(const std::vector<double>& state) {
  if (state.empty() || !(state[0] >= 0)) return false;
  if (!adam_.set_state({state.begin() + 1, state.end()})) return false;
  epochs_done_ = static_cast<std::uint64_t>(state[0]);
  return true;
}

template class GaussNewtonFit<float>;
template class GaussNewtonFit<double>;
template class AdamFit<float>;
template class AdamFit<double>;

}  // namespace natgrad
