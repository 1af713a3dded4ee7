#include "natgrad/linear_gaussian.hpp"

#include <limits>

namespace natgrad {
namespace {

// Multiply-adds of the kernels that take as long as one of the eigenvalue solver's n^3.
constexpr double kEigen = 150;

}  // namespace

template <class T>
bool LinearGaussian<T>::applies(const Policy<T>& policy) {
  const NetworkSpec& spec = policy.network().spec();
  return spec.hidden.empty() && spec.free_outputs > 0;
}

template <class T>
bool LinearGaussian<T>::pays(const Policy<T>& policy, Index rows, int sweeps, bool solve) {
  const Layer& layer = policy.network().layers().front();
  const double n = static_cast<double>(rows), phi = static_cast<double>(layer.in + 1);
  const double sweep = 2 * n * static_cast<double>(round_up(layer.out, kLanes<T>)) * phi;
  const double gram = n * static_cast<double>(round_up(layer.in + 1, kLanes<T>)) * phi;
  return gram + (solve ? kEigen * phi * phi * phi : 0) < sweeps * sweep;
}

template <class T>
void LinearGaussian<T>::attach(LinearizedPolicy<T>* policy, const double* weights, bool uniform) {
  const Layer& layer = policy->policy->network().layers().front();
  const Matrix<const T> y = policy->network.outputs();
  in_ = layer.in;
  out_ = layer.out;
  gram_.resize(in_ + 1, in_ + 1);
  policy->network.input_gram(uniform ? nullptr : weights, gram_.data());
  if (uniform) gram_ *= weights[0];
  weight_ = gram_(in_, in_);
  precision_.resize(out_);
  for (Index i = 0; i < out_; ++i) {
    precision_[i] = std::exp(-2 * static_cast<double>(y.row(0)[out_ + i]));
  }
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

// With G = U diag(g) U', x_o = U diag(1 / (g / sigma_o^2 + damping)) U' b_o. Eigenvalues that rounding
// alone could have made are zeros.
template <class T>
void LinearGaussian<T>::solve(const double* b, double damping, double* x) {
  const Index biases = out_ * in_, free = biases + out_, size = in_ + 1;
  eigen_.compute(gram_);
  phi_.resize(size);
  rotated_.resize(size);
  const double rounding = 8 * static_cast<double>(size) * std::numeric_limits<T>::epsilon() *
                          eigen_.eigenvalues()[size - 1];
  for (Index o = 0; o < out_; ++o) {
    phi_.head(in_) = Eigen::Map<const Eigen::VectorXd>(b + o * in_, in_);
    phi_[in_] = b[biases + o];
    rotated_.noalias() = eigen_.eigenvectors().transpose() * phi_;
    for (Index i = 0; i < size; ++i) {
      const double value = eigen_.eigenvalues()[i];
      const double curvature = (value > rounding ? precision_[o] * value : 0) + damping;
      rotated_[i] = curvature > 0 ? rotated_[i] / curvature : 0;
    }
    phi_.noalias() = eigen_.eigenvectors() * rotated_;
    Eigen::Map<Eigen::VectorXd>(x + o * in_, in_) = phi_.head(in_);
    x[biases + o] = phi_[in_];
    const double curvature = 2 * weight_ + damping;
    x[free + o] = curvature > 0 ? b[free + o] / curvature : 0;
  }
}

template class LinearGaussian<float>;
template class LinearGaussian<double>;

}  // namespace natgrad
