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

// Linearises, and reports what ends an update before a direction is sought. True if it goes on.
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
  surrogate->attach(policy, batch, normalize_advantages);
  report->timings.forward = watch->lap();
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
  const double rounding = surrogate->gradient(gradient);
  report->timings.gradient = watch->lap();
  report->gradient_norm = std::sqrt(dot(gradient, gradient, n));
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

template <class T>
void accept(Policy<T>* policy, const T* candidate, double fraction, double step_length,
            UpdateReport* report) {
  std::copy_n(candidate, policy->parameter_count(), policy->parameters());
  report->status = UpdateStatus::ACCEPTED;
  report->step_fraction = fraction;
  report->step_norm = fraction * step_length;
  report->message = format("kl %.3g, improvement %.3g at %.3g of the step", report->kl,
                           report->improvement, fraction);
}

}  // namespace

template <class T>
UpdateReport TrustRegionUpdate<T>::operator()(Policy<T>& policy, const Batch<T>& batch) {
  const Index n = policy.parameter_count();
  gradient_.resize(n);
  solution_.resize(n);
  candidate_.resize(n);
  Stopwatch watch, total;
  UpdateReport report;
  const auto finish = [&]() -> UpdateReport& {
    report.timings.total = total.lap();
    return report;
  };

  // g = grad L(theta)                                                                     (eq. 11)
  if (!begin(policy, batch, options_.normalize_advantages, &surrogate_, gradient_.data(), &watch,
             &report)) {
    return finish();
  }

  // Solve (F + damping I) x = g.                                                          (eq. 15)
  attach_fisher(policy, batch);
  double* x = solution_.data();
  solve(x, &report);
  report.timings.solve = watch.lap();

  // d = sqrt(2 delta / x'Fx) x                                                            (eq. 16)
  const double squared_length =
      report.cg.quadratic_form + (options_.damped_step ? options_.damping * dot(x, x, n) : 0);
  const double scale = std::sqrt(options_.max_kl) * std::sqrt(2 / squared_length);
  if (!(squared_length > 0) || !std::isfinite(scale)) {
    report.status = UpdateStatus::NOT_POSITIVE_DEFINITE;
    report.message = format("x'Fx = %g after %d products, p'(F + damping I)p = %g", squared_length,
                            report.cg.iterations, report.cg.curvature);
    return finish();
  }
  for (Index i = 0; i < n; ++i) x[i] *= scale;
  report.expected_improvement = dot(gradient_.data(), x, n);

  // theta' = theta + fraction d for the first acceptable fraction; without a search, fraction 1.
  const auto evaluate = [&](double fraction) {
    move(policy.parameters(), fraction, x, n, candidate_.data());
    return surrogate_.evaluate(candidate_.data());
  };
  LineSearchSummary search;
  if (options_.line_search.has_value()) {
    search = backtracking_line_search(evaluate, report.expected_improvement, options_.max_kl,
                                      *options_.line_search);
  } else {
    search.fraction = 1;
    search.evaluations = 1;
    search.candidate = evaluate(1);
    search.non_finite = search.candidate.finite() ? 0 : 1;
    if (search.candidate.finite()) search.status = LineSearchStatus::ACCEPTED;
  }
  report.timings.search = watch.lap();
  report.kl = search.candidate.kl;
  report.improvement = search.candidate.improvement;

  if (search.status == LineSearchStatus::ACCEPTED) {
    report.backtracks = search.evaluations - 1;
    accept(&policy, candidate_.data(), search.fraction, std::sqrt(dot(x, x, n)), &report);
  } else {
    report.backtracks = search.evaluations;
    const bool non_finite = search.non_finite == search.evaluations;
    report.status = non_finite ? UpdateStatus::NON_FINITE : UpdateStatus::LINE_SEARCH_FAILED;
    report.message = format(
        "none of %d candidates was acceptable, %d not finite; the last had kl %.3g "
        "(bound %.3g) and improvement %.3g",
        search.evaluations, search.non_finite, report.kl, options_.max_kl, report.improvement);
  }
  return finish();
}

// Directly where that is asked for or faster; then without iterations. What is left of the residual is
// rounding, or lies in the null space of F.
template <class T>
void TrustRegionUpdate<T>::solve(double* x, UpdateReport* report) {
  const Index n = gradient_.size();
  const double* g = gradient_.data();
  const Solver form = fisher_.choose(options_.solver, options_.damping, options_.cg_iterations);
  if (form != Solver::conjugate_gradient) {
    cg_.q.resize(n);
    double* fx = cg_.q.data();
    if (fisher_.solve(form, g, options_.damping, x, fx)) {
      report->solver = form;
      report->cg = summarize_solution(g, x, fx, options_.damping, n);
      return;
    }
  }
  const auto product = [&](const double* v, double* out) {
    fisher_.product(v, out, options_.cg_iterations);
  };
  CgOptions cg;
  cg.damping = options_.damping;
  cg.rtol = options_.cg_rtol;
  cg.max_iterations = options_.cg_iterations;
  CgSummary& summary = report->cg;
  Stopwatch watch;
  Preconditioner* const m = precondition();
  report->timings.precondition = watch.lap();
  if (m != nullptr) {
    report->preconditioner = options_.preconditioner;
    const auto inverse = [&](const double* r, double* z) { m->apply(r, z); };
    const LinearOperator preconditioner(inverse);
    solution_.fill_zero();
    summary = conjugate_gradient(product, n, g, x, cg, &preconditioner, &cg_);
    if (summary.iterations > 0 || summary.status != CgStatus::INDEFINITE) return;
    report->preconditioner = PreconditionerKind::none;  // r'M^-1 r is not positive in rounding
  }
  solution_.fill_zero();
  summary = conjugate_gradient(product, n, g, x, cg, nullptr, &cg_);
}

// Null where none is asked for, or where it is not positive definite.
template <class T>
Preconditioner* TrustRegionUpdate<T>::precondition() {
  const Index n = gradient_.size();
  switch (options_.preconditioner) {
    case PreconditionerKind::none:
      return nullptr;
    case PreconditionerKind::kfac:
      kfac_.average(&fisher_, options_.kfac);
      return kfac_.factorize(options_.damping) ? &kfac_ : nullptr;
    case PreconditionerKind::diagonal:
      cg_.q.resize(n);
      fisher_.diagonal(cg_.q.data());
      return diagonal_.attach(cg_.q.data(), n, options_.damping) ? &diagonal_ : nullptr;
    case PreconditionerKind::nystrom: {
      const Index rank = std::min(options_.nystrom_rank, n);
      const auto product = [&](const double* v, double* out) {
        fisher_.product(v, out, options_.cg_iterations + static_cast<int>(rank));
      };
      return nystrom_.attach(product, n, rank, options_.damping, 0) ? &nystrom_ : nullptr;
    }
  }
  return nullptr;
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
