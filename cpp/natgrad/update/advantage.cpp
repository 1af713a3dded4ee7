#include "natgrad/update/advantage.hpp"

namespace natgrad {

void generalized_advantages(const Trajectories& t, double gamma, double lambda, double* advantages,
                            double* returns) {
  for (Index step = t.steps; step-- > 0;) {
    for (Index e = 0; e < t.environments; ++e) {
      const Index i = step * t.environments + e;
      if (t.valid != nullptr && t.valid[i] == 0) {
        advantages[i] = 0;
        returns[i] = t.values[i];
        continue;
      }
      const bool ended = t.terminated[i] != 0 || t.truncated[i] != 0;
      const double next = t.terminated[i] != 0 ? 0 : t.next_values[i];
      const bool follows = !ended && step + 1 < t.steps;
      const double later = follows ? advantages[i + t.environments] : 0;
      advantages[i] = t.rewards[i] + gamma * next - t.values[i] + gamma * lambda * later;
      returns[i] = advantages[i] + t.values[i];
    }
  }
}

}  // namespace natgrad
