// The surrogate objective of a policy update and its constraint, on one batch:
//
//   L(theta) = (1/N) sum_n ratio_n A_n,   ratio_n = pi_theta(a_n | s_n) / mu(a_n | s_n)     (eq. 3.1)
//   KL       = (1/N) sum_n KL(pi_old(. | s_n) || pi_theta(. | s_n))                         (eq. 3.2)
//
// where pi_old is the policy before the update and mu the one that chose the actions.
#pragma once

#include "natgrad/model/policy.hpp"
#include "natgrad/solvers/line_search.hpp"

namespace natgrad {

// Which divergence bounds a step: KL(old || new) or KL(new || old). To second order they agree.
enum class KlDirection { old_new, new_old };

template <class T>
class Surrogate {
 public:
  // Linearises the policy on the batch, and g (P) = grad L at its parameters: all in one pass, tile by
  // tile. Policy and batch must outlive this object's use.
  void attach(const Policy<T>& policy, const Batch<T>& batch, bool normalize_advantages, double* g);

  double value() const { return value_; }      // L at the current parameters
  double entropy() const { return entropy_; }  // mean over the batch
  bool advantages_are_zero() const { return zero_; }
  // The norm that rounding alone could give g: where terms cancel to that, nothing of it is left.
  double gradient_rounding() const { return rounding_; }

  // L and KL at other parameters, as a candidate of the line search.
  Candidate evaluate(const T* theta, KlDirection direction = KlDirection::old_new);

  LinearizedPolicy<T>* linearization() { return &policy_; }

 private:
  LinearizedPolicy<T> policy_;
  DistributionRows<T> distribution_;  // of the policy last looked at
  DistributionRows<T> reversed_;      // of the old policy, as divergences from a candidate have it
  Batch<T> batch_;
  PackedLayers<T> candidate_;
  Buffer<double> advantages_;  // (N)
  Buffer<double> log_probs_;   // (N) of the behaviour policy
  Buffer<double> ratios_;      // (N) at the current parameters
  Buffer<double> scratch_;     // (N): weights of scores, or log probabilities by a candidate
  Buffer<double> sums_;        // of shards: L, entropy, norms of scores and of rounding; L and KL
  double value_ = 0, entropy_ = 0, rounding_ = 0;
  bool zero_ = false;
};

}  // namespace natgrad
