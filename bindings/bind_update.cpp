#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <optional>

#include "natgrad/update/natural_gradient.hpp"
#include "py_operator.hpp"

namespace natgrad::bindings {

namespace {

PreconditionerKind preconditioner_named(const std::string& name) {
  if (name == "none") return PreconditionerKind::none;
  if (name == "kfac") return PreconditionerKind::kfac;
  if (name == "subsample") return PreconditionerKind::subsample;
  if (name == "diagonal") return PreconditionerKind::diagonal;
  if (name == "nystrom") return PreconditionerKind::nystrom;
  if (name == "auto") return PreconditionerKind::automatic;
  wrong_value("preconditioner",
              "want none, auto, kfac, subsample, diagonal or nystrom, got '" + name + "'");
}

using bindings::name_of;  // of a Solver
const char* name_of(PreconditionerKind kind) {
  switch (kind) {
    case PreconditionerKind::none:
      return "none";
    case PreconditionerKind::kfac:
      return "kfac";
    case PreconditionerKind::subsample:
      return "subsample";
    case PreconditionerKind::diagonal:
      return "diagonal";
    case PreconditionerKind::nystrom:
      return "nystrom";
    case PreconditionerKind::automatic:
      return "auto";
  }
  return "";
}

using PyTrustRegionUpdate = AnyAlgorithm<TrustRegionUpdate>;
using PyPolicyGradientUpdate = AnyAlgorithm<PolicyGradientUpdate>;

void require_fit(const PolicyGradientOptions&, Index) {}
void require_fit(const TrustRegionOptions& options, Index n) {
  const auto size = static_cast<Index>(options.damping_metric.size());
  if (size != 0 && size != n) {
    wrong_value("damping_metric", "want shape (" + std::to_string(n) +
                                      ",), a value for each parameter of the policy, got (" +
                                      std::to_string(size) + ",)");
  }
}

double decay_of(double value, const char* name) {
  return number(value, name, value >= 0 && value < 1, "a number from 0 to below 1");
}

DampingMode damping_mode_named(const std::string& name) {
  if (name == "fixed") return DampingMode::fixed;
  if (name == "trace") return DampingMode::trace;
  if (name != "adaptive") {
    wrong_value("damping_mode", "want fixed, trace or adaptive, got '" + name + "'");
  }
  return DampingMode::adaptive;
}

std::vector<double> damping_metric_of(py::handle given) {
  if (given.is_none()) return {};
  const auto metric = vector_of<double>(given, "damping_metric", -1);
  for (Index i = 0; i < metric.size(); ++i) {
    if (!(metric.data()[i] > 0)) {
      wrong_value("damping_metric", "want values > 0, got " + std::to_string(metric.data()[i]) +
                                        " at index " + std::to_string(i));
    }
  }
  if (metric.size() == 0) wrong_value("damping_metric", "want shape (P,), got (0,)");
  return {metric.data(), metric.data() + metric.size()};
}

// Checks the batch, then runs the whole update without the GIL.
template <class Update>
UpdateReport run_update(Update& self, const PyPolicy& policy, py::handle batch) {
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
    return self.template run<T>([&](auto& update) {
      require_fit(update.options(), model.parameter_count());
      return update(model, view);
    });
  });
}

// The box with functions of Python for the policy, who holds the GIL throughout.
UpdateReport run_step(PyTrustRegionUpdate& self, py::handle gradient, py::handle fisher,
                      const py::function& evaluate, int dimensions, double surrogate) {
  const TrustRegionOptions options = self.options();
  const bool iterative =
      options.solver == Solver::automatic || options.solver == Solver::conjugate_gradient;
  if (!iterative || options.preconditioner != PreconditionerKind::none || options.warm_start ||
      options.damping_mode != DampingMode::fixed || !options.damping_metric.empty() ||
      !options.cg_last_residual || options.log_std_min.has_value()) {
    wrong_value("fisher",
                "want an update with solver 'auto' or 'cg', damping_mode 'fixed' and the last "
                "residual, without preconditioner, warm start, metric and log_std_min, for an "
                "operator of one's own");
  }
  const auto g = vector_of<double>(gradient, "gradient", -1, false);
  const Index n = g.size();
  if (n == 0) wrong_value("gradient", "want at least one value, got shape (0,)");
  at_least(dimensions, 1, "dimensions");
  const OperatorFromPython product = make_operator(fisher, n, "fisher", options.cg_iterations);
  Buffer<double> x(n);
  CgScratch scratch;
  const auto solve = [&](double terms, double* solution, UpdateReport* report) {
    report->damping = terms * options.damping;
    report->cg = conjugate_gradient(product.apply, n, g.data(), solution,
                                    cg_options(options, report->damping), nullptr, &scratch);
  };
  const auto candidate = [&](double fraction) {
    py::array_t<double> step(n);
    for (Index i = 0; i < n; ++i) step.mutable_data()[i] = fraction * x[i];
    return candidate_of(evaluate(step));
  };
  UpdateReport report;
  report.surrogate = surrogate;
  if (usable_gradient(g.data(), n, 0, &report)) {
    trust_region_step(options, dimensions, n, g.data(), solve, candidate, x.data(), &report);
  }
  report.timings.total = report.timings.solve + report.timings.search;
  return report;
}

std::string status_name(UpdateStatus status) {
  switch (status) {
    case UpdateStatus::ACCEPTED:
      return "ACCEPTED";
    case UpdateStatus::ZERO_GRADIENT:
      return "ZERO_GRADIENT";
    case UpdateStatus::ZERO_ADVANTAGES:
      return "ZERO_ADVANTAGES";
    case UpdateStatus::LINE_SEARCH_FAILED:
      return "LINE_SEARCH_FAILED";
    case UpdateStatus::NON_FINITE:
      return "NON_FINITE";
    case UpdateStatus::NOT_POSITIVE_DEFINITE:
      return "NOT_POSITIVE_DEFINITE";
  }
  return "";
}

py::dict timings_of(const UpdateReport& r) {
  using namespace py::literals;
  return py::dict("gradient"_a = r.timings.gradient, "solve"_a = r.timings.solve,
                  "precondition"_a = r.timings.precondition, "search"_a = r.timings.search,
                  "total"_a = r.timings.total);
}

py::dict report_dict(const UpdateReport& r) {
  using namespace py::literals;
  py::dict all("status"_a = status_name(r.status), "message"_a = std::string(r.message.data()),
               "kl"_a = r.kl, "improvement"_a = r.improvement,
               "expected_improvement"_a = r.expected_improvement,
               "step_fraction"_a = r.step_fraction, "step_scale"_a = r.step_scale,
               "backtracks"_a = r.backtracks, "surrogate"_a = r.surrogate, "entropy"_a = r.entropy,
               "gradient_norm"_a = r.gradient_norm, "step_norm"_a = r.step_norm,
               "damping"_a = r.damping, "reduction_ratio"_a = r.reduction_ratio,
               "cg_status"_a = py::cast(r.cg.status).attr("name"), "solver"_a = name_of(r.solver),
               "preconditioner"_a = name_of(r.preconditioner), "cg_iterations"_a = r.cg.iterations,
               "cg_products"_a = r.cg.products, "cg_relative_residual"_a = r.cg.relative_residual(),
               "cg_model_value"_a = r.cg.model_value);
  for (const auto& [name, seconds] : timings_of(r)) {
    all[("seconds_" + name.cast<std::string>()).c_str()] = seconds;
  }
  return all;
}

}  // namespace

void bind_update(py::module_& m) {
  py::native_enum<UpdateStatus>(m, "UpdateStatus", "enum.Enum", "How an update ended.")
      .value("ACCEPTED", UpdateStatus::ACCEPTED, "A step was taken.")
      .value("ZERO_GRADIENT", UpdateStatus::ZERO_GRADIENT, "Nothing to do; unchanged.")
      .value("ZERO_ADVANTAGES", UpdateStatus::ZERO_ADVANTAGES, "Nothing to do; unchanged.")
      .value("LINE_SEARCH_FAILED", UpdateStatus::LINE_SEARCH_FAILED,
             "No fraction of the step was acceptable; unchanged.")
      .value("NON_FINITE", UpdateStatus::NON_FINITE,
             "Outputs, gradient or every candidate were not finite; unchanged.")
      .value("NOT_POSITIVE_DEFINITE", UpdateStatus::NOT_POSITIVE_DEFINITE,
             "x'Fx <= 0, so the step has no length; unchanged.")
      .finalize();

  py::class_<CgSummary>(m, "CgReport", py::is_final(), "The linear solve of an update.")
      .def_readonly("status", &CgSummary::status, "Why it stopped.")
      .def_readonly("iterations", &CgSummary::iterations, "Of conjugate gradients.")
      .def_readonly(
          "products", &CgSummary::products,
          "Fisher products: iterations, and one for a warm start or a closed form's residual.")
      .def_readonly(
          "residual_norm", &CgSummary::residual_norm,
          "||g - (F + damping I) x||; of (eq. 34) with a metric. Without cg_last_residual,\n"
          "that before the last iteration.")
      .def_property_readonly("relative_residual", &CgSummary::relative_residual,
                             "The same divided by the norm of the right-hand side.")
      .def_readonly("quadratic_form", &CgSummary::quadratic_form, "x'Fx, without damping.")
      .def_readonly("model_value", &CgSummary::model_value,
                    "1/2 x'(F + damping D)x - g'x, which the solve minimises (eq. 31).");

  py::class_<UpdateReport>(m, "UpdateReport", py::is_final(),
                           "What an update did. Parameters changed only if accepted.")
      .def_readonly("status", &UpdateReport::status, "How it ended.")
      .def_property_readonly(
          "message", [](const UpdateReport& r) { return std::string(r.message.data()); },
          "A sentence with the numbers.")
      .def_property_readonly(
          "accepted", [](const UpdateReport& r) { return r.status == UpdateStatus::ACCEPTED; },
          "True if a step was taken.")
      .def_readonly("kl", &UpdateReport::kl,
                    "Mean KL(old || new) in nats of the accepted, or the last, candidate (eq. 9).")
      .def_readonly("improvement", &UpdateReport::improvement,
                    "Of the surrogate by that candidate (eq. 8).")
      .def_readonly("expected_improvement", &UpdateReport::expected_improvement,
                    "g'd, what the gradient predicts for the full step.")
      .def_readonly("step_fraction", &UpdateReport::step_fraction,
                    "Of the full step; 0 unless accepted.")
      .def_readonly("step_scale", &UpdateReport::step_scale,
                    "What the solution is multiplied with for the full step.")
      .def_readonly("backtracks", &UpdateReport::backtracks, "Candidates rejected.")
      .def_readonly("surrogate", &UpdateReport::surrogate, "L at the old parameters (eq. 8).")
      .def_readonly("gradient_norm", &UpdateReport::gradient_norm, "||g||.")
      .def_readonly("step_norm", &UpdateReport::step_norm, "||theta' - theta||; 0 unless accepted.")
      .def_readonly("entropy", &UpdateReport::entropy,
                    "Mean entropy of the old policy over the batch, in nats.")
      .def_readonly("damping", &UpdateReport::damping, "Of this update's solve; 0 before one.")
      .def_readonly(
          "reduction_ratio", &UpdateReport::reduction_ratio,
          "What the models were worth at the full step (eq. 35); 0 if it was not evaluated.")
      .def_readonly("cg", &UpdateReport::cg, "The linear solve.")
      .def_property_readonly(
          "solver", [](const UpdateReport& r) { return name_of(r.solver); },
          "What solved: 'cg', or a direct form, 'kronecker', 'dense' or 'sample'.")
      .def_property_readonly(
          "preconditioner", [](const UpdateReport& r) { return name_of(r.preconditioner); },
          "The one in use; none where it could not be built, a direct form served, or 'auto' "
          "found\n"
          "that it does not pay.")
      .def_property_readonly(
          "timings", &timings_of,
          "Seconds: gradient (the forward pass included, which shares its tiles), solve, "
          "precondition (of the solve: building it), search, total.")
      .def("as_dict", &report_dict, "All of the above as one flat dict, for logs.")
      .def("__repr__", [](const UpdateReport& r) {
        return "UpdateReport(" + status_name(r.status) + ": " + r.message.data() + ")";
      });

  const TrustRegionOptions defaults;
  py::class_<PyTrustRegionUpdate>(
      m, "TrustRegionUpdate", R"(One natural policy gradient update (TRPO; Schulman et al. 2015).

g = grad L (eq. 11); solve (F + damping D) x = g by conjugate gradients (eq. 15); full step
d = sqrt(2 max_kl / x'Fx) x (eq. 16); then a backtracking search for the first fraction that improves
the surrogate and keeps KL(old || new) <= max_kl. Without a line search: Kakade's (2002) closed-form
step.

Parameters
----------
max_kl : float > 0
    Bound on the mean KL(old || new), in nats, summed over action dimensions.
damping : float >= 0
cg_iterations : int >= 1
    Fisher products at most.
cg_rtol : float >= 0
    Stop at this residual, relative to g.
cg_last_residual : bool
    Measure the residual after the last product as well. If not, the first half of that product is
    enough for the same step, and the report has the residual before it.
cg_progress_tolerance : float >= 0
cg_progress_window : int >= 1
    Stop where the quadratic model hardly falls, as in `conjugate_gradient`; 0 for never.
warm_start : bool
    Start the solve from the last accepted step, scaled as is best for the quadratic model (eq. 32).
    The product that this takes is one of cg_iterations; a single one starts from 0.
line_search : LineSearch or None
normalize_advantages : bool
    Standardise advantages over the batch; constant ones then end in ZERO_ADVANTAGES.
fisher : {'exact', 'empirical'}
curvature_fraction : float, 0 < fraction <= 1
    Part of the observations, evenly spaced, that the Fisher products use.
damped_step : bool
    Scale the step by x'(F + damping D)x instead.
preconditioner : {'none', 'auto', 'kfac', 'subsample', 'diagonal', 'nystrom'}
    Of the conjugate gradients; see KFac, InnerSolver, DiagonalPreconditioner and
    NystromPreconditioner. 'subsample' iterates on the Fisher matrix of a part of the observations,
    with 'kfac' of these (InnerSolver); its inner products are not counted as products. 'auto' is
    as accurate as cg_iterations plain ones, in less time: the first and then every 50th update solves
    both ways, with 'kfac' until the quadratic model is as low (eq. 31); the ones between take the
    faster way by a cost model, with as many products as it needed.
kfac_every : int >= 1
    Kronecker factors are averaged over every so-manieth observation.
kfac_refresh : int >= 1
    Updates that share one average.
kfac_decay : float, 0 <= decay < 1
    Weight of the averages so far in a new one.
subsample_every : int >= 1
    The part has every so-manieth observation.
subsample_iterations : int >= 1
    Inner iterations for each outer one.
nystrom_rank : int >= 1
    Products that the Nystrom preconditioner is built from; at most P.
damping_mode : {'fixed', 'trace', 'adaptive'}
    As given; multiplied by tr(F) / P (eq. 33), whatever the scale of F; or Levenberg and Marquardt's,
    which starts as given, is divided by 1.5 where the reduction ratio (eq. 35) is above 3/4, and
    multiplied by 1.5 where it is below 1/4 or the update failed (Martens 2010, section 4.1).
damping_min, damping_max : float, 0 < damping_min <= damping_max
    Bounds of the adaptive mode, `damping` within.
damping_metric : (P,) array, values > 0, optional
    The diagonal of D; ones by default. Steps map onto each other under theta_i = a_i psi_i if D is
    transported, D_psi = a^2 D_theta (eq. 34). Not with damping_mode 'trace' or a preconditioner.
solver : {'auto', 'cg', 'direct', 'kronecker', 'dense', 'sample'}
    By conjugate gradients, or without iterations: in a form of `Fisher.solve`, or in the fastest
    ('direct'). 'auto' takes what a cost model says is faster than cg_iterations products. Conjugate
    gradients take over where there is no such form or rounding forbids it; `report.solver` tells.
cg_atol : float >= 0
    Conjugate gradients stop at a residual of max(cg_rtol ||g||, cg_atol).
kl_reduction : {'sum', 'mean'}
    'mean' averages over the dimensions of an action: KL and F are divided by their number, so max_kl
    and damping weigh that much more.
kl_direction : {'old_new', 'new_old'}
    Which divergence max_kl bounds.
step_size : float > 0, optional
    The step is step_size * x, whatever max_kl says; a line search still bounds its KL.
log_std_min : float, optional
    Floor of the log standard deviations of a Gaussian that are parameters. A candidate below it is put
    onto it, and its KL and improvement are those there; one that is below already may only rise.

Call it as update(policy, batch) with a `Batch`; returns an UpdateReport. Transactional: parameters
change only if the status is ACCEPTED. Bad arrays raise ValueError or TypeError before anything
changes; numerical trouble is a status. The GIL is released; after the first call with a batch size
nothing is allocated. One object serves one call at a time. What passes from one update to the next,
an adaptive damping, the step of a warm start, kept factors and what 'auto' found, is
`state`.)")
      .def(py::init([](double max_kl, double damping, int cg_iterations, double cg_rtol,
                       std::optional<LineSearchOptions> line_search, bool normalize_advantages,
                       const std::string& fisher, double curvature_fraction, bool damped_step,
                       const std::string& preconditioner, Index kfac_every, Index nystrom_rank,
                       int kfac_refresh, double kfac_decay, bool cg_last_residual,
                       double cg_progress_tolerance, int cg_progress_window, bool warm_start,
                       const std::string& damping_mode, double damping_min, double damping_max,
                       py::handle damping_metric, const std::string& solver, double cg_atol,
                       const std::string& kl_reduction, const std::string& kl_direction,
                       std::optional<double> step_size, std::optional<double> log_std_min,
                       Index subsample_every, int subsample_iterations) {
             TrustRegionOptions options;
             options.max_kl = positive(max_kl, "max_kl");
             options.damping = non_negative(damping, "damping");
             options.cg_iterations = at_least(cg_iterations, 1, "cg_iterations");
             options.cg_rtol = non_negative(cg_rtol, "cg_rtol");
             options.line_search = line_search;
             options.normalize_advantages = normalize_advantages;
             options.fisher = fisher_kind_named(fisher, "fisher");
             options.curvature_fraction = fraction_of(curvature_fraction, "curvature_fraction");
             options.damped_step = damped_step;
             options.preconditioner = preconditioner_named(preconditioner);
             options.kfac.every = size_of(kfac_every, "kfac_every");
             options.nystrom_rank = size_of(nystrom_rank, "nystrom_rank");
             options.subsample_every = size_of(subsample_every, "subsample_every");
             options.subsample_iterations =
                 at_least(subsample_iterations, 1, "subsample_iterations");
             options.kfac.refresh = at_least(kfac_refresh, 1, "kfac_refresh");
             options.kfac.decay = decay_of(kfac_decay, "kfac_decay");
             options.cg_last_residual = cg_last_residual;
             options.cg_progress_tolerance =
                 non_negative(cg_progress_tolerance, "cg_progress_tolerance");
             options.cg_progress_window = at_least(cg_progress_window, 1, "cg_progress_window");
             options.warm_start = warm_start;
             options.damping_mode = damping_mode_named(damping_mode);
             options.damping_rule.low = positive(damping_min, "damping_min");
             options.damping_rule.high = number(
                 damping_max, "damping_max", damping_max >= damping_min, "a number >= damping_min");
             if (options.damping_mode == DampingMode::adaptive) {
               number(damping, "damping", damping >= damping_min && damping <= damping_max,
                      "a number between damping_min and damping_max, to be adapted");
             }
             options.cg_atol = non_negative(cg_atol, "cg_atol");
             if (kl_reduction != "sum" && kl_reduction != "mean") {
               wrong_value("kl_reduction", "want sum or mean, got '" + kl_reduction + "'");
             }
             if (kl_direction != "old_new" && kl_direction != "new_old") {
               wrong_value("kl_direction", "want old_new or new_old, got '" + kl_direction + "'");
             }
             if (kl_reduction == "mean") options.kl_reduction = KlReduction::mean;
             if (kl_direction == "new_old") options.kl_direction = KlDirection::new_old;
             if (step_size.has_value()) options.step_size = positive(*step_size, "step_size");
             if (log_std_min.has_value()) {
               options.log_std_min = number(*log_std_min, "log_std_min", true, "a finite number");
             }
             options.damping_metric = damping_metric_of(damping_metric);
             if (!options.damping_metric.empty() && options.damping_mode == DampingMode::trace) {
               wrong_value("damping_metric",
                           "want damping_mode fixed or adaptive with it, got 'trace': tr(F) / P "
                           "changes with the parameters' units");
             }
             if (!options.damping_metric.empty() &&
                 options.preconditioner != PreconditionerKind::none) {
               wrong_value("damping_metric", "want preconditioner none with it, got '" +
                                                 preconditioner + "': the metric is one");
             }
             options.solver = solver_named(solver, true);
             if (!options.damping_metric.empty() && options.solver != Solver::automatic &&
                 options.solver != Solver::conjugate_gradient) {
               wrong_value("damping_metric",
                           "want solver auto or cg with it, got '" + solver + "'");
             }
             return std::make_unique<PyTrustRegionUpdate>(options);
           }),
           py::arg("max_kl") = defaults.max_kl, py::arg("damping") = defaults.damping,
           py::arg("cg_iterations") = defaults.cg_iterations, py::arg("cg_rtol") = defaults.cg_rtol,
           py::arg("line_search") = LineSearchOptions{},
           py::arg("normalize_advantages") = defaults.normalize_advantages,
           py::arg("fisher") = "exact", py::arg("curvature_fraction") = defaults.curvature_fraction,
           py::arg("damped_step") = defaults.damped_step, py::arg("preconditioner") = "none",
           py::arg("kfac_every") = defaults.kfac.every,
           py::arg("nystrom_rank") = defaults.nystrom_rank,
           py::arg("kfac_refresh") = defaults.kfac.refresh,
           py::arg("kfac_decay") = defaults.kfac.decay,
           py::arg("cg_last_residual") = defaults.cg_last_residual,
           py::arg("cg_progress_tolerance") = defaults.cg_progress_tolerance,
           py::arg("cg_progress_window") = defaults.cg_progress_window,
           py::arg("warm_start") = defaults.warm_start, py::arg("damping_mode") = "fixed",
           py::arg("damping_min") = defaults.damping_rule.low,
           py::arg("damping_max") = defaults.damping_rule.high,
           py::arg("damping_metric") = py::none(), py::arg("solver") = "auto",
           py::arg("cg_atol") = defaults.cg_atol, py::arg("kl_reduction") = "sum",
           py::arg("kl_direction") = "old_new", py::arg("step_size") = py::none(),
           py::arg("log_std_min") = py::none(),
           py::arg("subsample_every") = defaults.subsample_every,
           py::arg("subsample_iterations") = defaults.subsample_iterations)
      .def_property(
          "state", &PyTrustRegionUpdate::state, &PyTrustRegionUpdate::set_state,
          "float64 vector; save it and assign it to go on where an update stopped. Empty\n"
          "unless the damping is adaptive, the start warm, the preconditioner 'auto' or its "
          "factors\n"
          "kept.")
      .def("__call__", &run_update<PyTrustRegionUpdate>, py::arg("policy"), py::arg("batch"))
      .def_property(
          "max_kl", [](PyTrustRegionUpdate& self) { return self.options().max_kl; },
          [](PyTrustRegionUpdate& self, double max_kl) {
            positive(max_kl, "max_kl");
            self.with([&](auto& update) { update.set_max_kl(max_kl); });
          },
          "Bound of the updates to come, in nats; may be assigned, for schedules.")
      .def_property_readonly(
          "kl_direction",
          [](PyTrustRegionUpdate& self) {
            return self.options().kl_direction == KlDirection::old_new ? "old_new" : "new_old";
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
raised, the caller puts it back. `fisher`, `curvature_fraction` and `normalize_advantages` of the
constructor are the functions' business here; direct solvers, preconditioners, warm starts, a metric,
cg_last_residual=False, log_std_min and damping other than fixed raise ValueError.)");

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
                 options.normalize_advantages = normalize_advantages;
                 return std::make_unique<PyPolicyGradientUpdate>(options);
               }),
           py::arg("learning_rate") = plain.learning_rate, py::arg("optimizer") = "adam",
           py::arg("normalize_advantages") = plain.normalize_advantages)
      .def_property("state", &PyPolicyGradientUpdate::state, &PyPolicyGradientUpdate::set_state,
                    "float64 vector; save it and assign it to go on where an update stopped.")
      .def("__call__", &run_update<PyPolicyGradientUpdate>, py::arg("policy"), py::arg("batch"));
}

}  // namespace natgrad::bindings
