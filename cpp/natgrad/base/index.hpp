// The integer that counts rows, columns and strides everywhere. It has a header of its own because the
// kernels may include nothing that defines functions.
#pragma once

#include <cstddef>

namespace natgrad {

using Index = std::ptrdiff_t;

}  // namespace natgrad
