#include "natgrad/fisher/output_metric.hpp"

#include <algorithm>
#include <cmath>

namespace natgrad {
namespace {

// +1 or -1 for each column, a function of row and column alone: the bits of SplitMix64 (Steele, Lea
// and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
class RandomSigns {
 public:
  explicit RandomSigns(Index row) : row_(static_cast<std::uint64_t>(row)) {}
  double operator()(Index column) {
    if (column / 64 != word_) {
      word_ = column / 64;
      std::uint64_t x = (row_ << 20 | static_cast<std::uint64_t>(word_ + 1)) * 0x9E3779B97F4A7C15u;
      x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
      x = (x ^ x >> 27) * 0x94D049BB133111EBu;
      bits_ = x ^ x >> 31;
    }
    return (bits_ >> (column % 64) & 1) != 0 ? 1.0 : -1.0;
  }

 private:
  std::uint64_t row_, bits_ = 0;
  Index word_ = -1;
};

}  // namespace

template <class T>
void OutputMetric<T>::attach(LinearizedPolicy<T>* policy, FisherKind kind, Matrix<const T> actions,
                             const double* weights) {
  policy_ = policy;
  kind_ = kind;
  has_state_ = has_free_ = false;
  uniform_ = weights == nullptr;
  distribution_.attach(policy->policy->distribution(), policy->free(), policy->free());
  weights_.resize(policy->network.rows());
  if (kind == FisherKind::empirical) {
    policy->provide_activations();
    const Matrix<const T> y = policy->network.outputs();
    state_.resize(y.rows * y.columns);
    state_stride_ = y.columns;
    std::fill_n(weights_.data(), y.rows, 1.0);
    distribution_.scores(y, actions, weights_.data(),
                         {state_.data(), y.rows, y.columns, y.columns});
    has_state_ = true;
  }
  const double rows = static_cast<double>(weights_.size());
  if (uniform_) {
    std::fill(weights_.begin(), weights_.end(), 1 / rows);
  } else {
    for (Index n = 0; n < weights_.size(); ++n) weights_[n] = weights[n] / rows;
  }
}

template <class T>
void OutputMetric<T>::prepare() {
  if (has_state_) return;
  policy_->provide_activations();
  const Matrix<const T> y = policy_->network.outputs();
  const Index rows = distribution_.has_shared_curvature() ? 1 : y.rows;
  const Index columns = curvature_size(policy_->policy->distribution());
  state_stride_ = rows > 1 ? columns : 0;
  state_.resize(rows > 1 ? rows * columns : leading_dimension<T>(columns));
  distribution_.curvature(y, {state_.data(), rows, columns, state_stride_});
  has_state_ = true;
}

template <class T>
Index OutputMetric<T>::columns() const {
  if (kind_ == FisherKind::empirical) return 1;
  return std::max<Index>(fisher_rank(policy_->policy->distribution()), 1);
}

template <class T>
Index OutputMetric<T>::adjoint_columns() const {
  const Index free = policy_->policy->network().spec().free_outputs;
  return kind_ == FisherKind::empirical ? 1 : columns() - free;
}

template <class T>
void OutputMetric<T>::product(Index first, Matrix<const T> u, Matrix<T> d) const {
  const Matrix<const T> s{state(first), u.rows, u.columns, state_stride_};
  if (kind_ == FisherKind::exact) {
    return distribution_.fisher_products(s, weights_.data() + first, u, d);
  }
  for (Index r = 0; r < u.rows; ++r) {
    double along = 0;
    for (Index k = 0; k < u.columns; ++k) {
      along += static_cast<double>(s.row(r)[k]) * static_cast<double>(u.row(r)[k]);
    }
    along *= weights_[first + r];
    for (Index k = 0; k < u.columns; ++k) {
      d.row(r)[k] = static_cast<T>(along * static_cast<double>(s.row(r)[k]));
    }
  }
}

template <class T>
void OutputMetric<T>::root_column(Index first, Index every, Index column, Matrix<T> d) const {
  std::visit(
      [&](const auto& distribution) {
        for (Index r = 0; r < d.rows; ++r) {
          const Index n = first + every * r;
          const T* s = state(n);
          const double scale = std::sqrt(weights_[n]);
          if (kind_ == FisherKind::exact) {
            distribution.fisher_root_column(s, column, scale, d.row(r));
          } else {
            for (Index k = 0; k < d.columns; ++k) d.row(r)[k] = static_cast<T>(scale) * s[k];
          }
        }
      },
      policy_->policy->distribution());
}

template <class T>
void OutputMetric<T>::signed_root(Index first, Index every, Matrix<T> d) const {
  std::visit(
      [&](const auto& distribution) {
        // Shared curvature is diagonal: its root is taken once, in the row that is filled last.
        if (distribution_.has_shared_curvature()) {
          const T* root = d.row(0);
          const auto one = [](Index) { return 1.0; };
          distribution.fisher_root_product(state(0), one, 1.0, d.row(0));
          for (Index r = d.rows; r-- > 0;) {
            const Index n = first + every * r;
            RandomSigns sign(n);
            const double scale = std::sqrt(weights_[n]);
            T* row = d.row(r);
            for (Index k = 0; k < d.columns; ++k) {
              row[k] = static_cast<T>(scale * sign(k)) * root[k];
            }
          }
          return;
        }
        for (Index r = 0; r < d.rows; ++r) {
          const Index n = first + every * r;
          distribution.fisher_root_product(state(n), RandomSigns(n), std::sqrt(weights_[n]),
                                           d.row(r));
        }
      },
      policy_->policy->distribution());
}

template <class T>
const Buffer<double>& OutputMetric<T>::free_diagonal() {
  if (has_free_) return free_;
  const Index free = policy_->policy->network().spec().free_outputs;
  const Index all = policy_->network.outputs().columns;
  free_.resize(free);
  free_.fill_zero();
  for (Index n = 0; n < weights_.size(); ++n) {
    for (Index i = 0; i < free; ++i) {
      const double s = static_cast<double>(state(n)[all - free + i]);
      free_[i] += weights_[n] * (kind_ == FisherKind::exact ? s : s * s);
    }
  }
  has_free_ = true;
  return free_;
}

template <class T>
const double* OutputMetric<T>::separate_diagonal() {
  return kind_ == FisherKind::exact ? free_diagonal().data() : nullptr;
}

template class OutputMetric<float>;
template class OutputMetric<double>;

}  // namespace natgrad
