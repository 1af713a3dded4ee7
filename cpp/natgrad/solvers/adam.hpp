// Adam (Kingma and Ba 2015, algorithm 1) with its defaults, for ascent and descent alike.
#pragma once

#include <vector>

#include "natgrad/base/types.hpp"

namespace natgrad {

class Adam {
 public:
  // step = learning_rate * m / (sqrt(v) + 1e-8), with both moments corrected for their start at 0.
  void step(const double* gradient, Index n, double learning_rate, double* step);

  // (1 + 2 n): number of steps, first moments, second moments. Empty before the first step.
  std::vector<double> state() const { return {state_.begin(), state_.end()}; }
  void reserve(Index n) { state_.reserve(2 * n + 1); }  // for a state that is copied here
  bool is_finite() const;                               // no moment has overflowed
  bool set_state(const std::vector<double>& state);     // false: not a state of Adam

 private:
  Buffer<double> state_;
};

}  // namespace natgrad
