#include "natgrad/update/policy_gradient_update.hpp"

#include <limits>

#include "natgrad/base/stopwatch.hpp"

namespace natgrad {

UpdateReport PolicyGradientUpdate::operator()(Problem& problem) {
  const Index n = problem.size();
  for (Buffer<double>* buffer : {&gradient_, &step_}) buffer->resize(n);
  const double* g = gradient_.data();
  double* step = step_.data();
  UpdateReport report;
  Stopwatch watch, total;

  const bool found = find_gradient(problem, gradient_.data(), &report);
  report.timings.gradient = watch.lap();
  if (found) {
    adam_.reserve(n);  // so that nothing can fail once the policy has moved
    next_ = adam_;
    if (options_.adam) {
      next_.step(g, n, options_.learning_rate, step);
    } else {
      for (Index i = 0; i < n; ++i) step[i] = options_.learning_rate * g[i];
    }
    report.expected_improvement = dot(g, step, n);
    Candidate candidate = problem.evaluate(1, step);
    if (!next_.is_finite()) candidate.improvement = std::numeric_limits<double>::quiet_NaN();
    report.timings.search = watch.lap();
    report.kl = candidate.kl;
    report.improvement = candidate.improvement;
    if (candidate.finite()) {
      adam_ = next_;
      take_step(problem, 1, norm(step, n), &report);
    } else {
      report.end(UpdateStatus::NON_FINITE, "the step leads to kl %g and improvement %g", report.kl,
                 report.improvement);
    }
  }
  report.timings.total = total.lap();
  return report;
}

}  // namespace natgrad
