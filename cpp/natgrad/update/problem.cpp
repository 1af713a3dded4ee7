#include "natgrad/update/problem.hpp"

#include <cmath>

namespace natgrad {

bool find_gradient(Problem& problem, double* g, UpdateReport* report) {
  if (!problem.linearize(g, report)) return false;
  const Index n = problem.size();
  const double rounding = problem.gradient_rounding();
  report->gradient_norm = std::sqrt(dot(g, g, n));
  if (!std::isfinite(report->gradient_norm) || !std::isfinite(rounding)) {
    return report->end(UpdateStatus::NON_FINITE,
                       "the norm of the gradient is %g, its rounding error %g",
                       report->gradient_norm, rounding);
  }
  if (report->gradient_norm <= rounding) {
    return report->end(UpdateStatus::ZERO_GRADIENT,
                       "the norm of the gradient is %g, not above its rounding error %g",
                       report->gradient_norm, rounding);
  }
  return true;
}

void take_step(Problem& problem, double fraction, double step_length, UpdateReport* report) {
  problem.accept();
  report->status = UpdateStatus::ACCEPTED;
  report->step_fraction = fraction;
  report->step_norm = fraction * step_length;
  report->say("kl %.3g, improvement %.3g at %.3g of the step", report->kl, report->improvement,
              fraction);
}

}  // namespace natgrad
