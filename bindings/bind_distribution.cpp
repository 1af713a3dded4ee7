#include <pybind11/stl.h>

#include "models.hpp"

namespace natgrad::bindings {
namespace {

struct PyCategorical : PyDistribution {};
struct PyDiagonalGaussian : PyDistribution {};
struct PyMultiCategorical : PyDistribution {};
struct PyBernoulli : PyDistribution {};
struct PySquashedGaussian : PyDistribution {};
struct PyBeta : PyDistribution {};

Rows<double> outputs_of(const PyDistribution& self, py::handle given, const std::string& name) {
  return rows_of<double>(given, name, parameter_size(self.distribution), false, false);
}

// out[n] = f(distribution, row of outputs)
template <class F>
py::array_t<double> per_row(const PyDistribution& self, const Rows<double>& outputs, F f) {
  py::array_t<double> out(outputs.count);
  std::visit(
      [&](const auto& distribution) {
        for (Index n = 0; n < outputs.count; ++n) {
          out.mutable_data()[n] = f(distribution, outputs.view().row(n), n);
        }
      },
      self.distribution);
  return out;
}

// out[n, :] = f(distribution, row of outputs, row of out)
template <class F>
py::array_t<double> per_row_vector(const PyDistribution& self, const Rows<double>& outputs,
                                   Index width, F f) {
  py::array_t<double> out({outputs.count, width});
  std::visit(
      [&](const auto& distribution) {
        for (Index n = 0; n < outputs.count; ++n) {
          f(distribution, outputs.view().row(n), n, out.mutable_data() + n * width);
        }
      },
      self.distribution);
  return out;
}

// n finite numbers, given as such or as one for all.
std::vector<double> bound_of(py::handle given, Index n, const std::string& name) {
  const Array<double> a(numeric_array(given, name));
  if (a.ndim() > 1 || (a.ndim() == 1 && a.shape(0) != n)) {
    wrong_value(name, "want a number or shape (" + std::to_string(n) + ",), got " + shape_text(a));
  }
  require_finite(a, name);
  std::vector<double> bound(static_cast<std::size_t>(n), *a.data());
  if (a.ndim() == 1) std::copy_n(a.data(), n, bound.data());
  return bound;
}

Bounds bounds_from(py::handle low, py::handle high, Index n) {
  Bounds bounds{bound_of(low, n, "low"), bound_of(high, n, "high")};
  for (std::size_t i = 0; i < bounds.low.size(); ++i) {
    const double width = bounds.high[i] - bounds.low[i];
    if (width > 0 && std::isfinite(width)) continue;
    wrong_value("high", "want numbers above low, at a finite distance, got " +
                            std::to_string(bounds.high[i]) + " above " +
                            std::to_string(bounds.low[i]));
  }
  return bounds;
}

std::string bounds_text(const Bounds& bounds) {
  return ", low=" + py::repr(py::cast(bounds.low)).cast<std::string>() +
         ", high=" + py::repr(py::cast(bounds.high)).cast<std::string>() + ")";
}

// What distributions with bounds have in common.
template <class Class>
void bind_bounds(Class& cls) {
  using Py = typename Class::type;
  const auto vector = [](const std::vector<double>& bound) {
    return py::array_t<double>(static_cast<py::ssize_t>(bound.size()), bound.data());
  };
  cls.def_property_readonly(
         "low", [=](const Py& self) { return vector(bounds_of(self.distribution)->low); },
         "(n,) float64, the least actions.")
      .def_property_readonly(
          "high", [=](const Py& self) { return vector(bounds_of(self.distribution)->high); },
          "(n,) float64, the largest actions.")
      .def(
          "to_bounds",
          [](const Py& self, py::handle given) {
            const Index n = action_size(self.distribution);
            const auto u = rows_of<double>(given, "actions", n);
            py::array_t<double> out({u.count, n});
            bounds_of(self.distribution)->apply(u.view(), out.mutable_data());
            return u.drop_axis(std::move(out));
          },
          py::arg("actions"),
          "(N, n) float64, what the environment takes for actions u: low + (high - low) (1 + tanh "
          "u) / "
          "2 (eq. 2.7).")
      .def(
          "from_bounds",
          [](const Py& self, py::handle given) {
            const Index n = action_size(self.distribution);
            const auto a = rows_of<double>(given, "actions", n);
            const Bounds& bounds = *bounds_of(self.distribution);
            py::array_t<double> out({a.count, n});
            for (Index k = 0; k < a.count * n; ++k) {
              const auto i = static_cast<std::size_t>(k % n);
              const double at = a.array.data()[k];
              if (!(at >= bounds.low[i] && at <= bounds.high[i])) {
                wrong_value("actions[" + std::to_string(k / n) + ", " + std::to_string(i) + "]",
                            "want a number from " + std::to_string(bounds.low[i]) + " to " +
                                std::to_string(bounds.high[i]) + ", got " + std::to_string(at));
              }
              out.mutable_data()[k] = bounds.invert(at, i);
            }
            return a.drop_axis(std::move(out));
          },
          py::arg("actions"),
          R"((N, n) float64, the actions u of what an environment took.

For data that others collected: what was sampled here is better kept as u. An action on a bound, or nearer
to it than the double precision of the width, counts as u = -19 or 19. Raises ValueError beyond the bounds.)");
}

}  // namespace

void bind_distribution(py::module_& m) {
  py::class_<PyDistribution>(m, "Distribution", R"(A distribution of actions, in its own parameters.

`outputs` is (N, K) float64: for each observation the K parameters of its distribution, as
`Policy.outputs` gives them. Logarithms are natural, so entropies and divergences are in nats; they
are summed over action dimensions. All methods raise ValueError for a wrong shape or a value that is
not finite, and TypeError for a dtype that is not numeric.)")
      .def_property_readonly(
          "parameter_size", [](const PyDistribution& d) { return parameter_size(d.distribution); },
          "K, the number of parameters for one observation.")
      .def_property_readonly(
          "action_size", [](const PyDistribution& d) { return action_size(d.distribution); },
          "Number of values in one action.")
      .def_property_readonly(
          "discrete", [](const PyDistribution& d) { return is_discrete(d.distribution); },
          "True if actions are integers.")
      .def(
          "sample",
          [](const PyDistribution& self, py::handle given, Rng& rng) {
            const auto outputs = outputs_of(self, given, "outputs");
            const auto actions = per_row_vector(self, outputs, action_size(self.distribution),
                                                [&](const auto& d, const double* y, Index n,
                                                    double* out) { d.sample(y, rng.row(n), out); });
            const Index width = action_size(self.distribution);
            require_finite_actions(actions.data(), actions.size() / width, width, "outputs");
            ++rng.counter;
            return actions_to_python<double>(Array<double>(actions), self.distribution, false);
          },
          py::arg("outputs"), py::arg("rng"),
          "One action for each row; row n draws from stream `rng.stream + n`.")
      .def(
          "mode",
          [](const PyDistribution& self, py::handle given) {
            const auto outputs = outputs_of(self, given, "outputs");
            const auto actions = per_row_vector(
                self, outputs, action_size(self.distribution),
                [](const auto& d, const double* y, Index, double* out) { d.mode(y, out); });
            return actions_to_python<double>(Array<double>(actions), self.distribution, false);
          },
          py::arg("outputs"),
          "The most probable action of each row; between bounds, the most probable u.")
      .def(
          "log_prob",
          [](const PyDistribution& self, py::handle given, py::handle given_actions) {
            const auto outputs = outputs_of(self, given, "outputs");
            const auto actions =
                actions_of<double>(given_actions, self.distribution, outputs.count, false);
            const Index width = action_size(self.distribution);
            return per_row(self, outputs, [&](const auto& d, const double* y, Index n) {
              return d.log_prob(y, actions.data() + n * width);
            });
          },
          py::arg("outputs"), py::arg("actions"), "(N,) log probability or log density.")
      .def(
          "entropy",
          [](const PyDistribution& self, py::handle given) {
            return per_row(self, outputs_of(self, given, "outputs"),
                           [](const auto& d, const double* y, Index) { return d.entropy(y); });
          },
          py::arg("outputs"), "(N,) entropy in nats; differential entropy of continuous actions.")
      .def(
          "kl",
          [](const PyDistribution& self, py::handle given_old, py::handle given) {
            const auto old = outputs_of(self, given_old, "old_outputs");
            const auto outputs = outputs_of(self, given, "outputs");
            if (old.count != outputs.count) {
              wrong_value("outputs", "want " + std::to_string(old.count) +
                                         " rows as old_outputs has, got " +
                                         std::to_string(outputs.count));
            }
            return per_row(self, outputs, [&](const auto& d, const double* y, Index n) {
              return d.kl(old.view().row(n), y);
            });
          },
          py::arg("old_outputs"), py::arg("outputs"), "(N,) KL(old || new) in nats.")
      .def(
          "score",
          [](const PyDistribution& self, py::handle given, py::handle given_actions) {
            const auto outputs = outputs_of(self, given, "outputs");
            const auto actions =
                actions_of<double>(given_actions, self.distribution, outputs.count, false);
            const Index width = action_size(self.distribution);
            return per_row_vector(self, outputs, outputs.columns,
                                  [&](const auto& d, const double* y, Index n, double* out) {
                                    d.score(y, actions.data() + n * width, 1.0, out);
                                  });
          },
          py::arg("outputs"), py::arg("actions"),
          "(N, K) derivative of the log probability with respect to the parameters.")
      .def(
          "fisher",
          [](const PyDistribution& self, py::handle given) {
            const auto outputs = outputs_of(self, given, "outputs");
            const Index k = outputs.columns;
            auto flat = per_row_vector(self, outputs, k * k,
                                       [&](const auto&, const double* y, Index, double* out) {
                                         fisher_matrix(self.distribution, y, out);
                                       });
            return flat.reshape({outputs.count, k, k});
          },
          py::arg("outputs"),
          "(N, K, K) Fisher information M in the distribution's own parameters (eq. 2.4 to 2.6, "
          "2.13).")
      .def(
          "fisher_product",
          [](const PyDistribution& self, py::handle given, py::handle given_u) {
            const auto outputs = outputs_of(self, given, "outputs");
            const auto u = outputs_of(self, given_u, "u");
            if (u.count != outputs.count) {
              wrong_value("u", "want " + std::to_string(outputs.count) + " rows, got " +
                                   std::to_string(u.count));
            }
            std::vector<double> s(static_cast<std::size_t>(curvature_size(self.distribution)));
            return per_row_vector(self, outputs, outputs.columns,
                                  [&](const auto& d, const double* y, Index n, double* out) {
                                    d.curvature(y, s.data());
                                    d.fisher_product(s.data(), u.view().row(n), 1.0, out);
                                  });
          },
          py::arg("outputs"), py::arg("u"), "(N, K) products M u, row by row.")
      .def(
          "fisher_sqrt",
          [](const PyDistribution& self, py::handle given) {
            const auto outputs = outputs_of(self, given, "outputs");
            const Index k = outputs.columns;
            const Index rank = fisher_rank(self.distribution);
            auto flat = per_row_vector(self, outputs, k * rank,
                                       [&](const auto&, const double* y, Index, double* out) {
                                         fisher_root(self.distribution, y, out);
                                       });
            return flat.reshape({outputs.count, k, rank});
          },
          py::arg("outputs"),
          "(N, K, rank) roots Q of the Fisher information: M = Q Q'. The rank is K, less one for "
          "each "
          "categorical variable.");

  py::class_<PyCategorical, PyDistribution>(
      m, "Categorical", py::is_final(),
      R"(One of n categories; K = n logits. Actions are (N,) int64.

Raises ValueError unless n >= 1.)")
      .def(py::init([](Index n) { return PyCategorical{{Categoricals({size_of(n, "n")}, true)}}; }),
           py::arg("n"))
      .def("__repr__", [](const PyCategorical& self) {
        return "Categorical(" + std::to_string(parameter_size(self.distribution)) + ")";
      });

  py::class_<PyDiagonalGaussian, PyDistribution>(
      m, "DiagonalGaussian", py::is_final(),
      R"(n independent normal variables; K = 2 n: means, then log standard deviations.

Actions are (N, n). With state_dependent_std=False (default) the log standard deviations are n
parameters of the policy, the last in its parameter vector; with True the network computes them.
Raises ValueError unless n >= 1.)")
      .def(py::init([](Index n, bool state_dependent_std) {
             return PyDiagonalGaussian{{DiagonalGaussian{size_of(n, "n"), state_dependent_std}}};
           }),
           py::arg("n"), py::arg("state_dependent_std") = false)
      .def_property_readonly(
          "state_dependent_std",
          [](const PyDiagonalGaussian& self) {
            return std::get<DiagonalGaussian>(self.distribution).state_dependent_std;
          },
          "Whether the network computes the log standard deviations.")
      .def("__repr__", [](const PyDiagonalGaussian& self) {
        const auto& d = std::get<DiagonalGaussian>(self.distribution);
        return "DiagonalGaussian(" + std::to_string(d.n) +
               (d.state_dependent_std ? ", state_dependent_std=True)" : ")");
      });

  py::class_<PyMultiCategorical, PyDistribution>(
      m, "MultiCategorical", py::is_final(),
      R"(Several independent categorical variables; K = sum(sizes) logits, one after the other.

Actions are (N, len(sizes)) int64. Raises ValueError for no sizes, or a size < 1.)")
      .def(py::init([](const std::vector<Index>& sizes) {
             if (sizes.empty()) wrong_value("sizes", "want at least one size, got none");
             size_of(static_cast<Index>(sizes.size()), "sizes");
             for (const Index n : sizes) size_of(n, "sizes");
             return PyMultiCategorical{{Categoricals(sizes, false)}};
           }),
           py::arg("sizes"))
      .def_property_readonly(
          "sizes",
          [](const PyMultiCategorical& self) {
            return py::tuple(py::cast(std::get<Categoricals>(self.distribution).sizes));
          },
          "Number of categories of each variable.")
      .def("__repr__", [](const PyMultiCategorical& self) {
        return "MultiCategorical(" +
               py::repr(py::tuple(py::cast(std::get<Categoricals>(self.distribution).sizes)))
                   .cast<std::string>() +
               ")";
      });

  py::class_<PyBernoulli, PyDistribution>(
      m, "Bernoulli", py::is_final(),
      R"(n independent binary variables; K = n logits. Actions are (N, n) int64, 0 or 1.

Raises ValueError unless n >= 1.)")
      .def(py::init([](Index n) { return PyBernoulli{{Bernoulli{size_of(n, "n")}}}; }),
           py::arg("n"))
      .def("__repr__", [](const PyBernoulli& self) {
        return "Bernoulli(" + std::to_string(action_size(self.distribution)) + ")";
      });

  py::class_<PySquashedGaussian, PyDistribution> squashed(
      m, "SquashedGaussian", py::is_final(),
      R"(n independent normal variables u under low + (high - low) (1 + tanh u) / 2; K = 2 n.

The parameters are those of a `DiagonalGaussian`, and so are score, divergence and Fisher information:
none of them changes under an invertible map of the action.

Actions here are (N, n) of u, which has no bounds; `to_bounds` makes of them what the environment takes. An
action near a bound has lost the digits that tell how near it is, u has not. log_prob is the density of
the action between the bounds (eq. 2.9). Its entropy has no closed form: `entropy` integrates numerically, to
1e-12 for deviations up to 64 (eq. 2.12), and an update reports an estimate from the actions taken.

Parameters
----------
n : int
state_dependent_std : bool
    As for `DiagonalGaussian`.
low, high : float or (n,)
    Bounds of the actions.

Raises ValueError unless n >= 1 and low < high, both finite.)");
  squashed
      .def(py::init([](Index n, bool state_dependent_std, py::handle low, py::handle high) {
             size_of(n, "n");
             return PySquashedGaussian{
                 {SquashedGaussian{{n, state_dependent_std}, bounds_from(low, high, n)}}};
           }),
           py::arg("n"), py::arg("state_dependent_std") = false, py::arg("low") = -1.0,
           py::arg("high") = 1.0)
      .def_property_readonly(
          "state_dependent_std",
          [](const PySquashedGaussian& self) {
            return std::get<SquashedGaussian>(self.distribution).state_dependent_std;
          },
          "Whether the network computes the log standard deviations.")
      .def("__repr__", [](const PySquashedGaussian& self) {
        const auto& d = std::get<SquashedGaussian>(self.distribution);
        return "SquashedGaussian(" + std::to_string(d.n) +
               (d.state_dependent_std ? ", state_dependent_std=True" : "") + bounds_text(d.bounds);
      });
  bind_bounds(squashed);

  py::class_<PyBeta, PyDistribution> beta(
      m, "Beta", py::is_final(),
      R"(n independent Beta variables x under low + (high - low) x (Chou et al. 2017); K = 2 n.

The first n parameters y give alpha = 1 + softplus(y), the others beta: both above 1, so that there is one
mode. The policy is nearly uniform where all are near 0, as in a new one.

Actions here are (N, n) of u = artanh(2 x - 1), which has no bounds; `to_bounds` makes of them what the
environment takes. log_prob is the density of the action between the bounds (eq. 2.10); the mode is that
of the density of u, where x has its mean alpha / (alpha + beta).

Parameters
----------
n : int
low, high : float or (n,)
    Bounds of the actions.

Raises ValueError unless n >= 1 and low < high, both finite.)");
  beta.def(py::init([](Index n, py::handle low, py::handle high) {
             size_of(n, "n");
             return PyBeta{{Beta{n, bounds_from(low, high, n)}}};
           }),
           py::arg("n"), py::arg("low") = -1.0, py::arg("high") = 1.0)
      .def("__repr__", [](const PyBeta& self) {
        const auto& d = std::get<Beta>(self.distribution);
        return "Beta(" + std::to_string(d.n) + bounds_text(d.bounds);
      });
  bind_bounds(beta);
}

}  // namespace natgrad::bindings
