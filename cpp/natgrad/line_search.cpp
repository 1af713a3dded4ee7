#include "natgrad/line_search.hpp"

namespace natgrad {

LineSearchSummary backtracking_line_search(FunctionRef<Candidate(double fraction)> evaluate,
                                           double expected_improvement, double max_kl,
                                           const LineSearchOptions& options) {
  LineSearchSummary summary;
  summary.fraction = 1;
  for (; summary.evaluations < options.max_backtracks; summary.fraction *= options.shrink) {
    summary.candidate = evaluate(summary.fraction);
    ++summary.evaluations;
    if (!summary.candidate.finite()) {
      ++summary.non_finite;
      continue;
    }
    const double wanted = options.accept_ratio * summary.fraction * expected_improvement;
    if (summary.candidate.kl <= max_kl && summary.candidate.improvement > wanted) {
      summary.status = LineSearchStatus::ACCEPTED;
      return summary;
    }
  }
  summary.fraction /= options.shrink;
  return summary;
}

}  // namespace natgrad
