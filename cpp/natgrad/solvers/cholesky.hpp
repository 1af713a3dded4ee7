// The Cholesky factorisation U'U = A of a symmetric positive definite matrix, by blocks: the kernels
// compute their products, on all threads, with the same bits for any number of threads.
#pragma once

#include "natgrad/base/types.hpp"

namespace natgrad {

struct CholeskyScratch {
  Buffer<double> panel, corner;  // a block of rows; an inverted diagonal block
};

// Writes U over the upper triangle of A (n, n), the only part that is read; the rest is overwritten with
// arbitrary values. The stride is that of leading_dimension<double>. False if the square of a pivot is not
// above `least_pivot`: A is then not positive definite, or too inaccurate to tell.
bool cholesky(Matrix<double> a, double least_pivot, CholeskyScratch* scratch);

// x = (U'U)^-1 x, for x (n).
void cholesky_solve(Matrix<const double> u, double* x);

}  // namespace natgrad
