#include "natgrad/solvers/cholesky.hpp"

#include <algorithm>
#include <cmath>

#include "natgrad/base/parallel.hpp"
#include "natgrad/kernels/kernels.hpp"

namespace natgrad {
namespace {

constexpr Index kBlock = 32;  // rows that are factorised at once; the products' depth
constexpr Index kBand = 48;   // rows of what is left that are one task

// U'U = A for one block, by rank-one steps.
bool factorise_block(Matrix<double> a, double least_pivot) {
  for (Index k = 0; k < a.rows; ++k) {
    double* pivot = a.row(k);
    if (!(pivot[k] > least_pivot) || !std::isfinite(pivot[k])) return false;
    const double scale = 1 / std::sqrt(pivot[k]);
    for (Index j = k; j < a.rows; ++j) pivot[j] *= scale;
    for (Index i = k + 1; i < a.rows; ++i) {
      double* row = a.row(i);
      const double factor = pivot[i];
      for (Index j = i; j < a.rows; ++j) row[j] -= factor * pivot[j];
    }
  }
  return true;
}

// inverse = U^-1, upper triangular, with zeros below: row by row from the last, U_kk v_k = e_k - sum.
void invert_block(Matrix<const double> u, Matrix<double> inverse) {
  for (Index k = u.rows; k-- > 0;) {
    double* row = inverse.row(k);
    std::fill_n(row, inverse.columns, 0.0);
    for (Index i = k + 1; i < u.rows; ++i) {
      const double factor = u.row(k)[i];
      for (Index j = i; j < u.rows; ++j) row[j] -= factor * inverse.row(i)[j];
    }
    const double scale = 1 / u.row(k)[k];
    for (Index j = k + 1; j < u.rows; ++j) row[j] *= scale;
    row[k] = scale;
  }
}

}  // namespace

// Golub and Van Loan, "Matrix Computations" (2013), section 4.2.6: the outer product form by blocks.
//
//   | A11 A12 |    U11'U11 = A11,  U12 = U11^-T A12,  and on with A22 - U12'U12
//   |     A22 |
bool cholesky(Matrix<double> a, double least_pivot, CholeskyScratch* scratch) {
  const Index n = a.rows;
  scratch->panel.resize(kBlock * a.stride);
  scratch->corner.resize(kBlock * kBlock);
  const auto& accumulate = kernels::active<double>().accumulate;
  for (Index k = 0; k < n; k += kBlock) {
    const Index height = std::min(kBlock, n - k), next = k + height, rest = n - next;
    const Matrix<double> corner{a.row(k) + k, height, height, a.stride};
    if (!factorise_block(corner, least_pivot)) return false;
    if (rest == 0) break;
    const Matrix<double> inverse{scratch->corner.data(), height, height, kBlock};
    invert_block(corner, inverse);

    // A12 is moved aside, U12 takes its place, and then -U12 is put aside.
    const Matrix<double> right{a.row(k) + next, height, rest, a.stride};
    const Matrix<double> aside{scratch->panel.data(), height, rest, a.stride};
    for (Index r = 0; r < height; ++r) std::copy_n(right.row(r), rest, aside.row(r));
    accumulate({height, inverse.data, inverse.stride, height, aside.data, aside.stride, rest,
                right.data, right.stride, true});
    for (Index r = 0; r < height; ++r) {
      for (Index j = 0; j < rest; ++j) aside.row(r)[j] = -right.row(r)[j];
    }
    const Index bands = (rest + kBand - 1) / kBand;
    parallel_for(static_cast<int>(bands), [&](int band, int) {
      const Index from = band * kBand, rows = std::min(kBand, rest - from);
      accumulate({height, aside.data + from, aside.stride, rows, right.data + from, right.stride,
                  rest - from, a.row(next + from) + next + from, a.stride, false});
    });
  }
  return true;
}

void cholesky_solve(Matrix<const double> u, double* x) {
  for (Index k = 0; k < u.rows; ++k) {
    const double* row = u.row(k);
    const double value = x[k] /= row[k];
    for (Index j = k + 1; j < u.rows; ++j) x[j] -= value * row[j];
  }
  for (Index k = u.rows; k-- > 0;) {
    const double* row = u.row(k);
    double sums[4] = {};
    Index j = k + 1;
    for (; j + 4 <= u.rows; j += 4) {
      for (Index i = 0; i < 4; ++i) sums[i] += row[j + i] * x[j + i];
    }
    for (; j < u.rows; ++j) sums[0] += row[j] * x[j];
    x[k] = (x[k] - ((sums[0] + sums[1]) + (sums[2] + sums[3]))) / row[k];
  }
}

}  // namespace natgrad
