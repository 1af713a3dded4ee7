// The functions of vector_math.hpp on arrays, compiled once per instruction set level with the flags
// of the kernels, for test_vector_math.cpp.
#pragma once

#include <cstddef>

namespace natgrad_test {

template <class T>
struct Function {
  const char* name;
  void (*apply)(const T* x, T* y,
                std::ptrdiff_t count);  // count is a whole number of 64-byte lanes
};

inline constexpr int kFunctions = 14;

template <class T>
struct Functions {
  Function<T> list[kFunctions];
};

}  // namespace natgrad_test
