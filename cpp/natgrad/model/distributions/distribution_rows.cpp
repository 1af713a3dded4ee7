#include "natgrad/model/distributions/distribution_rows.hpp"

#include "natgrad/kernels/kernels.hpp"

namespace natgrad {
namespace {

constexpr double kHalfLogTwoPi = 0.91893853320467274178;

// Rows whose norms are summed at once.
constexpr Index kChunkRows = 256;

// f(rows of one variable, its first column) for each categorical variable.
template <class T, class F>
void for_each_variable(const Categoricals& d, Matrix<const T> y, Matrix<const T> actions, F f) {
  Index column = 0;
  for (std::size_t j = 0; j < d.sizes.size(); column += d.sizes[j++]) {
    const T* action = actions.data != nullptr ? actions.data + j : nullptr;
    f(kernels::VariableRows<T>{y.rows, d.sizes[j], y.data + column, y.stride, action,
                               actions.stride, nullptr},
      column);
  }
}

}  // namespace

template <class T>
const DiagonalGaussian* DistributionRows<T>::shared_gaussian() const {
  const DiagonalGaussian* gaussian = normal_of(*distribution_);
  return gaussian != nullptr && !gaussian->state_dependent_std ? gaussian : nullptr;
}

template <class T>
bool DistributionRows<T>::has_shared_curvature() const {
  return shared_gaussian() != nullptr;
}

template <class T>
void DistributionRows<T>::attach(const Distribution& distribution, const T* old_free,
                                 const T* free) {
  distribution_ = &distribution;
  const DiagonalGaussian* gaussian = shared_gaussian();
  if (gaussian == nullptr) return;
  inverse_std_.resize(gaussian->n);
  log_normalizer_ = divergence_ = entropy_ = 0;
  for (Index i = 0; i < gaussian->n; ++i) {
    inverse_std_[i] = gaussian->inverse_std(free[i]);
    log_normalizer_ += static_cast<double>(free[i]) + kHalfLogTwoPi;
    entropy_ += kHalfLogTwoPi + 0.5 + static_cast<double>(free[i]);
    divergence_ += gaussian->divergence_of_std(old_free[i], free[i]);
  }
}

template <class T>
void DistributionRows<T>::log_probs(Matrix<const T> y, Matrix<const T> actions, double* out,
                                    double* entropy) const {
  const kernels::Kernels<T>& kernel = kernels::active<T>();
  const DiagonalGaussian* gaussian = normal_of(*distribution_);
  if (shared_gaussian() != nullptr) {
    kernel.gaussian_distances(
        {y.rows, gaussian->n, y.data, y.stride, nullptr, 0, inverse_std_.data()}, actions.data,
        actions.stride, out);
    return log_probs_by_distances(actions, out, entropy);
  }
  if (gaussian != nullptr) {
    for (Index r = 0; r < y.rows; ++r) {
      out[r] = gaussian->log_prob(y.row(r), actions.row(r));
      if (entropy != nullptr) *entropy += gaussian->entropy(y.row(r));
    }
  } else if (const auto* categoricals = std::get_if<Categoricals>(distribution_)) {
    std::fill_n(out, y.rows, 0.0);
    for_each_variable(*categoricals, y, actions, [&](const kernels::VariableRows<T>& rows, Index) {
      const double sum = kernel.categorical_log_probs(rows, out);
      if (entropy != nullptr) *entropy += sum;
    });
  } else {
    std::visit(
        [&](const auto& d) {
          for (Index r = 0; r < y.rows; ++r) {
            out[r] = d.log_prob(y.row(r), actions.row(r));
            if (entropy != nullptr) *entropy += d.entropy(y.row(r));
          }
        },
        *distribution_);
  }
  subtract_volumes(actions, out, entropy);
}

template <class T>
void DistributionRows<T>::log_probs_by_distances(Matrix<const T> actions, double* out,
                                                 double* entropy) const {
  for (Index r = 0; r < actions.rows; ++r) out[r] = -0.5 * out[r] - log_normalizer_;
  if (entropy != nullptr) *entropy += static_cast<double>(actions.rows) * entropy_;
  subtract_volumes(actions, out, entropy);
}

// The volumes at the actions of a squashed Gaussian: what its density has beside that of u, and the estimate
// of what its entropy has.
template <class T>
void DistributionRows<T>::subtract_volumes(Matrix<const T> actions, double* out,
                                           double* entropy) const {
  const auto* squashed = std::get_if<SquashedGaussian>(distribution_);
  if (squashed == nullptr) return;
  const double width = squashed->bounds.log_width();
  double slopes[kChunkRows];
  for (Index first = 0; first < actions.rows; first += kChunkRows) {
    const Index rows = std::min(kChunkRows, actions.rows - first);
    kernels::active<T>().squash_log_slopes(actions.row(first), actions.stride, rows, squashed->n,
                                           slopes);
    for (Index r = 0; r < rows; ++r) {
      out[first + r] -= slopes[r] + width;
      if (entropy != nullptr) *entropy += slopes[r] + width;
    }
  }
}

template <class T>
double DistributionRows<T>::divergence(Matrix<const T> old_y, Matrix<const T> y) const {
  const kernels::Kernels<T>& kernel = kernels::active<T>();
  double sum = 0;
  if (const DiagonalGaussian* gaussian = shared_gaussian()) {
    const double squares = kernel.gaussian_distances(
        {y.rows, gaussian->n, y.data, y.stride, nullptr, 0, inverse_std_.data()}, old_y.data,
        old_y.stride, nullptr);
    sum = 0.5 * squares + static_cast<double>(y.rows) * divergence_;
  } else if (const auto* categoricals = std::get_if<Categoricals>(distribution_)) {
    for_each_variable(
        *categoricals, y, {}, [&](const kernels::VariableRows<T>& rows, Index column) {
          sum += kernel.categorical_divergence(rows, old_y.data + column, old_y.stride);
        });
  } else {
    std::visit(
        [&](const auto& d) {
          for (Index r = 0; r < y.rows; ++r) sum += d.kl(old_y.row(r), y.row(r));
        },
        *distribution_);
  }
  return sum;
}

template <class T>
double DistributionRows<T>::scores(Matrix<const T> y, Matrix<const T> actions, const double* scale,
                                   Matrix<T> out) const {
  const kernels::Kernels<T>& kernel = kernels::active<T>();
  double norms = 0, squares[kChunkRows];
  for (Index first = 0; first < y.rows; first += kChunkRows) {
    const Index rows = std::min(kChunkRows, y.rows - first);
    const Matrix<const T> part = y.middle_rows(first, rows);
    const Matrix<const T> taken = actions.middle_rows(first, rows);
    const Matrix<T> to = out.middle_rows(first, rows);
    std::fill_n(squares, rows, 0.0);
    if (const DiagonalGaussian* gaussian = shared_gaussian()) {
      kernel.gaussian_scores({rows, gaussian->n, part.data, part.stride, taken.data, taken.stride,
                              inverse_std_.data()},
                             scale + first, to.data, to.stride, squares);
    } else if (const auto* categoricals = std::get_if<Categoricals>(distribution_)) {
      for_each_variable(
          *categoricals, part, taken, [&](const kernels::VariableRows<T>& x, Index column) {
            kernel.categorical_scores(x, scale + first, to.data + column, to.stride, squares);
          });
    } else {
      std::visit(
          [&](const auto& d) {
            for (Index r = 0; r < rows; ++r) {
              d.score(part.row(r), taken.row(r), scale[first + r], to.row(r));
              for (Index k = 0; k < to.columns; ++k) {
                squares[r] += static_cast<double>(to.row(r)[k]) * static_cast<double>(to.row(r)[k]);
              }
            }
          },
          *distribution_);
    }
    norms += kernel.sum_of_roots(squares, rows);
  }
  return norms;
}

template <class T>
double DistributionRows<T>::magnified_rounding(Matrix<const T> y, const double* scale) const {
  const DiagonalGaussian* gaussian = normal_of(*distribution_);
  if (gaussian == nullptr) return 0;
  const bool shared = shared_gaussian() != nullptr;
  double total = 0;
  for (Index r = 0; r < y.rows; ++r) {
    const T* means = y.row(r);
    double sum = 0;
    for (Index i = 0; i < gaussian->n; ++i) {
      const double inverse =
          shared ? inverse_std_[i] : gaussian->inverse_std(means[gaussian->n + i]);
      sum += inverse * inverse * std::abs(static_cast<double>(means[i]));
    }
    total += (scale[r] * sum) * (scale[r] * sum);
  }
  return total;
}

template <class T>
void DistributionRows<T>::curvature(Matrix<const T> y, Matrix<T> s) const {
  if (const auto* categoricals = std::get_if<Categoricals>(distribution_)) {
    for_each_variable(
        *categoricals, y, {}, [&](const kernels::VariableRows<T>& rows, Index column) {
          kernels::active<T>().categorical_probabilities(rows, s.data + column, s.stride);
        });
    return;
  }
  std::visit(
      [&](const auto& d) {
        for (Index r = 0; r < s.rows; ++r) d.curvature(y.row(r), s.row(r));
      },
      *distribution_);
}

template <class T>
void DistributionRows<T>::fisher_products(Matrix<const T> s, const double* scale, Matrix<const T> u,
                                          Matrix<T> out) const {
  const kernels::Kernels<T>& kernel = kernels::active<T>();
  if (has_shared_curvature()) {
    kernel.diagonal_products(s.data, scale, u.data, u.stride, u.rows, u.columns, out.data,
                             out.stride);
  } else if (const auto* categoricals = std::get_if<Categoricals>(distribution_)) {
    for_each_variable(*categoricals, u, {}, [&](const kernels::VariableRows<T>& x, Index column) {
      kernel.categorical_products(x.rows, x.n, s.data + column, s.stride, scale, x.y, x.ldy,
                                  out.data + column, out.stride);
    });
  } else {
    std::visit(
        [&](const auto& d) {
          for (Index r = 0; r < u.rows; ++r) {
            d.fisher_product(s.row(r), u.row(r), scale[r], out.row(r));
          }
        },
        *distribution_);
  }
}

template class DistributionRows<float>;
template class DistributionRows<double>;

}  // namespace natgrad
