// The natural policy gradient update: Kakade (2002) without a line search, TRPO (Schulman et al. 2015)
// with one. `TrustRegionUpdate::operator()` is the algorithm box.
//
// An update is transactional: the policy's parameters change only if the status is ACCEPTED.
#pragma once

#include <optional>
#include <tuple>
#include <variant>
#include <vector>

#include "natgrad/update/policy_problem.hpp"

namespace natgrad {

// What a divergence is taken over: the dimensions of an action summed, or averaged as sb3-contrib does
// it. With mean, KL and F are those of the sum divided by the number of dimensions.
enum class KlReduction { sum, mean };

// What x is multiplied by for the full step: sqrt(2 delta / x'Fx), the same with F + damping D for F, or a
// number, whatever max_kl says.
enum class StepLength { fisher, damped };
using StepScale = std::variant<StepLength, double>;

struct TrustRegionOptions {
  double max_kl = 0.01;        // delta; Schulman et al. (2015), section 8
  DirectionOptions direction;  // how (F + damping D) x = g is solved
  StepScale step_scale = StepLength::fisher;
  KlReduction kl_reduction = KlReduction::sum;
  std::optional<LineSearchOptions> line_search = LineSearchOptions{};  // none: the closed-form step
  PolicyProblemOptions problem = {};                                   // of the core's own policies
};

class TrustRegionUpdate {
 public:
  explicit TrustRegionUpdate(const TrustRegionOptions& options = {});
  const TrustRegionOptions& options() const { return options_; }
  void set_max_kl(double max_kl) { options_.max_kl = max_kl; }  // of the updates to come

  // One update of a policy on a batch, or of any problem.
  template <class T>
  UpdateReport operator()(Policy<T>& policy, const Batch<T>& batch) {
    auto& problem = std::get<PolicyProblem<T>>(problems_);
    problem.attach(&policy, batch, options_.problem);
    return (*this)(problem);
  }
  UpdateReport operator()(Problem& problem);

  // What passes from one update to the next, see DirectionSolver.
  std::vector<double> state() const { return direction_.state(); }
  bool set_state(const std::vector<double>& state) { return direction_.set_state(state); }

 private:
  bool find_length(double* x, Index n, UpdateReport* report) const;
  LineSearchSummary search(Problem& problem, double terms, const double* step,
                           UpdateReport* report) const;
  void reject(const LineSearchSummary& search, UpdateReport* report) const;

  TrustRegionOptions options_;
  DirectionSolver direction_;
  Buffer<double> gradient_;  // (P)
  std::tuple<PolicyProblem<float>, PolicyProblem<double>> problems_;
};

}  // namespace natgrad
