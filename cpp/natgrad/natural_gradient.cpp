#include "natgrad/natural_gradient.hpp"

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
      attach_fisher(policy, batch);
      solve(terms, x, into);
    };
    const auto evaluate = [&](double fraction) {
      move(policy.parameters(), fraction, solution_.data(), n, candidate_.data());
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
  Stopwatch watch;
  Preconditioner* const m = precondition(damping);
  report->timings.precondition = watch.lap();
  if (m != nullptr) {
    report->preconditioner = options_.preconditioner;
    const auto inverse = [&](const double* r, double* z) { m->apply(r, z); };
    const LinearOperator preconditioner(inverse);
    summary = iterate(damping, &preconditioner, x);
    if (summary.iterations > 0 || summary.status != CgStatus::INDEFINITE) return;
    report->preconditioner = PreconditionerKind::none;  // r'M^-1 r is not positive in rounding
  }
  summary = iterate(damping, nullptr, x);
}

// Conjugate gradients from the last step or from 0. A metric D, which excludes a preconditioner,
// becomes the identity in the coordinates y = D^1/2 x:
//
//   (D^-1/2 F D^-1/2 + damping I) y = D^-1/2 g                                            (eq. 34)
template <class T>
CgSummary TrustRegionUpdate<T>::iterate(double damping, const LinearOperator* preconditioner,
                                        double* x) {
  const Index n = gradient_.size();
  CgOptions cg = cg_options(options_, damping);
  if (warm_ && cg.max_iterations > 1) {
    cg.scale_start = true;
    --cg.max_iterations;  // one product is the start's
  } else {
    solution_.fill_zero();
  }
  const auto product = [&](const double* v, double* out) {
    fisher_.product(v, out, options_.cg_iterations);
  };
  const std::vector<double>& metric = options_.damping_metric;
  if (metric.empty()) {
    return conjugate_gradient(product, n, gradient_.data(), x, cg, preconditioner, &cg_);
  }

  for (Buffer<double>* buffer : {&root_, &scaled_gradient_, &scaled_}) buffer->resize(n);
  for (Index i = 0; i < n; ++i) {
    root_[i] = 1 / std::sqrt(metric[static_cast<std::size_t>(i)]);
    scaled_gradient_[i] = root_[i] * gradient_[i];
    x[i] /= root_[i];
  }
  const auto scaled_product = [&](const double* v, double* out) {
    for (Index i = 0; i < n; ++i) scaled_[i] = root_[i] * v[i];
    product(scaled_.data(), out);
    for (Index i = 0; i < n; ++i) out[i] *= root_[i];
  };
  const CgSummary summary =
      conjugate_gradient(scaled_product, n, scaled_gradient_.data(), x, cg, preconditioner, &cg_);
  for (Index i = 0; i < n; ++i) x[i] *= root_[i];
  return summary;
}

// Null where none is asked for, or where it is not positive definite.
template <class T>
Preconditioner* TrustRegionUpdate<T>::precondition(double damping) {
  const Index n = gradient_.size();
  switch (options_.preconditioner) {
    case PreconditionerKind::none:
      return nullptr;
    case PreconditionerKind::kfac:
      kfac_.average(&fisher_, options_.kfac);
      return kfac_.factorize(damping) ? &kfac_ : nullptr;
    case PreconditionerKind::diagonal:
      cg_.q.resize(n);
      fisher_.diagonal(cg_.q.data());
      return diagonal_.attach(cg_.q.data(), n, damping) ? &diagonal_ : nullptr;
    case PreconditionerKind::nystrom: {
      const Index rank = std::min(options_.nystrom_rank, n);
      const auto product = [&](const double* v, double* out) {
        fisher_.product(v, out, options_.cg_iterations + static_cast<int>(rank));
      };
      return nystrom_.attach(product, n, rank, damping, 0) ? &nystrom_ : nullptr;
    }
  }
  return nullptr;
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
  if (options_.damping_mode != DampingMode::adaptive && !options_.warm_start) return {};
  std::vector<double> state{damping_};
  if (warm_) state.insert(state.end(), solution_.begin(), solution_.end());
  return state;
}

template <class T>
bool TrustRegionUpdate<T>::set_state(const std::vector<double>& state) {
  const bool adaptive = options_.damping_mode == DampingMode::adaptive;
  if (!adaptive && !options_.warm_start) return state.empty();
  if (state.empty()) return false;
  const bool finite =
      std::all_of(state.begin(), state.end(), [](double x) { return std::isfinite(x); });
  const bool damping_fits = adaptive ? state[0] > 0 : state[0] == options_.damping;
  const bool warm = state.size() > 1;
  if (!finite || !damping_fits || (warm && !options_.warm_start)) return false;
  damping_ = state[0];
  warm_ = warm;
  if (warm) {
    solution_.resize(static_cast<Index>(state.size()) - 1);
    std::copy(state.begin() + 1, state.end(), solution_.begin());
  }
  return true;
}

// F of the whole batch shares the surrogate's linearisation; F of a part has one of its own.
template <class T>
void TrustRegionUpdate<T>::attach_fisher(const Policy<T>& policy, const Batch<T>& batch) {
  const Index rows = batch.rows();
  const Index part = subsample_size(rows, options_.curvature_fraction);
  if (part == rows) {
    fisher_.attach(surrogate_.linearization(), options_.fisher, batch.actions, nullptr);
    return;
  }
  subsample_.evaluate(policy, subsample_rows(batch.observations, part, &subsample_observations_));
  fisher_.attach(&subsample_, options_.fisher,
                 subsample_rows(batch.actions, part, &subsample_actions_), nullptr);
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
