#include "models.hpp"
#include "natgrad/update/advantage.hpp"

namespace natgrad::bindings {
namespace {

// An array of the same shape as the rewards, (T,) or (T, n).
template <class T>
Array<T> like(const py::array& rewards, py::handle given, const std::string& name) {
  const py::array raw = numeric_array(given, name);
  if (!raw.attr("shape").equal(rewards.attr("shape"))) {
    wrong_value(name,
                "want shape " + shape_text(rewards) + " as rewards has, got " + shape_text(raw));
  }
  Array<T> a(raw);
  if constexpr (std::is_floating_point_v<T>) require_finite(a, name);
  return a;
}

std::pair<py::array_t<double>, py::array_t<double>> gae(
    py::handle given_rewards, py::handle given_values, py::handle given_next, py::handle terminated,
    py::handle truncated, double gamma, double gae_lambda, py::handle given_valid) {
  const py::array raw = numeric_array(given_rewards, "rewards");
  if (raw.ndim() < 1 || raw.ndim() > 2 || raw.size() == 0) {
    wrong_value("rewards", "want shape (T,) or (T, n), not empty, got " + shape_text(raw));
  }
  const Array<double> rewards = like<double>(raw, raw, "rewards");
  const Array<double> values = like<double>(raw, given_values, "values");
  const Array<double> next_values = like<double>(raw, given_next, "next_values");
  const Array<std::uint8_t> ended = like<std::uint8_t>(raw, terminated, "terminated");
  const Array<std::uint8_t> cut = like<std::uint8_t>(raw, truncated, "truncated");
  Array<std::uint8_t> valid;
  if (!given_valid.is_none()) valid = like<std::uint8_t>(raw, given_valid, "valid");
  number(gamma, "gamma", gamma >= 0 && gamma <= 1, "a number from 0 to 1");
  number(gae_lambda, "gae_lambda", gae_lambda >= 0 && gae_lambda <= 1, "a number from 0 to 1");

  Trajectories t;
  t.steps = raw.shape(0);
  t.environments = raw.ndim() == 2 ? raw.shape(1) : 1;
  t.rewards = rewards.data();
  t.values = values.data();
  t.next_values = next_values.data();
  t.terminated = ended.data();
  t.truncated = cut.data();
  t.valid = given_valid.is_none() ? nullptr : valid.data();
  const std::vector<py::ssize_t> shape(raw.shape(), raw.shape() + raw.ndim());
  py::array_t<double> advantages(shape), returns(shape);
  double* to_advantages = advantages.mutable_data();
  double* to_returns = returns.mutable_data();
  {
    const py::gil_scoped_release release;  // plain memory from here on
    generalized_advantages(t, gamma, gae_lambda, to_advantages, to_returns);
  }
  if (!all_finite(to_advantages, raw.size()) || !all_finite(to_returns, raw.size())) {
    wrong_value("rewards", "want rewards and values whose discounted sums are finite");
  }
  return {std::move(advantages), std::move(returns)};
}

}  // namespace

void bind_advantage(py::module_& m) {
  m.def("gae", &gae, py::arg("rewards"), py::arg("values"), py::arg("next_values"),
        py::arg("terminated"), py::arg("truncated"), py::arg("gamma") = 0.99,
        py::arg("gae_lambda") = 0.95, py::arg("valid") = py::none(),
        R"(Generalised advantage estimation (Schulman et al. 2016, equations 11 to 16).

delta_t = r_t + gamma V(s_{t+1}) [not terminated] - V(s_t) and
A_t = delta_t + gamma gae_lambda A_{t+1} [neither terminated nor truncated].

Parameters
----------
rewards, values, next_values : (T,) or (T, n)
    next_values[t] is the value of the state that step t really reached, also where the episode was
    truncated there; where it terminated it is not used (but must be finite).
terminated, truncated : bool, same shape
gamma, gae_lambda : float from 0 to 1
valid : bool, same shape, optional
    False for rows that are no steps (the reset of a next-step autoreset): their advantage is 0.

Returns
-------
advantages, returns : float64, same shape
    returns = advantages + values, the targets for the critic. Raises ValueError or TypeError, also
    where a sum would overflow.)");
}

}  // namespace natgrad::bindings
