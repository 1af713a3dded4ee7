#include "natgrad/fisher/linear_gaussian.hpp"

#include <algorithm>
#include <limits>

#include "natgrad/model/batch_sums.hpp"

namespace natgrad {

template <class T>
bool LinearGaussian<T>::applies(const Policy<T>& policy) {
  return LinearBatch<T>::applies(policy.network().spec());
}

template <class T>
void LinearGaussian<T>::attach(LinearizedPolicy<T>* policy, const double* weights, bool uniform) {
  const Layer& layer = policy->policy->network().layers().front();
  in_ = layer.in;
  out_ = layer.out;
  gram_.resize(in_ + 1, in_ + 1);
  if (uniform && policy->linear.is_attached()) {
    policy->linear.input_gram(gram_.data());
  } else {
    policy->provide_activations();
    natgrad::input_gram<T>(&policy->network, uniform ? nullptr : weights, gram_.data());
  }
  if (uniform) gram_ *= weights[0];
  weight_ = gram_(in_, in_);
  precision_.resize(out_);
  for (Index i = 0; i < out_; ++i) {
    precision_[i] = std::exp(-2 * static_cast<double>(policy->free()[i]));
  }
  attached_ = true;
}

// W (out, in) and b (out) hold column phi_o of output o in two places.
template <class T>
void LinearGaussian<T>::product(const double* v, double* out) const {
  const Index biases = out_ * in_, free = biases + out_;
  for (Index o = 0; o < out_; ++o) {
    const Eigen::Map<const Eigen::VectorXd> weights(v + o * in_, in_);
    Eigen::Map<Eigen::VectorXd> to(out + o * in_, in_);
    to.noalias() = gram_.topLeftCorner(in_, in_) * weights;
    to += v[biases + o] * gram_.col(in_).head(in_);
    to *= precision_[o];
    out[biases + o] =
        precision_[o] * (gram_.col(in_).head(in_).dot(weights) + gram_(in_, in_) * v[biases + o]);
    out[free + o] = 2 * weight_ * v[free + o];
  }
}

template <class T>
double LinearGaussian<T>::add_quadratic_form(const double* v, double sum) {
  const Index size = out_ * (in_ + 2);
  fv_.resize(size);
  product(v, fv_.data());
  for (Index i = 0; i < size; ++i) sum += v[i] * fv_[i];
  return sum;
}

// x_o = (G / sigma_o^2 + damping)^-1 b_o by a Cholesky factor for each output o. Where the damping does
// not stand out of rounding: with G = U diag(g) U', x_o = U diag(1 / (g / sigma_o^2 + damping)) U' b_o,
// in which eigenvalues that rounding alone could have made are zeros.
template <class T>
void LinearGaussian<T>::solve(const double* b, double damping, double* x) {
  const Index biases = out_ * in_, free = biases + out_, size = in_ + 1;
  const double largest = *std::max_element(precision_.begin(), precision_.end());
  const double rounding = std::numeric_limits<T>::epsilon() * gram_.trace() * largest;
  const bool eigenvalues = !(damping > rounding);
  phi_.resize(size);
  if (eigenvalues) eigen_.compute(gram_);
  factor_.resize(size * leading_dimension<double>(size));
  for (Index o = 0; o < out_; ++o) {
    phi_.head(in_) = Eigen::Map<const Eigen::VectorXd>(b + o * in_, in_);
    phi_[in_] = b[biases + o];
    if (eigenvalues) {
      solve_by_eigenvalues(precision_[o], damping);
    } else {
      solve_by_cholesky(precision_[o], damping);
    }
    Eigen::Map<Eigen::VectorXd>(x + o * in_, in_) = phi_.head(in_);
    x[biases + o] = phi_[in_];
    const double curvature = 2 * weight_ + damping;
    x[free + o] = curvature > 0 ? b[free + o] / curvature : 0;
  }
}

template <class T>
void LinearGaussian<T>::solve_by_cholesky(double precision, double damping) {
  const Index size = in_ + 1;
  const Matrix<double> u{factor_.data(), size, size, leading_dimension<double>(size)};
  for (Index i = 0; i < size; ++i) {
    for (Index j = i; j < size; ++j) u.row(i)[j] = precision * gram_(j, i);
    u.row(i)[i] += damping;
  }
  if (cholesky(u, damping / 2, &cholesky_)) {
    cholesky_solve(u, phi_.data());
  } else {
    phi_.setConstant(std::numeric_limits<double>::quiet_NaN());  // which the caller looks for
  }
}

template <class T>
void LinearGaussian<T>::solve_by_eigenvalues(double precision, double damping) {
  const Index size = in_ + 1;
  const double rounding =
      8 * static_cast<double>(size) * std::numeric_limits<T>::epsilon() * eigen_.values()[size - 1];
  eigen_.solve(precision, damping, rounding, phi_.data(), phi_.data());
}

template class LinearGaussian<float>;
template class LinearGaussian<double>;

}  // namespace natgrad
