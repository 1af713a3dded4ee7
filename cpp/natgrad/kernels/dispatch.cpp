#include <cstdlib>
#include <stdexcept>
#include <string>

#include "natgrad/kernels/kernels.hpp"

namespace natgrad::kernels {
namespace {

struct Candidate {
  const char* name;
  bool (*supported)();
  Kernels<float> (*collect_f32)();
  Kernels<double> (*collect_f64)();
};

}  // namespace

#define NATGRAD_DECLARE_LEVEL(level) \
  namespace level {                  \
  template <class T>                 \
  Kernels<T> collect();              \
  }

#if defined(__x86_64__)
NATGRAD_DECLARE_LEVEL(x86_v2)
NATGRAD_DECLARE_LEVEL(x86_v3)
NATGRAD_DECLARE_LEVEL(x86_v4)

// Best first. The compiler's run-time library also asks the operating system whether it saves the
// wide registers.
static constexpr Candidate candidates[] = {
    {"v4",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma");
     },
     x86_v4::collect<float>, x86_v4::collect<double>},
    {"v3",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
     },
     x86_v3::collect<float>, x86_v3::collect<double>},
    {"baseline", [] { return true; }, x86_v2::collect<float>, x86_v2::collect<double>},
};
#else
NATGRAD_DECLARE_LEVEL(native)
static constexpr Candidate candidates[] = {
    {"baseline", [] { return true; }, native::collect<float>, native::collect<double>}};
#endif

static const Candidate& choose() {
  const char* wanted = std::getenv("NATGRAD_ISA");
  std::string names;
  for (const Candidate& candidate : candidates) {
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
  static const Level chosen = [] {
    const Candidate& best = choose();
    return Level{best.name, best.collect_f32(), best.collect_f64()};
  }();
  return chosen;
}

}  // namespace natgrad::kernels
