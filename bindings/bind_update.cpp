#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <optional>

#include "natgrad/natural_gradient.hpp"
#include "py_fisher.hpp"

namespace natgrad::bindings {

namespace {

PreconditionerKind preconditioner_named(const std::string& name) {
  if (name == "none") return PreconditionerKind::none;
  if (name == "kfac") return PreconditionerKind::kfac;
  if (name == "diagonal") return PreconditionerKind::diagonal;
  if (name == "nystrom") return PreconditionerKind::nystrom;
  wrong_value("preconditioner", "want none, kfac, diagonal or nystrom, got '" + name + "'");
}

const char* name_of(PreconditionerKind kind) {
  switch (kind) {
    case PreconditionerKind::none:
      return "none";
    case PreconditionerKind::kfac:
      return "kfac";
    case PreconditionerKind::diagonal:
      return "diagonal";
    case PreconditionerKind::nystrom:
      return "nystrom";
  }
  return "";
}

using PyTrustRegionUpdate = AnyAlgorithm<TrustRegionUpdate>;
using PyPolicyGradientUpdate = AnyAlgorithm<PolicyGradientUpdate>;

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
    const Batch<T> view{observations.view(),
                        {actions.data(), rows, width, width},
                        advantages.data(),
                        given.is_none() ? nullptr : log_probs.data()};
    return self.template run<T>([&](auto& update) { return update(model, view); });
  });
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
  return py::dict("forward"_a = r.timings.forward, "gradient"_a = r.timings.gradient,
                  "solve"_a = r.timings.solve, "precondition"_a = r.timings.precondition,
                  "search"_a = r.timings.search, "total"_a = r.timings.total);
}

py::dict report_dict(const UpdateReport& r) {
  using namespace py::literals;
  py::dict all(
      "status"_a = status_name(r.status), "message"_a = std::string(r.message.data()),
      "kl"_a = r.kl, "improvement"_a = r.improvement,
      "expected_improvement"_a = r.expected_improvement, "step_fraction"_a = r.step_fraction,
      "backtracks"_a = r.backtracks, "surrogate"_a = r.surrogate, "entropy"_a = r.entropy,
      "gradient_norm"_a = r.gradient_norm, "step_norm"_a = r.step_norm,
      "solver"_a = name_of(r.solver), "preconditioner"_a = name_of(r.preconditioner),
      "cg_iterations"_a = r.cg.iterations, "cg_relative_residual"_a = r.cg.relative_residual());
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
      .def_readonly("iterations", &CgSummary::iterations, "Fisher products.")
      .def_readonly("residual_norm", &CgSummary::residual_norm, "||g - (F + damping I) x||.")
      .def_property_readonly("relative_residual", &CgSummary::relative_residual,
                             "The same divided by ||g||.")
      .def_readonly("quadratic_form", &CgSummary::quadratic_form, "x'Fx, without damping.");

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
      .def_readonly("backtracks", &UpdateReport::backtracks, "Candidates rejected.")
      .def_readonly("surrogate", &UpdateReport::surrogate, "L at the old parameters (eq. 8).")
      .def_readonly("gradient_norm", &UpdateReport::gradient_norm, "||g||.")
      .def_readonly("step_norm", &UpdateReport::step_norm, "||theta' - theta||; 0 unless accepted.")
      .def_readonly("entropy", &UpdateReport::entropy,
                    "Mean entropy of the old policy over the batch, in nats.")
      .def_readonly("cg", &UpdateReport::cg, "The linear solve.")
      .def_property_readonly(
          "solver", [](const UpdateReport& r) { return name_of(r.solver); },
          "What solved: 'cg', or a direct form, 'kronecker', 'dense' or 'sample'.")
      .def_property_readonly(
          "preconditioner", [](const UpdateReport& r) { return name_of(r.preconditioner); },
          "The one in use; none where it could not be built or a direct form served.")
      .def_property_readonly(
          "timings", &timings_of,
          "Seconds: forward, gradient, solve, precondition (of the solve: building "
          "it), search, total.")
      .def("as_dict", &report_dict, "All of the above as one flat dict, for logs.")
      .def("__repr__", [](const UpdateReport& r) {
        return "UpdateReport(" + status_name(r.status) + ": " + r.message.data() + ")";
      });

  const TrustRegionOptions defaults;
  py::class_<PyTrustRegionUpdate>(
      m, "TrustRegionUpdate", R"(One natural policy gradient update (TRPO; Schulman et al. 2015).

g = grad L (eq. 11); solve (F + damping I) x = g by conjugate gradients (eq. 15); full step
d = sqrt(2 max_kl / x'Fx) x (eq. 16); then a backtracking search for the first fraction that improves
the surrogate and keeps KL(old || new) <= max_kl. Without a line search: Kakade's (2002) closed-form
step.

Parameters
----------
max_kl : float > 0
    Bound on the mean KL(old || new), in nats, summed over action dimensions.
damping : float >= 0
cg_iterations : int >= 1
cg_rtol : float >= 0
line_search : LineSearch or None
normalize_advantages : bool
    Standardise advantages over the batch; constant ones then end in ZERO_ADVANTAGES.
fisher : {'exact', 'empirical'}
curvature_fraction : float, 0 < fraction <= 1
    Part of the observations, evenly spaced, that the Fisher products use.
damped_step : bool
    Scale the step by x'(F + damping I)x instead.
preconditioner : {'none', 'kfac', 'diagonal', 'nystrom'}
    Of the conjugate gradients; see KFac, DiagonalPreconditioner and NystromPreconditioner.
kfac_every : int >= 1
    Kronecker factors are averaged over every so-manieth observation.
nystrom_rank : int >= 1
    Products that the Nystrom preconditioner is built from; at most P.
solver : {'auto', 'cg', 'direct', 'kronecker', 'dense', 'sample'}
    By conjugate gradients, or without iterations: in a form of `Fisher.solve`, or in the fastest
    ('direct'). 'auto' takes what a cost model says is faster than cg_iterations products. Conjugate
    gradients take over where there is no such form or rounding forbids it; `report.solver` tells.

Call it as update(policy, batch) with a `Batch`; returns an UpdateReport. Transactional: parameters
change only if the status is ACCEPTED. Bad arrays raise ValueError or TypeError before anything
changes; numerical trouble is a status. The GIL is released; after the first call with a batch size
nothing is allocated. One object serves one call at a time.)")
      .def(py::init([](double max_kl, double damping, int cg_iterations, double cg_rtol,
                       std::optional<LineSearchOptions> line_search, bool normalize_advantages,
                       const std::string& fisher, double curvature_fraction, bool damped_step,
                       const std::string& preconditioner, Index kfac_every, Index nystrom_rank,
                       const std::string& solver) {
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
             options.solver = solver_named(solver, true);
             return std::make_unique<PyTrustRegionUpdate>(options);
           }),
           py::arg("max_kl") = defaults.max_kl, py::arg("damping") = defaults.damping,
           py::arg("cg_iterations") = defaults.cg_iterations, py::arg("cg_rtol") = defaults.cg_rtol,
           py::arg("line_search") = LineSearchOptions{},
           py::arg("normalize_advantages") = defaults.normalize_advantages,
           py::arg("fisher") = "exact", py::arg("curvature_fraction") = defaults.curvature_fraction,
           py::arg("damped_step") = defaults.damped_step, py::arg("preconditioner") = "none",
           py::arg("kfac_every") = defaults.kfac.every,
           py::arg("nystrom_rank") = defaults.nystrom_rank, py::arg("solver") = "auto")
      .def("__call__", &run_update<PyTrustRegionUpdate>, py::arg("policy"), py::arg("batch"));

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
