#include "natgrad/update/natural_gradient.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace natgrad {
namespace {

class Stopwatch {
 public:
  // Seconds since construction or the last lap.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

template <class... Args>
std::array<char, 256> format(const char* pattern, Args... args) {
  std::array<char, 256> text;
  std::snprintf(text.data(), text.size(), pattern, args...);
  return text;
}

// candidate = theta + fraction * step, rounded once.
template <class T>
void move(const T* theta, double fraction, const double* step, Index n, T* candidate) {
  for (Index i = 0; i < n; ++i) {
    candidate[i] = static_cast<T>(static_cast<double>(theta[i]) + fraction * step[i]);
  }
}

// Keeps what a policy's distribution has for parameters, the log standard deviations of a Gaussian, from
// falling below a floor.
template <class T>
void keep_above(double floor, const Policy<T>& policy, T* candidate) {
  for (Index i = policy.network().free_offset(); i < policy.parameter_count(); ++i) {
    candidate[i] = std::max(candidate[i], std::min(policy.parameters()[i], static_cast<T>(floor)));
  }
}

// Linearises with the gradient, and reports what ends an update before a direction is sought. True if
// it goes on.
template <class T>
bool begin(const Policy<T>& policy, const Batch<T>& batch, bool normalize_advantages,
           Surrogate<T>* surrogate, double* gradient, Stopwatch* watch, UpdateReport* report) {
  const Index n = policy.parameter_count();
  const T* theta = policy.parameters();
  if (!std::all_of(theta, theta + n, [](T value) { return std::isfinite(value); })) {
    report->status = UpdateStatus::NON_FINITE;
    report->message = format("%s", "a parameter of the policy is not finite");
    return false;
  }
  surrogate->attach(policy, batch, normalize_advantages, gradient);
  report->timings.gradient = watch->lap();
  report->surrogate = surrogate->value();
  report->entropy = surrogate->entropy();
  if (!std::isfinite(report->surrogate) || !std::isfinite(report->entropy)) {
    report->status = UpdateStatus::NON_FINITE;
    report->message = format("the policy cannot be evaluated: surrogate %g, entropy %g",
                             report->surrogate, report->entropy);
    return false;
  }
  if (surrogate->advantages_are_zero()) {
    report->status = UpdateStatus::ZERO_ADVANTAGES;
    report->message = format("all advantages are %s", normalize_advantages ? "equal" : "0");
    return false;
  }
  return usable_gradient(gradient, n, surrogate->gradient_rounding(), report);
}

void take(double fraction, double step_length, UpdateReport* report) {
  report->status = UpdateStatus::ACCEPTED;
  report->step_fraction = fraction;
  report->step_norm = fraction * step_length;
  report->message = format("kl %.3g, improvement %.3g at %.3g of the step", report->kl,
                           report->improvement, fraction);
}

template <class T>
void accept(Policy<T>* policy, const T* candidate, double fraction, double step_length,
            UpdateReport* report) {
  std::copy_n(candidate, policy->parameter_count(), policy->parameters());
  take(fraction, step_length, report);
}

}  // namespace

CgOptions cg_options(const TrustRegionOptions& options, double damping) {
  CgOptions cg;
  cg.damping = damping;
  cg.rtol = options.cg_rtol;
  cg.atol = options.cg_atol;
  cg.max_iterations = options.cg_iterations;
  cg.progress_tolerance = options.cg_progress_tolerance;
  cg.progress_window = options.cg_progress_window;
  return cg;
}

bool usable_gradient(const double* g, Index n, double rounding, UpdateReport* report) {
  report->gradient_norm = std::sqrt(dot(g, g, n));
  if (!std::isfinite(report->gradient_norm)) {
    report->status = UpdateStatus::NON_FINITE;
    report->message = format("the norm of the gradient is %g", report->gradient_norm);
    return false;
  }
  if (report->gradient_norm <= rounding) {
    report->status = UpdateStatus::ZERO_GRADIENT;
    report->message = format("the norm of the gradient is %g, not above its rounding error %g",
                             report->gradient_norm, rounding);
    return false;
  }
  return true;
}

void trust_region_step(const TrustRegionOptions& options, Index dimensions, Index n,
                       const double* g,
                       FunctionRef<void(double terms, double* x, UpdateReport* report)> solve,
                       FunctionRef<Candidate(double fraction)> evaluate, double* x,
                       UpdateReport* report) {
  Stopwatch watch;

  // Solve (F + damping D) x = g.                                                          (eq. 15)
  // With F / terms for F it is (F + terms damping D) (x / terms) = g.
  const bool mean = options.kl_reduction == KlReduction::mean;
  const double terms = mean ? static_cast<double>(dimensions) : 1;
  solve(terms, x, report);
  for (Index i = 0; i < n; ++i) x[i] *= terms;
  report->damping /= terms;
  report->cg.quadratic_form *= terms;
  report->cg.squared_norm *= terms * terms;
  report->cg.model_value *= terms;
  report->timings.solve = watch.lap();

  // d = sqrt(2 delta / x'Fx) x                                                            (eq. 16)
  const double squared_length =
      report->cg.quadratic_form +
      (options.damped_step ? report->damping * report->cg.squared_norm : 0);
  const double scale = options.step_size.has_value()
                           ? *options.step_size
                           : std::sqrt(options.max_kl) * std::sqrt(2 / squared_length);
  if (!(squared_length > 0) || !std::isfinite(squared_length) || !std::isfinite(scale)) {
    report->status = UpdateStatus::NOT_POSITIVE_DEFINITE;
    report->message = format("x'Fx = %g after %d products, p'(F + damping D)p = %g", squared_length,
                             report->cg.products, report->cg.curvature);
    return;
  }
  report->step_scale = scale;
  for (Index i = 0; i < n; ++i) x[i] *= scale;
  report->expected_improvement = dot(g, x, n);
  const double expected_kl = 0.5 * scale * scale * report->cg.quadratic_form;

  // theta' = theta + fraction d for the first acceptable fraction; without a search, fraction 1.
  const auto candidate_at = [&](double fraction) {
    Candidate candidate = evaluate(fraction);
    candidate.kl /= terms;
    const double ratio = std::min(candidate.improvement / report->expected_improvement,
                                  expected_kl / candidate.kl);  //                      (eq. 35)
    if (fraction == 1 && candidate.finite() && std::isfinite(ratio)) {
      report->reduction_ratio = ratio;
    }
    return candidate;
  };
  LineSearchSummary search;
  if (options.line_search.has_value()) {
    search = backtracking_line_search(candidate_at, report->expected_improvement, options.max_kl,
                                      *options.line_search);
  } else {
    search.fraction = 1;
    search.evaluations = 1;
    search.candidate = candidate_at(1);
    search.non_finite = search.candidate.finite() ? 0 : 1;
    if (search.candidate.finite()) search.status = LineSearchStatus::ACCEPTED;
  }
  report->timings.search = watch.lap();
  report->kl = search.candidate.kl;
  report->improvement = search.candidate.improvement;

  if (search.status == LineSearchStatus::ACCEPTED) {
    report->backtracks = search.evaluations - 1;
    take(search.fraction, std::sqrt(dot(x, x, n)), report);
  } else {
    report->backtracks = search.evaluations;
    const bool non_finite = search.non_finite == search.evaluations;
    report->status = non_finite ? UpdateStatus::NON_FINITE : UpdateStatus::LINE_SEARCH_FAILED;
    report->message = format(
        "none of %d candidates was acceptable, %d not finite; the last had kl %.3g "
        "(bound %.3g) and improvement %.3g",
        search.evaluations, search.non_finite, report->kl, options.max_kl, report->improvement);
  }
}

template <class T>
UpdateReport TrustRegionUpdate<T>::operator()(Policy<T>& policy, const Batch<T>& batch) {
  const Index n = policy.parameter_count();
  gradient_.resize(n);
  warm_ = warm_ && solution_.size() == n;
  solution_.resize(n);
  candidate_.resize(n);
  Stopwatch watch, total;
  UpdateReport report;

  // g = grad L(theta)                                                                     (eq. 11)
  if (begin(policy, batch, options_.normalize_advantages, &surrogate_, gradient_.data(), &watch,
            &report)) {
    const auto solution = [&](double terms, double* x, UpdateReport* into) {
      attach_fisher(batch.actions);
      solve(terms, x, into);
    };
    const auto evaluate = [&](double fraction) {
      move(policy.parameters(), fraction, solution_.data(), n, candidate_.data());
      if (options_.log_std_min) keep_above(*options_.log_std_min, policy, candidate_.data());
      return surrogate_.evaluate(candidate_.data(), options_.kl_direction);
    };
    trust_region_step(options_, action_size(policy.distribution()), n, gradient_.data(), solution,
                      evaluate, solution_.data(), &report);
    if (report.status == UpdateStatus::ACCEPTED) {
      std::copy_n(candidate_.data(), n, policy.parameters());
    }
    learn_from(report);
  }
  report.timings.total = total.lap();
  return report;
}

template <class T>
double TrustRegionUpdate<T>::damping(double terms) {
  switch (options_.damping_mode) {
    case DampingMode::fixed:
      break;
    case DampingMode::trace: {
      const double mean = fisher_.trace() / static_cast<double>(fisher_.size());
      return options_.damping * (std::isfinite(mean) ? mean : 1);  // else F says so in the solve
    }
    case DampingMode::adaptive:
      return terms * damping_;
  }
  return terms * options_.damping;
}

namespace {
// False where r'M^-1 r, or the curvature, is not positive in rounding from the beginning.
bool went_somewhere(const CgSummary& summary) {
  return summary.iterations > 0 || summary.status != CgStatus::INDEFINITE;
}
}  // namespace

// Directly where that is asked for or faster; then without iterations. What is left of the residual is
// rounding, or lies in the null space of F.
template <class T>
void TrustRegionUpdate<T>::solve(double terms, double* x, UpdateReport* report) {
  const Index n = gradient_.size();
  const double* g = gradient_.data();
  const double damping = report->damping = this->damping(terms);
  CgSummary& summary = report->cg;
  const Solver form = options_.damping_metric.empty()
                          ? fisher_.choose(options_.solver, damping, options_.cg_iterations)
                          : Solver::conjugate_gradient;
  if (form != Solver::conjugate_gradient) {
    cg_.p.resize(n);  // x may be a warm start, which is kept until there is a solution
    cg_.q.resize(n);
    if (fisher_.solve(form, g, damping, cg_.p.data(), cg_.q.data())) {
      std::copy_n(cg_.p.data(), n, x);
      report->solver = form;
      summary = summarize_solution(g, x, cg_.q.data(), damping, n);
      return;
    }
  }
  const CgOptions cg = cg_options(options_, damping);
  if (options_.preconditioner == PreconditionerKind::automatic) {
    return solve_automatically(cg, x, report);
  }
  if (Preconditioner* const m = precondition(options_.preconditioner, damping, report)) {
    summary = iterate(cg, m, x);
    if (went_somewhere(summary)) return;
    report->preconditioner = PreconditionerKind::none;
  }
  summary = iterate(cg, nullptr, x);
}

namespace {
// Updates from one trial of both ways to the next: a fiftieth of a plain solve's time goes into trials.
constexpr int kTrialEvery = 50;
}  // namespace

// By Kronecker factors if they were as accurate in less time when both ways were tried last. The errors
// of two solutions of one system compare as the quadratic model's values there (eq. 31), which cost
// nothing; times, by the cost models, so that results do not depend on the machine's mood.
template <class T>
void TrustRegionUpdate<T>::solve_automatically(CgOptions cg, double* x, UpdateReport* report) {
  const Index n = gradient_.size();
  const bool trial = until_trial_ == 0;
  until_trial_ = (trial ? kTrialEvery : until_trial_) - 1;
  if (!trial && sufficient_ > 0) {
    if (Preconditioner* const m = precondition(PreconditionerKind::kfac, cg.damping, report)) {
      CgOptions fewer = cg;
      fewer.max_iterations = sufficient_;
      report->cg = iterate(fewer, m, x);
      if (went_somewhere(report->cg)) return;
      report->preconditioner = PreconditionerKind::none;
    }
  }
  other_.resize(n);
  if (trial) std::copy_n(x, n, other_.data());
  report->cg = iterate(cg, nullptr, x);
  if (!trial) return;

  const auto cost_of_factors = [&](int products) {
    return fisher_.cost_of_products(products) +
           KroneckerFactors<T>::cost(fisher_, options_.kfac, products);
  };
  const double cost = fisher_.cost_of_products(report->cg.products);
  int most = report->cg.products - 1;
  while (most > 0 && cost_of_factors(most) > cost) --most;
  sufficient_ = 0;
  if (most == 0) return;
  Preconditioner* const m = precondition(PreconditionerKind::kfac, cg.damping, report);
  if (m == nullptr) return;
  std::swap_ranges(x, x + n, other_.data());
  cg.max_iterations = most;
  cg.model_goal = report->cg.model_value;
  CgSummary summary = iterate(cg, m, x);
  const int products = summary.products;
  summary.products += report->cg.products;
  if (summary.model_value <= cg.model_goal) {
    sufficient_ = products;
    report->cg = summary;
  } else {
    std::copy_n(other_.data(), n, x);
    report->cg.products = summary.products;
    report->preconditioner = PreconditionerKind::none;
  }
}

// Conjugate gradients from the last step or from 0. A metric D, which excludes a preconditioner,
// becomes the identity in the coordinates y = D^1/2 x:
//
//   (D^-1/2 F D^-1/2 + damping I) y = D^-1/2 g                                            (eq. 34)
template <class T>
CgSummary TrustRegionUpdate<T>::iterate(const CgOptions& options, Preconditioner* preconditioner,
                                        double* x) {
  const Index n = gradient_.size();
  const int series = options.max_iterations;
  CgOptions cg = options;
  cg.flexible = preconditioner != nullptr && preconditioner->varies();
  if (warm_ && cg.max_iterations > 1) {
    cg.scale_start = true;
    --cg.max_iterations;  // one product is the start's
  } else {
    std::fill_n(x, n, 0.0);
  }
  const std::vector<double>& metric = options_.damping_metric;
  if (!metric.empty()) {
    for (Buffer<double>* buffer : {&root_, &scaled_gradient_, &scaled_}) buffer->resize(n);
    for (Index i = 0; i < n; ++i) {
      root_[i] = 1 / std::sqrt(metric[static_cast<std::size_t>(i)]);
      scaled_gradient_[i] = root_[i] * gradient_[i];
      x[i] /= root_[i];
    }
  }
  const auto scale = [&](const double* v) {
    if (metric.empty()) return v;
    for (Index i = 0; i < n; ++i) scaled_[i] = root_[i] * v[i];
    return static_cast<const double*>(scaled_.data());
  };
  const auto product = [&](const double* v, double* out) {
    fisher_.product(scale(v), out, series);
    for (Index i = 0; !metric.empty() && i < n; ++i) out[i] *= root_[i];
  };
  const auto form_of = [&](const double* v) { return fisher_.quadratic_form(scale(v), series); };
  const auto inverse = [&](const double* r, double* z) { preconditioner->apply(r, z); };
  const LinearOperator inverse_operator(inverse);
  const QuadraticForm form(form_of);
  const CgSummary summary =
      conjugate_gradient(product, n, metric.empty() ? gradient_.data() : scaled_gradient_.data(), x,
                         cg, preconditioner != nullptr ? &inverse_operator : nullptr, &cg_,
                         options_.cg_last_residual ? nullptr : &form);
  for (Index i = 0; !metric.empty() && i < n; ++i) x[i] *= root_[i];
  return summary;
}

namespace {
// In multiples of the damping, what keeps inner iterations from what a part of the batch alone says: of
// its Fisher matrix, and of its Kronecker factors (benchmarks/time_to_accuracy.py).
constexpr double kPartDamping = 1.5, kFactorDamping = 8;
}  // namespace

// Null where none is asked for, or where it is not positive definite.
template <class T>
Preconditioner* TrustRegionUpdate<T>::precondition(PreconditionerKind kind, double damping,
                                                   UpdateReport* report) {
  const Index n = gradient_.size();
  Stopwatch watch;
  Preconditioner* made = nullptr;
  switch (kind) {
    case PreconditionerKind::none:
    case PreconditionerKind::automatic:  // decided by the caller
      break;
    case PreconditionerKind::kfac:
      kfac_.average(&fisher_, options_.kfac);
      if (kfac_.factorize(damping)) made = &kfac_;
      break;
    case PreconditionerKind::subsample: {
      kfac_.average(&inner_fisher_, options_.kfac);
      if (!kfac_.factorize(kFactorDamping * damping)) break;
      const int series = options_.subsample_iterations * options_.cg_iterations;
      inner_.attach(
          [this, series](const double* v, double* out) { inner_fisher_.product(v, out, series); },
          [this, series](const double* v) { return inner_fisher_.quadratic_form(v, series); },
          [this](const double* r, double* z) { kfac_.apply(r, z); }, n, kPartDamping * damping,
          options_.subsample_iterations);
      made = &inner_;
      break;
    }
    case PreconditionerKind::diagonal:
      cg_.q.resize(n);
      fisher_.diagonal(cg_.q.data());
      if (diagonal_.attach(cg_.q.data(), n, damping)) made = &diagonal_;
      break;
    case PreconditionerKind::nystrom: {
      const Index rank = std::min(options_.nystrom_rank, n);
      const auto product = [&](const double* v, double* out) {
        fisher_.product(v, out, options_.cg_iterations + static_cast<int>(rank));
      };
      if (nystrom_.attach(product, n, rank, damping, 0)) made = &nystrom_;
      break;
    }
  }
  report->timings.precondition += watch.lap();
  report->preconditioner = made != nullptr ? kind : PreconditionerKind::none;
  return made;
}

// What the next update takes over from one that sought a step.
template <class T>
void TrustRegionUpdate<T>::learn_from(const UpdateReport& report) {
  const bool accepted = report.status == UpdateStatus::ACCEPTED;
  warm_ = accepted && options_.warm_start;
  if (options_.damping_mode == DampingMode::adaptive) {
    damping_ = options_.damping_rule(damping_, accepted ? report.reduction_ratio : 0);
  }
}

template <class T>
std::vector<double> TrustRegionUpdate<T>::state() const {
  const bool automatic = options_.preconditioner == PreconditionerKind::automatic;
  const bool kept = keeps_factors();
  if (options_.damping_mode != DampingMode::adaptive && !options_.warm_start && !automatic &&
      !kept) {
    return {};
  }
  std::vector<double> state{damping_};
  if (automatic) {
    state.push_back(sufficient_);
    state.push_back(until_trial_);
  }
  if (kept) {
    const std::vector<double> factors = kfac_.state();
    state.push_back(static_cast<double>(factors.size()));
    state.insert(state.end(), factors.begin(), factors.end());
  }
  if (warm_) state.insert(state.end(), solution_.begin(), solution_.end());
  return state;
}

template <class T>
bool TrustRegionUpdate<T>::set_state(const std::vector<double>& state) {
  const bool adaptive = options_.damping_mode == DampingMode::adaptive;
  const bool automatic = options_.preconditioner == PreconditionerKind::automatic;
  const bool kept = keeps_factors();
  if (!adaptive && !options_.warm_start && !automatic && !kept) return state.empty();
  const std::size_t header = 1 + (automatic ? 2 : 0) + (kept ? 1 : 0);
  const bool finite =
      std::all_of(state.begin(), state.end(), [](double x) { return std::isfinite(x); });
  if (state.size() < header || !finite) return false;
  if (adaptive ? !(state[0] > 0) : state[0] != options_.damping) return false;
  const auto counts = [](double x, int most) { return x >= 0 && x <= most && x == std::floor(x); };
  if (automatic && !(counts(state[1], options_.cg_iterations) && counts(state[2], kTrialEvery))) {
    return false;
  }
  auto step = state.begin() + static_cast<std::ptrdiff_t>(header);
  KroneckerFactors<T> factors;
  if (kept) {
    const double size = state[header - 1];
    if (!(size >= 0 && size <= static_cast<double>(state.end() - step))) return false;
    const auto end = step + static_cast<std::ptrdiff_t>(size);
    if (!factors.set_state({step, end})) return false;
    step = end;
  }
  const bool warm = step != state.end();
  if (warm && !options_.warm_start) return false;

  damping_ = state[0];
  if (automatic) {
    sufficient_ = static_cast<int>(state[1]);
    until_trial_ = static_cast<int>(state[2]);
  }
  if (kept) kfac_ = std::move(factors);
  warm_ = warm;
  if (warm) {
    solution_.resize(static_cast<Index>(state.end() - step));
    std::copy(step, state.end(), solution_.begin());
  }
  return true;
}

// F of the whole batch shares the surrogate's linearisation; F of a part has rows of it, and so has the
// part of that which preconditions it.
template <class T>
void TrustRegionUpdate<T>::attach_fisher(Matrix<const T> actions) {
  LinearizedPolicy<T>* linearization = surrogate_.linearization();
  const Index part = subsample_size(actions.rows, options_.curvature_fraction);
  if (part < actions.rows) {
    subsample_.select(linearization, part);
    linearization = &subsample_;
    actions = subsample_rows(actions, part, &subsample_actions_);
  }
  fisher_.attach(linearization, options_.fisher, actions, nullptr);
  if (options_.preconditioner == PreconditionerKind::subsample) {
    const Index inner = subsample_size(part, 1 / static_cast<double>(options_.subsample_every));
    inner_policy_.select(linearization, inner);
    inner_fisher_.attach(&inner_policy_, options_.fisher,
                         subsample_rows(actions, inner, &inner_actions_), nullptr);
  }
}

template <class T>
UpdateReport PolicyGradientUpdate<T>::operator()(Policy<T>& policy, const Batch<T>& batch) {
  const Index n = policy.parameter_count();
  for (Buffer<double>* buffer : {&gradient_, &step_}) buffer->resize(n);
  candidate_.resize(n);
  Stopwatch watch, total;
  UpdateReport report;
  if (begin(policy, batch, options_.normalize_advantages, &surrogate_, gradient_.data(), &watch,
            &report)) {
    next_ = adam_;  // the moments are part of the transaction
    if (options_.adam) {
      next_.step(gradient_.data(), n, options_.learning_rate, step_.data());
    } else {
      for (Index i = 0; i < n; ++i) step_[i] = options_.learning_rate * gradient_[i];
    }
    report.expected_improvement = dot(gradient_.data(), step_.data(), n);
    move(policy.parameters(), 1, step_.data(), n, candidate_.data());
    const Candidate candidate = surrogate_.evaluate(candidate_.data());
    report.timings.search = watch.lap();
    report.kl = candidate.kl;
    report.improvement = candidate.improvement;
    if (candidate.finite()) {
      adam_ = next_;
      accept(&policy, candidate_.data(), 1, std::sqrt(dot(step_.data(), step_.data(), n)), &report);
    } else {
      report.status = UpdateStatus::NON_FINITE;
      report.message =
          format("the step leads to kl %g and improvement %g", report.kl, report.improvement);
    }
  }
  report.timings.total = total.lap();
  return report;
}

template class TrustRegionUpdate<float>;
template class TrustRegionUpdate<double>;
template class PolicyGradientUpdate<float>;
template class PolicyGradientUpdate<double>;

}  // namespace natgrad
