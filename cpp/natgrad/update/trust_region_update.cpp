#include "natgrad/update/trust_region_update.hpp"

#include <algorithm>
#include <cmath>

#include "natgrad/base/stopwatch.hpp"

namespace natgrad {
namespace {

// Without a line search, a full step whose divergence is more than this multiple of max_kl is not what the
// quadratic model promised, and is not taken.
constexpr double kMostDivergence = 10;

}  // namespace

TrustRegionUpdate::TrustRegionUpdate(const TrustRegionOptions& options)
    : options_(options), direction_(options.direction) {}

// Algorithm 1 of Schulman et al. (2015).
UpdateReport TrustRegionUpdate::operator()(Problem& problem) {
  const Index n = problem.size();
  const double terms = options_.kl_reduction == KlReduction::mean
                           ? static_cast<double>(problem.action_dimensions())
                           : 1;
  gradient_.resize(n);
  double* const g = gradient_.data();
  UpdateReport report;
  Stopwatch watch, total;

  // Gradient: g = grad L(theta)                                                           (eq. 3.4)
  const bool found = find_gradient(problem, g, &report);
  report.timings.gradient = watch.lap();
  if (found) {
    // Direction: (F + damping D) x = g                                                    (eq. 5.1)
    double* const x = direction_.solve(problem.curvature(), g, terms, &report.direction);
    report.timings.solve = watch.lap();

    // Length: d = sqrt(2 delta / x'Fx) x                                                  (eq. 5.2)
    if (find_length(x, n, &report)) {
      // Search: theta' = theta + fraction d, for the first acceptable fraction.
      const LineSearchSummary search = this->search(problem, terms, x, &report);
      report.timings.search = watch.lap();

      // Accept: only now do the parameters change.
      if (search.status == LineSearchStatus::ACCEPTED) {
        take_step(problem, search.fraction, norm(x, n), &report);
      } else {
        reject(search, &report);
      }
    }
    direction_.learn(report.status == UpdateStatus::ACCEPTED, report.reduction_ratio);
  }
  report.timings.total = total.lap();
  return report;
}

// Turns the direction x (n) into the full step d. False where x has no length.
bool TrustRegionUpdate::find_length(double* x, Index n, UpdateReport* report) const {
  const CgReport& cg = report->direction.cg;
  const auto* length = std::get_if<StepLength>(&options_.step_scale);
  const bool damped = length != nullptr && *length == StepLength::damped;
  const double squared_length =
      cg.quadratic_form + (damped ? report->direction.damping * cg.squared_norm : 0);
  const double scale = length != nullptr
                           ? std::sqrt(options_.max_kl) * std::sqrt(2 / squared_length)
                           : std::get<double>(options_.step_scale);
  if (!(squared_length > 0) || !std::isfinite(squared_length) || !std::isfinite(scale)) {
    return report->end(UpdateStatus::NOT_POSITIVE_DEFINITE,
                       "x'Fx = %g after %d products, p'(F + damping D)p = %g", squared_length,
                       cg.products, cg.curvature);
  }
  report->step_scale = scale;
  for (Index i = 0; i < n; ++i) x[i] *= scale;
  report->expected_improvement = dot(gradient_.data(), x, n);
  return true;
}

// Candidates theta + fraction step; without a line search there is one, at fraction 1.
LineSearchSummary TrustRegionUpdate::search(Problem& problem, double terms, const double* step,
                                            UpdateReport* report) const {
  const double expected_kl =
      0.5 * report->step_scale * report->step_scale * report->direction.cg.quadratic_form;
  const auto candidate_at = [&](double fraction) {
    Candidate candidate = problem.evaluate(fraction, step);
    candidate.kl /= terms;
    const double ratio = std::min(candidate.improvement / report->expected_improvement,
                                  expected_kl / candidate.kl);  //                      (eq. 8.5)
    if (fraction == 1 && candidate.finite() && std::isfinite(ratio)) {
      report->reduction_ratio = ratio;
    }
    return candidate;
  };
  LineSearchSummary search;
  if (options_.line_search.has_value()) {
    search = backtracking_line_search(candidate_at, report->expected_improvement, options_.max_kl,
                                      *options_.line_search);
  } else {
    search.fraction = 1;
    search.evaluations = 1;
    search.candidate = candidate_at(1);
    search.non_finite = search.candidate.finite() ? 0 : 1;
    const bool promised = std::holds_alternative<double>(options_.step_scale) ||
                          search.candidate.kl <= kMostDivergence * options_.max_kl;
    if (search.candidate.finite() && promised) search.status = LineSearchStatus::ACCEPTED;
  }
  report->kl = search.candidate.kl;
  report->improvement = search.candidate.improvement;
  report->backtracks = search.evaluations - (search.status == LineSearchStatus::ACCEPTED ? 1 : 0);
  return search;
}

void TrustRegionUpdate::reject(const LineSearchSummary& search, UpdateReport* report) const {
  const bool non_finite = search.non_finite == search.evaluations;
  report->end(non_finite ? UpdateStatus::NON_FINITE : UpdateStatus::LINE_SEARCH_FAILED,
              "none of %d candidates was acceptable, %d not finite; the last had kl %.3g "
              "(bound %.3g) and improvement %.3g",
              search.evaluations, search.non_finite, report->kl, options_.max_kl,
              report->improvement);
}

}  // namespace natgrad
