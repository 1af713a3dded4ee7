#include "models.hpp"
#include "natgrad/base/random.hpp"

namespace natgrad::bindings {

template <class Draw>
static py::array_t<double> draw(Rng& rng, py::ssize_t n, Draw one) {
  if (n < 0) wrong_value("n", "want an integer >= 0, got " + std::to_string(n));
  py::array_t<double> out(n);
  RandomStream random = rng.row(0);
  for (py::ssize_t i = 0; i < n; ++i) out.mutable_data()[i] = one(random);
  ++rng.counter;
  return out;
}

void bind_random(py::module_& m) {
  py::class_<Rng>(m, "Rng", py::is_final(),
                  R"(Counter-based random numbers (Philox4x32-10, Salmon et al. 2011).

A draw is a function of (seed, stream, counter, index) alone. `Policy.sample` takes row i from stream
`stream + i` and advances `counter` by one per call, so the actions in one environment do not depend
on how many others are stepped beside it. The whole state is (seed, stream, counter).

Parameters
----------
seed : int, 0 <= seed < 2**64
stream : int, 0 <= stream < 2**32

Raises ValueError or TypeError for anything else.)")
      .def(py::init([](py::handle seed, py::handle stream) {
             return Rng{unsigned_integer(seed, "seed", 64),
                        static_cast<std::uint32_t>(unsigned_integer(stream, "stream", 32)), 0};
           }),
           py::arg("seed"), py::arg("stream") = 0)
      .def_readonly("seed", &Rng::seed, "The seed, as given.")
      .def_readonly("stream", &Rng::stream, "The first stream, as given.")
      .def_property(
          "counter", [](const Rng& rng) { return rng.counter; },
          [](Rng& rng, py::handle value) { rng.counter = unsigned_integer(value, "counter", 64); },
          "Calls made so far; may be set, to restore a state.")
      .def(
          "uniform",
          [](Rng& rng, py::ssize_t n) {
            return draw(rng, n, [](RandomStream& random) { return random.uniform(); });
          },
          py::arg("n"), "(n,) float64 in (0, 1), from stream `stream`; advances the counter.")
      .def(
          "normal",
          [](Rng& rng, py::ssize_t n) {
            return draw(rng, n, [](RandomStream& random) { return random.normal(); });
          },
          py::arg("n"), "(n,) float64 standard normal (Box and Muller); advances the counter.")
      .def("__repr__", [](const Rng& rng) {
        return "Rng(seed=" + std::to_string(rng.seed) + ", stream=" + std::to_string(rng.stream) +
               ", counter=" + std::to_string(rng.counter) + ")";
      });
}

}  // namespace natgrad::bindings
