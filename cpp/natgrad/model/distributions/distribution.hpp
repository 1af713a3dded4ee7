// A distribution of actions in its own parameters, chosen at run time. Each kind has a file of its own and
// one formula for each of these, which take the row y of K parameters of one observation and compute in
// double:
//
//   log_prob  entropy  kl  score  sample  mode        of an action, in nats, summed over its dimensions
//   curvature                                         s(y), the state that M is a function of
//   fisher_product                                    scale M u
//   fisher_root_product, fisher_root_column           scale Q z, and a column of Q, with Q Q' = M
//
// M (K, K) is the Fisher information of a row and Q (K, rank) its root. The state s is computed once per
// batch. distribution_rows.hpp does the same for many rows at once, by kernels where they pay.
#pragma once

#include <variant>

#include "natgrad/model/distributions/bernoulli.hpp"
#include "natgrad/model/distributions/beta.hpp"
#include "natgrad/model/distributions/categorical.hpp"
#include "natgrad/model/distributions/diagonal_gaussian.hpp"
#include "natgrad/model/distributions/squashed_gaussian.hpp"

namespace natgrad {

using Distribution =
    std::variant<Categoricals, DiagonalGaussian, SquashedGaussian, Bernoulli, Beta>;

inline Index parameter_size(const Distribution& distribution) {
  return std::visit([](const auto& d) { return d.parameter_size(); }, distribution);
}
inline Index action_size(const Distribution& distribution) {
  return std::visit([](const auto& d) { return d.action_size(); }, distribution);
}
inline Index fisher_rank(const Distribution& distribution) {
  return std::visit([](const auto& d) { return d.fisher_rank(); }, distribution);
}
inline Index curvature_size(const Distribution& distribution) {
  return std::visit([](const auto& d) { return d.curvature_size(); }, distribution);
}
inline bool is_discrete(const Distribution& distribution) {
  return std::holds_alternative<Categoricals>(distribution) ||
         std::holds_alternative<Bernoulli>(distribution);
}
// Null where actions reach the environment as they are.
inline const Bounds* bounds_of(const Distribution& distribution) {
  if (const auto* beta = std::get_if<Beta>(&distribution)) return &beta->bounds;
  const auto* squashed = std::get_if<SquashedGaussian>(&distribution);
  return squashed != nullptr ? &squashed->bounds : nullptr;
}
// The normal variables of a Gaussian, squashed or not; null for other distributions.
inline const DiagonalGaussian* normal_of(const Distribution& distribution) {
  if (const auto* squashed = std::get_if<SquashedGaussian>(&distribution)) return squashed;
  return std::get_if<DiagonalGaussian>(&distribution);
}
// M (K, K) of one row y, and its root Q (K, rank); row-major.
void fisher_matrix(const Distribution& distribution, const double* y, double* m);
void fisher_root(const Distribution& distribution, const double* y, double* q);

// Parameters of the distribution that do not depend on the observation.
inline Index free_parameter_size(const Distribution& distribution) {
  const DiagonalGaussian* gaussian = normal_of(distribution);
  return gaussian != nullptr && !gaussian->state_dependent_std ? gaussian->n : 0;
}

}  // namespace natgrad
