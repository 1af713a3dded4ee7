// Independent normal variables u under low + (high - low) (1 + tanh u) / 2. Score, divergence and Fisher
// information do not change under an invertible map of the action, so they are those of the normal u.
#pragma once

#include "natgrad/model/distributions/bounds.hpp"
#include "natgrad/model/distributions/diagonal_gaussian.hpp"

namespace natgrad {

// A pointer to the DiagonalGaussian inside sees u without its bounds.
struct SquashedGaussian : DiagonalGaussian {
  Bounds bounds;

  // The density of the action between the bounds (eq. 2.9).
  template <class T>
  double log_prob(const T* y, const T* u) const {
    return DiagonalGaussian::log_prob(y, u) - bounds.log_volume(u);
  }

  template <class T>
  double entropy(const T* y) const {
    return DiagonalGaussian::entropy(y) + expected_log_volume(y);
  }

  // E log |da/du| (eq. 2.12) has no closed form. The trapezoidal rule converges exponentially, with
  // log(1 - tanh^2) analytic within pi/2 of the real line: its error is exp(-pi^2 / (sigma step)).
  // Beyond sigma = 64 the step is no longer shortened and the relative error may reach 1e-6.
  template <class T>
  double expected_log_volume(const T* y) const {
    constexpr double kReach = 8.5, kDensity = 0.39894228040143267794;
    double sum = bounds.log_width();
    for (Index i = 0; i < n; ++i) {
      const double mean = static_cast<double>(y[i]);
      const double std = std::min(std::exp(static_cast<double>(y[n + i])), 1e300);
      const double step = 0.125 / std::clamp(0.5 * std, 1.0, 32.0);
      const Index half = static_cast<Index>(kReach / step);
      for (Index k = -half; k <= half; ++k) {
        const double z = static_cast<double>(k) * step;
        sum += step * kDensity * std::exp(-0.5 * z * z) * Bounds::log_slope(mean + std * z);
      }
    }
    return sum;
  }
};

}  // namespace natgrad
