#include "natgrad/fisher/fisher.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>

namespace natgrad {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Rows whose Khatri-Rao products are formed at once for a diagonal.
constexpr Index kChunkRows = 256;

}  // namespace

// --- products ------------------------------------------------------------------------------------

template <class T>
void FisherProducts<T>::product(const double* v, double* out) const {
  std::visit([&](auto* way) { way->product(v, out); }, way_);
  if (damping_ == 0) return;
  for (Index i = 0; i < size_; ++i) out[i] += damping_ * v[i];
}

template <class T>
double FisherProducts<T>::quadratic_form(const double* v) const {
  double damped = 0;
  for (Index i = 0; damping_ != 0 && i < size_; ++i) damped += damping_ * v[i] * v[i];
  return std::visit([&](auto* way) { return way->add_quadratic_form(v, damped); }, way_);
}

template <class T>
void Fisher<T>::attach(LinearizedPolicy<T>* policy, FisherKind kind, Matrix<const T> actions,
                       const double* weights, double damping) {
  policy_ = policy;
  damping_ = damping;
  metric_.attach(policy, kind, actions, weights);
  adjoints_.detach();
  closed_form_.detach();
}

template <class T>
FisherShape Fisher<T>::shape() const {
  const Distribution& distribution = policy_->policy->distribution();
  const bool exact = metric_.kind() == FisherKind::exact;
  FisherShape shape = shape_of(network(), rows(), metric_.adjoint_columns());
  shape.softmax = exact && std::holds_alternative<Categoricals>(distribution);
  shape.linear_gaussian = exact && LinearGaussian<T>::applies(*policy_->policy);
  return shape;
}

template <class T>
FisherProducts<T> Fisher<T>::plan(int products, FisherMethod method) {
  const FisherShape shape = this->shape();
  if (method == FisherMethod::automatic) method = kCostModel.choose(shape, products);
  const double cost = kCostModel.products(method, shape, products);
  if (method == FisherMethod::closed_form) {
    prepare_closed_form();
    return {&closed_form_, size(), damping_, cost};
  }
  if (method == FisherMethod::adjoints) {
    adjoints_.prepare(policy_, &metric_);
    return {&adjoints_, size(), damping_, cost};
  }
  passes_.prepare(policy_, &metric_);
  return {&passes_, size(), damping_, cost};
}

template <class T>
void Fisher<T>::prepare_closed_form() {
  if (!closed_form_.is_attached()) {
    closed_form_.attach(policy_, metric_.weights(), metric_.is_uniform());
  }
}

// --- solves --------------------------------------------------------------------------------------

template <class T>
Solver Fisher<T>::choose(Solver asked, double more_damping, int products) const {
  const FisherShape shape = this->shape();
  const bool damped = damping_ + more_damping > 0;
  Solver best = Solver::conjugate_gradient;
  double least =
      asked == Solver::automatic ? cost(products) : std::numeric_limits<double>::infinity();
  for (const Solver form : {Solver::linear_gaussian, Solver::dense, Solver::sample}) {
    if (asked != Solver::automatic && asked != Solver::direct && asked != form) continue;
    const double time = kCostModel.solve(form, shape, damped);
    if (time < least) {
      best = form;
      least = time;
    }
  }
  return best;
}

template <class T>
bool Fisher<T>::solve(Solver form, const double* b, double more_damping, double* x, double* fx) {
  const double total = damping_ + more_damping;
  if (form == Solver::linear_gaussian) {
    prepare_closed_form();
    closed_form_.solve(b, total, x);
    closed_form_.product(x, fx);
    return std::all_of(x, x + size(), [](double value) { return std::isfinite(value); });
  }
  metric_.prepare();
  const double* free = metric_.separate_diagonal();
  if (form == Solver::dense) {
    const auto fill = [&](Index first, Index column, Matrix<T> d) {
      metric_.root_column(first, 1, column, d);
    };
    return direct_.solve_dense(policy_->network, metric_.adjoint_columns(), fill, free, b, total, x,
                               fx);
  }
  adjoints_.prepare(policy_, &metric_);
  if (!direct_.solve_sample(&policy_->adjoints, free, b, total, x)) return false;
  adjoints_.product(x, fx);
  return true;
}

// --- what else F is good for ---------------------------------------------------------------------

template <class T>
const Buffer<double>& Fisher<T>::free_diagonal() {
  metric_.prepare();
  return metric_.free_diagonal();
}

template <class T>
void Fisher<T>::kronecker_sums(Index every, bool all_columns, KroneckerSums* sums) {
  metric_.prepare();
  const Index columns = metric_.adjoint_columns();
  const bool several = metric_.kind() == FisherKind::exact && columns > 1;
  const Index count = several && all_columns ? columns : 1;
  natgrad::kronecker_sums<T>(
      &policy_->network, every, count,
      [&](Index first, Index step, Index column, Matrix<T> d) {
        if (several && !all_columns) {
          metric_.signed_root(first, step, d);
        } else {
          metric_.root_column(first, step, column, d);
        }
      },
      sums);
}

template <class T>
double Fisher<T>::trace() {
  metric_.prepare();
  const double undamped = squared_gradients<T>(&policy_->network, [&](Index first, Matrix<T> d) {
    if (metric_.kind() == FisherKind::exact) {
      metric_.signed_root(first, 1, d);
    } else {
      metric_.root_column(first, 1, 0, d);
    }
  });
  return undamped + damping_ * static_cast<double>(size());
}

template <class T>
template <class Visit>
void Fisher<T>::for_each_adjoint(Visit visit) {
  metric_.prepare();
  const Linearization<T>& batch = policy_->network;
  const std::vector<Layer>& layers = network().layers();
  const Index outputs = network().spec().outputs;
  const Index free_outputs = network().spec().free_outputs;
  const std::size_t count = layers.size();

  // The free outputs are one more layer, with no input but the bias.
  std::vector<Buffer<T>> storage(count);
  std::vector<Matrix<T>> adjoints(count);
  std::vector<RowMajor> h(count + 1), d(count + 1);
  const Index columns = batch.outputs().columns;
  Buffer<T> cotangent(kChunkRows * leading_dimension<T>(columns));
  for (Index first = 0; first < batch.rows(); first += kChunkRows) {
    const Index rows = std::min(kChunkRows, batch.rows() - first);
    for (std::size_t l = 0; l < count; ++l) {
      const Index stride = leading_dimension<T>(layers[l].out);
      storage[l].resize(kChunkRows * stride);
      adjoints[l] = {storage[l].data(), rows, layers[l].out, stride};
      const Matrix<const T> input = batch.layer_input(l);
      h[l].setOnes(rows, layers[l].in + 1);
      for (Index r = 0; r < rows; ++r) {
        for (Index i = 0; i < layers[l].in; ++i) {
          h[l](r, i) = static_cast<double>(input.row(first + r)[i]);
        }
      }
    }
    h[count].setOnes(rows, 1);
    for (Index column = 0; column < metric_.columns(); ++column) {
      const Matrix<T> top{cotangent.data(), rows, columns, leading_dimension<T>(columns)};
      metric_.root_column(first, 1, column, top);
      batch.adjoints(first, top, &adjoints);
      for (std::size_t l = 0; l <= count; ++l) {
        d[l].resize(rows, l < count ? layers[l].out : free_outputs);
        for (Index r = 0; r < rows; ++r) {
          const T* source = l < count ? adjoints[l].row(r) : top.row(r) + outputs;
          for (Index o = 0; o < d[l].cols(); ++o) d[l](r, o) = static_cast<double>(source[o]);
        }
      }
      visit(h, d);
    }
  }
}

template <class T>
void Fisher<T>::to_dense(double* out) {
  metric_.prepare();
  const Index count = size();
  const auto fill = [&](Index first, Index column, Matrix<T> d) {
    metric_.root_column(first, 1, column, d);
  };
  direct_.assemble(policy_->network, metric_.adjoint_columns(), fill, metric_.separate_diagonal(),
                   {out, count, count, count});
  for (Index i = 0; i < count; ++i) out[i * count + i] += damping_;
}

template <class T>
void Fisher<T>::diagonal(double* out) {
  const std::vector<Layer>& layers = network().layers();
  std::fill_n(out, size(), damping_);
  for_each_adjoint([&](const std::vector<RowMajor>& h, const std::vector<RowMajor>& d) {
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

template class FisherProducts<float>;
template class FisherProducts<double>;
template class Fisher<float>;
template class Fisher<double>;

}  // namespace natgrad
