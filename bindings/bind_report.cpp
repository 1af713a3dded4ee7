// What an update says of itself.
#include <pybind11/native_enum.h>

#include "natgrad/update/report.hpp"
#include "update_names.hpp"

namespace natgrad::bindings {

namespace {

py::dict timings_of(const UpdateReport& r) {
  using namespace py::literals;
  return py::dict("gradient"_a = r.timings.gradient, "solve"_a = r.timings.solve,
                  "precondition"_a = r.direction.precondition_seconds,
                  "search"_a = r.timings.search, "total"_a = r.timings.total);
}

py::dict report_dict(const UpdateReport& r) {
  using namespace py::literals;
  py::dict all(
      "status"_a = name_of(r.status), "message"_a = std::string(r.message.data()), "kl"_a = r.kl,
      "improvement"_a = r.improvement, "expected_improvement"_a = r.expected_improvement,
      "step_fraction"_a = r.step_fraction, "step_scale"_a = r.step_scale,
      "backtracks"_a = r.backtracks, "surrogate"_a = r.surrogate, "entropy"_a = r.entropy,
      "gradient_norm"_a = r.gradient_norm, "step_norm"_a = r.step_norm,
      "damping"_a = r.direction.damping, "reduction_ratio"_a = r.reduction_ratio,
      "cg_status"_a = name_of(r.direction.cg.status), "solver"_a = name_of(r.direction.solver),
      "preconditioner"_a = name_of(r.direction.preconditioner),
      "cg_iterations"_a = r.direction.cg.iterations, "cg_products"_a = r.direction.cg.products,
      "cg_relative_residual"_a = r.direction.cg.relative_residual(),
      "cg_model_value"_a = r.direction.cg.model_value);
  for (const auto& [name, seconds] : timings_of(r)) {
    all[("seconds_" + name.cast<std::string>()).c_str()] = seconds;
  }
  return all;
}

}  // namespace

void bind_report(py::module_& m) {
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

  py::class_<CgReport>(m, "CgReport", py::is_final(), "The linear solve of an update.")
      .def_readonly("status", &CgReport::status, "Why it stopped.")
      .def_readonly("iterations", &CgReport::iterations, "Of conjugate gradients.")
      .def_readonly(
          "products", &CgReport::products,
          "Fisher products: iterations, and one for a warm start or a closed form's residual.")
      .def_readonly(
          "residual_norm", &CgReport::residual_norm,
          "||g - (F + damping I) x||; of (eq. 8.4) with a metric. Without last_residual it\n"
          "is that before the last iteration.")
      .def_property_readonly("relative_residual", &CgReport::relative_residual,
                             "The same divided by the norm of the right-hand side.")
      .def_readonly("quadratic_form", &CgReport::quadratic_form, "x'Fx, without damping.")
      .def_readonly("model_value", &CgReport::model_value,
                    "1/2 x'(F + damping D)x - g'x, which the solve minimises (eq. 8.1).");

  py::class_<UpdateReport>(m, "UpdateReport", py::is_final(),
                           "What an update did. Parameters changed only if accepted.")
      .def_readonly("status", &UpdateReport::status, "How it ended.")
      .def_property_readonly(
          "message", [](const UpdateReport& r) { return std::string(r.message.data()); },
          "A sentence with the numbers.")
      .def_property_readonly(
          "accepted", [](const UpdateReport& r) { return r.status == UpdateStatus::ACCEPTED; },
          "True if a step was taken.")
      .def_readonly(
          "kl", &UpdateReport::kl,
          "Mean KL(old || new) in nats of the accepted, or the last, candidate (eq. 3.2).")
      .def_readonly("improvement", &UpdateReport::improvement,
                    "Of the surrogate by that candidate (eq. 3.1).")
      .def_readonly("expected_improvement", &UpdateReport::expected_improvement,
                    "g'd, what the gradient predicts for the full step.")
      .def_readonly("step_fraction", &UpdateReport::step_fraction,
                    "Of the full step; 0 unless accepted.")
      .def_readonly("step_scale", &UpdateReport::step_scale,
                    "What the solution is multiplied with for the full step.")
      .def_readonly("backtracks", &UpdateReport::backtracks, "Candidates rejected.")
      .def_readonly("surrogate", &UpdateReport::surrogate, "L at the old parameters (eq. 3.1).")
      .def_readonly("gradient_norm", &UpdateReport::gradient_norm, "||g||.")
      .def_readonly("step_norm", &UpdateReport::step_norm, "||theta' - theta||; 0 unless accepted.")
      .def_readonly("entropy", &UpdateReport::entropy,
                    "Mean entropy of the old policy over the batch, in nats.")
      .def_property_readonly(
          "damping", [](const UpdateReport& r) { return r.direction.damping; },
          "The damping of this update's solve; 0 if there was none.")
      .def_readonly(
          "reduction_ratio", &UpdateReport::reduction_ratio,
          "What the models were worth at the full step (eq. 8.5); 0 if it was not evaluated.")
      .def_property_readonly(
          "cg", [](const UpdateReport& r) { return r.direction.cg; }, "The linear solve.")
      .def_property_readonly(
          "solver", [](const UpdateReport& r) { return name_of(r.direction.solver); },
          "What solved: 'cg', or a direct form, 'linear_gaussian', 'dense' or 'sample'.")
      .def_property_readonly(
          "preconditioner",
          [](const UpdateReport& r) { return name_of(r.direction.preconditioner); },
          "The one in use; none where it could not be built, a direct form served, or 'auto' "
          "found\n"
          "that it does not pay.")
      .def_property_readonly(
          "timings", &timings_of,
          "Seconds: gradient (the forward pass included, which shares its tiles), solve, "
          "precondition (of the solve: building it), search, total.")
      .def("as_dict", &report_dict, "All of the above as one flat dict, for logs.")
      .def("__repr__", [](const UpdateReport& r) {
        return std::string("UpdateReport(") + name_of(r.status) + ": " + r.message.data() + ")";
      });
}

}  // namespace natgrad::bindings
