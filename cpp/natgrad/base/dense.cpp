#include "natgrad/base/dense.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <Eigen/QR>

namespace natgrad {

struct SymmetricEigen::Solver {
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen;
  Eigen::VectorXd rotated;
};

SymmetricEigen::SymmetricEigen() : solver_(std::make_unique<Solver>()) {}
SymmetricEigen::~SymmetricEigen() = default;

bool SymmetricEigen::compute(const Eigen::Ref<const Eigen::MatrixXd, 0, Eigen::OuterStride<>>& a) {
  return solver_->eigen.compute(a).info() == Eigen::Success;
}

const Eigen::VectorXd& SymmetricEigen::values() const {
  return solver_->eigen.eigenvalues();
}
const Eigen::MatrixXd& SymmetricEigen::vectors() const {
  return solver_->eigen.eigenvectors();
}

void SymmetricEigen::solve(double scale, double damping, double rounding, const double* b,
                           double* x) {
  const Eigen::Index n = values().size();
  Eigen::VectorXd& rotated = solver_->rotated;
  rotated.resize(n);
  rotated.noalias() = vectors().transpose() * Eigen::Map<const Eigen::VectorXd>(b, n);
  for (Eigen::Index i = 0; i < n; ++i) {
    const double value = values()[i];
    const double curvature = (value > rounding ? scale * value : 0) + damping;
    rotated[i] = curvature > 0 ? rotated[i] / curvature : 0;
  }
  Eigen::Map<Eigen::VectorXd>(x, n).noalias() = vectors() * rotated;
}

Eigen::MatrixXd orthonormal_columns(const Eigen::MatrixXd& a, bool signs) {
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(a);
  Eigen::MatrixXd q = qr.householderQ() * Eigen::MatrixXd::Identity(a.rows(), a.cols());
  for (Eigen::Index j = 0; signs && j < q.cols(); ++j) {
    if (qr.matrixQR()(j, j) < 0) q.col(j) = -q.col(j);
  }
  return q;
}

bool divide_by_root(const Eigen::MatrixXd& a, Eigen::MatrixXd* b) {
  const Eigen::LLT<Eigen::MatrixXd> root(a);
  if (root.info() != Eigen::Success) return false;
  root.matrixU().solveInPlace<Eigen::OnTheRight>(*b);
  return true;
}

}  // namespace natgrad
