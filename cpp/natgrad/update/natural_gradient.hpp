// The natural policy gradient update: Kakade (2002) without a line search, TRPO (Schulman et al.
// 2015) with one. `TrustRegionUpdate::operator()` is the algorithm box.
//
// An update is transactional: the policy's parameters change only if the status is ACCEPTED.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "natgrad/fisher/fisher.hpp"
#include "natgrad/fisher/kfac.hpp"
#include "natgrad/solvers/adam.hpp"
#include "natgrad/solvers/conjugate_gradient.hpp"
#include "natgrad/solvers/line_search.hpp"
#include "natgrad/solvers/preconditioner.hpp"
#include "natgrad/update/surrogate.hpp"

namespace natgrad {

enum class UpdateStatus {
  ACCEPTED,              // a step was taken
  ZERO_GRADIENT,         // nothing to do
  ZERO_ADVANTAGES,       // nothing to do
  LINE_SEARCH_FAILED,    // no fraction of the step was acceptable
  NON_FINITE,            // outputs, gradient, or every candidate were not finite
  NOT_POSITIVE_DEFINITE  // x'Fx <= 0: the step has no length
};

// automatic: Kronecker factors where they reach the accuracy of plain conjugate gradients sooner.
enum class PreconditionerKind { none, kfac, subsample, diagonal, nystrom, automatic };

// Wall-clock seconds of the parts of an update.
struct UpdateTimings {
  double gradient = 0;  // and linearisation of the policy on the batch, in one pass
  double solve =
      0;  // conjugate gradients, products and preconditioner included; or the closed form
  double precondition = 0;  // of the solve: building the preconditioner
  double search = 0;        // candidates of the line search
  double total = 0;
};

struct UpdateReport {
  UpdateStatus status = UpdateStatus::NON_FINITE;
  std::array<char, 256> message{};  // a sentence with the numbers; no allocation
  double kl = 0;                    // mean KL(old || new) of the accepted or last candidate
  double improvement = 0;           // of the surrogate, by the accepted or last candidate
  double expected_improvement = 0;  // g'd of the full step
  double step_fraction = 0;         // 0 unless accepted
  double step_scale = 0;            // of the full step: d = step_scale x
  int backtracks = 0;               // candidates rejected before
  double surrogate = 0;             // at the old parameters
  double entropy = 0;               // of the old policy, mean over the batch
  double gradient_norm = 0;
  double step_norm = 0;  // of the step taken; 0 unless accepted
  double damping = 0;    // of this solve
  // What the model was worth at the full step: the smaller of improvement / g'd and 1/2 d'Fd / kl
  // (eq. 35). 0 if that step could not be evaluated.
  double reduction_ratio = 0;
  CgSummary cg;
  Solver solver = Solver::conjugate_gradient;                    // that solved
  PreconditionerKind preconditioner = PreconditionerKind::none;  // none where it cannot be built
  UpdateTimings timings;
};

// lambda of (F + lambda D) x = g: `damping` itself; times tr(F) / P, which makes it independent of the
// scale of F; or adapted from update to update, `damping` being the first.
enum class DampingMode { fixed, trace, adaptive };

// What a divergence is taken over: the dimensions of an action summed, or averaged as sb3-contrib does
// it. With mean, KL and F are those of the sum divided by the number of dimensions.
enum class KlReduction { sum, mean };

struct TrustRegionOptions {
  double max_kl = 0.01;    // delta; Schulman et al. (2015), section 8
  double damping = 0.1;    // of F in the solve; the custom of all implementations
  int cg_iterations = 10;  // Schulman et al. (2015), appendix C
  double cg_rtol = 1e-10;
  Solver solver = Solver::automatic;
  double cg_atol = 0;
  PreconditionerKind preconditioner = PreconditionerKind::none;
  KfacOptions kfac;
  // subsample: inner iterations on the Fisher matrix of every so-manieth observation, with Kronecker
  // factors of these observations.
  Index subsample_every = 6;  // decision 23
  int subsample_iterations = InnerSolver::kIterations;
  Index nystrom_rank = 20;
  // Measure the residual after the last of cg_iterations, too; or make half of that product alone, and
  // report the residual before it.
  bool cg_last_residual = true;
  double cg_progress_tolerance = CgOptions{}.progress_tolerance;
  int cg_progress_window = CgOptions{}.progress_window;
  bool warm_start = false;  // from the last step, scaled (eq. 32); costs one of cg_iterations
  std::optional<LineSearchOptions> line_search = LineSearchOptions{};  // none: the closed-form step
  bool normalize_advantages = false;  // to mean 0 and standard deviation 1 over the batch
  FisherKind fisher = FisherKind::exact;
  double curvature_fraction = 1;  // of the observations, evenly spaced, in F alone
  bool damped_step = false;       // scale the step by x'(F + damping D)x instead of x'Fx
  DampingMode damping_mode = DampingMode::fixed;
  LevenbergMarquardt damping_rule;     // of the adaptive mode
  std::vector<double> damping_metric;  // (P), the diagonal of D > 0; empty: D = I
  KlReduction kl_reduction = KlReduction::sum;
  KlDirection kl_direction = KlDirection::old_new;  // of the bound; F is the same
  std::optional<double> step_size;                  // d = step_size x, whatever max_kl says
  // Floor of log standard deviations that are parameters: a candidate below it is put onto it, and
  // judged there. One that is below already may only rise.
  std::optional<double> log_std_min;
};

// Conjugate gradients as these options ask for them.
CgOptions cg_options(const TrustRegionOptions& options, double damping);

// Whether there is something to follow; if not, the report says why. `rounding` is the norm that
// rounding alone could give g (n).
bool usable_gradient(const double* g, Index n, double rounding, UpdateReport* report);

// The algorithm box behind its gradient: solve, scale, search (eq. 15, 16). Changes nothing but x and
// the report; if that says ACCEPTED, the step evaluated last is the one to take.
//
//   solve(terms, x, report)  x = (F + terms damping D)^-1 g, with F summed over `terms` dimensions of
//                            an action; the report's cg, and its damping with those terms
//   evaluate(fraction)       the policy at theta + fraction x, its KL summed likewise
void trust_region_step(const TrustRegionOptions& options,
                       Index dimensions,  // of an action
                       Index n,
                       const double* g,  // (n)
                       FunctionRef<void(double terms, double* x, UpdateReport* report)> solve,
                       FunctionRef<Candidate(double fraction)> evaluate,
                       double* x,  // (n) a warm start in, the full step out
                       UpdateReport* report);

template <class T>
class TrustRegionUpdate {
 public:
  using Options = TrustRegionOptions;

  explicit TrustRegionUpdate(const TrustRegionOptions& options)
      : options_(options), damping_(options.damping) {}
  const TrustRegionOptions& options() const { return options_; }
  void set_max_kl(double max_kl) { options_.max_kl = max_kl; }  // of the updates to come

  // The next adaptive damping; of an automatic preconditioner, when both ways were tried last and what
  // the better one took; kept Kronecker factors, behind their length; the step (P) of a warm start.
  // Empty if none of these is asked for.
  std::vector<double> state() const;
  bool set_state(const std::vector<double>& state);  // false: not a state of this update

  UpdateReport operator()(Policy<T>& policy, const Batch<T>& batch);

 private:
  void attach_fisher(Matrix<const T> actions);  // of the batch
  double damping(double terms);
  void solve(double terms, double* x, UpdateReport* report);
  Preconditioner* precondition(PreconditionerKind kind, double damping, UpdateReport* report);
  CgSummary iterate(const CgOptions& cg, Preconditioner* preconditioner, double* x);
  void solve_automatically(CgOptions cg, double* x, UpdateReport* report);
  void learn_from(const UpdateReport& report);
  bool keeps_factors() const {
    return options_.kfac.keep() && (options_.preconditioner == PreconditionerKind::kfac ||
                                    options_.preconditioner == PreconditionerKind::subsample ||
                                    options_.preconditioner == PreconditionerKind::automatic);
  }

  TrustRegionOptions options_;
  double damping_;     // the next, where it is adaptive
  bool warm_ = false;  // solution_ holds a step to start from
  Surrogate<T> surrogate_;
  Fisher<T> fisher_;
  LinearizedPolicy<T> subsample_;  // where the curvature has a batch of its own
  Buffer<T> subsample_actions_;
  KroneckerFactors<T> kfac_;
  LinearizedPolicy<T> inner_policy_;  // of the part that preconditions
  Buffer<T> inner_actions_;
  Fisher<T> inner_fisher_;
  InnerSolver inner_;
  DiagonalPreconditioner diagonal_;
  NystromPreconditioner nystrom_;
  int sufficient_ = 0;    // automatic: products with factors that equal cg_iterations; 0: too many
  int until_trial_ = 0;   // updates before both ways are tried again
  Buffer<double> other_;  // (P): the start, or the other solution, of a trial
  CgScratch cg_;
  Buffer<double> gradient_, solution_;
  Buffer<double> root_, scaled_gradient_, scaled_;  // D^-1/2, D^-1/2 g, D^-1/2 v
  Buffer<T> candidate_;
};

struct PolicyGradientOptions {
  double learning_rate = 0.01;
  bool adam = true;  // Kingma and Ba (2015); false: theta += learning_rate g
  bool normalize_advantages = false;
};

// REINFORCE (Williams 1992): a step along the plain gradient. The baseline that people compare with.
template <class T>
class PolicyGradientUpdate {
 public:
  using Options = PolicyGradientOptions;

  explicit PolicyGradientUpdate(const PolicyGradientOptions& options) : options_(options) {}
  const PolicyGradientOptions& options() const { return options_; }
  std::vector<double> state() const { return adam_.state(); }
  bool set_state(const std::vector<double>& state) { return adam_.set_state(state); }

  UpdateReport operator()(Policy<T>& policy, const Batch<T>& batch);

 private:
  PolicyGradientOptions options_;
  Adam adam_, next_;
  Surrogate<T> surrogate_;
  Buffer<double> gradient_, step_;
  Buffer<T> candidate_;
};

}  // namespace natgrad
