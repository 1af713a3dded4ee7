#include <cstdlib>
#include <stdexcept>
#include <string>

#include "natgrad/kernels/kernels.hpp"

namespace natgrad::kernels {

#define NATGRAD_DECLARE_LEVEL(ns)                       \
  namespace ns {                                        \
  extern const Table<float> table_f32;                  \
  extern const Table<double> table_f64;                 \
  extern const AdjointTable<float> adjoints_f32;        \
  extern const AdjointTable<double> adjoints_f64;       \
  extern const RowTable<float> rows_f32;                \
  extern const RowTable<double> rows_f64;               \
  extern const BundleTable<float> bundles_f32;          \
  extern const BundleTable<double> bundles_f64;         \
  double fma_chains_f32(std::ptrdiff_t steps, float*);  \
  double fma_chains_f64(std::ptrdiff_t steps, double*); \
  }
#define NATGRAD_KERNELS_OF(ns)                                                         \
  &ns::table_f32, &ns::table_f64, &ns::adjoints_f32, &ns::adjoints_f64, &ns::rows_f32, \
      &ns::rows_f64, &ns::bundles_f32, &ns::bundles_f64, &ns::fma_chains_f32, &ns::fma_chains_f64

#if defined(__x86_64__)
NATGRAD_DECLARE_LEVEL(x86_v2)
NATGRAD_DECLARE_LEVEL(x86_v3)
NATGRAD_DECLARE_LEVEL(x86_v4)

// Best first. The compiler's run-time library also asks the operating system whether it saves the
// wide registers.
static const Level levels[] = {
    {"v4",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma");
     },
     NATGRAD_KERNELS_OF(x86_v4)},
    {"v3",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
     },
     NATGRAD_KERNELS_OF(x86_v3)},
    {"baseline", [] { return true; }, NATGRAD_KERNELS_OF(x86_v2)},
};
#else
NATGRAD_DECLARE_LEVEL(native)
static const Level levels[] = {{"baseline", [] { return true; }, NATGRAD_KERNELS_OF(native)}};
#endif

static const Level& choose() {
  const char* wanted = std::getenv("NATGRAD_ISA");
  std::string names;
  for (const Level& candidate : levels) {
    const bool supported = candidate.supported();
    if (wanted == nullptr || *wanted == '\0') {
      if (supported) return candidate;
    } else if (std::string(candidate.name) == wanted) {
      if (supported) return candidate;
      throw std::runtime_error(std::string("NATGRAD_ISA=") + wanted +
                               ": this machine does not have that instruction set level");
    }
    names += (names.empty() ? "" : ", ") + std::string(candidate.name);
  }
  throw std::runtime_error(std::string("NATGRAD_ISA=") + wanted + ": unknown level; want one of " +
                           names);
}

const Level& level() {
  static const Level& chosen = choose();
  return chosen;
}

}  // namespace natgrad::kernels
