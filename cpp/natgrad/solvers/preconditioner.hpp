// Preconditioners for conjugate gradients that know only vectors and operators: z = M^-1 r with a
// symmetric positive definite M close to A + damping I. K-FAC, which knows the network, is in fisher/.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <functional>

#include "natgrad/solvers/conjugate_gradient.hpp"

namespace natgrad {

class Preconditioner {
 public:
  virtual ~Preconditioner() = default;
  virtual Index size() const = 0;
  // z = M^-1 r, both of `size` values.
  virtual void apply(const double* r, double* z) = 0;
  // Whether M depends on r, which requires flexible conjugate gradients.
  virtual bool varies() const { return false; }
};

// M = diag(A) + damping I (Jacobi).
class DiagonalPreconditioner : public Preconditioner {
 public:
  // False if an entry of diag(A) + damping is not positive and finite.
  bool attach(const double* diagonal, Index n, double damping);
  Index size() const override { return inverse_.size(); }
  void apply(const double* r, double* z) override;

 private:
  Buffer<double> inverse_;
};

// Randomised Nystrom preconditioner (Frangella, Tropp and Udell, "Randomized Nystrom preconditioning",
// SIAM J. Matrix Anal. Appl. 2023, algorithms 2.1 and 5.1; eq. 7.4): with A ~ U diag(l) U' of the given rank,
//
//   M^-1 = (l_min + damping) U (diag(l) + damping)^-1 U' + (I - U U')
//
// Building it takes `rank` products with A. Unlike in the paper, U comes from the eigenvectors of a small
// Gram matrix instead of a singular value decomposition; those that are rounding errors are dropped.
class NystromPreconditioner : public Preconditioner {
 public:
  // False if A is not positive semidefinite on the sketch, or not finite. 1 <= rank <= n.
  bool attach(LinearOperator a, Index n, Index rank, double damping, std::uint64_t seed);
  Index size() const override { return u_.rows(); }
  Index rank() const { return u_.cols(); }
  void apply(const double* r, double* z) override;

 private:
  Eigen::MatrixXd u_;        // (n, rank)
  Eigen::VectorXd weights_;  // (l_min + damping) / (l + damping) - 1
  Eigen::VectorXd along_;    // U' r
};

// z ~ (B + damping I)^-1 r by a few conjugate gradient iterations with a preconditioner C of their own, on
// an operator B that is close to A and cheaper, such as the Fisher matrix of a part of the batch. Inner and
// outer iterations: Golub and Ye, "Inexact preconditioned conjugate gradient method with inner-outer
// iteration", SIAM J. Sci. Comput. 1999. A part of the batch: Byrd, Chin, Neveitt and Nocedal, "On the use
// of stochastic Hessian information in optimization methods for machine learning", SIAM J. Optim. 2011.
//
// M depends on r, because a fixed number of iterations is not a linear function of r.
class InnerSolver : public Preconditioner {
 public:
  using Operator = std::function<void(const double* v, double* out)>;
  using Form = std::function<double(const double* v)>;  // v'B v, cheaper than B v
  static constexpr int kIterations = 4;                 // decision 23

  // Operators must outlive every apply(); without c_inverse, C = I.
  void attach(Operator b, Form form, Operator c_inverse, Index n, double damping, int iterations);
  Index size() const override { return n_; }
  void apply(const double* r, double* z) override;
  bool varies() const override { return true; }

 private:
  Operator b_, c_inverse_;
  Form form_;
  Index n_ = 0;
  CgOptions options_;
  CgScratch scratch_;
};

}  // namespace natgrad
