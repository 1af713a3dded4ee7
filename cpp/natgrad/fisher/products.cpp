#include "natgrad/fisher/products.hpp"

namespace natgrad {

// --- by passes -----------------------------------------------------------------------------------

template <class T>
void Passes<T>::prepare(LinearizedPolicy<T>* policy, OutputMetric<T>* metric) {
  metric->prepare();
  network_ = &policy->network;
  metric_ = metric;
}

template <class T>
void Passes<T>::product(const double* v, double* out) {
  network_->sweep(
      v, [&](Index first, Matrix<const T> u, Matrix<T> d, int) { metric_->product(first, u, d); },
      out);
}

template <class T>
double Passes<T>::add_quadratic_form(const double* v, double sum) {
  forms_.resize(network_->rows());
  network_->sweep(
      v,
      [&](Index first, Matrix<const T> u, Matrix<T> d, int) {
        metric_->product(first, u, d);
        for (Index r = 0; r < u.rows; ++r) {
          double form = 0;
          for (Index k = 0; k < u.columns; ++k) {
            form += static_cast<double>(u.row(r)[k]) * static_cast<double>(d.row(r)[k]);
          }
          forms_[first + r] = form;
        }
      },
      nullptr);
  for (const double form : forms_) sum += form;
  return sum;
}

// --- by adjoints ---------------------------------------------------------------------------------

template <class T>
void Adjoints<T>::prepare(LinearizedPolicy<T>* policy, OutputMetric<T>* metric) {
  if (policy_ != nullptr) return;
  metric->prepare();
  policy_ = policy;
  metric_ = metric;
  policy->adjoints.keep(&policy->network, metric->adjoint_columns(), [&](Index first, Index column, Matrix<T> d) {
    metric_->root_column(first, 1, column, d);
  });
  metric->free_diagonal();
}

template <class T>
void Adjoints<T>::product(const double* v, double* out) {
  policy_->adjoints.sweep(v, [](Index, Matrix<T>) {}, out);
  const double* free = metric_->separate_diagonal();
  const Index offset = policy_->network.network().free_offset();
  const Index count = policy_->network.network().spec().free_outputs;
  for (Index i = 0; free != nullptr && i < count; ++i) out[offset + i] = free[i] * v[offset + i];
}

template <class T>
double Adjoints<T>::add_quadratic_form(const double* v, double sum) {
  forms_.resize(policy_->network.rows());
  policy_->adjoints.sweep(
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
  const double* free = metric_->separate_diagonal();
  const Index offset = policy_->network.network().free_offset();
  const Index count = policy_->network.network().spec().free_outputs;
  for (Index i = 0; free != nullptr && i < count; ++i) {
    sum += free[i] * v[offset + i] * v[offset + i];
  }
  for (const double form : forms_) sum += form;
  return sum;
}

template class Passes<float>;
template class Passes<double>;
template class Adjoints<float>;
template class Adjoints<double>;

}  // namespace natgrad
