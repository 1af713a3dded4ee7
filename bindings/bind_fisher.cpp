#include <pybind11/stl.h>

#include <map>

#include "natgrad/fisher/kfac.hpp"
#include "py_fisher.hpp"

namespace natgrad::bindings {
namespace {

// The ways whose costs are predicted; of products, of solves, and of Kronecker factors.
enum class Way { passes, adjoints, closed_form, linear_gaussian, dense, sample, factors };

}  // namespace

template <>
constexpr Named<Way> kNames<Way>[] = {
    {"passes", Way::passes},
    {"adjoints", Way::adjoints},
    {"closed_form", Way::closed_form},
    {"linear_gaussian", Way::linear_gaussian},
    {"dense", Way::dense},
    {"sample", Way::sample},
    {"factors", Way::factors},
};

namespace {

double predicted(const CostModel& model, Way way, const FisherShape& shape, int products,
                 bool damped, Index every) {
  switch (way) {
    case Way::passes:
      return model.products(FisherMethod::passes, shape, products);
    case Way::adjoints:
      return model.products(FisherMethod::adjoints, shape, products);
    case Way::closed_form:
      return model.products(FisherMethod::closed_form, shape, products);
    case Way::linear_gaussian:
      return model.solve(Solver::linear_gaussian, shape, damped);
    case Way::dense:
      return model.solve(Solver::dense, shape, damped);
    case Way::sample:
      return model.solve(Solver::sample, shape, damped);
    case Way::factors:
      return model.kronecker_factors(shape, every, products);
  }
  return 0;
}

// A constant's value, and how often the cost counts it: by how much the cost falls when the constant does,
// by so little that no choice within the cost changes.
using Terms = std::map<std::string, std::pair<double, double>>;
std::pair<double, Terms> cost_model(const PyFisher& fisher, const std::string& name, int products,
                                    bool damped, Index every) {
  const Way way = named<Way>(name, "way");
  const FisherShape shape = fisher.cost_shape();
  at_least(products, 0, "products");
  size_of(every, "every");
  const double cost = predicted(kCostModel, way, shape, products, damped, every);
  if (!std::isfinite(cost) || (way == Way::closed_form && !shape.linear_gaussian)) {
    wrong_value("way", "want one that this matrix has, got '" + name + "'");
  }
  Terms terms;
  for (const NamedConstant& entry : named_constants()) {
    const double value = (kCostModel.*entry.constant).of(shape), less = value * (1 - 1.0 / 1024);
    CostModel lowered = kCostModel;
    lowered.*entry.constant = {less, less};
    const double rest = predicted(lowered, way, shape, products, damped, every);
    if (rest != cost) terms[entry.name] = {value, (cost - rest) / (value - less)};
  }
  return {cost, terms};
}

}  // namespace

void bind_fisher(py::module_& m) {
  py::class_<PyFisher>(m, "Fisher",
                       R"(The Fisher information of a policy on a batch, as an operator.

F = (1/N) sum_n w_n J_n' M_n J_n + damping I (eq. 3.3). Products are exact, without automatic
differentiation and without the matrix. It is a linear operator in SciPy's sense (shape, dtype, matvec,
@), which scipy.sparse.linalg accepts as it is.

Parameters
----------
policy : Policy
    Linearised at its present parameters; later changes to them do not change F.
observations : (N, observation_size)
damping : float >= 0
kind : {'exact', 'empirical'}
    'empirical' puts the score's outer product at the actions given in place of its expectation.
actions : needed by 'empirical'
weights : (N,) >= 0, optional
    w_n; ones by default. The sum is divided by N, not by the sum of weights.
fraction : float, 0 < fraction <= 1
    Use that part of the observations, evenly spaced: row floor(i N / m) for i < m = round(fraction N).
method : {'auto', 'passes', 'adjoints'}
    How products are made: 'passes' by one forward-mode and one reverse-mode pass (eq. 4.1, 4.2),
    'adjoints' by adjoints that are cached before the first product (eq. 4.4, 4.5), rank x N x widths
    numbers. 'auto' takes what the cost model says is faster for max_iterations of conjugate_gradient or
    the k products of F @ V, and for linear Gaussian policies their small matrix (eq. 6.1) as well; a
    single F @ v is made by passes. The results differ by rounding.

Raises ValueError or TypeError for bad arrays or options.)")
      .def(py::init([](const PyPolicy& policy, py::handle observations, double damping,
                       const std::string& kind, py::handle actions, py::handle weights,
                       double fraction, const std::string& method) {
             non_negative(damping, "damping");
             const FisherKind fisher_kind = named<FisherKind>(kind, "kind");
             fraction_of(fraction, "fraction");
             const FisherMethod fisher_method = named<FisherMethod>(method, "method");
             return std::visit(
                 [&](const auto& pointer) {
                   if (!pointer) not_initialized();
                   using T = scalar_of<decltype(*pointer)>;
                   return PyFisher::make<T>(pointer, observations, damping, fisher_kind, actions,
                                            weights, fraction, fisher_method);
                 },
                 policy.model);
           }),
           py::arg("policy"), py::arg("observations"), py::arg("damping") = 0.0,
           py::arg("kind") = "exact", py::arg("actions") = py::none(),
           py::arg("weights") = py::none(), py::arg("fraction") = 1.0, py::arg("method") = "auto")
      .def_property_readonly(
          "shape", [](const PyFisher& self) { return std::make_pair(self.size(), self.size()); },
          "(P, P).")
      .def_property_readonly(
          "dtype", [](const PyFisher&) { return py::dtype::of<double>(); },
          "float64: vectors of the solvers are double, whatever the dtype of the policy.")
      .def_property_readonly("damping", &PyFisher::damping, "As given.")
      .def_property_readonly(
          "kind", [](const PyFisher& self) { return name_of(self.kind()); }, "As given.")
      .def("matvec", &PyFisher::matvec, py::arg("v"), "F v for v of shape (P,) or (P, 1); float64.")
      .def("rmatvec", &PyFisher::matvec, py::arg("v"), "F' v = F v.")
      .def("__matmul__", &PyFisher::matmul, py::arg("v"), "F v, or F V for V of shape (P, k).")
      .def("to_dense", &PyFisher::to_dense,
           "(P, P) float64, assembled analytically from blocks of layers (eq. 4.3).")
      .def("diagonal", &PyFisher::diagonal, "(P,) float64, the diagonal of F.")
      .def("trace", &PyFisher::trace,
           "tr F from one reverse pass (eq. 8.3). Random but fixed signs make each row's trace\n"
           "unbiased; exact for two actions, one mean, and the empirical kind.")
      .def("solve", &PyFisher::solve, py::arg("b"), py::arg("damping") = 0.0,
           py::arg("solver") = "direct",
           R"(Solves (F + damping I) x = b without iterations.

b : (P,)
damping : float >= 0
    In addition to that of F.
solver : {'direct', 'linear_gaussian', 'dense', 'sample'}
    'linear_gaussian' is for linear Gaussian policies with an exact F (eq. 6.1). 'dense' assembles F and takes its
    Cholesky factor, for P <= 4096; without damping its eigenvalues, for P <= 512. 'sample' works
    with the Gram matrix of scores (eq. 6.3, 6.4), for damping > 0 and rank x N <= 4096. 'direct' is the one
    that the cost model says is fastest.

Without damping x is the shortest least-squares solution. Returns a CgResult: CONVERGED after 0
iterations with the residual measured; INDEFINITE where a part of b is in the null space of F and stays in
the residual, or where the damping does not stand out of rounding, with x = 0. Raises ValueError or
TypeError for a bad b or option, or a form that F does not have.)")
      .def("__repr__", [](const PyFisher& self) {
        return "<Fisher " + std::to_string(self.size()) + " x " + std::to_string(self.size()) + ">";
      });

  m.def("cost_model", &cost_model, py::arg("fisher"), py::arg("way"), py::arg("products") = 10,
        py::arg("damped") = true, py::arg("every") = KFac{}.every,
        R"(What the core's cost model says of a way to use a Fisher matrix; nothing is computed.

Parameters
----------
fisher : Fisher
way : {'passes', 'adjoints', 'closed_form', 'linear_gaussian', 'dense', 'sample', 'factors'}
    Products by one of the first three, a solve by one of the next three, or making Kronecker factors
    and applying them.
products : int >= 0
    Products, or applications of the factors.
damped : bool
    Whether a solve has damping.
every : int >= 1
    Factors are averages over every `every`-th observation.

Returns
-------
cost : float
    In multiply-adds of a layer's matrix product in the dtype of the policy.
terms : dict
    Of the constants that the cost depends on, by name: the value, and how often the cost counts it. Only
    'sample' multiplies two of them. What is left of the cost are matrix products.

Raises ValueError for a way that the matrix does not have.)");
}

}  // namespace natgrad::bindings
