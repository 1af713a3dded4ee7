#include "bind_model.hpp"
#include "natgrad/update/value_fit.hpp"
#include "py_fisher.hpp"

namespace natgrad::bindings {
namespace {

using PyGaussNewtonFit = AnyAlgorithm<GaussNewtonFit>;
using PyAdamFit = AnyAlgorithm<AdamFit>;

// Checks the arrays, releases the GIL and fits.
template <class Fit>
FitReport run_fit(Fit& self, const PyValueFunction& value_function, py::handle observations,
                  py::handle given_targets) {
  return visit(value_function, [&](auto& model) {
    using T = scalar_of<decltype(model)>;
    const auto rows =
        rows_of<T>(observations, "observations", model.network().spec().inputs, false, false);
    const auto targets = vector_of<double>(given_targets, "targets", rows.count);
    return self.template run<T>(
        [&](auto& fit) { return fit(model, rows.view(), span_of(targets)); });
  });
}

constexpr const char* kState =
    "float64 vector; save it and assign it to go on where a fit stopped.";

}  // namespace

void bind_value_function(py::module_& m) {
  py::class_<PyValueFunction> cls(m, "ValueFunction", R"(The critic: V(s) = mean + std * network(s).

The arguments are those of Policy. `target_scale` = (mean, std) gives the units that the network works
in; fits move it with their targets and change the last layer with it, so that V stays what it was
(van Hasselt et al. 2016, Pop-Art).)");
  cls.def(
      py::init([](Index observation_size, const std::vector<Index>& hidden,
                  const std::string& activation, py::handle dtype, py::handle given_seed,
                  const std::string& init, double output_scale, Index fourier_features,
                  double fourier_bandwidth) {
        using namespace py::literals;
        const std::uint64_t seed = unsigned_integer(given_seed, "seed", 64);
        const NetworkSpec spec = network_spec(observation_size, hidden, activation, seed,
                                              fourier_features, fourier_bandwidth);
        const Initialization kind = named<Initialization>(init, "init");
        const std::string type = dtype_named(dtype);
        non_negative(output_scale, "output_scale");
        PyValueFunction value_function;
        if (type == "float32") {
          value_function.model = std::make_shared<ValueFunction<float>>(spec, kind, output_scale);
        } else {
          value_function.model = std::make_shared<ValueFunction<double>>(spec, kind, output_scale);
        }
        value_function.config = py::dict(
            "observation_size"_a = observation_size, "hidden"_a = hidden,
            "activation"_a = activation, "dtype"_a = type, "seed"_a = seed, "init"_a = init,
            "output_scale"_a = output_scale, "fourier_features"_a = fourier_features,
            "fourier_bandwidth"_a = fourier_bandwidth);
        return value_function;
      }),
      py::arg("observation_size"), py::arg("hidden") = std::vector<Index>{64, 64},
      py::arg("activation") = "tanh", py::arg("dtype") = "float32", py::arg("seed") = 0,
      py::arg("init") = "orthogonal", py::arg("output_scale") = 0.01,
      py::arg("fourier_features") = 0, py::arg("fourier_bandwidth") = 1.0);
  bind_model<PyValueFunction>(cls);
  cls.def_property(
         "target_scale",
         [](const PyValueFunction& self) {
           return visit(self, [](auto& model) {
             return std::make_pair(model.target_mean(), model.target_std());
           });
         },
         [](PyValueFunction& self, py::handle given) {
           const auto scale = vector_of<double>(given, "target_scale", 2);
           positive(scale.data()[1], "target_scale[1]");
           visit(self, [&](auto& model) {
             model.restore_target_scale(scale.data()[0], scale.data()[1]);
           });
         },
         "(mean, std) of V = mean + std * network. Assigning changes V, not the parameters.")
      .def(
          "predict",
          [](const PyValueFunction& self, py::handle observations) {
            return per_observation(self, observations, [](auto& model, const auto& rows) {
              return [&model, view = rows.view()](auto* out) { model.predict(view, out); };
            });
          },
          py::arg("observations"), "(N,) values, in the units of the rewards.");

  py::class_<FitReport>(m, "FitReport", py::is_final(), "What a fit of a value function did.")
      .def_readonly("accepted", &FitReport::accepted,
                    "False: the loss would not have fallen; everything is as it was.")
      .def_readonly("loss_before", &FitReport::loss_before,
                    "(1/2N) sum (V - target)^2 / std^2 before the fit.")
      .def_readonly("loss", &FitReport::loss, "The same after it.")
      .def_readonly(
          "explained_variance_before", &FitReport::explained_variance_before,
          "1 - Var(target - V) / Var(target) before the fit: an honest figure, on data not "
          "yet fitted.")
      .def_readonly("explained_variance", &FitReport::explained_variance, "The same after it.")
      .def_readonly("steps", &FitReport::steps, "Steps taken.")
      .def_readonly("damping", &FitReport::damping, "Damping at the end (Gauss-Newton).")
      .def_property_readonly(
          "message", [](const FitReport& r) { return std::string(r.message.data()); },
          "A sentence with the numbers.")
      .def_readonly("seconds", &FitReport::seconds, "Wall-clock time.")
      .def("__repr__",
           [](const FitReport& r) { return "FitReport(" + std::string(r.message.data()) + ")"; });

  py::class_<PyGaussNewtonFit>(m, "GaussNewtonFit", R"(Least squares by damped Gauss-Newton steps.

A value function is a Gaussian with unit variance, so its Fisher matrix is (1/N) sum J_n' J_n and the
solver of the policy update applies. Damping follows the reduction ratio (Levenberg and Marquardt;
Martens 2010, section 4.1).

Parameters
----------
steps : int >= 1
    Attempts per fit; each is one gradient, one solve and one evaluation.
cg_iterations : int >= 1
damping : float > 0
    At the start, in units where the targets have standard deviation 1.
max_change : float > 0
    Bound on the mean squared change of V / std in one step; may be inf.
method : {'auto', 'passes', 'adjoints'}
    How products are made, see Fisher.

Call it as fit(value_function, observations, targets): (N, observation_size), (N,) -> FitReport.
Transactional. Raises ValueError or TypeError for bad arrays.)")
      .def(py::init([](int steps, int cg_iterations, double damping, double max_change,
                       const std::string& method) {
             GaussNewtonOptions options;
             options.steps = at_least(steps, 1, "steps");
             options.cg_iterations = at_least(cg_iterations, 1, "cg_iterations");
             options.damping = positive(damping, "damping");
             if (!(max_change > 0)) {
               wrong_value("max_change", "want a number > 0, got " + std::to_string(max_change));
             }
             options.max_change = max_change;
             options.method = named<FisherMethod>(method, "method");
             return std::make_unique<PyGaussNewtonFit>(options);
           }),
           py::arg("steps") = GaussNewtonOptions{}.steps,
           py::arg("cg_iterations") = GaussNewtonOptions{}.cg_iterations,
           py::arg("damping") = GaussNewtonOptions{}.damping,
           py::arg("max_change") = GaussNewtonOptions{}.max_change, py::arg("method") = "auto")
      .def_property("state", &PyGaussNewtonFit::state, &PyGaussNewtonFit::set_state, kState)
      .def("__call__", &run_fit<PyGaussNewtonFit>, py::arg("value_function"),
           py::arg("observations"), py::arg("targets"));

  py::class_<PyAdamFit>(m, "AdamFit", R"(Least squares by minibatch Adam (Kingma and Ba 2015).

Parameters
----------
epochs : int >= 1
minibatch_size : int >= 1
learning_rate : float > 0
seed : int
    Of the shuffles.

Call it as fit(value_function, observations, targets): (N, observation_size), (N,) -> FitReport.
Transactional. Raises ValueError or TypeError for bad arrays.)")
      .def(py::init([](int epochs, Index minibatch_size, double learning_rate, py::handle seed) {
             AdamFitOptions options;
             options.epochs = at_least(epochs, 1, "epochs");
             options.minibatch_size =
                 at_least(static_cast<int>(minibatch_size), 1, "minibatch_size");
             options.learning_rate = positive(learning_rate, "learning_rate");
             options.seed = unsigned_integer(seed, "seed", 64);
             return std::make_unique<PyAdamFit>(options);
           }),
           py::arg("epochs") = AdamFitOptions{}.epochs,
           py::arg("minibatch_size") = AdamFitOptions{}.minibatch_size,
           py::arg("learning_rate") = AdamFitOptions{}.learning_rate,
           py::arg("seed") = AdamFitOptions{}.seed)
      .def_property("state", &PyAdamFit::state, &PyAdamFit::set_state, kState)
      .def("__call__", &run_fit<PyAdamFit>, py::arg("value_function"), py::arg("observations"),
           py::arg("targets"));
}

}  // namespace natgrad::bindings
