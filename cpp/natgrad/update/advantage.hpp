// Generalised advantage estimation (Schulman et al. 2016, "High-dimensional continuous control using
// generalized advantage estimation", equations 11 to 16) over trajectories of several environments.
#pragma once

#include <cstdint>

#include "natgrad/base/types.hpp"

namespace natgrad {

// For each environment, backwards in time:
//
//   delta_t = r_t + gamma V(s_{t+1}) [not terminated] - V(s_t)
//   A_t     = delta_t + gamma lambda A_{t+1} [not terminated, not truncated]
//
// V(s_{t+1}) is the value of the state really reached, also where the episode was truncated there. A
// row that is not valid (the reset of a next-step autoreset) has advantage 0 and ends the sum.
struct Trajectories {
  Index steps = 0, environments = 0;
  const double* rewards = nullptr;           // (T, n), all row-major
  const double* values = nullptr;            // (T, n)
  const double* next_values = nullptr;       // (T, n)
  const std::uint8_t* terminated = nullptr;  // (T, n)
  const std::uint8_t* truncated = nullptr;   // (T, n)
  const std::uint8_t* valid = nullptr;       // (T, n), or null: all
};

void generalized_advantages(const Trajectories& trajectories, double gamma, double lambda,
                            double* advantages,  // (T, n)
                            double* returns);    // (T, n): A_t + V(s_t)

}  // namespace natgrad
