// Damped, preconditioned conjugate gradients: (A + damping I) x = b for symmetric A >= 0.
//
// Hestenes and Stiefel (1952) in the form of Nocedal and Wright, "Numerical Optimization" (2006),
// algorithm 5.3. It differs from the textbook in ten ways:
//
//  1. The tolerance is on the residual and relative: stop at ||r|| <= max(rtol ||b||, atol).
//  2. Curvature is guarded: where p'(A + damping I)p is not finite, or not above what rounding makes of
//     0, the iteration ends with INDEFINITE and the x reached so far, which still decreases the quadratic.
//  3. Every `residual_replacement` iterations r is recomputed as b - (A + damping I) x, at the price
//     of one more product (van der Vorst and Ye 2000).
//  4. x'Ax comes from x'(b - r) - damping x'x, without a product.
//  5. The quadratic model phi(x) = 1/2 x'(A + damping I)x - b'x is tracked without a product, and the
//     iteration may stop when it hardly falls any more (eq. 8.1; Martens 2010, section 4.4).
//  6. A start x0 may be scaled by the factor that minimises phi (eq. 8.2), without another product.
//  7. The last of `max_iterations` may use the number p'Ap instead of the product A p, which is otherwise
//     needed only for the next residual.
//  8. A preconditioner may vary from one residual to the next. Each direction is then made conjugate to
//     the last one explicitly, beta = -z'(A + damping I)p / p'(A + damping I)p, instead of by a ratio
//     of r'z (flexible conjugate gradients; Notay 2000).
//  9. Where A is singular and b is not in its range, the iterates grow without bound and so do their
//     residuals. If the curvature nearly vanished on the way, an x with a larger residual than the start
//     has is replaced by the iterate of the smallest residual.
// 10. Wherever rounding could have separated the residual of the recursion from b - (A + damping I) x, it is
//     measured before it counts as small, at the price of a product.
//
// A right-hand side whose squares would overflow or underflow is scaled by a power of two, which is exact.
//
// Scratch space is passed in: once it has grown to a size, the function allocates nothing.
#pragma once

#include <limits>

#include "natgrad/base/types.hpp"

namespace natgrad {

enum class CgStatus {
  CONVERGED,  // the measured residual is within tolerance, or the quadratic model has fallen to the goal
  SLOW_PROGRESS,   // the quadratic model hardly fell over the last iterations
  MAX_ITERATIONS,  // out of iterations
  INDEFINITE,  // a direction of no or negative curvature, or nothing finite; x is the best so far
  ZERO_RHS     // b = 0, so x = 0
};

using QuadraticForm = FunctionRef<double(const double* x)>;  // x'A x

struct CgOptions {
  double damping = 0;
  double rtol = 1e-10;            // ||r|| <= rtol ||b||
  double atol = 0;                // ||r|| <= atol
  int max_iterations = 10;        // as in Schulman et al. (2015)
  int residual_replacement = 50;  // iterations between exact residuals; 0 = never
  // Stop at iteration i >= k if phi fell over the last k by less than k eps of |phi|; eps = 0: never.
  // Martens (2010) used eps = 5e-4 and k = max(10, i / 10) for hundreds of iterations. Here k is an
  // option, because an update has ten: one iteration alone says too little, three give an average.
  double progress_tolerance = 0;  // eps
  int progress_window = 3;        // k
  bool scale_start = false;       // x0 becomes c x0, or 0 where A has no curvature along it
  bool flexible = false;          // for a preconditioner that varies
  // Ask for less evidence that A is singular: small curvature, or a residual of five times the first. An
  // update does not: along a direction only the quadratic model matters, which falls at every iteration.
  bool bounded_residual = false;
  double rounding = std::numeric_limits<double>::epsilon();  // of a product with A, relative
  // Stop at phi(x) <= goal. With phi of another x as the goal, x is then no less accurate than that.
  double model_goal = -std::numeric_limits<double>::infinity();
};

struct CgReport {
  CgStatus status = CgStatus::ZERO_RHS;
  int iterations = 0;
  int products = 0;          // with A: iterations, exact residuals, and the start if it is not 0
  double residual_norm = 0;  // ||b - (A + damping I) x||; before the last iteration if it took p'Ap
  double rhs_norm = 0;       // ||b||
  double quadratic_form = 0;  // x'Ax, without damping
  double squared_norm = 0;    // x'x
  double curvature = 0;       // p'(A + damping I)p of the last direction
  double model_value = 0;     // phi(x) = 1/2 x'(A + damping I)x - b'x; 0 at x = 0

  double relative_residual() const { return rhs_norm > 0 ? residual_norm / rhs_norm : 0; }
};

struct CgScratch {
  Buffer<double> r, p, z, q;  // (n) each
  Buffer<double> best;        // (n): the iterate of the smallest residual
  Buffer<double> scaled;      // (n): b, where its squares are out of range
  Buffer<double> models;      // (progress_window) of the last iterations
};

CgReport conjugate_gradient(LinearOperator a,  // y = A x
                            Index n,
                            const double* b,  // (n)
                            double* x,        // (n) start in, solution out
                            const CgOptions& options,
                            const LinearOperator* preconditioner,  // z = M^-1 r, or null
                            CgScratch* scratch,
                            const QuadraticForm* form = nullptr);  // p'A p for the last iteration

// The same summary for an x that was found without iterations, with its measured residual: CONVERGED, or
// INDEFINITE where a part of b is in the null space of A, which leaves more than half of the digits of b.
// `ax` is A x, and `rounding` that of CgOptions.
CgReport summarize_solution(const double* b, const double* x, const double* ax, double damping,
                            Index n, double rounding);

// x'y, in an order that depends on n alone.
double dot(const double* x, const double* y, Index n);
// ||x||, also where its square would overflow or underflow.
double norm(const double* x, Index n);

// The damping of the next system, from the ratio of actual to predicted reduction in the last one
// (Levenberg 1944, Marquardt 1963): more below 1/4 or if the ratio is not a number, less above 3/4.
// Thresholds and factors are those of Martens (2010), section 4.1.
struct LevenbergMarquardt {
  double grow = 1.5, shrink = 1.5;  // factors
  double low = 1e-5;                // the least that any implementation of TRPO uses
  double high = 10;                 // the step is then almost along the plain gradient

  double operator()(double damping, double ratio) const;
};

}  // namespace natgrad
