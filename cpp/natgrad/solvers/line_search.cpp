#include "natgrad/solvers/line_search.hpp"

namespace natgrad {

LineSearchSummary backtracking_line_search(FunctionRef<Candidate(double fraction)> evaluate,
                                           double expected_improvement, double max_kl,
                                           const LineSearchOptions& options) {
  LineSearchSummary summary;
  for (double fraction = 1; summary.evaluations < options.max_backtracks;
       fraction *= options.shrink) {
    summary.candidate = evaluate(fraction);
    ++summary.evaluations;
    if (!summary.candidate.finite()) {
      ++summary.non_finite;
      continue;
    }
    const double wanted = options.accept_ratio * fraction * expected_improvement;
    const double improvement = summary.candidate.improvement;
    if (summary.candidate.kl <= max_kl && improvement > wanted && improvement > 0) {
      summary.status = LineSearchStatus::ACCEPTED;
      summary.fraction = fraction;
      return summary;
    }
  }
  return summary;
}

}  // namespace natgrad
