#include "bind_model.hpp"

namespace natgrad::bindings {
namespace {

// {"name": "DiagonalGaussian", "n": 6, "state_dependent_std": False}: the arguments that make it.
py::dict distribution_config(const Distribution& distribution) {
  using namespace py::literals;
  if (const auto* c = std::get_if<Categoricals>(&distribution)) {
    if (c->single) return py::dict("name"_a = "Categorical", "n"_a = c->total);
    return py::dict("name"_a = "MultiCategorical", "sizes"_a = c->sizes);
  }
  if (const auto* g = std::get_if<DiagonalGaussian>(&distribution)) {
    return py::dict("name"_a = "DiagonalGaussian", "n"_a = g->n,
                    "state_dependent_std"_a = g->state_dependent_std);
  }
  return py::dict("name"_a = "Bernoulli", "n"_a = std::get<Bernoulli>(distribution).n);
}

py::object distribution_object(const Distribution& distribution) {
  const py::dict config = distribution_config(distribution);
  py::dict arguments = config.attr("copy")();
  const py::object name = arguments.attr("pop")("name");
  return py::module_::import("natgrad._core").attr(name)(**arguments);
}

// The shape of a batch of `count` actions, in the policy's own storage: (count, action size).
template <class T>
py::array_t<T> action_storage(const Distribution& distribution, Index count) {
  return py::array_t<T>({count, action_size(distribution)});
}

template <class T>
Matrix<T> mutable_rows(py::array_t<T>& a) {
  return {a.mutable_data(), a.shape(0), a.shape(1), a.shape(1)};
}

}  // namespace

void bind_policy(py::module_& m) {
  py::class_<ParameterBlock>(m, "ParameterBlock", py::is_final(),
                             "One tensor within a flat parameter vector.")
      .def_readonly("name", &ParameterBlock::name, "As in torch: '0.weight', '0.bias', 'log_std'.")
      .def_readonly("shape", &ParameterBlock::shape, "Its shape, row-major.")
      .def_readonly("offset", &ParameterBlock::offset, "Index of its first value.")
      .def_readonly("size", &ParameterBlock::size, "Number of its values.")
      .def("__repr__", [](const ParameterBlock& b) {
        return "ParameterBlock('" + b.name + "', " + py::repr(b.shape).cast<std::string>() +
               ", offset=" + std::to_string(b.offset) + ")";
      });

  py::class_<PyPolicy> cls(m, "Policy",
                           R"(A stochastic policy: a feed-forward network and a distribution.

Parameters
----------
observation_size : int
distribution : Distribution
    What the outputs mean: Categorical, DiagonalGaussian, MultiCategorical or Bernoulli.
hidden : sequence of int
    Widths of the hidden layers; () gives a linear policy.
activation : {'tanh', 'relu', 'elu', 'silu', 'gelu', 'identity'}
    elu with alpha = 1; gelu is the exact one, z Phi(z).
dtype : {'float32', 'float64'}
seed : int
    Of the initial weights and of the Fourier features.
log_std_init : float
    Initial log standard deviation of a Gaussian.
init : {'orthogonal', 'scaled'}
    Orthogonal with gain sqrt(2) in hidden layers (Saxe et al. 2014), or normal with variance
    1 / fan-in (LeCun et al. 1998). Biases start at 0.
output_scale : float
    Gain of the last layer.
fourier_features : int
    Number of random Fourier features sin(P x / bandwidth + phase) put before the first weights, fixed
    by the seed (Rajeswaran et al. 2017, equation 5); 0 for none.
fourier_bandwidth : float

Observations may have any real dtype; they are converted to that of the policy. A single observation
(observation_size,) is accepted wherever a batch is, and results then have no first axis. Shapes that
do not fit and values that are not finite raise ValueError, dtypes that are not numeric TypeError.)");
  cls.def(
      py::init([](Index observation_size, const PyDistribution& distribution,
                  const std::vector<Index>& hidden, const std::string& activation, py::handle dtype,
                  py::handle given_seed, double log_std_init, const std::string& init,
                  double output_scale, Index fourier_features, double fourier_bandwidth) {
        using namespace py::literals;
        const std::uint64_t seed = unsigned_integer(given_seed, "seed", 64);
        const NetworkSpec spec = network_spec(observation_size, hidden, activation, seed,
                                              fourier_features, fourier_bandwidth);
        const Initialization kind = initialization_named(init);
        const std::string type = dtype_named(dtype);
        non_negative(output_scale, "output_scale");
        number(log_std_init, "log_std_init", true, "a finite number");
        PyPolicy policy;
        const auto make = [&](auto zero) {
          return std::make_shared<Policy<decltype(zero)>>(spec, distribution.distribution, kind,
                                                          output_scale, log_std_init);
        };
        if (type == "float32") {
          policy.model = make(0.0f);
        } else {
          policy.model = make(0.0);
        }
        policy.config = py::dict(
            "observation_size"_a = observation_size,
            "distribution"_a = distribution_config(distribution.distribution), "hidden"_a = hidden,
            "activation"_a = activation, "dtype"_a = type, "seed"_a = seed,
            "log_std_init"_a = log_std_init, "init"_a = init, "output_scale"_a = output_scale,
            "fourier_features"_a = fourier_features, "fourier_bandwidth"_a = fourier_bandwidth);
        return policy;
      }),
      py::arg("observation_size"), py::arg("distribution"),
      py::arg("hidden") = std::vector<Index>{64, 64}, py::arg("activation") = "tanh",
      py::arg("dtype") = "float32", py::arg("seed") = 0, py::arg("log_std_init") = 0.0,
      py::arg("init") = "orthogonal", py::arg("output_scale") = 0.01,
      py::arg("fourier_features") = 0, py::arg("fourier_bandwidth") = 1.0);
  bind_model<PyPolicy>(cls);
  cls.def_property_readonly(
         "distribution",
         [](const PyPolicy& self) {
           return visit(self,
                        [](auto& policy) { return distribution_object(policy.distribution()); });
         },
         "The distribution of actions.")
      .def(
          "outputs",
          [](const PyPolicy& self, py::handle observations) {
            return visit(self, [&](auto& policy) {
              using T = scalar_of<decltype(policy)>;
              const auto rows =
                  rows_of<T>(observations, "observations", policy.network().spec().inputs);
              py::array_t<T> out({rows.count, policy.network().output_columns()});
              const Matrix<T> to = mutable_rows(out);
              {
                const py::gil_scoped_release release;  // plain memory from here on
                policy.outputs(rows.view(), [&](Index first, Matrix<const T> y) {
                  for (Index r = 0; r < y.rows; ++r) {
                    std::copy_n(y.row(r), y.columns, to.row(first + r));
                  }
                });
              }
              return rows.drop_axis(std::move(out));
            });
          },
          py::arg("observations"), "(N, K) parameters of the distribution for each observation.")
      .def(
          "sample",
          [](const PyPolicy& self, py::handle observations, Rng& rng) {
            return visit(self, [&](auto& policy) {
              using T = scalar_of<decltype(policy)>;
              const auto rows =
                  rows_of<T>(observations, "observations", policy.network().spec().inputs);
              auto actions = action_storage<T>(policy.distribution(), rows.count);
              py::array_t<T> log_probs(rows.count);
              const Matrix<T> to = mutable_rows(actions);
              T* log_prob = log_probs.mutable_data();
              {
                const py::gil_scoped_release release;  // plain memory from here on
                policy.sample(rows.view(), &rng, to, log_prob);
              }
              return py::make_tuple(
                  actions_to_python<T>(Array<T>(actions), policy.distribution(), rows.single),
                  rows.drop_axis(std::move(log_probs)));
            });
          },
          py::arg("observations"), py::arg("rng"),
          R"(Actions and their log probabilities (N,).

Row i draws from stream `rng.stream + i`; `rng.counter` grows by one.)")
      .def(
          "mode",
          [](const PyPolicy& self, py::handle observations) {
            return visit(self, [&](auto& policy) {
              using T = scalar_of<decltype(policy)>;
              const auto rows =
                  rows_of<T>(observations, "observations", policy.network().spec().inputs);
              auto actions = action_storage<T>(policy.distribution(), rows.count);
              const Matrix<T> to = mutable_rows(actions);
              {
                const py::gil_scoped_release release;  // plain memory from here on
                policy.mode(rows.view(), to);
              }
              return actions_to_python<T>(Array<T>(actions), policy.distribution(), rows.single);
            });
          },
          py::arg("observations"), "The most probable action for each observation.")
      .def(
          "log_prob",
          [](const PyPolicy& self, py::handle observations, py::handle given) {
            return per_observation(self, observations, [&](auto& policy, const auto& rows) {
              using T = scalar_of<decltype(policy)>;
              const Index width = action_size(policy.distribution());
              const auto actions =
                  actions_of<T>(given, policy.distribution(), rows.count, rows.single);
              const Matrix<const T> taken{actions.data(), rows.count, width, width};
              return [&policy, view = rows.view(), taken, keep = actions](T* out) {
                policy.log_prob(view, taken, out);
              };
            });
          },
          py::arg("observations"), py::arg("actions"),
          "(N,) log pi(a | s) in nats, summed over action dimensions.")
      .def(
          "entropy",
          [](const PyPolicy& self, py::handle observations) {
            return per_observation(self, observations, [](auto& policy, const auto& rows) {
              return [&policy, view = rows.view()](auto* out) { policy.entropy(view, out); };
            });
          },
          py::arg("observations"), "(N,) entropy of the action distribution in nats.")
      .def(
          "kl",
          [](const PyPolicy& self, py::handle observations, py::handle old_parameters) {
            return per_observation(self, observations, [&](auto& policy, const auto& rows) {
              using T = scalar_of<decltype(policy)>;
              const auto old =
                  vector_of<T>(old_parameters, "old_parameters", policy.parameter_count());
              return
                  [&policy, view = rows.view(), old](T* out) { policy.kl(view, old.data(), out); };
            });
          },
          py::arg("observations"), py::arg("old_parameters"),
          "(N,) KL(old || current) in nats, summed over action dimensions (eq. 9).")
      .def(
          "score",
          [](const PyPolicy& self, py::handle observations, py::handle given, py::handle weights) {
            return visit(self, [&](auto& policy) {
              using T = scalar_of<decltype(policy)>;
              const auto rows = rows_of<T>(observations, "observations",
                                           policy.network().spec().inputs, false, false);
              const auto actions = actions_of<T>(given, policy.distribution(), rows.count, false);
              const Index width = action_size(policy.distribution());
              const bool weighted = !weights.is_none();
              const auto w =
                  weighted ? vector_of<double>(weights, "weights", rows.count) : Array<double>();
              py::array_t<double> out(policy.parameter_count());
              double* to = out.mutable_data();
              {
                const py::gil_scoped_release release;  // plain memory from here on
                policy.score(rows.view(), {actions.data(), rows.count, width, width},
                             weighted ? w.data() : nullptr, to);
              }
              return py::array(py::array_t<T, py::array::forcecast>(out));
            });
          },
          py::arg("observations"), py::arg("actions"), py::arg("weights") = py::none(),
          R"((P,) mean_n weights_n * grad log pi(a_n | s_n).

With weights = advantages this is the policy gradient (Williams 1992; Sutton et al. 2000).)");
}

}  // namespace natgrad::bindings
