#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <map>

#include "models.hpp"
#include "natgrad/base/parallel.hpp"
#include "natgrad/kernels/kernels.hpp"

namespace natgrad::bindings {
namespace {

// The summed rate of all threads in GFLOP/s, each timed by its own clock over the same time.
template <class T>
double fma_peak(double seconds, double (*chains)(std::ptrdiff_t, T*)) {
  using Clock = std::chrono::steady_clock;
  constexpr std::ptrdiff_t kSteps = 4000;  // tens of microseconds: the clock costs little then
  const int threads = num_threads();
  std::vector<double> rates(static_cast<std::size_t>(threads));
  std::atomic<int> arrived{0};
  parallel_for(threads, [&](int task, int) {
    // All at once, unless the pool is in use elsewhere: then one thread does the tasks in turn.
    const auto patience = Clock::now() + std::chrono::milliseconds(2);
    for (++arrived; arrived < threads && Clock::now() < patience;) {
    }
    T sink = 0;
    double operations = 0;
    const auto begin = Clock::now();
    std::chrono::duration<double> elapsed{};
    while (elapsed.count() < seconds) {
      operations += chains(kSteps, &sink);
      elapsed = Clock::now() - begin;
    }
    rates[static_cast<std::size_t>(task)] = operations / elapsed.count() * 1e-9;
  });
  double sum = 0;
  for (const double rate : rates) sum += rate;
  return sum;
}

}  // namespace

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
  m.def(
      "fma_peak",
      [](const std::string& dtype, double seconds) {
        if (!(seconds > 0 && seconds <= 10)) {
          wrong_value("seconds", "want more than 0 and at most 10, got " + std::to_string(seconds));
        }
        if (dtype != "float32" && dtype != "float64") {
          wrong_value("dtype", "want 'float32' or 'float64', got '" + dtype + "'");
        }
        const py::gil_scoped_release release;
        const kernels::Level& level = kernels::level();
        return dtype == "float32" ? fma_peak(seconds, level.f32.fma_chains)
                                  : fma_peak(seconds, level.f64.fma_chains);
      },
      py::arg("dtype") = "float32", py::arg("seconds") = 1e-3,
      "GFLOP/s of fused multiply-adds in registers: what the threads of the core can do at "
      "most.\n\n"
      "Measured for `seconds` on all threads in use, at the instruction set level in use.");
}

}  // namespace natgrad::bindings
