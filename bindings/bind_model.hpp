// What policies and value functions have in common: construction of the network, the flat parameter
// vector, its layout and the normaliser.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>

#include "models.hpp"
#include "names.hpp"

namespace natgrad::bindings {

template <>
inline constexpr Named<Activation> kNames<Activation>[] = {
    {"tanh", Activation::tanh}, {"relu", Activation::relu}, {"elu", Activation::elu},
    {"silu", Activation::silu}, {"gelu", Activation::gelu}, {"identity", Activation::identity}};
template <>
inline constexpr Named<Initialization> kNames<Initialization>[] = {
    {"orthogonal", Initialization::orthogonal}, {"scaled", Initialization::scaled}};

// "float32" or "float64", from a name or anything that NumPy takes for a dtype.
inline std::string dtype_named(py::handle given) {
  std::string name;
  try {
    name = py::str(py::dtype::from_args(py::reinterpret_borrow<py::object>(given)))
               .cast<std::string>();
  } catch (py::error_already_set&) {
    name = py::str(given).cast<std::string>();
  }
  if (name != "float32" && name != "float64") {
    wrong_value("dtype", "want float32 or float64, got " + name);
  }
  return name;
}

inline NetworkSpec network_spec(Index observation_size, const std::vector<Index>& hidden,
                                const std::string& activation, std::uint64_t seed,
                                Index fourier_features, double fourier_bandwidth) {
  size_of(observation_size, "observation_size");
  size_of(fourier_features, "fourier_features", 0);
  Index in = fourier_features > 0 ? fourier_features : observation_size, parameters = 0;
  for (const Index width : hidden) {
    parameters += (in + 1) * size_of(width, "hidden");
    in = width;
    if (parameters > Index{1} << 33) {
      wrong_value("hidden", "want a network of at most 2**33 parameters, got more");
    }
  }
  NetworkSpec spec;
  spec.inputs = observation_size;
  spec.hidden = hidden;
  spec.activation = named<Activation>(activation, "activation");
  spec.fourier_features = fourier_features;
  spec.fourier_bandwidth = positive(fourier_bandwidth, "fourier_bandwidth");
  spec.seed = seed;
  return spec;
}

// One number for each observation. prepare(model, rows) checks the other arguments and returns a function
// that writes the (N,) results, which is called without the GIL.
template <class Any, class Prepare>
py::object per_observation(const Any& self, py::handle observations, Prepare prepare) {
  return visit(self, [&](auto& model) {
    using T = scalar_of<decltype(model)>;
    const auto rows = rows_of<T>(observations, "observations", model.network().spec().inputs);
    const auto write = prepare(model, rows);
    py::array_t<T> out(rows.count);
    T* to = out.mutable_data();
    {
      const py::gil_scoped_release release;  // plain memory from here on
      write(to);
    }
    return rows.drop_axis(std::move(out));
  });
}

struct ParameterBlock {
  std::string name;
  py::tuple shape;
  Index offset, size;
};

// Where every tensor stands in `parameters`, named as torch names those of a Sequential.
template <class T>
std::vector<ParameterBlock> layout_of(const Network<T>& network) {
  std::vector<ParameterBlock> blocks;
  for (std::size_t l = 0; l < network.layers().size(); ++l) {
    const Layer& layer = network.layers()[l];
    const std::string name = std::to_string(2 * l);
    blocks.push_back({name + ".weight", py::make_tuple(layer.out, layer.in), layer.weight,
                      layer.in * layer.out});
    blocks.push_back({name + ".bias", py::make_tuple(layer.out), layer.bias, layer.out});
  }
  if (const Index n = network.spec().free_outputs; n > 0) {
    blocks.push_back({"log_std", py::make_tuple(n), network.free_offset(), n});
  }
  return blocks;
}

template <class Any, class Class>
void bind_model(Class& cls) {
  cls.def_property_readonly(
         "observation_size",
         [](const Any& self) {
           return visit(self, [](auto& model) { return model.network().spec().inputs; });
         },
         "Number of values in one observation.")
      .def_property_readonly(
          "hidden", [](const Any& self) { return py::tuple(self.config["hidden"]); },
          "Widths of the hidden layers.")
      .def_property_readonly(
          "activation", [](const Any& self) { return py::object(self.config["activation"]); },
          "Name of the activation of the hidden layers.")
      .def_property_readonly(
          "dtype",
          [](const Any& self) {
            return self.is_float() ? py::dtype::of<float>() : py::dtype::of<double>();
          },
          "dtype of the parameters and of all that is computed from them.")
      .def_property_readonly(
          "config",
          [](const Any& self) { return py::module_::import("copy").attr("deepcopy")(self.config); },
          "The constructor's arguments as a JSON-able dict; distributions as {'name': ..., ...}.")
      .def_property(
          "parameters",
          [](py::object self) {
            return visit(self.cast<const Any&>(), [&](auto& model) -> py::array {
              using T = scalar_of<decltype(model)>;
              return py::array_t<T>(model.parameter_count(), model.parameters(), self);
            });
          },
          [](Any& self, py::handle value) {
            visit(self, [&](auto& model) {
              using T = scalar_of<decltype(model)>;
              const auto given = vector_of<T>(value, "parameters", model.parameter_count(), false);
              std::copy_n(given.data(), model.parameter_count(), model.parameters());
            });
          },
          R"((P,) the flat parameter vector: a writable view of the core's memory, not a copy.

For each layer W (out x in, row-major), then b, as torch.nn.utils.parameters_to_vector orders a
Sequential; parameters of the distribution (log_std) come last. Assigning copies (P,) values in.)")
      .def_property_readonly(
          "layout",
          [](const Any& self) {
            return visit(self, [](auto& model) { return layout_of(model.network()); });
          },
          "Name, shape, offset and size of every tensor in `parameters`, in order.")
      .def_property_readonly(
          "normalizer",
          [](const Any& self) {
            return visit(self, [](auto& model) {
              const auto& network = model.network();
              const auto vector = [](const std::vector<double>& v) {
                return py::array_t<double>(static_cast<py::ssize_t>(v.size()), v.data());
              };
              return py::make_tuple(vector(network.normalizer_mean()),
                                    vector(network.normalizer_std()), network.normalizer_clip());
            });
          },
          "(mean, std, clip) as `set_normalizer` takes them; (0, 1, inf) at first.")
      .def(
          "set_normalizer",
          [](Any& self, py::handle given_mean, py::handle given_std, double clip) {
            visit(self, [&](auto& model) {
              const Index n = model.network().spec().inputs;
              const auto mean = vector_of<double>(given_mean, "mean", n);
              const auto std = vector_of<double>(given_std, "std", n);
              for (Index i = 0; i < n; ++i) {
                positive(std.data()[i], "std[" + std::to_string(i) + "]");
              }
              if (!(clip > 0)) {
                wrong_value("clip", "want a number > 0, got " + std::to_string(clip));
              }
              model.network().set_normalizer(span_of(mean), span_of(std), clip);
            });
          },
          py::arg("mean"), py::arg("std"), py::arg("clip") = 10.0,
          R"(Lets the network see clip((observation - mean) / std, -clip, clip).

mean, std : (observation_size,); std > 0; clip > 0, may be inf. Computed in float64. The normaliser
is not a parameter: no derivative is taken with respect to it. Raises ValueError.)");
}

}  // namespace natgrad::bindings
