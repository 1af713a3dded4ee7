// The direction of a natural gradient step: (F + damping D) x = g                          (eq. 5.1)
//
// What one solve leaves for the next is kept here: an adapted damping, the step from which a warm start
// begins, and which way an automatic choice found faster.
#pragma once

#include <optional>
#include <variant>
#include <vector>

#include "natgrad/update/curvature.hpp"

namespace natgrad {

// The damping of (F + damping D) x = g. A metric is the diagonal of D > 0, (P); without one D = I.
struct FixedDamping {
  double value = 0.1;  // the custom of all implementations since Schulman et al. (2015)
  std::vector<double> metric = {};
};
// factor tr(F) / P, which does not depend on the scale of F (eq. 8.3).
struct TraceDamping {
  double factor = 0.1;
};
// Adapted from update to update by the rule of Levenberg and Marquardt, within bounds.
struct AdaptiveDamping {
  double initial = 0.1;
  double low = LevenbergMarquardt{}.low;
  double high = LevenbergMarquardt{}.high;
  std::vector<double> metric;
};
using Damping = std::variant<FixedDamping, TraceDamping, AdaptiveDamping>;

// Conjugate gradients stop where the quadratic model fell by less than tolerance per iteration, relative
// to its value, on average over the last iterations of a window (eq. 8.1; Martens 2010, section 4.4).
struct Progress {
  double tolerance = 0.01;
  int window = 3;
  friend bool operator==(const Progress&, const Progress&) = default;
};

struct ConjugateGradient {
  int iterations = 10;  // Schulman et al. (2015), appendix C
  double rtol = 1e-10;  // stop at ||r|| <= max(rtol ||g||, atol)
  double atol = 0;
  std::optional<Progress> stop;
  bool warm_start = false;  // from the last step, scaled (eq. 8.2); costs one of the iterations
  // Whether the residual is measured after the last iteration, too. If not, half of that product is
  // enough for the same x, and the report has the residual before it.
  bool last_residual = true;
};

// Kronecker factors where they reach the accuracy of plain conjugate gradients sooner.
struct AutomaticPreconditioner {};
using PreconditionerChoice = std::variant<std::monostate, AutomaticPreconditioner, KFac, Subsample>;
enum class PreconditionerKind { none, kfac, subsample };

struct DirectionOptions {
  Damping damping = FixedDamping{};
  Solver solver = Solver::automatic;
  ConjugateGradient cg = {};  // also where a direct form was asked for, and there is none
  PreconditionerChoice preconditioner = {};
};

struct DirectionReport {
  double damping = 0;
  CgReport cg;
  Solver solver = Solver::conjugate_gradient;                    // the one that was used
  PreconditionerKind preconditioner = PreconditionerKind::none;  // none if it cannot be built
  double precondition_seconds = 0;                               // spent on building it
};

class DirectionSolver {
 public:
  explicit DirectionSolver(const DirectionOptions& options);
  const DirectionOptions& options() const { return options_; }

  // Solves (F / terms + damping D) x = g for g (P), and returns x (P). The caller scales x to the step
  // in place; the next warm start begins from what stands there.
  double* solve(Curvature& f, const double* g, double terms, DirectionReport* report);
  // What the next solve takes over from this one: whether its step was taken, and what the quadratic
  // model was worth (eq. 8.5; 0 if unknown).
  void learn(bool accepted, double reduction_ratio);

  // The adapted damping; of an automatic preconditioner, what the better way took and when both are tried
  // again; the step (P) of a warm start. Empty if none of these is asked for.
  std::vector<double> state() const;
  bool set_state(const std::vector<double>& state);  // false: not a state of this solver

 private:
  struct System;
  // What passes from one solve to the next, beside the step.
  struct Memory {
    double damping = 0;   // the next, where it is adapted
    int sufficient = 0;   // products with factors that equal the plain iterations; 0: too many
    int until_trial = 0;  // solves before both ways are tried again
    bool warm = false;    // warm_ holds a step to start from
  };
  double damping(Curvature& f, double terms) const;
  bool solve_directly(const System& system, double* x, DirectionReport* report);
  void solve_automatically(const System& system, double* x, DirectionReport* report);
  Preconditioner* precondition(const System& system, const PreconditionerChoice& choice,
                               DirectionReport* report);
  CgReport iterate(const System& system, int iterations, double goal,
                   Preconditioner* preconditioner, double* x);
  const std::vector<double>* metric() const;  // null: D = I
  bool is_automatic() const;
  bool is_adaptive() const;
  bool keeps_state() const;

  DirectionOptions options_;
  Memory memory_, next_;                     // next_ replaces memory_ when a solve has ended
  Buffer<double> x_, warm_;                  // (P); warm_ only where it is asked for
  Buffer<double> other_;                     // (P): the start, or the other solution, of a trial
  Buffer<double> root_, scaled_g_, scaled_;  // D^-1/2, D^-1/2 g, D^-1/2 v
  CgScratch scratch_;
};

}  // namespace natgrad
