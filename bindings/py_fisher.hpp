// The Fisher operator as Python holds it, shared by its own binding and by the solvers'.
#pragma once

#include <mutex>

#include "models.hpp"
#include "names.hpp"
#include "natgrad/fisher/fisher.hpp"
#include "natgrad/solvers/conjugate_gradient.hpp"

namespace natgrad::bindings {

struct CgResult {
  py::array_t<double> x;
  CgReport summary;
  Solver solver;
};

template <>
inline constexpr Named<Solver> kNames<Solver>[] = {
    {"auto", Solver::automatic}, {"cg", Solver::conjugate_gradient},
    {"direct", Solver::direct},  {"linear_gaussian", Solver::linear_gaussian},
    {"dense", Solver::dense},    {"sample", Solver::sample},
};
template <>
inline constexpr Named<FisherKind> kNames<FisherKind>[] = {
    {"exact", FisherKind::exact},
    {"empirical", FisherKind::empirical},
};
// The closed form is not asked for: it is taken where it is the fastest.
template <>
inline constexpr Named<FisherMethod> kNames<FisherMethod>[] = {
    {"auto", FisherMethod::automatic},
    {"passes", FisherMethod::passes},
    {"adjoints", FisherMethod::adjoints},
};

inline double fraction_of(double fraction, const std::string& name) {
  return number(fraction, name, fraction > 0 && fraction <= 1, "a number > 0 and <= 1");
}

// Owns the batch's linearisation and keeps the policy alive. Products use scratch memory inside, so
// one at a time: the mutex is taken without the GIL.
class PyFisher : public ZeroedUntilConstructed {
 private:
  template <class T>
  struct Typed {
    std::shared_ptr<Policy<T>> keep;
    LinearizedPolicy<T> linearization;
    Fisher<T> fisher;
  };

  template <class F>
  decltype(auto) visit(F&& f) const {
    return std::visit(
        [&](const auto& typed) -> decltype(auto) {
          if (!typed) not_initialized();
          return f(*typed);
        },
        typed_);
  }

 public:
  // Products as they were planned. It must not outlive its operator.
  class Products {
   public:
    using Typed = std::variant<FisherProducts<float>, FisherProducts<double>>;
    Products(PyFisher* fisher, Typed typed) : fisher_(fisher), typed_(typed) {}

    void product(const double* v, double* out) const {
      const std::lock_guard lock(fisher_->mutex_);
      std::visit([&](const auto& f) { f.product(v, out); }, typed_);
    }
    double quadratic_form(const double* v) const {
      const std::lock_guard lock(fisher_->mutex_);
      return std::visit([&](const auto& f) { return f.quadratic_form(v); }, typed_);
    }

   private:
    PyFisher* fisher_;
    Typed typed_;
  };

  template <class T>
  static std::unique_ptr<PyFisher> make(std::shared_ptr<Policy<T>> policy, py::handle observations,
                                        double damping, FisherKind kind, py::handle given_actions,
                                        py::handle given_weights, double fraction,
                                        FisherMethod method) {
    const auto rows =
        rows_of<T>(observations, "observations", policy->network().spec().inputs, false, false);
    const Index width = action_size(policy->distribution());
    Array<T> actions;
    if (kind == FisherKind::empirical) {
      if (given_actions.is_none()) {
        wrong_value("actions", "want the actions taken, for kind='empirical'; got None");
      }
      actions = actions_of<T>(given_actions, policy->distribution(), rows.count, false);
    }
    Array<double> weights;
    if (!given_weights.is_none()) {
      weights = vector_of<double>(given_weights, "weights", rows.count);
      for (Index n = 0; n < rows.count; ++n) {
        non_negative(weights.data()[n], "weights[" + std::to_string(n) + "]");
      }
    }
    const bool weighted = weights.size() > 0;

    auto result = std::make_unique<PyFisher>();
    auto typed = std::make_unique<Typed<T>>();
    result->kind_ = kind;
    result->method_ = method;
    {
      const py::gil_scoped_release release;  // plain memory from here on
      const Index part = subsample_size(rows.count, fraction);
      Buffer<T> part_observations, part_actions;
      Buffer<double> part_weights;
      Matrix<const T> batch = rows.view();
      Matrix<const T> taken{actions.data(), rows.count, width, width};
      const double* w = weighted ? weights.data() : nullptr;
      if (part < rows.count) {
        batch = subsample_rows(batch, part, &part_observations);
        if (kind == FisherKind::empirical) taken = subsample_rows(taken, part, &part_actions);
        if (weighted) {
          w = subsample_rows(Matrix<const double>{w, rows.count, 1, 1}, part, &part_weights).data;
        }
      }
      typed->keep = std::move(policy);
      typed->linearization.evaluate(*typed->keep, batch);
      typed->fisher.attach(&typed->linearization, kind, taken, w, damping);
    }
    result->typed_ = std::move(typed);
    return result;
  }

  Index size() const {
    return visit([](const auto& t) { return t.fisher.size(); });
  }
  double damping() const {
    return visit([](const auto& t) { return t.fisher.damping(); });
  }
  FisherKind kind() const { return kind_; }
  // What the cost model looks at; valid as long as this is.
  FisherShape cost_shape() const {
    return visit([](const auto& t) { return t.fisher.shape(); });
  }

  // f(fisher) with the typed operator, one call at a time; without the GIL.
  template <class F>
  decltype(auto) run(F&& f) {
    const std::lock_guard lock(mutex_);
    return visit([&](auto& t) -> decltype(auto) { return f(t.fisher); });
  }

  // Prepares for about so many products; without the GIL.
  Products plan(int products) {
    return run([&](auto& fisher) -> Products { return {this, fisher.plan(products, method_)}; });
  }

  py::array_t<double> matvec(py::handle given) {
    py::array raw = numeric_array(given, "v");
    const bool column = raw.ndim() == 2 && raw.shape(1) == 1;
    const Array<double> v = vector_of<double>(column ? raw.reshape({-1}) : raw, "v", size());
    py::array_t<double> out(size());
    double* to = out.mutable_data();
    {
      const py::gil_scoped_release release;  // plain memory from here on
      plan(1).product(v.data(), to);
    }
    return column ? py::array_t<double>(out.reshape({size(), Index{1}})) : out;
  }

  py::array_t<double> matmul(py::handle given) {
    const py::array raw = numeric_array(given, "v");
    if (raw.ndim() != 2) return matvec(given);
    if (raw.shape(0) != size()) {
      wrong_value("v", "want " + std::to_string(size()) + " rows, got shape " + shape_text(raw));
    }
    const Array<double> columns(raw.attr("T"));
    require_finite(columns, "v");
    py::array_t<double> out({raw.shape(1), size()});
    double* to = out.mutable_data();
    {
      const py::gil_scoped_release release;  // plain memory from here on
      const Products f = plan(static_cast<int>(std::min<Index>(columns.shape(0), 1 << 20)));
      for (Index j = 0; j < columns.shape(0); ++j) {
        f.product(columns.data() + j * size(), to + j * size());
      }
    }
    return py::array_t<double>(py::object(out.attr("T")));
  }

  // The relative rounding error of a product.
  double rounding() const {
    return visit(
        []<class T>(const Typed<T>&) -> double { return std::numeric_limits<T>::epsilon(); });
  }

  static bool is_direct(Solver solver) {
    return solver != Solver::automatic && solver != Solver::conjugate_gradient;
  }
  CgResult solve(py::handle given, double more_damping, const std::string& name) {
    const auto b = vector_of<double>(given, "b", size());
    non_negative(more_damping, "damping");
    CgResult result{py::array_t<double>(size()), {}, named<Solver>(name, "solver", is_direct)};
    double* x = result.x.mutable_data();
    visit([&](auto& t) {
      result.solver = t.fisher.choose(result.solver, more_damping, 0);
      if (result.solver == Solver::conjugate_gradient) {
        wrong_value("solver", "want a form that this matrix has, see Fisher.solve; got '" + name +
                                  "' for P = " + std::to_string(t.fisher.size()));
      }
      const py::gil_scoped_release release;  // plain memory from here on
      const std::lock_guard lock(mutex_);
      const Index n = t.fisher.size();
      Buffer<double> fx(n);
      const bool solved = t.fisher.solve(result.solver, b.data(), more_damping, x, fx.data());
      if (!solved) {
        std::fill_n(x, n, 0.0);
        fx.fill_zero();
      }
      for (Index i = 0; i < n; ++i) fx[i] += t.fisher.damping() * x[i];
      result.summary = summarize_solution(b.data(), x, fx.data(), more_damping, n, rounding());
    });
    return result;
  }

  py::array_t<double> to_dense() {
    py::array_t<double> out({size(), size()});
    double* to = out.mutable_data();
    const py::gil_scoped_release release;  // plain memory from here on
    run([&](auto& fisher) { fisher.to_dense(to); });
    return out;
  }

  py::array_t<double> diagonal() {
    py::array_t<double> out(size());
    double* to = out.mutable_data();
    const py::gil_scoped_release release;  // plain memory from here on
    run([&](auto& fisher) { fisher.diagonal(to); });
    return out;
  }

  double trace() {
    const py::gil_scoped_release release;  // plain memory from here on
    const std::lock_guard lock(mutex_);
    return visit([](auto& t) { return t.fisher.trace(); });
  }

 private:
  std::variant<std::unique_ptr<Typed<float>>, std::unique_ptr<Typed<double>>> typed_;
  FisherKind kind_ = FisherKind::exact;
  FisherMethod method_ = FisherMethod::automatic;
  ForkSafeMutex mutex_;
};

}  // namespace natgrad::bindings
