// Options as values of Python: a struct of the core becomes an immutable class whose fields are declared
// in one line each, with range and help; the defaults are those of the struct.
#pragma once

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "arrays.hpp"

namespace natgrad::bindings {

// Which values a field takes: the sentence goes into errors and into the documentation.
template <class M>
struct Range {
  const char* wanted;
  bool (*holds)(const M&) = nullptr;  // null: any value of the type
};

template <class Value, class M>
struct Field {
  const char* name;
  M Value::* member;
  Range<M> range;
  const char* help;
};

// How a field's type crosses the border: as it is, but vectors as arrays or None.
template <class M>
struct Crossing {
  using Given = M;
  static M from(const M& given, const char*) { return given; }
  static py::object to(const M& value) { return py::cast(value); }
};
template <>
struct Crossing<std::vector<double>> {
  using Given = py::object;
  static std::vector<double> from(const py::object& given, const char* name) {
    if (given.is_none()) return {};
    const auto values = vector_of<double>(given, name, -1);
    if (values.size() == 0) wrong_value(name, "want shape (P,), got (0,)");
    return {values.data(), values.data() + values.size()};
  }
  static py::object to(const std::vector<double>& value) {
    if (value.empty()) return py::none();
    return py::array_t<double>(static_cast<py::ssize_t>(value.size()), value.data());
  }
};

template <class M>
M checked(const typename Crossing<M>::Given& given, const char* name, const Range<M>& range) {
  const M value = Crossing<M>::from(given, name);
  bool good = range.holds == nullptr || range.holds(value);
  if constexpr (std::is_floating_point_v<M>) good = good && std::isfinite(value);
  if (!good) {
    wrong_value(name, std::string("want ") + range.wanted + ", got " +
                          py::repr(Crossing<M>::to(value)).template cast<std::string>());
  }
  return value;
}

template <class Value, class M>
std::string documented(const Field<Value, M>& field) {
  return std::string("\n") + field.name + " : " + field.range.wanted + "\n    " + field.help;
}

// Binds `Value` with these fields. `check` looks at what concerns several of them. Equal values have equal fields; repr() is the constructor's text.
template <class Value, class... M>
void bind_value(py::module_& m, const char* name, const std::string& summary,
                void (*check)(const Value&), const Field<Value, M>&... fields) {
  const Value defaults{};
  const std::string doc = summary + "\n\nParameters\n----------" + (documented(fields) + ...);
  py::class_<Value> bound(m, name, py::is_final(), doc.c_str());
  bound.def(py::init([=](const typename Crossing<M>::Given&... given) {
              Value value{};
              ((value.*fields.member = checked<M>(given, fields.name, fields.range)), ...);
              if (check != nullptr) check(value);
              return value;
            }),
            (py::arg(fields.name) = Crossing<M>::to(defaults.*fields.member))...);
  (bound.def_property_readonly(
       fields.name, [=](const Value& v) { return Crossing<M>::to(v.*fields.member); }, fields.help),
   ...);
  const auto values = [=](const Value& v) {
    return py::make_tuple(Crossing<M>::to(v.*fields.member)...);
  };
  const auto text = [=](const Value& v) {
    std::string arguments;
    ((arguments += (arguments.empty() ? "" : ", ") + std::string(fields.name) + "=" +
                   py::repr(Crossing<M>::to(v.*fields.member)).template cast<std::string>()),
     ...);
    return std::string(name) + "(" + arguments + ")";
  };
  bound.def("__repr__", text);
  bound.def("__eq__", [=](const Value& a, const py::object& other) {
    if (!py::isinstance<Value>(other)) return false;
    const auto& b = other.cast<const Value&>();
    return ((a.*fields.member == b.*fields.member) && ...);
  });
  bound.def("__hash__", [=](const Value& v) { return py::hash(py::str(text(v))); });
  bound.def(
      "replace",
      [=](const py::object& self, const py::kwargs& changes) {
        py::dict all;
        const auto& v = self.cast<const Value&>();
        ((all[fields.name] = Crossing<M>::to(v.*fields.member)), ...);
        for (const auto& [key, value] : changes) all[key] = value;
        return py::type::of(self)(**all);
      },
      "The same value with other fields, given by keyword.");
  bound.def("__reduce__", [=](const py::object& self) {
    return py::make_tuple(py::type::of(self), values(self.cast<const Value&>()));
  });
}

}  // namespace natgrad::bindings
