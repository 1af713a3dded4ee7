// A policy of the core on a batch: the surrogate objective and the analytic Fisher matrix as a `Problem`.
#pragma once

#include <optional>

#include "natgrad/update/problem.hpp"
#include "natgrad/update/surrogate.hpp"

namespace natgrad {

// F on a batch or on an evenly spaced part of it, with everything that the core makes of it.
template <class T>
class FisherCurvature final : public Curvature {
 public:
  // Both must outlive this. F is averaged over `fraction` of the observations.
  void attach(LinearizedPolicy<T>* policy, Matrix<const T> actions, FisherKind kind,
              double fraction);

  Index size() const override { return fisher_.size(); }
  void plan(int products) override { planned_ = fisher_.plan(products); }
  void product(const double* v, double* out) override { planned_.product(v, out); }
  double quadratic_form(const double* v) override { return planned_.quadratic_form(v); }
  double trace() override { return fisher_.trace(); }
  double rounding() const override { return std::numeric_limits<T>::epsilon(); }

  Solver choose(Solver asked, double damping, int products) const override {
    return fisher_.choose(asked, damping, products);
  }
  bool solve(Solver form, const double* b, double damping, double* x, double* fx) override {
    return fisher_.solve(form, b, damping, x, fx);
  }

  Preconditioner* precondition(const KFac& options, double damping) override;
  Preconditioner* precondition(const Subsample& options, double damping, int iterations) override;
  double cost(int products) const override { return fisher_.cost(products); }
  double cost(const KFac& options, int products) const override {
    return cost(products) + kCostModel.kronecker_factors(fisher_.shape(), options.every, products);
  }

 private:
  LinearizedPolicy<T>* policy_ = nullptr;  // that F is made from, the whole batch's or the part's
  Matrix<const T> actions_;
  FisherKind kind_ = FisherKind::exact;
  Fisher<T> fisher_;
  FisherProducts<T> planned_;
  LinearizedPolicy<T> part_;
  Buffer<T> part_actions_;
  KroneckerFactors<T> factors_;
  LinearizedPolicy<T> inner_policy_;  // of the part that preconditions
  Buffer<T> inner_actions_;
  Fisher<T> inner_fisher_;
  FisherProducts<T> inner_planned_;
  InnerSolver inner_;
};

struct PolicyProblemOptions {
  bool normalize_advantages = false;  // to mean 0 and standard deviation 1 over the batch
  FisherKind fisher = FisherKind::exact;
  double curvature_fraction = 1;  // of the observations, evenly spaced, in F alone
  KlDirection kl_direction = KlDirection::old_new;  // of the divergence; F is the same
  // Floor of log standard deviations that are parameters: a candidate below it is put onto it, and
  // judged there. One that is below already may only rise.
  std::optional<double> log_std_min;
};

template <class T>
class PolicyProblem final : public Problem {
 public:
  // Policy and batch must outlive the update.
  void attach(Policy<T>* policy, const Batch<T>& batch, const PolicyProblemOptions& options);

  Index size() const override { return policy_->parameter_count(); }
  Index action_dimensions() const override { return action_size(policy_->distribution()); }
  bool linearize(double* g, UpdateReport* report) override;
  double gradient_rounding() const override { return surrogate_.gradient_rounding(); }
  Curvature& curvature() override;
  Candidate evaluate(double fraction, const double* step) override;
  void accept() override;

 private:
  Policy<T>* policy_ = nullptr;
  Batch<T> batch_;
  PolicyProblemOptions options_;
  Surrogate<T> surrogate_;
  FisherCurvature<T> curvature_;
  Buffer<T> candidate_;  // (P)
};

}  // namespace natgrad
