// One natural gradient step in C++: a Gaussian policy, the actions that it takes, and advantages that
// prefer actions near zero.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "natgrad/natgrad.hpp"

int main() {
  constexpr natgrad::Index rows = 512, observation_size = 4, action_size = 2;
  natgrad::Policy<float> policy(
      {.inputs = observation_size, .hidden = {32, 32}},
      natgrad::DiagonalGaussian{.n = action_size, .state_dependent_std = false},
      natgrad::Initialization::orthogonal, /*output_scale=*/0.01, /*log_std_init=*/0.0);

  std::vector<float> observations(rows * observation_size), actions(rows * action_size);
  std::vector<float> log_probs(rows);
  natgrad::RandomStream random(/*seed=*/0, /*stream=*/0, /*counter=*/0);
  for (float& x : observations) x = static_cast<float>(random.normal());
  const natgrad::Matrix<const float> seen{observations.data(), rows, observation_size,
                                          observation_size};
  const natgrad::Matrix<float> taken{actions.data(), rows, action_size, action_size};
  natgrad::Rng rng{.seed = 1};
  policy.sample(seen, &rng, taken, log_probs.data());

  std::vector<double> advantages(rows);
  for (natgrad::Index n = 0; n < rows; ++n) {
    const float* a = taken.row(n);
    advantages[static_cast<std::size_t>(n)] = -static_cast<double>(a[0] * a[0] + a[1] * a[1]);
  }

  natgrad::TrustRegionUpdate update(
      {.max_kl = 0.02, .direction = {.damping = natgrad::FixedDamping{.value = 0.1}}});
  const natgrad::UpdateReport report =
      update(policy, {.observations = seen, .actions = taken, .advantages = advantages});
  std::printf("%s\nKL %.4g, improvement %.4g of %.4g expected\n", report.message.data(), report.kl,
              report.improvement, report.expected_improvement);
  return report.status == natgrad::UpdateStatus::ACCEPTED ? EXIT_SUCCESS : EXIT_FAILURE;
}
