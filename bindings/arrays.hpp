// The only place where arrays from Python are checked and converted. Every function names the
// argument, what was given and what is wanted. The GIL is held here and released by the callers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "natgrad/base/types.hpp"
#include "natgrad/model/distributions/distribution.hpp"

namespace natgrad::bindings {

namespace py = pybind11;

inline std::string shape_text(const py::array& a) {
  return py::str(a.attr("shape")).cast<std::string>();
}

[[noreturn]] inline void wrong_value(const std::string& name, const std::string& rest) {
  throw py::value_error(name + ": " + rest);
}

template <class T>
std::string dtype_name() {
  return py::str(py::dtype::of<T>()).template cast<std::string>();
}

// A subclass of ndarray is taken for its values, except where it says that some of them are none.
inline void require_no_mask(const py::array& a, const std::string& name) {
  if (py::type::handle_of(a).ptr() ==
      reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_)) {
    return;
  }
  const py::module_ masked = py::module_::import("numpy.ma");
  if (!py::isinstance(a, masked.attr("MaskedArray"))) return;
  const auto count = masked.attr("count_masked")(a).cast<py::ssize_t>();
  if (count > 0) {
    wrong_value(name, "want values only, got a masked array with " + std::to_string(count) +
                          " of them masked; fill or leave out what is masked");
  }
}

// Any array of real numbers; `integral` asks for whole numbers.
inline py::array numeric_array(py::handle given, const std::string& name, bool integral = false) {
  py::array a;
  if (py::isinstance<py::array>(given)) {
    a = py::reinterpret_borrow<py::array>(given);
    require_no_mask(a, name);
  } else {
    const bool only_dlpack = py::hasattr(given, "__dlpack__") && !py::hasattr(given, "__array__");
    try {
      a = py::module_::import("numpy").attr(only_dlpack ? "from_dlpack" : "asarray")(given);
    } catch (py::error_already_set& error) {
      throw py::type_error(name + ": want an array of numbers, got " +
                           py::str(py::type::of(given).attr("__name__")).cast<std::string>() +
                           ": " + py::str(error.value()).cast<std::string>());
    }
  }
  const char kind = a.dtype().kind();
  const bool whole = kind == 'i' || kind == 'u' || kind == 'b';
  if (!(whole || (kind == 'f' && !integral))) {
    throw py::type_error(name + ": want " + (integral ? "integers" : "real numbers") +
                         ", got dtype " + py::str(a.dtype()).cast<std::string>());
  }
  return a;
}

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// The values as T. NumPy would warn of those that are beyond the range of T, and a warning may be an error
// that names no argument; here they become infinite, which the caller looks for.
template <class T>
Array<T> values_as(const py::array& raw) {
  if constexpr (std::is_same_v<T, float>) {
    if (py::isinstance<py::array_t<double>>(raw)) {
      const Array<double> wide(raw);
      Array<float> narrow(std::vector<py::ssize_t>(raw.shape(), raw.shape() + raw.ndim()));
      const double* from = wide.data();
      float* to = narrow.mutable_data();
      for (py::ssize_t i = 0; i < wide.size(); ++i) to[i] = static_cast<float>(from[i]);
      return narrow;
    }
  }
  return Array<T>(raw);
}

template <class T>
std::span<const T> span_of(const Array<T>& a) {
  return {a.data(), static_cast<std::size_t>(a.size())};
}

template <class T>
void require_finite(const Array<T>& a, const std::string& name) {
  const T* data = a.data();
  const py::ssize_t n = a.size();
  if (all_finite(data, n)) return;
  for (py::ssize_t i = 0; i < n; ++i) {
    if (std::isfinite(data[i])) continue;
    std::string index;
    py::ssize_t rest = i;
    for (py::ssize_t axis = a.ndim(); axis-- > 0; rest /= a.shape(axis)) {
      index = std::to_string(rest % a.shape(axis)) + (index.empty() ? "" : ", ") + index;
    }
    wrong_value(name + (index.empty() ? "" : "[" + index + "]"),
                "want a finite number, got " + std::to_string(static_cast<double>(data[i])));
  }
}

// Actions (rows, width) that were drawn from the distributions whose parameters `source` led to.
template <class T>
void require_finite_actions(const T* actions, Index rows, Index width, const std::string& source) {
  if (all_finite(actions, rows * width)) return;
  Index row = 0;
  while (all_finite(actions + row * width, width)) ++row;
  wrong_value(source + "[" + std::to_string(row) + "]",
              "want a distribution of finite actions, got one whose mean or scale is too large");
}

// A vector of `size` finite numbers (any length for size < 0).
template <class T>
Array<T> vector_of(py::handle given, const std::string& name, py::ssize_t size,
                   bool finite = true) {
  const py::array raw = numeric_array(given, name);
  if (raw.ndim() != 1 || (size >= 0 && raw.shape(0) != size)) {
    wrong_value(name, "want shape (" + (size >= 0 ? std::to_string(size) : std::string("n")) +
                          ",), got " + shape_text(raw));
  }
  Array<T> a = values_as<T>(raw);
  if (finite) require_finite(a, name);
  return a;
}

// Rows of `columns` numbers; one row may come without its axis, and then results drop it too.
template <class T>
struct Rows {
  Array<T> array;
  bool single = false;
  Index count = 0, columns = 0;

  Matrix<const T> view() const { return {array.data(), count, columns, columns}; }
  py::object drop_axis(py::array result) const {
    return single ? py::object(result[py::int_(0)]) : py::object(result);
  }
};

template <class T>
Rows<T> rows_of(py::handle given, const std::string& name, Index columns, bool integral = false,
                bool allow_single = true) {
  const py::array raw = numeric_array(given, name, integral);
  const bool single = allow_single && raw.ndim() == 1;
  if (!single && raw.ndim() != 2) {
    wrong_value(name, "want shape (N, " + std::to_string(columns) + "), got " + shape_text(raw));
  }
  const Index width = raw.shape(raw.ndim() - 1), count = single ? 1 : raw.shape(0);
  if (width != columns) {
    wrong_value(name, "want " + std::to_string(columns) + " columns, got shape " + shape_text(raw));
  }
  if (count == 0) wrong_value(name, "want at least one row, got shape " + shape_text(raw));
  Rows<T> rows{values_as<T>(raw), single, count, columns};
  require_finite(rows.array, name);
  return rows;
}

// Actions of `rows` observations in the space of the distribution, in its dtype.
template <class T>
Array<T> actions_of(py::handle given, const Distribution& distribution, Index rows, bool single) {
  const std::string name = "actions";
  const bool discrete = is_discrete(distribution);
  const auto* categoricals = std::get_if<Categoricals>(&distribution);
  const Index width = action_size(distribution);
  const bool scalar = categoricals != nullptr && categoricals->single;
  const py::array raw = numeric_array(given, name, discrete);
  const py::ssize_t dimensions = (scalar ? 0 : 1) + (single ? 0 : 1);
  const bool fits = raw.ndim() == dimensions && (single || raw.shape(0) == rows) &&
                    (scalar || raw.shape(dimensions - 1) == width);
  if (!fits) {
    std::string wanted = single ? "(" : "(" + std::to_string(rows) + ",";
    if (!scalar) wanted += (single ? "" : " ") + std::to_string(width) + (single ? "," : "");
    wrong_value(name, "want shape " + wanted + "), got " + shape_text(raw));
  }
  Array<T> a = values_as<T>(raw);
  require_finite(a, name);
  if (!discrete) return a;
  for (py::ssize_t i = 0; i < a.size(); ++i) {
    const Index limit =
        categoricals != nullptr ? categoricals->sizes[static_cast<std::size_t>(i % width)] : 2;
    const T action = a.data()[i];
    if (!(action >= T(0) && action < static_cast<T>(limit))) {
      wrong_value(name + "[" + std::to_string(i / width) + "]",
                  "want an integer from 0 to " + std::to_string(limit - 1) + ", got " +
                      std::to_string(static_cast<long long>(action)));
    }
  }
  return a;
}

// Actions as Python wants them: integers for discrete distributions, no axis for a single category.
template <class T>
py::object actions_to_python(const Array<T>& actions, const Distribution& distribution,
                             bool single) {
  const auto* categoricals = std::get_if<Categoricals>(&distribution);
  py::array result = actions;
  if (is_discrete(distribution)) {
    result = py::array_t<std::int64_t, py::array::forcecast>(result);
  }
  if (categoricals != nullptr && categoricals->single) {
    result = result.reshape(py::array::ShapeContainer{actions.shape(0)});
  }
  return single ? py::object(result[py::int_(0)]) : py::object(result);
}

// --- plain numbers -------------------------------------------------------------------------------

inline double number(double value, const std::string& name, bool in_range, const char* wanted) {
  if (!in_range || !std::isfinite(value)) {
    wrong_value(name, std::string("want ") + wanted + ", got " +
                          py::repr(py::float_(value)).cast<std::string>());
  }
  return value;
}
inline double positive(double value, const std::string& name) {
  return number(value, name, value > 0, "a finite number > 0");
}
inline double non_negative(double value, const std::string& name) {
  return number(value, name, value >= 0, "a finite number >= 0");
}
inline int at_least(int value, int least, const std::string& name) {
  if (value < least) {
    wrong_value(name,
                "want an integer >= " + std::to_string(least) + ", got " + std::to_string(value));
  }
  return value;
}

// A number of units, actions or features: bounded, so that no product of sizes overflows.
inline Index size_of(Index n, const std::string& name, Index least = 1) {
  constexpr Index most = Index{1} << 24;
  if (n < least || n > most) {
    wrong_value(name, "want an integer from " + std::to_string(least) + " to " +
                          std::to_string(most) + ", got " + std::to_string(n));
  }
  return n;
}

// A whole number of `bits` bits, from anything with __index__.
inline std::uint64_t unsigned_integer(py::handle given, const std::string& name, int bits) {
  const std::string wanted = "an integer from 0 to 2**" + std::to_string(bits) + " - 1";
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(given.ptr()));
  if (!index) {
    PyErr_Clear();
    throw py::type_error(name + ": want " + wanted + ", got " +
                         py::repr(given).cast<std::string>());
  }
  const std::uint64_t value = PyLong_AsUnsignedLongLong(index.ptr());
  const bool failed = PyErr_Occurred() != nullptr;
  PyErr_Clear();
  if (failed || (bits < 64 && value >> bits != 0)) {
    wrong_value(name, "want " + wanted + ", got " + py::repr(index).cast<std::string>());
  }
  return value;
}

}  // namespace natgrad::bindings
