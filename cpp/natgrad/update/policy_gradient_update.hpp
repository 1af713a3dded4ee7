// The plain policy gradient: REINFORCE (Williams 1992), the baseline that natural gradients are compared
// with. It is transactional in the same way.
#pragma once

#include <tuple>
#include <vector>

#include "natgrad/solvers/adam.hpp"
#include "natgrad/update/policy_problem.hpp"

namespace natgrad {

struct PolicyGradientOptions {
  double learning_rate = 0.01;
  bool adam = true;  // Kingma and Ba (2015); false: theta += learning_rate g
  PolicyProblemOptions problem;
};

class PolicyGradientUpdate {
 public:
  explicit PolicyGradientUpdate(const PolicyGradientOptions& options = {}) : options_(options) {}
  const PolicyGradientOptions& options() const { return options_; }

  template <class T>
  UpdateReport operator()(Policy<T>& policy, const Batch<T>& batch) {
    auto& problem = std::get<PolicyProblem<T>>(problems_);
    problem.attach(&policy, batch, options_.problem);
    return (*this)(problem);
  }
  UpdateReport operator()(Problem& problem);

  std::vector<double> state() const { return adam_.state(); }
  bool set_state(const std::vector<double>& state) { return adam_.set_state(state); }

 private:
  PolicyGradientOptions options_;
  Adam adam_, next_;  // the moments are part of the transaction
  Buffer<double> gradient_, step_;
  std::tuple<PolicyProblem<float>, PolicyProblem<double>> problems_;
};

}  // namespace natgrad
