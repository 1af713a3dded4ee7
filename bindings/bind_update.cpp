#include <pybind11/stl.h>

#include <optional>

#include "natgrad/update/policy_gradient_update.hpp"
#include "natgrad/update/trust_region_update.hpp"
#include "options.hpp"
#include "py_operator.hpp"
#include "py_update.hpp"
#include "update_names.hpp"

namespace natgrad::bindings {

namespace {

// --- objects -------------------------------------------------------------------------------------

using PyTrustRegionUpdate = PyUpdate<TrustRegionUpdate>;
using PyPolicyGradientUpdate = PyUpdate<PolicyGradientUpdate>;

void require_fit(const PolicyGradientOptions&, Index) {}
void require_fit(const TrustRegionOptions& options, Index n) {
  const auto require = [&](const auto& damping) {
    const auto size = static_cast<Index>(damping.metric.size());
    if (size != 0 && size != n) {
      wrong_value("metric", "want shape (" + std::to_string(n) +
                                ",), a value for each parameter of the policy, got (" +
                                std::to_string(size) + ",)");
    }
  };
  const Damping& damping = options.direction.damping;
  if (const auto* fixed = std::get_if<FixedDamping>(&damping)) require(*fixed);
  if (const auto* adaptive = std::get_if<AdaptiveDamping>(&damping)) require(*adaptive);
}

// Checks the batch, then runs the whole update without the GIL.
template <class Update>
UpdateReport run_update(PyUpdate<Update>& self, const PyPolicy& policy, py::handle batch) {
  return visit(policy, [&](auto& model) {
    using T = scalar_of<decltype(model)>;
    const auto observations = rows_of<T>(batch.attr("observations"), "observations",
                                         model.network().spec().inputs, false, false);
    const Index rows = observations.count, width = action_size(model.distribution());
    const auto actions = actions_of<T>(batch.attr("actions"), model.distribution(), rows, false);
    const auto advantages = vector_of<double>(batch.attr("advantages"), "advantages", rows);
    const py::object given = batch.attr("log_probs");
    Array<double> log_probs;
    if (!given.is_none()) log_probs = vector_of<double>(given, "log_probs", rows);
    const Batch<T> view{.observations = observations.view(),
                        .actions = {actions.data(), rows, width, width},
                        .advantages = span_of(advantages),
                        .log_probs = span_of(log_probs)};
    return self.run([&](Update& update) {
      require_fit(update.options(), model.parameter_count());
      return update(model, view);
    });
  });
}

// --- a policy that is given by functions ---------------------------------------------------------

class OperatorCurvature final : public Curvature {
 public:
  OperatorCurvature(py::handle fisher, Index n, int products)
      : n_(n), operator_(make_operator(fisher, n, "fisher", products)) {}
  Index size() const override { return n_; }
  void product(const double* v, double* out) override { operator_.apply(v, out); }
  double rounding() const override { return operator_.rounding; }

 private:
  Index n_;
  OperatorFromPython operator_;
};

class FunctionProblem final : public Problem {
 public:
  FunctionProblem(Array<double> gradient, py::handle fisher, const py::function& evaluate,
                  int dimensions, double surrogate, int products)
      : gradient_(std::move(gradient)),
        curvature_(fisher, gradient_.size(), products),
        evaluate_(evaluate),
        dimensions_(dimensions),
        surrogate_(surrogate) {}

  Index size() const override { return gradient_.size(); }
  Index action_dimensions() const override { return dimensions_; }
  bool linearize(double* g, UpdateReport* report) override {
    std::copy_n(gradient_.data(), size(), g);
    report->surrogate = surrogate_;
    return true;
  }
  Curvature& curvature() override { return curvature_; }
  Candidate evaluate(double fraction, const double* step) override {
    py::array_t<double> scaled(size());
    for (Index i = 0; i < size(); ++i) scaled.mutable_data()[i] = fraction * step[i];
    return candidate_of(evaluate_(scaled));
  }
  void accept() override {}  // the policy already stands where it was evaluated last

 private:
  Array<double> gradient_;
  OperatorCurvature curvature_;
  py::function evaluate_;
  int dimensions_;
  double surrogate_;
};

UpdateReport run_step(PyTrustRegionUpdate& self, py::handle given, py::handle fisher,
                      const py::function& evaluate, int dimensions, double surrogate) {
  const auto gradient = vector_of<double>(given, "gradient", -1, false);
  if (gradient.size() == 0) wrong_value("gradient", "want at least one value, got shape (0,)");
  at_least(dimensions, 1, "dimensions");
  return self.run_python([&](TrustRegionUpdate& update) {
    const TrustRegionOptions& options = update.options();
    if (options.problem.log_std_min.has_value()) {
      wrong_value("log_std_min", "want None for a policy that is given by functions");
    }
    require_fit(options, gradient.size());
    FunctionProblem problem(gradient, fisher, evaluate, dimensions, surrogate,
                            options.direction.cg.iterations);
    return update(problem);
  });
}

// --- options -------------------------------------------------------------------------------------

Damping damping_of(const py::object& given) {
  if (py::isinstance<FixedDamping>(given)) return given.cast<FixedDamping>();
  if (py::isinstance<TraceDamping>(given)) return given.cast<TraceDamping>();
  if (py::isinstance<AdaptiveDamping>(given)) return given.cast<AdaptiveDamping>();
  if (!PyNumber_Check(given.ptr())) {
    throw py::type_error(
        "damping: want a number, FixedDamping, TraceDamping or AdaptiveDamping, got " +
        py::repr(given).cast<std::string>());
  }
  FixedDamping damping;
  damping.value = non_negative(py::float_(given), "damping");
  return damping;
}

PreconditionerChoice preconditioner_of(const py::object& given) {
  if (py::isinstance<KFac>(given)) return given.cast<KFac>();
  if (py::isinstance<Subsample>(given)) return given.cast<Subsample>();
  const std::string wanted = "want none, auto, kfac, subsample, KFac(...) or Subsample(...), got ";
  if (!py::isinstance<py::str>(given)) {
    throw py::type_error("preconditioner: " + wanted + py::repr(given).cast<std::string>());
  }
  const auto name = given.cast<std::string>();
  if (name == "none") return std::monostate{};
  if (name == "auto") return AutomaticPreconditioner{};
  if (name == "kfac") return KFac{};
  if (name == "subsample") return Subsample{};
  wrong_value("preconditioner", wanted + "'" + name + "'");
}

void set_solver(const py::object& given, int cg_iterations, DirectionOptions* options) {
  options->cg.iterations = at_least(cg_iterations, 1, "cg_iterations");
  if (py::isinstance<PyConjugateGradient>(given)) {
    const auto& solver = given.cast<const PyConjugateGradient&>();
    if (cg_iterations != ConjugateGradient{}.iterations && cg_iterations != solver.iterations) {
      wrong_value("cg_iterations", "want it left out beside solver=ConjugateGradient(iterations=" +
                                       std::to_string(solver.iterations) + "), got " +
                                       std::to_string(cg_iterations));
    }
    options->cg = solver;
    options->solver = solver.or_direct ? Solver::automatic : Solver::conjugate_gradient;
    return;
  }
  if (!py::isinstance<py::str>(given)) {
    throw py::type_error(
        "solver: want auto, cg, direct, linear_gaussian, dense, sample or ConjugateGradient(...), "
        "got " +
        py::repr(given).cast<std::string>());
  }
  options->solver = named<Solver>(given.cast<std::string>(), "solver");
}

StepScale step_scale_of(const py::object& given) {
  if (py::isinstance<py::str>(given)) {
    const auto name = given.cast<std::string>();
    if (name == "fisher") return StepLength::fisher;
    if (name == "damped") return StepLength::damped;
    wrong_value("step_scale", "want fisher, damped or a number > 0, got '" + name + "'");
  }
  if (!PyNumber_Check(given.ptr())) {
    throw py::type_error("step_scale: want fisher, damped or a number > 0, got " +
                         py::repr(given).cast<std::string>());
  }
  return positive(py::float_(given), "step_scale");
}

// A metric is the preconditioner, and with a direct form it has no meaning.
void require_metric_alone(const DirectionOptions& options) {
  const auto has_metric = [](const auto& damping) {
    if constexpr (std::is_same_v<std::decay_t<decltype(damping)>, TraceDamping>) {
      return false;
    } else {
      return !damping.metric.empty();
    }
  };
  if (!std::visit(has_metric, options.damping)) return;
  if (!std::holds_alternative<std::monostate>(options.preconditioner)) {
    wrong_value("preconditioner", "want none beside a metric, which is one");
  }
  if (options.solver != Solver::automatic && options.solver != Solver::conjugate_gradient) {
    wrong_value("solver", "want auto, cg or ConjugateGradient(...) beside a metric, got '" +
                              std::string(name_of(options.solver)) + "'");
  }
}

std::unique_ptr<PyTrustRegionUpdate> make_update(
    double max_kl, const py::object& damping, int cg_iterations,
    std::optional<LineSearchOptions> line_search, bool normalize_advantages,
    const py::object& preconditioner, const py::object& solver, const std::string& fisher,
    double curvature_fraction, const py::object& step_scale, const std::string& kl_reduction,
    const std::string& kl_direction, std::optional<double> log_std_min) {
  TrustRegionOptions options;
  options.max_kl = positive(max_kl, "max_kl");
  options.direction.damping = damping_of(damping);
  options.direction.preconditioner = preconditioner_of(preconditioner);
  set_solver(solver, cg_iterations, &options.direction);
  require_metric_alone(options.direction);
  options.line_search = line_search;
  options.step_scale = step_scale_of(step_scale);
  options.kl_reduction = named<KlReduction>(kl_reduction, "kl_reduction");
  options.problem.kl_direction = named<KlDirection>(kl_direction, "kl_direction");
  options.problem.normalize_advantages = normalize_advantages;
  options.problem.fisher = named<FisherKind>(fisher, "fisher");
  options.problem.curvature_fraction = fraction_of(curvature_fraction, "curvature_fraction");
  if (log_std_min.has_value()) {
    options.problem.log_std_min = number(*log_std_min, "log_std_min", true, "a finite number");
  }
  return std::make_unique<PyTrustRegionUpdate>(options);
}

}  // namespace

void bind_update(py::module_& m) {
  const TrustRegionOptions defaults;
  py::class_<PyTrustRegionUpdate>(
      m, "TrustRegionUpdate", R"(One natural policy gradient update (TRPO; Schulman et al. 2015).

It takes the gradient g = grad L (eq. 3.4), solves (F + damping D) x = g (eq. 5.1), scales x to the full step
d = sqrt(2 max_kl / x'Fx) x (eq. 5.2), and searches backwards for the first fraction of d that improves the
surrogate and keeps KL(old || new) <= max_kl. Without a line search it is Kakade's (2002) closed-form
step, which is taken unless its divergence is more than ten times max_kl.

Parameters
----------
max_kl : float > 0
    Bound on the mean KL(old || new), in nats, summed over action dimensions.
damping : float >= 0, FixedDamping, TraceDamping or AdaptiveDamping
    What is added to F in the solve; a number is FixedDamping(number), with D = I.
cg_iterations : int >= 1
    Fisher-vector products at most; short for solver=ConjugateGradient(cg_iterations, or_direct=True).
line_search : LineSearch or None
normalize_advantages : bool
    Standardise advantages over the batch; constant ones then end in ZERO_ADVANTAGES.
preconditioner : {'none', 'auto', 'kfac', 'subsample'}, KFac or Subsample
    The preconditioner of the conjugate gradients; a name is the class with its defaults. 'auto' is
    as accurate as cg_iterations plain ones, in less time: the first and then every 50th update solves
    both ways, with 'kfac' until the quadratic model is as low (eq. 8.1); the updates between take the
    faster way by a cost model, with as many products as it needed. One that cannot be built is left
    out, and the report says so.
solver : {'auto', 'cg', 'direct', 'linear_gaussian', 'dense', 'sample'} or ConjugateGradient
    Conjugate gradients ('cg'), or without iterations: in a form of `Fisher.solve`, or in the fastest of
    them ('direct'). 'auto' takes what a cost model says is faster. Conjugate gradients take over where
    there is no such form or rounding forbids it; `report.solver` tells.
fisher : {'exact', 'empirical'}
curvature_fraction : float, 0 < fraction <= 1
    Part of the observations, evenly spaced, that the Fisher-vector products use.
step_scale : {'fisher', 'damped'} or float > 0
    The full step is this number times x; 'fisher' is sqrt(2 max_kl / x'Fx), and 'damped' the same with
    F + damping D for F. A line search bounds the divergence of any of them.
kl_reduction : {'sum', 'mean'}
    'mean' averages over the dimensions of an action: KL and F are divided by their number, so max_kl
    and damping weigh that much more.
kl_direction : {'old_new', 'new_old'}
    Which divergence max_kl bounds.
log_std_min : float, optional
    Floor of the log standard deviations of a Gaussian that are parameters. A candidate below it is put
    onto it, and its KL and improvement are those there; one that is below already may only rise.

Call it as update(policy, batch) with a `Batch`; it returns an UpdateReport. It is transactional: parameters
change only if the status is ACCEPTED. Bad arrays raise ValueError or TypeError before anything
changes; numerical trouble is a status. The GIL is released; after the first call with a batch size
nothing is allocated. One object serves one call at a time. What passes from one update to the next,
an adapted damping, the step of a warm start, and what 'auto' found, is `state`.)")
      .def(py::init(&make_update), py::arg("max_kl") = defaults.max_kl,
           py::arg("damping") = FixedDamping{}.value,
           py::arg("cg_iterations") = ConjugateGradient{}.iterations,
           py::arg("line_search") = LineSearchOptions{},
           py::arg("normalize_advantages") = defaults.problem.normalize_advantages,
           py::arg("preconditioner") = "none", py::arg("solver") = "auto",
           py::arg("fisher") = "exact",
           py::arg("curvature_fraction") = defaults.problem.curvature_fraction,
           py::arg("step_scale") = "fisher", py::arg("kl_reduction") = "sum",
           py::arg("kl_direction") = "old_new", py::arg("log_std_min") = py::none())
      .def_property(
          "state", &PyTrustRegionUpdate::state, &PyTrustRegionUpdate::set_state,
          "float64 vector; save it and assign it to go on where an update stopped. It is empty\n"
          "unless the damping is adaptive, the start warm or the preconditioner 'auto'.")
      .def("__call__", &run_update<TrustRegionUpdate>, py::arg("policy"), py::arg("batch"))
      .def_property(
          "max_kl",
          [](PyTrustRegionUpdate& self) {
            return self.read([](TrustRegionUpdate& update) { return update.options().max_kl; });
          },
          [](PyTrustRegionUpdate& self, double max_kl) {
            positive(max_kl, "max_kl");
            self.run([&](TrustRegionUpdate& update) { update.set_max_kl(max_kl); });
          },
          "Bound of the updates to come, in nats; may be assigned, for schedules.")
      .def_property_readonly(
          "kl_direction",
          [](PyTrustRegionUpdate& self) {
            return name_of(self.read(
                [](TrustRegionUpdate& update) { return update.options().problem.kl_direction; }));
          },
          "As given.")
      .def("step", &run_step, py::arg("gradient"), py::arg("fisher"), py::arg("evaluate"),
           py::arg("dimensions") = 1, py::arg("surrogate") = 0.0,
           R"(The same update for a policy that is not the core's, given by its functions.

Parameters
----------
gradient : (P,)
    g at the present parameters.
fisher : operator of any kind that `conjugate_gradient` takes
    F there, without damping and summed over the dimensions of an action.
evaluate : callable (P,) -> (improvement, kl)
    Moves the policy to its old parameters plus the step given; KL summed likewise, in the direction
    of `kl_direction`.
dimensions : int >= 1
    Of an action: what kl_reduction='mean' divides by.
surrogate : float
    L at the present parameters, for the report.

Returns an UpdateReport. If it is ACCEPTED, the policy is where it is to be; if not, or if a function
raised, the caller puts it back. The options of the direction all apply: there is no direct form and no
K-FAC for an operator, so conjugate gradients solve without a preconditioner, and TraceDamping estimates
tr F from 16 products with random signs (Hutchinson 1990). `fisher`, `curvature_fraction` and
`normalize_advantages` are the functions' business; `log_std_min` raises ValueError.)");

  const PolicyGradientOptions plain;
  py::class_<PyPolicyGradientUpdate>(m, "PolicyGradientUpdate",
                                     R"(One plain policy gradient update (REINFORCE; Williams 1992).

Parameters
----------
learning_rate : float > 0
optimizer : {'adam', 'sgd'}
    Adam (Kingma and Ba 2015), or theta + learning_rate * g.
normalize_advantages : bool

Called and reported as TrustRegionUpdate; rejects a step only if the new policy is not finite.)")
      .def(py::init(
               [](double learning_rate, const std::string& optimizer, bool normalize_advantages) {
                 PolicyGradientOptions options;
                 options.learning_rate = positive(learning_rate, "learning_rate");
                 options.adam = optimizer == "adam";
                 if (!options.adam && optimizer != "sgd") {
                   wrong_value("optimizer", "want adam or sgd, got '" + optimizer + "'");
                 }
                 options.problem.normalize_advantages = normalize_advantages;
                 return std::make_unique<PyPolicyGradientUpdate>(options);
               }),
           py::arg("learning_rate") = plain.learning_rate, py::arg("optimizer") = "adam",
           py::arg("normalize_advantages") = plain.problem.normalize_advantages)
      .def_property("state", &PyPolicyGradientUpdate::state, &PyPolicyGradientUpdate::set_state,
                    "float64 vector; save it and assign it to go on where an update stopped.")
      .def("__call__", &run_update<PolicyGradientUpdate>, py::arg("policy"), py::arg("batch"));
}

}  // namespace natgrad::bindings
