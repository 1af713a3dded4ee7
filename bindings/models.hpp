// What Python holds: policies and value functions whose dtype is chosen at run time.
#pragma once

#include <cstring>
#include <memory>
#include <mutex>
#include <type_traits>
#include <variant>
#include <vector>

#include "arrays.hpp"
#include "natgrad/model/policy.hpp"
#include "natgrad/model/value_function.hpp"
#include "natgrad/solvers/line_search.hpp"

namespace natgrad::bindings {

// Python can reach an object before its __init__ has run, and pybind11 then hands out raw memory.
// Zeroed memory is recognised: a variant of null pointers, which `visit` refuses.
struct ZeroedUntilConstructed {
  static void* operator new(std::size_t size) { return std::memset(::operator new(size), 0, size); }
  static void* operator new(std::size_t, void* place) { return place; }
  static void operator delete(void* p) { ::operator delete(p); }
};

[[noreturn]] inline void not_initialized() {
  throw py::type_error("the object is not initialised: call super().__init__(...) first");
}

template <template <class> class Model>
struct AnyModel : ZeroedUntilConstructed {
  std::variant<std::shared_ptr<Model<float>>, std::shared_ptr<Model<double>>> model;
  py::dict config;  // the constructor's arguments: to answer `config`, to copy and to pickle

  bool is_float() const { return model.index() == 0; }
};
struct PyPolicy : AnyModel<Policy> {};
struct PyValueFunction : AnyModel<ValueFunction> {};

struct PyDistribution {
  Distribution distribution;
};

// Calls f(model) with the typed model.
template <class Any, class F>
decltype(auto) visit(const Any& any, F&& f) {
  return std::visit(
      [&](const auto& pointer) -> decltype(auto) {
        if (!pointer) not_initialized();
        return f(*pointer);
      },
      any.model);
}

template <class Model>
struct ScalarOf;
template <template <class> class Model, class T>
struct ScalarOf<Model<T>> {
  using type = T;
};
template <class Model>
using scalar_of = typename ScalarOf<std::remove_cv_t<std::remove_reference_t<Model>>>::type;

inline py::array_t<double> state_to_python(const std::vector<double>& state) {
  return py::array_t<double>(static_cast<py::ssize_t>(state.size()), state.data());
}

// set(state) is false for what is no state of the object.
template <class Set>
void state_from_python(py::handle given, Set set) {
  const auto value = vector_of<double>(given, "state", -1);
  const std::vector<double> state(value.data(), value.data() + value.size());
  if (!set(state)) {
    wrong_value("state", "want what `state` gave before, got " + std::to_string(state.size()) +
                             " values that are not a state of this object");
  }
}

// A fit that serves models of both dtypes: its typed form is made at the first use with
// a dtype, and takes the options and the state of the one before.
template <template <class> class Algorithm>
class AnyAlgorithm : public ZeroedUntilConstructed {
 public:
  explicit AnyAlgorithm(const typename Algorithm<float>::Options& options)
      : algorithm_(std::make_unique<Algorithm<float>>(options)) {}

  // f(algorithm) without the GIL, one call at a time: an algorithm owns its scratch memory.
  template <class T, class F>
  auto run(F f) {
    const py::gil_scoped_release release;  // plain memory from here on
    const std::lock_guard lock(mutex_);
    return f(typed<T>());
  }

  // f(algorithm), whichever type it has at present.
  template <class F>
  auto with(F f) {
    const std::lock_guard lock(mutex_);
    return visit(f);
  }

  py::array_t<double> state() {
    return state_to_python(with([](auto& a) { return a.state(); }));
  }
  void set_state(py::handle given) {
    state_from_python(given, [&](const auto& state) {
      return with([&](auto& a) { return a.set_state(state); });
    });
  }

 private:
  template <class T>
  Algorithm<T>& typed() {
    if (auto* same = std::get_if<std::unique_ptr<Algorithm<T>>>(&algorithm_); same && *same) {
      return **same;
    }
    auto made = visit([](auto& other) { return std::make_unique<Algorithm<T>>(other.options()); });
    made->set_state(visit([](auto& other) { return other.state(); }));
    return *std::get<std::unique_ptr<Algorithm<T>>>(algorithm_ = std::move(made));
  }

  template <class F>
  decltype(auto) visit(F&& f) {
    return std::visit(
        [&](auto& pointer) -> decltype(auto) {
          if (!pointer) not_initialized();
          return f(*pointer);
        },
        algorithm_);
  }

  std::variant<std::unique_ptr<Algorithm<float>>, std::unique_ptr<Algorithm<double>>> algorithm_;
  ForkSafeMutex mutex_;
};

Candidate candidate_of(const py::object& result);  // of a function evaluate() in Python

void bind_random(py::module_& m);
void bind_distribution(py::module_& m);
void bind_policy(py::module_& m);
void bind_value_function(py::module_& m);
void bind_fisher(py::module_& m);
void bind_preconditioners(py::module_& m);
void bind_options(py::module_& m);
void bind_solvers(py::module_& m);
void bind_report(py::module_& m);
void bind_update(py::module_& m);
void bind_advantage(py::module_& m);
void bind_machine(py::module_& m);

}  // namespace natgrad::bindings
