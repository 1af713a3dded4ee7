#include "natgrad/fisher/fisher.hpp"

#include <Eigen/Dense>
#include <limits>

namespace natgrad {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Rows whose Khatri-Rao products are formed at once for a dense matrix.
constexpr Index kChunkRows = 256;

// The cost model, fitted to `benchmarks/solvers/solver_choice.py`: multiply-adds of the kernels that take
// in float32 as long as a value of a softmax's root (eq. 6); half as many in double.
constexpr double kSoftmaxRoot = 320;

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
void Fisher<T>::attach(LinearizedPolicy<T>* policy, FisherKind kind, Matrix<const T> actions,
                       const double* weights) {
  policy_ = policy;
  kind_ = kind;
  has_state_ = has_gram_ = has_free_ = false;
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

// The curvature of each row, which a closed form does without, as it does without activations.
template <class T>
void Fisher<T>::provide_state() {
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
const T* Fisher<T>::state(Index row) const {
  return state_.data() + row * state_stride_;
}

template <class T>
bool Fisher<T>::is_linear_gaussian() const {
  return kind_ == FisherKind::exact && LinearGaussian<T>::applies(*policy_->policy);
}

template <class T>
void Fisher<T>::provide_gram() {
  if (!has_gram_) linear_.attach(policy_, weights_.data(), uniform_);
  has_gram_ = true;
}

template <class T>
bool Fisher<T>::uses_gram(int series) const {
  return method == FisherMethod::automatic && is_linear_gaussian() &&
         LinearGaussian<T>::pays(*policy_->policy, policy_->network.rows(), series);
}

template <class T>
bool Fisher<T>::uses_adjoints(int series) const {
  return method == FisherMethod::adjoints ||
         (method == FisherMethod::automatic &&
          policy_->network.adjoints_pay(adjoint_columns(), series));
}

template <class T>
double Fisher<T>::cost_of_products(int series) const {
  return uses_gram(series) ? LinearGaussian<T>::cost_of_products(*policy_->policy,
                                                                 policy_->network.rows(), series)
                           : policy_->network.cost(adjoint_columns(), series);
}

// In multiply-adds of the kernels; infinite where there is no such form.
template <class T>
double Fisher<T>::cost(Solver solver, double more_damping, int series) const {
  const bool damped = damping + more_damping > 0;
  const Index rows = policy_->network.rows();
  if (solver == Solver::conjugate_gradient) return cost_of_products(series);
  if (solver != Solver::kronecker) {
    const bool softmax = kind_ == FisherKind::exact &&
                         std::holds_alternative<Categoricals>(policy_->policy->distribution());
    const Index roots = rows * adjoint_columns() * policy_->network.outputs().columns;
    return DirectSolver<T>::cost(solver, policy_->network, adjoint_columns(), damped) +
           (softmax ? kSoftmaxRoot * sizeof(float) / sizeof(T) * static_cast<double>(roots) : 0);
  }
  return is_linear_gaussian() ? LinearGaussian<T>::cost_of_solve(*policy_->policy, rows, damped)
                              : std::numeric_limits<double>::infinity();
}

template <class T>
Solver Fisher<T>::choose(Solver asked, double more_damping, int series) const {
  Solver best = Solver::conjugate_gradient;
  double least = asked == Solver::automatic ? cost(best, more_damping, series)
                                            : std::numeric_limits<double>::infinity();
  for (const Solver form : {Solver::kronecker, Solver::dense, Solver::sample}) {
    if (asked != Solver::automatic && asked != Solver::direct && asked != form) continue;
    const double time = cost(form, more_damping, series);
    if (time < least) {
      best = form;
      least = time;
    }
  }
  return best;
}

template <class T>
bool Fisher<T>::solve(Solver form, const double* b, double more_damping, double* x, double* fx) {
  const double total = damping + more_damping;
  if (form == Solver::kronecker) {
    provide_gram();
    linear_.solve(b, total, x);
    linear_.product(x, fx);
    return std::all_of(x, x + size(), [](double value) { return std::isfinite(value); });
  }
  provide_state();
  const double* free = separate_diagonal();
  if (form == Solver::dense) {
    const auto fill = [&](Index first, Index column, Matrix<T> d) {
      fill_column(first, 1, column, d);
    };
    return direct_.solve_dense(policy_->network, adjoint_columns(), fill, free, b, total, x, fx);
  }
  provide_adjoints();
  if (!direct_.solve_sample(&policy_->network, free, b, total, x)) return false;
  product_by_adjoints(x, fx);
  return true;
}

template <class T>
void Fisher<T>::product(const double* v, double* out, int series) {
  if (uses_gram(series)) {
    provide_gram();
    linear_.product(v, out);
  } else if (uses_adjoints(series)) {
    provide_adjoints();
    product_by_adjoints(v, out);
  } else {
    product_by_passes(v, out);
  }
  if (damping != 0) {
    const Index count = size();
    for (Index i = 0; i < count; ++i) out[i] += damping * v[i];
  }
}

// d_n = w_n / N M_n u_n, for the rows of a tile.
template <class T>
void Fisher<T>::metric_product(Index first, Matrix<const T> u, Matrix<T> d) const {
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
void Fisher<T>::product_by_passes(const double* v, double* out) {
  provide_state();
  policy_->network.sweep(
      v, [&](Index first, Matrix<const T> u, Matrix<T> d, int) { metric_product(first, u, d); },
      out);
}

// sum_n u_n' M_n u_n w_n / N, with u_n = J_n v or, of cached adjoints, its products with their columns.
template <class T>
double Fisher<T>::quadratic_form(const double* v, int series) {
  const Index count = size(), rows = policy_->network.rows();
  double sum = 0;
  for (Index i = 0; damping != 0 && i < count; ++i) sum += damping * v[i] * v[i];
  if (uses_gram(series)) {
    provide_gram();
    forms_.resize(count);
    linear_.product(v, forms_.data());
    for (Index i = 0; i < count; ++i) sum += v[i] * forms_[i];
    return sum;
  }
  forms_.resize(rows);
  if (uses_adjoints(series)) {
    provide_adjoints();
    policy_->network.sweep_adjoints(
        v,
        [&](Index first, Matrix<T> s) {
          for (Index r = 0; r < s.rows; ++r) {
            double form = 0;
            for (Index k = 0; k < s.columns; ++k) {
              form += static_cast<double>(s.row(r)[k]) * static_cast<double>(s.row(r)[k]);
            }
            forms_[first + r] = form;
          }
        },
        nullptr);
    const Index offset = policy_->policy->network().free_offset();
    for (Index i = 0; kind_ == FisherKind::exact && i < free_state_.size(); ++i) {
      sum += free_state_[i] * v[offset + i] * v[offset + i];
    }
  } else {
    provide_state();
    policy_->network.sweep(
        v,
        [&](Index first, Matrix<const T> u, Matrix<T> d, int) {
          metric_product(first, u, d);
          for (Index r = 0; r < u.rows; ++r) {
            double form = 0;
            for (Index k = 0; k < u.columns; ++k) {
              form += static_cast<double>(u.row(r)[k]) * static_cast<double>(d.row(r)[k]);
            }
            forms_[first + r] = form;
          }
        },
        nullptr);
  }
  for (Index n = 0; n < rows; ++n) sum += forms_[n];
  return sum;
}

// Columns of the root of M_n; the free outputs' come last. At least one, which may be zero: a
// variable with a single category has rank 0.
template <class T>
Index Fisher<T>::columns() const {
  if (kind_ == FisherKind::empirical) return 1;
  return std::max<Index>(fisher_rank(policy_->policy->distribution()), 1);
}

// Those with adjoints in the layers. Where M is diagonal the free outputs' columns have none.
template <class T>
Index Fisher<T>::adjoint_columns() const {
  const Index free = policy_->policy->network().spec().free_outputs;
  return kind_ == FisherKind::empirical ? 1 : columns() - free;
}

template <class T>
void Fisher<T>::provide_adjoints() {
  if (policy_->network.has_adjoints()) return;
  provide_state();
  policy_->network.keep_adjoints(adjoint_columns(), [&](Index first, Index column, Matrix<T> d) {
    fill_column(first, 1, column, d);
  });
  free_diagonal();
}

// M is diagonal there; of the empirical kind, the squares of the scores.
template <class T>
const Buffer<double>& Fisher<T>::free_diagonal() {
  if (has_free_) return free_state_;
  provide_state();
  const Index free = policy_->policy->network().spec().free_outputs;
  const Index all = policy_->network.outputs().columns;
  free_state_.resize(free);
  free_state_.fill_zero();
  for (Index n = 0; n < weights_.size(); ++n) {
    for (Index i = 0; i < free; ++i) {
      const double s = static_cast<double>(state(n)[all - free + i]);
      free_state_[i] += weights_[n] * (kind_ == FisherKind::exact ? s : s * s);
    }
  }
  has_free_ = true;
  return free_state_;
}

// The free outputs' part of F where adjoints have none: an exact F's. Null where they have.
template <class T>
const double* Fisher<T>::separate_diagonal() {
  return kind_ == FisherKind::exact ? free_diagonal().data() : nullptr;
}

template <class T>
void Fisher<T>::product_by_adjoints(const double* v, double* out) {
  policy_->network.sweep_adjoints(v, [](Index, Matrix<T>) {}, out);
  if (kind_ == FisherKind::empirical) return;
  const Index offset = policy_->policy->network().free_offset();
  for (Index i = 0; i < free_state_.size(); ++i) out[offset + i] = free_state_[i] * v[offset + i];
}

// d_n = sqrt(w_n / N) * column of the square root of M_n, for n = first, first + every, ...
template <class T>
void Fisher<T>::fill_column(Index first, Index every, Index column, Matrix<T> d) const {
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

// The sum of all columns, each with a random sign.
template <class T>
void Fisher<T>::fill_signed(Index first, Index every, Matrix<T> d) const {
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
void Fisher<T>::kronecker_sums(Index every, bool all_columns, KroneckerSums* sums) {
  provide_state();
  const bool several = kind_ == FisherKind::exact && adjoint_columns() > 1;
  const Index count = several && all_columns ? adjoint_columns() : 1;
  policy_->network.kronecker_sums(
      every, count,
      [&](Index first, Index step, Index column, Matrix<T> d) {
        if (several && !all_columns) {
          fill_signed(first, step, d);
        } else {
          fill_column(first, step, column, d);
        }
      },
      sums);
}

template <class T>
double Fisher<T>::trace() {
  provide_state();
  const double undamped = policy_->network.squared_gradients([&](Index first, Matrix<T> d) {
    if (kind_ == FisherKind::exact) {
      fill_signed(first, 1, d);
    } else {
      fill_column(first, 1, 0, d);
    }
  });
  return undamped + damping * static_cast<double>(size());
}

template <class T>
template <class Visit>
void Fisher<T>::for_each_adjoint(Visit visit) {
  provide_state();
  const Linearization<T>& network = policy_->network;
  const std::vector<Layer>& layers = policy_->policy->network().layers();
  const Index outputs = policy_->policy->network().spec().outputs;
  const Index free_outputs = policy_->policy->network().spec().free_outputs;
  const std::size_t count = layers.size();

  // The free outputs are one more layer, with no input but the bias.
  std::vector<Buffer<T>> storage(count);
  std::vector<Matrix<T>> adjoints(count);
  std::vector<RowMajor> h(count + 1), d(count + 1);
  const Index columns = network.outputs().columns;
  Buffer<T> cotangent(kChunkRows * leading_dimension<T>(columns));
  for (Index first = 0; first < network.rows(); first += kChunkRows) {
    const Index rows = std::min(kChunkRows, network.rows() - first);
    for (std::size_t l = 0; l < count; ++l) {
      const Index stride = leading_dimension<T>(layers[l].out);
      storage[l].resize(kChunkRows * stride);
      adjoints[l] = {storage[l].data(), rows, layers[l].out, stride};
      const Matrix<const T> input = network.layer_input(l);
      h[l].setOnes(rows, layers[l].in + 1);
      for (Index r = 0; r < rows; ++r) {
        for (Index i = 0; i < layers[l].in; ++i) {
          h[l](r, i) = static_cast<double>(input.row(first + r)[i]);
        }
      }
    }
    h[count].setOnes(rows, 1);
    for (Index column = 0; column < this->columns(); ++column) {
      const Matrix<T> top{cotangent.data(), rows, columns, leading_dimension<T>(columns)};
      fill_column(first, 1, column, top);
      network.adjoints(first, top, &adjoints);
      for (std::size_t l = 0; l <= count; ++l) {
        d[l].resize(rows, l < count ? layers[l].out : free_outputs);
        for (Index r = 0; r < rows; ++r) {
          const T* source = l < count ? adjoints[l].row(r) : top.row(r) + outputs;
          for (Index o = 0; o < d[l].cols(); ++o) d[l](r, o) = static_cast<double>(source[o]);
        }
      }
      visit(h, d, column);
    }
  }
}

template <class T>
void Fisher<T>::to_dense(double* out) {
  provide_state();
  const Index count = size();
  const auto fill = [&](Index first, Index column, Matrix<T> d) {
    fill_column(first, 1, column, d);
  };
  direct_.assemble(policy_->network, adjoint_columns(), fill, separate_diagonal(),
                   {out, count, count, count});
  for (Index i = 0; i < count; ++i) out[i * count + i] += damping;
}

template <class T>
void Fisher<T>::diagonal(double* out) {
  const std::vector<Layer>& layers = policy_->policy->network().layers();
  std::fill_n(out, size(), damping);
  for_each_adjoint([&](const std::vector<RowMajor>& h, const std::vector<RowMajor>& d, Index) {
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const auto [in, width, weight, bias] = layers[l];
      const RowMajor squares = d[l].cwiseAbs2().transpose() * h[l].cwiseAbs2();
      Eigen::Map<RowMajor>(out + weight, width, in) += squares.leftCols(in);
      Eigen::Map<Eigen::VectorXd>(out + bias, width) += squares.col(in);
    }
    const RowMajor& free = d.back();
    Eigen::Map<Eigen::VectorXd>(out + size() - free.cols(), free.cols()) +=
        free.cwiseAbs2().colwise().sum().transpose();
  });
}

template class Fisher<float>;
template class Fisher<double>;

}  // namespace natgrad
