#include <pybind11/stl.h>

#include <map>

#include "models.hpp"
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/parallel.hpp"

namespace natgrad::bindings {

void bind_machine(py::module_& m) {
  // A wrong NATGRAD_ISA or NATGRAD_NUM_THREADS is an ImportError now, not a surprise later.
  kernels::level();
  num_threads();
  m.def(
      "set_num_threads",
      [](int n) {
        if (n < 1 || n > kMaxThreads) {
          wrong_value("n", "want an integer from 1 to " + std::to_string(kMaxThreads) + ", got " +
                               std::to_string(n));
        }
        set_num_threads(n);
      },
      py::arg("n"),
      "Threads of the core, the caller's included. Results do not depend on it, to the last bit.");
  m.def("get_num_threads", &num_threads,
        "Threads of the core: as set, else NATGRAD_NUM_THREADS, else the processors available.");
  m.def(
      "show_config",
      [] {
        return std::map<std::string, std::string>{
            {"version", NATGRAD_VERSION},
            {"isa", kernels::level().name},
            {"threads", std::to_string(num_threads())},
            {"compiler", __VERSION__},
        };
      },
      "Version, instruction set level in use, threads and compiler, as a dict of strings.");
}

}  // namespace natgrad::bindings
