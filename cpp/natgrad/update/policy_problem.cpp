#include "natgrad/update/policy_problem.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace natgrad {

namespace {
// In multiples of the damping, what keeps inner iterations from following a part of the batch where it
// differs from the whole: in its Fisher matrix, and in its Kronecker factors
// (benchmarks/solvers/time_to_accuracy.py).
constexpr double kPartDamping = 1.5, kFactorDamping = 8;
}  // namespace

// F of the whole batch shares the surrogate's linearisation; F of a part has rows of it.
template <class T>
void FisherCurvature<T>::attach(LinearizedPolicy<T>* policy, Matrix<const T> actions,
                                FisherKind kind, double fraction) {
  policy_ = policy;
  actions_ = actions;
  kind_ = kind;
  const Index part = subsample_size(actions.rows, fraction);
  if (part < actions.rows) {
    part_.select(policy, part);
    policy_ = &part_;
    actions_ = subsample_rows(actions, part, &part_actions_);
  }
  fisher_.attach(policy_, kind, actions_, nullptr);
}

template <class T>
Preconditioner* FisherCurvature<T>::precondition(const KFac& options, double damping) {
  factors_.average(&fisher_, options);
  return factors_.factorize(damping) ? &factors_ : nullptr;
}

template <class T>
Preconditioner* FisherCurvature<T>::precondition(const Subsample& options, double damping,
                                                 int iterations) {
  const Index rows = subsample_size(actions_.rows, 1 / static_cast<double>(options.every));
  inner_policy_.select(policy_, rows);
  inner_fisher_.attach(&inner_policy_, kind_, subsample_rows(actions_, rows, &inner_actions_),
                       nullptr);
  factors_.average(&inner_fisher_, KFac{});
  if (!factors_.factorize(kFactorDamping * damping)) return nullptr;
  inner_planned_ = inner_fisher_.plan(options.iterations * iterations);
  inner_.attach([this](const double* v, double* out) { inner_planned_.product(v, out); },
                [this](const double* v) { return inner_planned_.quadratic_form(v); },
                [this](const double* r, double* z) { factors_.apply(r, z); }, size(),
                kPartDamping * damping, options.iterations);
  return &inner_;
}

template <class T>
void PolicyProblem<T>::attach(Policy<T>* policy, const Batch<T>& batch,
                              const PolicyProblemOptions& options) {
  policy_ = policy;
  batch_ = batch;
  options_ = options;
  candidate_.resize(policy->parameter_count());
}

template <class T>
bool PolicyProblem<T>::linearize(double* g, UpdateReport* report) {
  const T* theta = policy_->parameters();
  if (!all_finite(theta, size())) {
    return report->end(UpdateStatus::NON_FINITE, "a parameter of the policy is not finite");
  }
  surrogate_.attach(*policy_, batch_, options_.normalize_advantages, g);
  report->surrogate = surrogate_.value();
  report->entropy = surrogate_.entropy();
  if (!std::isfinite(report->surrogate) || !std::isfinite(report->entropy)) {
    return report->end(UpdateStatus::NON_FINITE,
                       "the policy cannot be evaluated: surrogate %g, entropy %g",
                       report->surrogate, report->entropy);
  }
  if (surrogate_.advantages_are_zero()) {
    return report->end(UpdateStatus::ZERO_ADVANTAGES, "all advantages are %s",
                       options_.normalize_advantages ? "equal" : "0");
  }
  return true;
}

template <class T>
Curvature& PolicyProblem<T>::curvature() {
  curvature_.attach(surrogate_.linearization(), batch_.actions, options_.fisher,
                    options_.curvature_fraction);
  return curvature_;
}

// Each parameter of the candidate is rounded once.
template <class T>
Candidate PolicyProblem<T>::evaluate(double fraction, const double* step) {
  const T* theta = policy_->parameters();
  for (Index i = 0; i < size(); ++i) {
    candidate_[i] = static_cast<T>(static_cast<double>(theta[i]) + fraction * step[i]);
  }
  if (options_.log_std_min.has_value()) {
    const T floor = static_cast<T>(*options_.log_std_min);
    for (Index i = policy_->network().free_offset(); i < size(); ++i) {
      candidate_[i] = std::max(candidate_[i], std::min(theta[i], floor));
    }
  }
  if (!all_finite(candidate_.data(), size())) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    return {nan, nan};
  }
  return surrogate_.evaluate(candidate_.data(), options_.kl_direction);
}

template <class T>
void PolicyProblem<T>::accept() {
  std::copy_n(candidate_.data(), size(), policy_->parameters());
}

template class FisherCurvature<float>;
template class FisherCurvature<double>;
template class PolicyProblem<float>;
template class PolicyProblem<double>;

}  // namespace natgrad
