// Eigen's decompositions of dense matrices. They take seconds to compile, so one file instantiates them.
#pragma once

#include <Eigen/Core>
#include <memory>

namespace natgrad {

// A = V diag(w) V' for a symmetric A (n, n), of which the lower triangle is read. The object keeps its
// memory: another matrix of the same size allocates nothing.
class SymmetricEigen {
 public:
  SymmetricEigen();
  ~SymmetricEigen();

  // False if the iteration did not converge.
  bool compute(const Eigen::Ref<const Eigen::MatrixXd, 0, Eigen::OuterStride<>>& a);

  const Eigen::VectorXd& values() const;   // (n), ascending
  const Eigen::MatrixXd& vectors() const;  // (n, n), in columns

  // x = (scale A + damping I)^-1 b, for b and x (n), which may be the same. Eigenvalues of A that are not
  // above `rounding` are zeros; where damping = 0, x is the shortest least-squares solution.
  void solve(double scale, double damping, double rounding, const double* b, double* x);

 private:
  struct Solver;
  std::unique_ptr<Solver> solver_;
};

// Q of A = QR for a tall A (m, n): (m, n) with orthonormal columns. With `signs`, each column is multiplied
// by the sign of R's diagonal, so that Q is unique.
Eigen::MatrixXd orthonormal_columns(const Eigen::MatrixXd& a, bool signs = false);

// B = B U^-1 for the Cholesky factor U'U = A of a symmetric A (n, n) and B (m, n). False, and B as it was,
// if A is not positive definite.
bool divide_by_root(const Eigen::MatrixXd& a, Eigen::MatrixXd* b);

}  // namespace natgrad
