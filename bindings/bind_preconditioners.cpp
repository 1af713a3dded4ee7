#include <pybind11/stl.h>

#include "natgrad/fisher/kfac.hpp"
#include "py_operator.hpp"

namespace natgrad::bindings {
namespace {

template <class T>
std::unique_ptr<PyKroneckerFactors> make_factors(Fisher<T>& fisher, double damping,
                                                 const KFac& options) {
  auto factors = std::make_unique<KroneckerFactors<T>>();
  factors->average(&fisher, options);
  const bool definite = factors->factorize(damping + fisher.damping());
  return std::make_unique<PyKroneckerFactors>(std::move(factors), definite);
}

std::unique_ptr<PyInnerSolver> make_inner_solver(PyFisher& fisher, double damping, int iterations,
                                                 py::handle preconditioner) {
  non_negative(damping, "damping");
  at_least(iterations, 1, "iterations");
  const Index n = fisher.size();
  const auto planned = [&] {
    const py::gil_scoped_release release;  // plain memory from here on
    return fisher.plan(CgOptions{}.max_iterations * iterations);
  };
  const PyFisher::Products f = planned();
  const auto b = [f](const double* v, double* out) { f.product(v, out); };
  const auto form = [f](const double* v) { return f.quadratic_form(v); };
  InnerSolver::Operator c_inverse;
  if (!preconditioner.is_none()) {
    if (!py::isinstance<PyPreconditioner>(preconditioner)) {
      throw py::type_error("preconditioner: want None or a Preconditioner, got " +
                           py::repr(preconditioner).cast<std::string>());
    }
    c_inverse = make_operator(preconditioner, n, "preconditioner", iterations).apply;
  }
  auto solver = std::make_unique<InnerSolver>();
  solver->attach(b, form, std::move(c_inverse), n, damping, iterations);
  return std::make_unique<PyInnerSolver>(std::move(solver), true);
}

// Rows of a square operator of any kind that has a shape.
Index size_of_operator(py::handle a) {
  if (!py::hasattr(a, "shape")) wrong_value("A", "want an operator that has a shape");
  const auto shape = a.attr("shape").cast<std::vector<Index>>();
  if (shape.size() != 2 || shape[0] != shape[1] || shape[0] < 1) {
    wrong_value(
        "A", "want a square operator, got shape " + py::str(a.attr("shape")).cast<std::string>());
  }
  return shape[0];
}

std::unique_ptr<PyNystrom> make_nystrom(py::handle a, Index rank, double damping,
                                        py::handle given_seed) {
  const Index size = size_of_operator(a);
  const std::uint64_t seed = unsigned_integer(given_seed, "seed", 64);
  if (size_of(rank, "rank") > size) {
    wrong_value("rank", "want at most the size of A, " + std::to_string(size) + ", got " +
                            std::to_string(rank));
  }
  non_negative(damping, "damping");
  const OperatorFromPython op = make_operator(a, size, "A", static_cast<int>(rank));
  auto inverse = std::make_unique<NystromPreconditioner>();
  bool definite = false;
  const auto attach = [&] { definite = inverse->attach(op.apply, size, rank, damping, seed); };
  if (op.compiled) {
    const py::gil_scoped_release release;  // no Python in the products
    attach();
  } else {
    attach();
  }
  return std::make_unique<PyNystrom>(std::move(inverse), definite);
}

}  // namespace

void bind_preconditioners(py::module_& m) {
  py::class_<PyPreconditioner>(m, "Preconditioner",
                               R"(M^-1 for a symmetric positive definite M, as an operator.

Taken by `conjugate_gradient` without Python in the loop, and by scipy.sparse.linalg.)")
      .def_property_readonly(
          "shape",
          [](const PyPreconditioner& self) { return std::make_pair(self.size(), self.size()); },
          "(n, n).")
      .def_property_readonly(
          "dtype", [](const PyPreconditioner&) { return py::dtype::of<double>(); }, "float64.")
      .def_readonly("positive_definite", &PyPreconditioner::positive_definite,
                    "False if M is not, to working precision: it is then the identity.")
      .def(
          "matvec",
          [](PyPreconditioner& self, py::handle given) {
            const auto r = vector_of<double>(given, "r", self.size());
            py::array_t<double> z(self.size());
            double* to = z.mutable_data();
            const py::gil_scoped_release release;  // plain memory from here on
            self.apply(r.data(), to);
            return z;
          },
          py::arg("r"), "M^-1 r for r of shape (n,); float64.")
      .def(
          "__matmul__", [](py::object self, py::handle r) { return self.attr("matvec")(r); },
          py::arg("r"), "M^-1 r.");

  const KFac defaults;
  py::class_<PyKroneckerFactors, PyPreconditioner>(
      m, "KroneckerFactors", py::is_final(),
      R"(The Fisher information of each layer as a Kronecker product, inverted.

K-FAC (Martens and Grosse 2015) with factored damping (eq. 7.1, 7.2), as a preconditioner: F stays exact,
and the factors may be rough.

Parameters
----------
fisher : Fisher
    Its batch is averaged over; later changes to the policy do not matter.
damping : float >= 0
    In addition to the operator's own.
every : int >= 1
    Average over every `every`-th observation.
all_columns : bool
    Exact expectation over actions, instead of one combination with random signs for each observation.)")
      .def(py::init([](PyFisher& fisher, double damping, Index every, bool all_columns) {
             KFac options;
             options.every = size_of(every, "every");
             options.all_columns = all_columns;
             non_negative(damping, "damping");
             const py::gil_scoped_release release;  // plain memory from here on
             return fisher.run([&](auto& typed) { return make_factors(typed, damping, options); });
           }),
           py::arg("fisher"), py::arg("damping") = 0.0, py::arg("every") = defaults.every,
           py::arg("all_columns") = defaults.all_columns);

  py::class_<PyInnerSolver, PyPreconditioner>(
      m, "InnerSolver", py::is_final(),
      R"(A few conjugate gradient iterations on another Fisher matrix, that of a part of the batch.

An approximate (B + damping I)^-1 r as a preconditioner (inner and outer iterations; Golub and Ye
1999). What it is varies with r: `conjugate_gradient` knows, and is flexible (eq. 7.5; Notay 2000);
other solvers have to be. More damping than the outer solve's keeps it from what the part alone says;
an update's preconditioner='subsample' is

    part = natgrad.Fisher(policy, observations, fraction=1 / 6)
    M = natgrad.InnerSolver(part, 1.5 * 0.1, preconditioner=natgrad.KroneckerFactors(part, 8 * 0.1))
    natgrad.conjugate_gradient(fisher, g, damping=0.1, max_iterations=2, preconditioner=M)

Parameters
----------
fisher : Fisher
    B, cheaper than the operator that is to be inverted.
damping : float >= 0
    In addition to the operator's own.
iterations : int >= 1
    Products with B in an application.
preconditioner : Preconditioner, optional
    Of these iterations, such as KroneckerFactors of the same part.)")
      .def(py::init(&make_inner_solver), py::arg("fisher"), py::arg("damping") = 0.0,
           py::arg("iterations") = InnerSolver::kIterations, py::arg("preconditioner") = py::none(),
           py::keep_alive<1, 2>(), py::keep_alive<1, 5>());

  py::class_<PyDiagonal, PyPreconditioner>(m, "DiagonalPreconditioner", py::is_final(),
                                           R"(M = diag(A) + damping I (Jacobi).

Parameters
----------
A : Fisher, or (n,) array with the diagonal
damping : float >= 0)")
      .def(py::init([](py::handle a, double damping) {
             non_negative(damping, "damping");
             const py::object given = py::isinstance<PyFisher>(a)
                                          ? a.attr("diagonal")()
                                          : py::reinterpret_borrow<py::object>(a);
             const auto diagonal = vector_of<double>(given, "A", -1);
             auto inverse = std::make_unique<DiagonalPreconditioner>();
             const bool definite = inverse->attach(diagonal.data(), diagonal.size(), damping);
             return std::make_unique<PyDiagonal>(std::move(inverse), definite);
           }),
           py::arg("A"), py::arg("damping") = 0.0);

  py::class_<PyNystrom, PyPreconditioner>(
      m, "NystromPreconditioner", py::is_final(),
      R"(Randomised Nystrom preconditioner (Frangella, Tropp and Udell 2023).

Takes `rank` products with A.

Parameters
----------
A : Fisher, array or operator with a shape (n, n), symmetric positive semidefinite
rank : int, 1 <= rank <= n
damping : float >= 0
seed : int >= 0)")
      .def(py::init(&make_nystrom), py::arg("A"), py::arg("rank"), py::arg("damping") = 0.0,
           py::arg("seed") = 0);
}

}  // namespace natgrad::bindings
