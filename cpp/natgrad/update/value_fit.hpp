// Two ways to fit a value function to targets by least squares, loss = (1/2N) sum_n (z_n - t_n)^2 in
// the value function's own units. Both are transactional: parameters, scale and their own state
// change only if the loss of the whole batch ends finite and no higher than it began.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "natgrad/fisher/fisher.hpp"
#include "natgrad/model/value_function.hpp"
#include "natgrad/solvers/adam.hpp"
#include "natgrad/solvers/conjugate_gradient.hpp"

namespace natgrad {

struct FitReport {
  bool accepted = false;
  double loss_before = 0, loss = 0;  // (1/2N) sum (z - t)^2, in units of the target's std
  double explained_variance_before = 0, explained_variance = 0;  // 1 - Var(t - V) / Var(t)
  int steps = 0;                                                 // steps taken
  double damping = 0;                                            // at the end (Gauss-Newton)
  double seconds = 0;
  std::array<char, 256> message{};
};

struct GaussNewtonOptions {
  int steps = 4;          // attempts, each one gradient, one solve, one evaluation
  int cg_iterations = 5;  // few: stopping early is what keeps noise in the targets out
  double damping = 0.1;   // at the start; then adapted (Levenberg and Marquardt)
  double max_change = 1;  // bound on the mean squared change of z in one step
  FisherMethod method = FisherMethod::automatic;  // of the products
};

// Gauss-Newton: a value function is a Gaussian with unit variance, so its Fisher matrix is
// (1/N) sum J_n' J_n and the same conjugate gradients apply. Damping follows the ratio of actual to
// predicted reduction (Martens 2010, section 4.1); the step is bounded in the units of the outputs
// (Schulman et al. 2016, section 5: a trust region for the value function).
template <class T>
class GaussNewtonFit {
 public:
  using Options = GaussNewtonOptions;

  explicit GaussNewtonFit(const GaussNewtonOptions& options)
      : options_(options), damping_(options.damping) {}
  const GaussNewtonOptions& options() const { return options_; }
  std::vector<double> state() const { return {damping_}; }
  bool set_state(const std::vector<double>& state);  // false: not a state of this fit

  FitReport operator()(ValueFunction<T>& value_function, Matrix<const T> observations,
                       std::span<const double> targets);

 private:
  GaussNewtonOptions options_;
  double damping_;
  PackedLayers<T> packed_;
  Linearization<T> network_;
  CachedAdjoints<T> adjoints_;
  CgScratch cg_;
  Buffer<double> targets_, gradient_, solution_;
  Buffer<T> saved_, previous_;
};

struct AdamFitOptions {
  int epochs = 10;  // sb3-contrib's n_critic_updates
  Index minibatch_size = 64;
  double learning_rate = 1e-3;
  std::uint64_t seed = 0;  // of the shuffles
};

// Minibatch Adam, as most implementations fit their critics.
template <class T>
class AdamFit {
 public:
  using Options = AdamFitOptions;

  explicit AdamFit(const AdamFitOptions& options) : options_(options) {}
  const AdamFitOptions& options() const { return options_; }
  std::vector<double> state() const;  // epochs done, then that of Adam
  bool set_state(const std::vector<double>& state);

  FitReport operator()(ValueFunction<T>& value_function, Matrix<const T> observations,
                       std::span<const double> targets);

 private:
  AdamFitOptions options_;
  Adam adam_, next_;
  std::uint64_t epochs_done_ = 0;
  PackedLayers<T> packed_;
  Linearization<T> network_;
  Buffer<double> targets_, minibatch_targets_, gradient_, step_;
  Buffer<Index> order_;
  Buffer<T> saved_, minibatch_;
};

}  // namespace natgrad
