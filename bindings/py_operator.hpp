// Linear operators as Python may hold them, for the solvers.
#pragma once

#include <Eigen/Core>
#include <functional>

#include "natgrad/solvers/preconditioner.hpp"
#include "py_fisher.hpp"

namespace natgrad::bindings {

// M^-1 as Python holds it; what cannot be inverted is the identity. Applying it uses scratch memory
// inside, so one at a time: the mutex is taken without the GIL.
class PyPreconditioner : public ZeroedUntilConstructed {
 public:
  PyPreconditioner(std::unique_ptr<Preconditioner> inverse, bool definite)
      : positive_definite(definite), inverse_(std::move(inverse)) {}

  const bool positive_definite;

  Index size() const {
    if (!inverse_) not_initialized();
    return inverse_->size();
  }
  void apply(const double* r, double* z) {
    if (!positive_definite) {
      std::copy_n(r, inverse_->size(), z);
      return;
    }
    const std::lock_guard lock(mutex_);
    inverse_->apply(r, z);
  }
  bool varies() const { return positive_definite && inverse_->varies(); }

 private:
  std::unique_ptr<Preconditioner> inverse_;
  ForkSafeMutex mutex_;
};
struct PyKroneckerFactors : PyPreconditioner {
  using PyPreconditioner::PyPreconditioner;
};
struct PyInnerSolver : PyPreconditioner {
  using PyPreconditioner::PyPreconditioner;
};
struct PyDiagonal : PyPreconditioner {
  using PyPreconditioner::PyPreconditioner;
};
struct PyNystrom : PyPreconditioner {
  using PyPreconditioner::PyPreconditioner;
};

// y = A x for anything that Python may offer. `compiled` operators run without the GIL; one that
// `varies` is a preconditioner for flexible conjugate gradients. `rounding` is that of CgOptions.
struct OperatorFromPython {
  std::function<void(const double*, double*)> apply;
  bool compiled = false;
  bool varies = false;
  double rounding = std::numeric_limits<double>::epsilon();
};

// A tensor of torch, without importing torch.
inline bool is_tensor(py::handle a) {
  const py::dict modules = py::module_::import("sys").attr("modules");
  return modules.contains("torch") && py::isinstance(a, modules["torch"].attr("Tensor"));
}

// Tensors may have a history or live on a device, which NumPy refuses; others pass as they are.
inline py::object on_host(py::handle a) {
  if (is_tensor(a)) return a.attr("detach")().attr("cpu")();
  return py::reinterpret_borrow<py::object>(a);
}

// Of products that an operator computes in its own dtype.
inline double rounding_of(py::handle a) {
  if (py::hasattr(a, "dtype") && py::isinstance<py::dtype>(a.attr("dtype"))) {
    const auto dtype = py::reinterpret_borrow<py::dtype>(a.attr("dtype"));
    if (dtype.kind() == 'f' && dtype.itemsize() <= 4) return std::numeric_limits<float>::epsilon();
  }
  return std::numeric_limits<double>::epsilon();
}

// `products` is how many may be asked for, which a Fisher plans for. Functions of Python are given
// arrays, or tensors like `tensor`.
inline OperatorFromPython make_operator(py::handle a, Index n, const std::string& name,
                                        int products, const py::object& tensor = py::none()) {
  if (py::isinstance<PyFisher>(a)) {
    auto& fisher = a.cast<PyFisher&>();
    if (fisher.size() != n) {
      wrong_value(name, "want shape (" + std::to_string(n) + ", " + std::to_string(n) +
                            ") to match b, got a Fisher with P = " + std::to_string(fisher.size()));
    }
    const auto planned = [&] {
      const py::gil_scoped_release release;  // plain memory from here on
      return fisher.plan(products);
    };
    return {[f = planned()](const double* x, double* y) { f.product(x, y); }, true, false,
            fisher.rounding()};
  }
  if (py::isinstance<PyPreconditioner>(a)) {
    auto& preconditioner = a.cast<PyPreconditioner&>();
    if (preconditioner.size() != n) {
      wrong_value(name, "want size " + std::to_string(n) + " to match b, got a " +
                            py::str(py::type::of(a).attr("__name__")).cast<std::string>() +
                            " of size " + std::to_string(preconditioner.size()));
    }
    return {[&preconditioner](const double* x, double* y) { preconditioner.apply(x, y); }, true,
            preconditioner.varies()};
  }
  // Foreign operators are given a copy of the vector: they may keep it.
  const bool single = is_tensor(tensor) && tensor.attr("element_size")().cast<int>() <= 4;
  const double rounding = single ? std::numeric_limits<float>::epsilon() : rounding_of(a);
  const auto from_callable = [n, name, tensor, rounding](py::object call) -> OperatorFromPython {
    return {[call = std::move(call), n, name, tensor](const double* x, double* y) {
              py::object v = py::array_t<double>(n, x);
              if (!tensor.is_none()) {
                v = py::module_::import("torch").attr("from_dlpack")(v).attr("to")(tensor);
              }
              const auto result = vector_of<double>(on_host(call(v)), name + "(v)", n, false);
              std::copy_n(result.data(), n, y);
            },
            false, false, rounding};
  };
  if (py::hasattr(a, "matvec")) return from_callable(a.attr("matvec"));
  if (!py::hasattr(a, "__array_priority__") || py::hasattr(a, "__array__")) {
    if (!PyCallable_Check(a.ptr())) {
      const py::array raw = numeric_array(on_host(a), name);
      if (raw.ndim() != 2 || raw.shape(0) != n || raw.shape(1) != n) {
        wrong_value(name, "want shape (" + std::to_string(n) + ", " + std::to_string(n) +
                              ") to match b, got " + shape_text(raw));
      }
      const Array<double> matrix(raw);
      require_finite(matrix, name);
      return {[matrix, n](const double* x, double* y) {
                using RowMajor =
                    Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
                Eigen::Map<Eigen::VectorXd>(y, n).noalias() =
                    Eigen::Map<const RowMajor>(matrix.data(), n, n) *
                    Eigen::Map<const Eigen::VectorXd>(x, n);
              },
              true};
    }
  }
  if (py::hasattr(a, "__matmul__")) return from_callable(a.attr("__matmul__"));  // scipy.sparse
  return from_callable(py::reinterpret_borrow<py::object>(a));
}

}  // namespace natgrad::bindings
