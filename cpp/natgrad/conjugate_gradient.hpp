// Damped, preconditioned conjugate gradients: (A + damping I) x = b for symmetric A >= 0.
//
// Hestenes and Stiefel (1952) in the form of Nocedal and Wright, "Numerical Optimization" (2006),
// algorithm 5.3. It differs from the textbook in four ways:
//
//  1. The tolerance is on the residual and relative: stop at ||r|| <= max(rtol ||b||, atol).
//  2. Curvature is guarded: p'(A + damping I)p <= 0, or not finite, ends the iteration with
//     INDEFINITE and the x reached so far, which still decreases the quadratic.
//  3. Every `residual_replacement` iterations r is recomputed as b - (A + damping I) x, at the price
//     of one more product (van der Vorst and Ye 2000).
//  4. x'Ax comes from x'(b - r) - damping x'x, without a product.
//
// By asking for scratch space, the function promises to allocate nothing.
#pragma once

#include "natgrad/types.hpp"

namespace natgrad {

enum class CgStatus {
  CONVERGED,       // the residual is within tolerance
  MAX_ITERATIONS,  // out of iterations
  INDEFINITE,      // a direction of no or negative curvature; x is the best so far
  ZERO_RHS         // b = 0, so x = 0
};

struct CgOptions {
  double damping = 0;
  double rtol = 1e-10;            // ||r|| <= rtol ||b||
  double atol = 0;                // ||r|| <= atol
  int max_iterations = 10;        // the custom since Schulman et al. (2015)
  int residual_replacement = 50;  // iterations between exact residuals; 0 = never
};

struct CgSummary {
  CgStatus status = CgStatus::ZERO_RHS;
  int iterations = 0;
  double residual_norm = 0;   // ||b - (A + damping I) x||
  double rhs_norm = 0;        // ||b||
  double quadratic_form = 0;  // x'Ax, without damping
  double curvature = 0;       // p'(A + damping I)p of the last direction

  double relative_residual() const { return rhs_norm > 0 ? residual_norm / rhs_norm : 0; }
};

struct CgScratch {
  Buffer<double> r, p, z, q;  // (n) each
};

CgSummary conjugate_gradient(LinearOperator a,  // y = A x
                             Index n,
                             const double* b,  // (n)
                             double* x,        // (n) start in, solution out
                             const CgOptions& options,
                             const LinearOperator* preconditioner,  // z = M^-1 r, or null
                             CgScratch* scratch);

// The same summary of an x that was found without iterations, with the residual that it has: CONVERGED
// after none, or INDEFINITE where x has no curvature, as that of a b in the null space. `ax` is A x.
CgSummary summarize_solution(const double* b, const double* x, const double* ax, double damping,
                             Index n);

// x'y, in an order that depends on n alone.
double dot(const double* x, const double* y, Index n);

}  // namespace natgrad
