#include "natgrad/update/curvature.hpp"

#include "natgrad/base/random.hpp"

namespace natgrad {

namespace {
// Products that a trace is estimated from: about sqrt(2 / 16) of it is the standard deviation where a
// single eigenvalue dominates, and less everywhere else.
constexpr int kProbes = 16;
constexpr std::uint32_t kSigns = 0x54000000u;  // stream of random numbers
}  // namespace

double Curvature::quadratic_form(const double* v) {
  fv_.resize(size());
  product(v, fv_.data());
  return dot(v, fv_.data(), size());
}

double Curvature::trace() {
  v_.resize(size());
  double sum = 0;
  for (int probe = 0; probe < kProbes; ++probe) {
    RandomStream random(0, kSigns + static_cast<std::uint32_t>(probe), 0);
    for (double& sign : v_) sign = random.uniform() < 0.5 ? -1 : 1;
    sum += quadratic_form(v_.data());
  }
  return sum / kProbes;
}

Solver Curvature::choose(Solver, double, int) const {
  return Solver::conjugate_gradient;
}

bool Curvature::solve(Solver, const double*, double, double*, double*) {
  return false;
}

Preconditioner* Curvature::precondition(const KFac&, double) {
  return nullptr;
}

Preconditioner* Curvature::precondition(const Subsample&, double, int) {
  return nullptr;
}

double Curvature::cost(int products) const {
  return products;
}

double Curvature::cost(const KFac&, int) const {
  return std::numeric_limits<double>::infinity();
}

}  // namespace natgrad
