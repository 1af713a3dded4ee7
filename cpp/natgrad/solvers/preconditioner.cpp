#include "natgrad/solvers/preconditioner.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "natgrad/base/dense.hpp"
#include "natgrad/base/random.hpp"

namespace natgrad {

bool DiagonalPreconditioner::attach(const double* diagonal, Index n, double damping) {
  inverse_.resize(n);
  bool positive = true;
  for (Index i = 0; i < n; ++i) {
    inverse_[i] = 1 / (diagonal[i] + damping);
    positive = positive && inverse_[i] > 0 && std::isfinite(inverse_[i]);
  }
  return positive;
}

void DiagonalPreconditioner::apply(const double* r, double* z) {
  for (Index i = 0; i < inverse_.size(); ++i) z[i] = inverse_[i] * r[i];
}

bool NystromPreconditioner::attach(LinearOperator a, Index n, Index rank, double damping,
                                   std::uint64_t seed) {
  // An orthonormal sketch and its image under A, shifted so that the factorisation exists.
  RandomStream random(seed, 0, 0);
  Eigen::MatrixXd sketch(n, rank);
  for (Index i = 0; i < sketch.size(); ++i) sketch.data()[i] = random.normal();
  sketch = orthonormal_columns(sketch);
  Eigen::MatrixXd image(n, rank);
  for (Index j = 0; j < rank; ++j) a(sketch.col(j).data(), image.col(j).data());
  const double shift =
      std::sqrt(static_cast<double>(n)) * std::numeric_limits<float>::epsilon() * image.norm();
  u_.resize(n, 0);
  if (!std::isfinite(shift)) return false;
  if (shift == 0) {  // A = 0 on the sketch: M = I
    weights_.resize(0);
    along_.resize(0);
    return true;
  }
  image += shift * sketch;
  Eigen::MatrixXd gram = sketch.transpose() * image;
  gram = (gram + gram.transpose()).eval() / 2;
  if (!divide_by_root(gram, &image)) return false;  // B with B B' = A on the sketch

  SymmetricEigen eigen;
  gram = image.transpose() * image;
  eigen.compute(gram);
  const Eigen::VectorXd& squares = eigen.values();
  Index kept = 0;
  while (kept < rank && squares[rank - 1 - kept] > 2 * shift) ++kept;
  const Eigen::VectorXd values = squares.tail(kept).array() - shift;
  u_ = image * eigen.vectors().rightCols(kept) *
       squares.tail(kept).cwiseSqrt().cwiseInverse().asDiagonal();
  weights_.resize(kept);
  for (Index i = 0; i < kept; ++i) {
    weights_[i] = (values[0] + damping) / (values[i] + damping) - 1;
  }
  along_.resize(kept);
  return weights_.allFinite() && u_.allFinite();
}

void NystromPreconditioner::apply(const double* r, double* z) {
  const Eigen::Map<const Eigen::VectorXd> from(r, u_.rows());
  along_.noalias() = u_.transpose() * from;
  along_.array() *= weights_.array();
  Eigen::Map<Eigen::VectorXd> to(z, u_.rows());
  to = from;
  to.noalias() += u_ * along_;
}

void InnerSolver::attach(Operator b, Form form, Operator c_inverse, Index n, double damping,
                         int iterations) {
  b_ = std::move(b);
  form_ = std::move(form);
  c_inverse_ = std::move(c_inverse);
  n_ = n;
  options_.damping = damping;
  options_.max_iterations = iterations;
  options_.flexible = static_cast<bool>(c_inverse_);  // C may itself be an InnerSolver
}

void InnerSolver::apply(const double* r, double* z) {
  const LinearOperator c_inverse(c_inverse_);
  const QuadraticForm form(form_);
  std::fill_n(z, n_, 0.0);
  const CgReport summary =
      conjugate_gradient(b_, n_, r, z, options_, c_inverse_ ? &c_inverse : nullptr, &scratch_,
                         form_ ? &form : nullptr);
  if (summary.iterations > 0 || summary.rhs_norm == 0) return;
  if (c_inverse_) {  // no curvature along the first direction
    c_inverse_(r, z);
  } else {
    std::copy_n(r, n_, z);
  }
}

}  // namespace natgrad
