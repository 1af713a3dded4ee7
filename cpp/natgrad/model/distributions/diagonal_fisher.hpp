// Fisher information that is diagonal, M = diag(s) with the root Q = diag(sqrt(s)): what distributions
// of independent variables with uncorrelated parameters have in common.
#pragma once

#include <algorithm>
#include <cmath>

#include "natgrad/base/types.hpp"

namespace natgrad::diagonal_fisher {

// out = scale M u, all of `size` values
template <class T>
void product(const T* s, Index size, const T* u, double scale, T* out) {
  for (Index i = 0; i < size; ++i) out[i] = static_cast<T>(scale) * s[i] * u[i];
}

// out = scale Q z with z(0) .. z(size - 1)
template <class T, class Z>
void root_product(const T* s, Index size, Z z, double scale, T* out) {
  for (Index i = 0; i < size; ++i) {
    out[i] = static_cast<T>(scale * z(i) * std::sqrt(static_cast<double>(s[i])));
  }
}

// out = scale times a column of Q
template <class T>
void root_column(const T* s, Index size, Index column, double scale, T* out) {
  std::fill_n(out, size, T(0));
  out[column] = static_cast<T>(scale * std::sqrt(static_cast<double>(s[column])));
}

}  // namespace natgrad::diagonal_fisher
