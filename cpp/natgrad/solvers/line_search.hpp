// Backtracking under the acceptance rule of TRPO (Schulman et al. 2015, appendix C).
//
// Fractions 1, shrink, shrink^2, ... of a step are tried until one has
//
//   kl <= max_kl   and   improvement > max(0, accept_ratio * fraction * expected_improvement) .
//
// A candidate whose kl or improvement is not finite counts as rejected: the search goes on.
#pragma once

#include <cmath>

#include "natgrad/base/types.hpp"

namespace natgrad {

enum class LineSearchStatus {
  ACCEPTED,           // a fraction satisfies both conditions
  LINE_SEARCH_FAILED  // none of the fractions tried does
};

struct LineSearchOptions {
  double shrink = 0.8;      // sb3-contrib, tianshou and Spinning Up alike
  int max_backtracks = 10;  // fractions tried in all
  double accept_ratio = 0;  // strict improvement; 0.1 asks for a tenth of the predicted one
};

struct Candidate {
  double improvement = 0;
  double kl = 0;
  bool finite() const { return std::isfinite(improvement) && std::isfinite(kl); }
};

struct LineSearchSummary {
  LineSearchStatus status = LineSearchStatus::LINE_SEARCH_FAILED;
  double fraction = 0;  // accepted; 0 if none was
  Candidate candidate;  // the accepted one, or the last one tried
  int evaluations = 0;
  int non_finite = 0;  // candidates that could not be evaluated
};

LineSearchSummary backtracking_line_search(FunctionRef<Candidate(double fraction)> evaluate,
                                           double expected_improvement, double max_kl,
                                           const LineSearchOptions& options);

}  // namespace natgrad
