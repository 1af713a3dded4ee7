// The critic: a network with one output, in units that its targets set.
#pragma once

#include "natgrad/model/policy.hpp"

namespace natgrad {

// V(s) = mean + std * network(s). Fits work on (target - mean) / std, so that their settings do not
// depend on the scale of the rewards. When the scale changes, the last layer is changed with it and
// V stays what it was (van Hasselt et al. 2016, Pop-Art, equation 4).
template <class T>
class ValueFunction : public ParameterizedNetwork<T> {
 public:
  ValueFunction(NetworkSpec spec, Initialization kind, double output_scale);

  double target_mean() const { return mean_; }
  double target_std() const { return std_; }
  void set_target_scale(double mean, double std);      // V unchanged, but for rounding
  void restore_target_scale(double mean, double std);  // the scale alone: from a checkpoint

  void predict(Matrix<const T> observations, T* out);

 private:
  double mean_ = 0, std_ = 1;
};

}  // namespace natgrad
