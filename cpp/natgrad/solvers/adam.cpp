#include "natgrad/solvers/adam.hpp"

#include <algorithm>
#include <cmath>

namespace natgrad {

void Adam::step(const double* gradient, Index n, double learning_rate, double* step) {
  constexpr double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  if (state_.size() != 2 * n + 1) {
    state_.resize(2 * n + 1);
    state_.fill_zero();
  }
  const double count = ++state_[0];
  double* first = state_.data() + 1;
  double* second = first + n;
  const double correction1 = 1 - std::pow(beta1, count), correction2 = 1 - std::pow(beta2, count);
  for (Index i = 0; i < n; ++i) {
    first[i] += (1 - beta1) * (gradient[i] - first[i]);
    second[i] += (1 - beta2) * (gradient[i] * gradient[i] - second[i]);
    step[i] =
        learning_rate * (first[i] / correction1) / (std::sqrt(second[i] / correction2) + epsilon);
  }
}

bool Adam::is_finite() const {
  return all_finite(state_.data(), state_.size());
}

bool Adam::set_state(const std::vector<double>& state) {
  const bool finite = all_finite(state.data(), static_cast<Index>(state.size()));
  if (!finite || (!state.empty() && (state.size() % 2 == 0 || state[0] < 1))) return false;
  state_.resize(static_cast<Index>(state.size()));
  std::copy(state.begin(), state.end(), state_.begin());
  return true;
}

}  // namespace natgrad
