// F as a direction solver sees it: a symmetric positive semidefinite matrix (P, P), known by its products.
// Whatever a subclass can do better than by products, it overrides.
#pragma once

#include <limits>

#include "natgrad/fisher/kfac.hpp"

namespace natgrad {

// The Fisher matrix of every `every`-th observation, with K-FAC as its own preconditioner, solved by
// `iterations` inner conjugate gradient iterations for each outer one (decision 23).
struct Subsample {
  Index every = 6;
  int iterations = InnerSolver::kIterations;
};

class Curvature {
 public:
  virtual ~Curvature() = default;
  virtual Index size() const = 0;  // P

  // Prepares for about so many products and forms, in the way that is fastest for them.
  virtual void plan(int products) { static_cast<void>(products); }
  virtual void product(const double* v, double* out) = 0;  // F v
  virtual double quadratic_form(const double* v);          // v'F v
  // The relative rounding error of a product.
  virtual double rounding() const { return std::numeric_limits<double>::epsilon(); }
  // tr F; estimated from products with fixed vectors of random signs (Hutchinson 1990).
  virtual double trace();

  // A direct form for (F + damping I) x = b that is as asked, or faster than so many products;
  // conjugate_gradient where there is none.
  virtual Solver choose(Solver asked, double damping, int products) const;
  // Solves in the form chosen, and fx = F x. False if rounding forbids it.
  virtual bool solve(Solver form, const double* b, double damping, double* x, double* fx);

  // Preconditioners for F + damping I. Null where there is none, or it is not positive definite.
  virtual Preconditioner* precondition(const KFac& options, double damping);
  virtual Preconditioner* precondition(const Subsample& options, double damping, int iterations);

  // Time of so many products, plain or with K-FAC, in the unit of the cost models; infinite where there
  // is no K-FAC.
  virtual double cost(int products) const;
  virtual double cost(const KFac& options, int products) const;

 private:
  Buffer<double> v_, fv_;  // of the products that stand for something else
};

}  // namespace natgrad
