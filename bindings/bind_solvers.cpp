#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <optional>

#include "natgrad/solvers/conjugate_gradient.hpp"
#include "natgrad/solvers/line_search.hpp"
#include "py_operator.hpp"
#include "update_names.hpp"

namespace natgrad::bindings {
namespace {

std::string message_of(const CgReport& s) {
  char text[200];
  if (s.status == CgStatus::INDEFINITE) {
    std::snprintf(text, sizeof(text),
                  "INDEFINITE after %d iterations: p'Ap = %g; relative residual %.3g, model %.4g",
                  s.iterations, s.curvature, s.relative_residual(), s.model_value);
  } else {
    std::snprintf(text, sizeof(text), "%s after %d iterations: relative residual %.3g, model %.4g",
                  name_of(s.status), s.iterations, s.relative_residual(), s.model_value);
  }
  return text;
}

CgResult solve(py::handle a, py::handle given_b, py::handle given_x0, double damping, double rtol,
               double atol, int max_iterations, py::handle preconditioner, int residual_replacement,
               double progress_tolerance, int progress_window, bool scale_x0) {
  const auto b = vector_of<double>(on_host(given_b), "b", -1);
  const Index n = b.size();
  if (n == 0) wrong_value("b", "want at least one value, got shape (0,)");
  CgOptions options;
  options.damping = non_negative(damping, "damping");
  options.rtol = non_negative(rtol, "rtol");
  options.atol = non_negative(atol, "atol");
  options.max_iterations = at_least(max_iterations, 1, "max_iterations");
  options.residual_replacement = at_least(residual_replacement, 0, "residual_replacement");
  options.progress_tolerance = non_negative(progress_tolerance, "progress_tolerance");
  options.progress_window = at_least(progress_window, 1, "progress_window");
  options.scale_start = scale_x0;
  options.bounded_residual = options.damping == 0;
  CgResult result{py::array_t<double>(n), {}, Solver::conjugate_gradient};
  double* x = result.x.mutable_data();
  if (given_x0.is_none()) {
    std::fill_n(x, n, 0.0);
  } else {
    const auto x0 = vector_of<double>(on_host(given_x0), "x0", n);
    std::copy_n(x0.data(), n, x);
  }
  const py::object tensor =
      is_tensor(given_b) ? py::reinterpret_borrow<py::object>(given_b) : py::object(py::none());
  const OperatorFromPython op = make_operator(a, n, "A", options.max_iterations, tensor);
  options.rounding = op.rounding;
  std::optional<OperatorFromPython> inverse;
  if (!preconditioner.is_none()) {
    inverse = make_operator(preconditioner, n, "preconditioner", options.max_iterations, tensor);
    options.flexible = inverse->varies;
  }

  CgScratch scratch;
  const LinearOperator product(op.apply);
  const LinearOperator precondition(inverse ? inverse->apply : op.apply);
  const auto run = [&] {
    result.summary = conjugate_gradient(product, n, b.data(), x, options,
                                        inverse ? &precondition : nullptr, &scratch);
  };
  if (op.compiled && (!inverse || inverse->compiled)) {
    const py::gil_scoped_release release;  // no Python in the loop
    run();
  } else {
    run();
  }
  return result;
}

std::string message_of(const LineSearchSummary& s) {
  char text[200];
  std::snprintf(text, sizeof(text), "%s: fraction %.3g, kl %.3g, improvement %.3g, %d evaluations",
                s.status == LineSearchStatus::ACCEPTED ? "ACCEPTED" : "LINE_SEARCH_FAILED",
                s.fraction, s.candidate.kl, s.candidate.improvement, s.evaluations);
  return text;
}

}  // namespace

Candidate candidate_of(const py::object& result) {
  try {
    const auto [improvement, kl] = result.cast<std::pair<double, double>>();
    return {improvement, kl};
  } catch (const py::cast_error&) {
    throw py::type_error("evaluate: want it to return (improvement, kl), two numbers; got " +
                         py::repr(result).cast<std::string>());
  }
}

LineSearchOptions line_search_options(double shrink, int max_backtracks, double accept_ratio) {
  LineSearchOptions options;
  options.shrink = number(shrink, "shrink", shrink > 0 && shrink < 1, "a number > 0 and < 1");
  options.max_backtracks = at_least(max_backtracks, 1, "max_backtracks");
  options.accept_ratio = number(accept_ratio, "accept_ratio", accept_ratio >= 0 && accept_ratio < 1,
                                "a number >= 0 and < 1");
  return options;
}

void bind_solvers(py::module_& m) {
  py::native_enum<CgStatus>(m, "CgStatus", "enum.Enum", "Why conjugate gradients stopped.")
      .value("CONVERGED", CgStatus::CONVERGED, "The residual is within tolerance.")
      .value("SLOW_PROGRESS", CgStatus::SLOW_PROGRESS,
             "The quadratic model hardly fell over the last iterations.")
      .value("MAX_ITERATIONS", CgStatus::MAX_ITERATIONS, "Out of iterations.")
      .value("INDEFINITE", CgStatus::INDEFINITE,
             "A direction of no, negative or non-finite curvature; x is the best so far.")
      .value("ZERO_RHS", CgStatus::ZERO_RHS, "b = 0, so x = 0.")
      .finalize();
  py::native_enum<LineSearchStatus>(m, "LineSearchStatus", "enum.Enum", "How a search ended.")
      .value("ACCEPTED", LineSearchStatus::ACCEPTED, "A fraction satisfies both conditions.")
      .value("LINE_SEARCH_FAILED", LineSearchStatus::LINE_SEARCH_FAILED,
             "None of those tried does.")
      .finalize();

  py::class_<CgResult>(m, "CgResult", py::is_final(),
                       "The solution of a linear system, and how it was reached.")
      .def_property_readonly(
          "solver", [](const CgResult& r) { return name_of(r.solver); },
          "'cg', or a direct form of `Fisher.solve`: 'linear_gaussian', 'dense' or 'sample'.")
      .def_property_readonly(
          "x", [](const CgResult& r) { return r.x; }, "(n,) float64.")
      .def_property_readonly(
          "status", [](const CgResult& r) { return r.summary.status; }, "Why it stopped.")
      .def_property_readonly(
          "iterations", [](const CgResult& r) { return r.summary.iterations; },
          "Iterations, one product each.")
      .def_property_readonly(
          "products", [](const CgResult& r) { return r.summary.products; },
          "Products with A: iterations, exact residuals, and one for a start that is not 0.")
      .def_property_readonly(
          "residual_norm", [](const CgResult& r) { return r.summary.residual_norm; },
          "||b - (A + damping I) x||: from the recurrence, or of a direct form measured.")
      .def_property_readonly(
          "quadratic_form", [](const CgResult& r) { return r.summary.quadratic_form; },
          "x'Ax without damping.")
      .def_property_readonly(
          "model_value", [](const CgResult& r) { return r.summary.model_value; },
          "phi(x) = 1/2 x'(A + damping I)x - b'x, from the recurrence (eq. 8.1).")
      .def_property_readonly(
          "message", [](const CgResult& r) { return message_of(r.summary); },
          "A sentence with the numbers.")
      .def("__repr__", [](const CgResult& r) { return "CgResult(" + message_of(r.summary) + ")"; });

  m.def("conjugate_gradient", &solve, py::arg("A"), py::arg("b"), py::arg("x0") = py::none(),
        py::arg("damping") = CgOptions{}.damping, py::arg("rtol") = CgOptions{}.rtol,
        py::arg("atol") = CgOptions{}.atol, py::arg("max_iterations") = CgOptions{}.max_iterations,
        py::arg("preconditioner") = py::none(),
        py::arg("residual_replacement") = CgOptions{}.residual_replacement,
        py::arg("progress_tolerance") = CgOptions{}.progress_tolerance,
        py::arg("progress_window") = CgOptions{}.progress_window,
        py::arg("scale_x0") = CgOptions{}.scale_start,
        R"(Solves (A + damping I) x = b for a symmetric positive semidefinite A.

Hestenes and Stiefel (1952), preconditioned, with a guard on curvature. For a singular A and a b outside its
range there is no solution: where damping = 0 and the iterates diverge, x is the one of the smallest
residual. CONVERGED means that the residual was measured, or that rounding cannot have changed it by a tenth
of the tolerance.

Parameters
----------
A : Fisher, (n, n) array, operator with `matvec`, scipy.sparse matrix, or callable v -> A v
    For the first two there is no Python in the loop and the GIL is released.
b : (n,)
    If it is a torch tensor, callables are given tensors of its dtype and device.
x0 : (n,), optional
    Start; 0 by default. Not overwritten.
damping : float >= 0
rtol, atol : float >= 0
    Stop at ||r|| <= max(rtol ||b||, atol).
max_iterations : int >= 1
preconditioner : as A, optional
    r -> M^-1 r for a symmetric positive definite M close to A + damping I.
residual_replacement : int >= 0
    Recompute the residual every so many iterations, one product each; 0 for never.
progress_tolerance : float >= 0
progress_window : int >= 1
    Stop where phi(x) fell over the last `progress_window` = k iterations by less than k times the
    tolerance times |phi(x)| (eq. 8.1; Martens 2010, section 4.4, with 5e-4); 0 for never.
scale_x0 : bool
    Start at c x0 with the c that is best for phi (eq. 8.2), or at 0 if A has no curvature along x0; no
    further product.

Returns
-------
CgResult
    Numerical trouble is a status, never an exception. Raises ValueError or TypeError for bad arrays or
    options, and lets through what A or the preconditioner raise.)");

  py::class_<LineSearchSummary>(m, "LineSearchResult", py::is_final(), "How a line search ended.")
      .def_readonly("status", &LineSearchSummary::status, "ACCEPTED or LINE_SEARCH_FAILED.")
      .def_readonly("fraction", &LineSearchSummary::fraction, "Accepted; 0 if none was.")
      .def_property_readonly(
          "improvement", [](const LineSearchSummary& s) { return s.candidate.improvement; },
          "Of the accepted candidate, or the last one tried.")
      .def_property_readonly(
          "kl", [](const LineSearchSummary& s) { return s.candidate.kl; },
          "The same candidate's divergence.")
      .def_readonly("evaluations", &LineSearchSummary::evaluations, "Candidates evaluated.")
      .def_property_readonly(
          "message", [](const LineSearchSummary& s) { return message_of(s); },
          "A sentence with the numbers.")
      .def("__repr__",
           [](const LineSearchSummary& s) { return "LineSearchResult(" + message_of(s) + ")"; });

  m.def(
      "backtracking_line_search",
      [](const py::function& evaluate, double expected_improvement, double max_kl, double shrink,
         int max_backtracks, double accept_ratio) {
        const LineSearchOptions options = line_search_options(shrink, max_backtracks, accept_ratio);
        number(expected_improvement, "expected_improvement", true, "a finite number");
        positive(max_kl, "max_kl");
        const auto call = [&](double fraction) { return candidate_of(evaluate(fraction)); };
        return backtracking_line_search(call, expected_improvement, max_kl, options);
      },
      py::arg("evaluate"), py::arg("expected_improvement"), py::arg("max_kl"),
      py::arg("shrink") = LineSearchOptions{}.shrink,
      py::arg("max_backtracks") = LineSearchOptions{}.max_backtracks,
      py::arg("accept_ratio") = LineSearchOptions{}.accept_ratio,
      R"(Tries fractions of a step until one is acceptable (Schulman et al. 2015, appendix C).

evaluate(fraction) returns (improvement, kl). A fraction is accepted if both are finite,
kl <= max_kl and improvement > accept_ratio * fraction * expected_improvement.)");
}

}  // namespace natgrad::bindings
