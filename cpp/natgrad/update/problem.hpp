// A policy on a batch, as an update sees it: an objective to improve, a divergence to bound, and the
// matrix of its quadratic model. The core's own policies are problems (policy_problem.hpp), and so is
// any policy that is given by functions.
#pragma once

#include "natgrad/solvers/line_search.hpp"
#include "natgrad/update/report.hpp"

namespace natgrad {

class Problem {
 public:
  virtual ~Problem() = default;

  virtual Index size() const = 0;  // P
  // Dimensions of an action, over which divergences are summed.
  virtual Index action_dimensions() const = 0;

  // g (P) = grad L at the present parameters (eq. 3.4), and what the report says of them. False if there is
  // nothing to follow; the report then says why.
  virtual bool linearize(double* g, UpdateReport* report) = 0;
  // The norm that rounding alone could give g.
  virtual double gradient_rounding() const { return 0; }
  // F at the parameters that were linearised. It is valid until the next linearisation.
  virtual Curvature& curvature() = 0;

  // Improvement and divergence at theta + fraction step, for a step (P).
  virtual Candidate evaluate(double fraction, const double* step) = 0;
  // The parameters become those that were evaluated last. Nothing else changes them.
  virtual void accept() = 0;
};

// Linearises. True if there is a finite gradient above its rounding error; if not, the report says why.
bool find_gradient(Problem& problem, double* g, UpdateReport* report);

// Takes the step that was evaluated last, whose candidate the report describes.
void take_step(Problem& problem, double fraction, double step_length, UpdateReport* report);

}  // namespace natgrad
