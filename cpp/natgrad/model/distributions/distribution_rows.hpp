// The distributions of one policy in many rows at once: tiles of a batch. By kernels where they pay, else row
// by row.
#pragma once

#include "natgrad/model/distributions/distribution.hpp"

namespace natgrad {

// A standard deviation that is a parameter is the same in all rows; what follows from it is computed once.
// Outputs y and results (rows, K) are buffers of the core, with leading dimensions as in types.hpp.
template <class T>
class DistributionRows {
 public:
  // `free` (policy.hpp) are the free parameters of this policy, `old_free` those of the one that
  // divergences are taken from. Neither is read where there are none.
  void attach(const Distribution& distribution, const T* old_free, const T* free);

  // out[r] = log p(action[r]); adds the entropies of all rows to `entropy` unless null. The entropy of a
  // squashed Gaussian is estimated, by the volumes at the actions.
  void log_probs(Matrix<const T> y, Matrix<const T> actions, double* out, double* entropy) const;
  // The same for a Gaussian with a shared standard deviation, from distances(r) = sum_i ((action[r][i] -
  // mean[r][i]) / sigma_i)^2 in `out`.
  void log_probs_by_distances(Matrix<const T> actions, double* out, double* entropy) const;
  // Sum of KL(old || this) over the rows.
  double divergence(Matrix<const T> old_y, Matrix<const T> y) const;
  // out[r] = scale[r] grad log p(action[r]); returns the sum of the rows' 2-norms.
  double scores(Matrix<const T> y, Matrix<const T> actions, const double* scale,
                Matrix<T> out) const;
  // The sum over the rows of the squared norm of such a score if every mean were off by its own size:
  // rounding of a mean is magnified by 1 / sigma^2, and a standard deviation below it leaves scores
  // that are nothing else. 0 without means.
  double magnified_rounding(Matrix<const T> y, const double* scale) const;

  // Whether one state stands for all rows.
  bool has_shared_curvature() const;
  const double* inverse_std() const { return inverse_std_.data(); }
  // What standard deviations alone add to the divergence of a row.
  double divergence_of_std() const { return divergence_; }
  void curvature(Matrix<const T> y, Matrix<T> s) const;
  // out[r] = scale[r] M u[r]. The stride of a shared state is 0.
  void fisher_products(Matrix<const T> s, const double* scale, Matrix<const T> u,
                       Matrix<T> out) const;

 private:
  const DiagonalGaussian* shared_gaussian() const;
  void subtract_volumes(Matrix<const T> actions, double* out, double* entropy) const;

  const Distribution* distribution_ = nullptr;
  Buffer<double> inverse_std_;  // (n)
  double log_normalizer_ = 0;   // sum_i log sigma_i + 1/2 log 2 pi
  double entropy_ = 0;          // of a row, but for bounds
  double divergence_ = 0;       // what the standard deviations alone add to that of a row
};

}  // namespace natgrad
