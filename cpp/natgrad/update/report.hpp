// What an update says of itself.
#pragma once

#include <array>
#include <cstdio>

#include "natgrad/update/direction_solver.hpp"

namespace natgrad {

enum class UpdateStatus {
  ACCEPTED,              // a step was taken
  ZERO_GRADIENT,         // nothing to do
  ZERO_ADVANTAGES,       // nothing to do
  LINE_SEARCH_FAILED,    // no fraction of the step was acceptable
  NON_FINITE,            // outputs, gradient, or every candidate were not finite
  NOT_POSITIVE_DEFINITE  // x'Fx <= 0: the step has no length
};

// Wall-clock seconds of the parts of an update.
struct UpdateTimings {
  double gradient = 0;  // and the linearisation of the policy on the batch, in the same pass
  double solve = 0;     // for the direction, products and preconditioner included
  double search = 0;    // candidates of the line search
  double total = 0;
};

struct UpdateReport {
  UpdateStatus status = UpdateStatus::NON_FINITE;
  std::array<char, 256> message{};  // a sentence with the numbers; no allocation
  double kl = 0;                    // mean KL(old || new) of the accepted or last candidate
  double improvement = 0;           // of the surrogate, by the accepted or last candidate
  double expected_improvement = 0;  // g'd of the full step
  double step_fraction = 0;         // 0 unless accepted
  double step_scale = 0;            // of the full step: d = step_scale x
  int backtracks = 0;               // candidates rejected before
  double surrogate = 0;             // at the old parameters
  double entropy = 0;               // of the old policy, mean over the batch
  double gradient_norm = 0;
  double step_norm = 0;  // of the step taken; 0 unless accepted
  // What the model was worth at the full step: the smaller of improvement / g'd and 1/2 d'Fd / kl
  // (eq. 8.5). It is 0 if that step could not be evaluated.
  double reduction_ratio = 0;
  DirectionReport direction;  // how the system was solved
  UpdateTimings timings;

  template <class... Args>
  void say(const char* pattern, Args... args) {
    if constexpr (sizeof...(args) == 0) {
      std::snprintf(message.data(), message.size(), "%s", pattern);
    } else {
      std::snprintf(message.data(), message.size(), pattern, args...);
    }
  }
  // Ends an update without a step; returns false.
  template <class... Args>
  bool end(UpdateStatus why, const char* pattern, Args... args) {
    status = why;
    say(pattern, args...);
    return false;
  }
};

}  // namespace natgrad
