#include "natgrad/model/value_function.hpp"

namespace natgrad {

template <class T>
ValueFunction<T>::ValueFunction(NetworkSpec spec, Initialization kind, double output_scale)
    : ParameterizedNetwork<T>(
          [&] {
            spec.outputs = 1;
            spec.free_outputs = 0;
            return std::move(spec);
          }(),
          kind, output_scale, 0) {}

template <class T>
void ValueFunction<T>::set_target_scale(double mean, double std) {
  const Layer& last = this->network().layers().back();
  T* weight = this->parameters() + last.weight;
  T* bias = this->parameters() + last.bias;
  for (Index i = 0; i < last.in; ++i) {
    weight[i] = static_cast<T>(static_cast<double>(weight[i]) * (std_ / std));
  }
  *bias = static_cast<T>((std_ * static_cast<double>(*bias) + mean_ - mean) / std);
  restore_target_scale(mean, std);
}

template <class T>
void ValueFunction<T>::restore_target_scale(double mean, double std) {
  mean_ = mean;
  std_ = std;
}

template <class T>
void ValueFunction<T>::predict(Matrix<const T> observations, T* out) {
  this->outputs(observations, [&](Index first, Matrix<const T> y) {
    for (Index r = 0; r < y.rows; ++r) {
      out[first + r] = static_cast<T>(mean_ + std_ * static_cast<double>(*y.row(r)));
    }
  });
}

template class ValueFunction<float>;
template class ValueFunction<double>;

}  // namespace natgrad
