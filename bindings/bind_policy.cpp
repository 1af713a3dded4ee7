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
  if (const auto* g = std::get_if<SquashedGaussian>(&distribution)) {
    return py::dict("name"_a = "SquashedGaussian", "n"_a = g->n,
                    "state_dependent_std"_a = g->state_dependent_std, "low"_a = g->bounds.low,
                    "high"_a = g->bounds.high);
  }
  if (const auto* b = std::get_if<Beta>(&distribution)) {
    return py::dict("name"_a = "Beta", "n"_a = b->n, "low"_a = b->bounds.low,
                    "high"_a = b->bounds.high);
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

// Samples the steps of a rollout where they are stored. Step t reads row t of the observations,
// which the caller fills as the rollout goes on, and writes row t of arrays that are made here.
template <class T>
class Actor {
 public:
  Actor(std::shared_ptr<Policy<T>> policy, const py::array& given, py::object rng,
        const py::object& bounds)
      : policy_(std::move(policy)), rng_object_(std::move(rng)), rng_(&rng_object_.cast<Rng&>()) {
    const Index size = policy_->network().spec().inputs;
    if (!py::isinstance<Array<T>>(given) || given.ndim() != 3 || given.shape(0) < 2 ||
        given.shape(1) < 1 || given.shape(2) != size) {
      wrong_value("observations", "want a C-contiguous array (T + 1, n, " + std::to_string(size) +
                                      ") of " + dtype_name<T>() + ", got shape " +
                                      shape_text(given) + " of " +
                                      py::str(given.dtype()).cast<std::string>());
    }
    observations_ = given;
    rows_ = given.shape(1);
    steps_ = given.shape(0) - 1;
    const Distribution& distribution = policy_->distribution();
    width_ = action_size(distribution);
    discrete_ = is_discrete(distribution);
    to_bounds_ = bounds_of(distribution);
    const auto* categoricals = std::get_if<Categoricals>(&distribution);
    std::vector<py::ssize_t> shape{steps_, rows_};
    if (categoricals == nullptr || !categoricals->single) shape.push_back(width_);
    if (discrete_) {
      actions = py::array_t<std::int64_t>(shape);
      sample_.resize(rows_ * width_);
    } else {
      actions = py::array_t<T>(shape);
    }
    log_probs = py::array_t<T>({steps_, rows_});
    to_actions_ = actions.mutable_data();
    to_log_probs_ = static_cast<T*>(log_probs.mutable_data());
    if (bounds.is_none() && to_bounds_ == nullptr) return;
    if (!bounds.is_none()) {
      if (discrete_ || to_bounds_ != nullptr || !py::isinstance<py::sequence>(bounds) ||
          py::len(bounds) != 2) {
        wrong_value("bounds", "want (low, high) of a Gaussian's actions, got " +
                                  py::repr(bounds).cast<std::string>());
      }
      low_ = vector_of<T>(bounds[py::int_(0)], "bounds[0]", width_, false);
      high_ = vector_of<T>(bounds[py::int_(1)], "bounds[1]", width_, false);
    }
    py::array_t<T> bounded(shape);
    to_sent_ = bounded.mutable_data();
    sent = std::move(bounded);
  }

  void act(Index t) {
    if (t < 0 || t >= steps_) {
      wrong_value("t", "want a step from 0 to " + std::to_string(steps_ - 1) + ", got " +
                           std::to_string(t));
    }
    const Index size = observations_.shape(2), first = t * rows_ * width_;
    const T* row = observations_.data() + t * rows_ * size;
    if (!all_finite(row, rows_ * size)) {
      wrong_value("observations[" + std::to_string(t) + "]", "want finite numbers");
    }
    T* action = discrete_ ? sample_.data() : static_cast<T*>(to_actions_) + first;
    {
      const py::gil_scoped_release release;  // plain memory from here on
      policy_->sample({row, rows_, size, size}, rng_, {action, rows_, width_, width_},
                      to_log_probs_ + t * rows_);
      if (discrete_) {
        std::transform(action, action + rows_ * width_,
                       static_cast<std::int64_t*>(to_actions_) + first,
                       [](T category) { return static_cast<std::int64_t>(category); });
      }
      if (to_bounds_ != nullptr) {
        to_bounds_->apply(Matrix<const T>{action, rows_, width_, width_}, to_sent_ + first);
      } else if (to_sent_ != nullptr) {
        clip<T>({action, rows_, width_, width_}, low_.data(), high_.data(), to_sent_ + first);
      }
    }
  }

  py::array actions, log_probs;
  py::object sent = py::none();

 private:
  std::shared_ptr<Policy<T>> policy_;
  py::object rng_object_;
  Rng* rng_;
  Array<T> observations_, low_, high_;
  const Bounds* to_bounds_ = nullptr;  // the distribution's own
  Index rows_ = 0, steps_ = 0, width_ = 0;
  bool discrete_ = false;
  Buffer<T> sample_;  // discrete actions in the policy's own type
  void* to_actions_ = nullptr;
  T *to_log_probs_ = nullptr, *to_sent_ = nullptr;
};

struct PyActor : ZeroedUntilConstructed {
  std::variant<std::unique_ptr<Actor<float>>, std::unique_ptr<Actor<double>>> model;
};

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
    What the outputs mean: Categorical, DiagonalGaussian, MultiCategorical, Bernoulli, SquashedGaussian
    or Beta.
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
        const Initialization kind = named<Initialization>(init, "init");
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
              Rng drawn = rng;  // is its own again if there is no result
              {
                const py::gil_scoped_release release;  // plain memory from here on
                policy.sample(rows.view(), &drawn, to, log_prob);
              }
              require_finite_actions(to.data, to.rows, to.columns, "observations");
              rng = drawn;
              return py::make_tuple(
                  actions_to_python<T>(Array<T>(actions), policy.distribution(), rows.single),
                  rows.drop_axis(std::move(log_probs)));
            });
          },
          py::arg("observations"), py::arg("rng"),
          R"(Actions and their log probabilities (N,).

Those of a `SquashedGaussian` or `Beta` are u; `policy.distribution.to_bounds` makes of them what the
environment takes. Row i draws from stream `rng.stream + i`; `rng.counter` grows by one.)")
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
          py::arg("observations"),
          "The most probable action for each observation; between bounds, the most probable u.")
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
          "(N,) KL(old || current) in nats, summed over action dimensions (eq. 3.2).")
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

  py::class_<PyActor>(m, "Actor", py::is_final(), R"(Samples the steps of a rollout into its arrays.

One call per step does what `Policy.sample` does, without new arrays: it reads row t of the
observations, which the caller fills as the rollout goes on, and writes row t of the others.

Parameters
----------
policy : Policy
observations : (T + 1, n, observation_size), C-contiguous, in the dtype of the policy
    Not copied.
rng : Rng
    Its counter grows by one per step.
bounds : (low, high), each (k,), optional
    Of what is sent to the environment; for a Gaussian only. A `SquashedGaussian` or `Beta` has its own.

Raises ValueError for anything else, and in a call for a row that is not finite.)")
      .def(py::init([](const PyPolicy& policy, const py::array& observations, py::object rng,
                       const py::object& bounds) {
             if (!py::isinstance<Rng>(rng)) {
               throw py::type_error("rng: want an Rng, got " + py::repr(rng).cast<std::string>());
             }
             auto made = std::make_unique<PyActor>();
             std::visit(
                 [&](const auto& pointer) {
                   if (!pointer) not_initialized();
                   using T = scalar_of<decltype(*pointer)>;
                   made->model = std::make_unique<Actor<T>>(pointer, observations, rng, bounds);
                 },
                 policy.model);
             return made;
           }),
           py::arg("policy"), py::arg("observations"), py::arg("rng"),
           py::arg("bounds") = py::none())
      .def_property_readonly(
          "actions",
          [](const PyActor& self) { return visit(self, [](auto& a) { return a.actions; }); },
          "(T, n) or (T, n, k) as sampled.")
      .def_property_readonly(
          "log_probs",
          [](const PyActor& self) { return visit(self, [](auto& a) { return a.log_probs; }); },
          "(T, n) in nats.")
      .def_property_readonly(
          "sent", [](const PyActor& self) { return visit(self, [](auto& a) { return a.sent; }); },
          "(T, n, k) actions within the bounds, for the environment; None without any.")
      .def(
          "__call__",
          [](const PyActor& self, Index t) { visit(self, [&](auto& actor) { actor.act(t); }); },
          py::arg("t"), "Samples step t.");
}

}  // namespace natgrad::bindings
