// Gaussian actions whose standard deviations are the same in all rows. Computed in double.
//
// The columns of a row are independent until they are added up. So a vector holds columns of one row, and
// the sums of a strip of rows, as many as a vector has lanes, are folded into one vector.
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/lanes.hpp"
#include "natgrad/kernels/wide.hpp"

namespace NATGRAD_NAMESPACE {
namespace {

template <class T>
double gaussian_distances(const VariableRows<T>& p, const T* x, Index ldx, double* distances) {
  const Index readable = whole_rows(p.rows, p.n, ldx);
  Wide total = {};
  const auto strip = [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    Wide squares[kWideLanes] = {};
    const auto add_columns = [&](Index c) NATGRAD_LAMBDA {
      const IVec<double> inside = first_lanes(p.n - c);
      const Wide inverse_std = load_wide(p.inverse_std + c);
#pragma GCC unroll 8
      for (Index m = 0; m < kWideLanes; ++m) {
        if (!is_whole && m == count) break;
        const T* at = x + (r + m) * ldx + c;
        const bool vectors = is_whole || r + m < readable;
        const Wide apart = (vectors ? load_wide(at) : load_wide<false>(at, p.n - c)) -
                           load_wide(p.y + (r + m) * p.ldy + c);
        const Wide z = only(apart * inverse_std, inside);
        squares[m] += z * z;
      }
    };
    add_columns(0);  // most Gaussians have no more columns
    for (Index c = kWideLanes; c < p.n; c += kWideLanes) add_columns(c);
    const Wide sums = fold_neighbours<double>(squares);
    if (distances != nullptr) store_wide<is_whole>(distances + r, sums, count);
    total += sums;
  };
  for_each_strip(p.rows, readable, strip);
  return sum(total);
}

// A whole vector may pass the end of its row, into rows that are written later.
template <class T>
void gaussian_scores(const VariableRows<T>& p, const double* scale, T* out, Index ldout,
                     double* squares) {
  const Index writable = p.rows - (p.n + padded(p.n) - 1) / ldout;
  const Index readable = whole_rows(p.rows, p.n, p.ldaction);
  const Index safe = readable < writable ? readable : writable;
  const auto strip = [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    Wide sums[kWideLanes] = {};
#pragma GCC unroll 8
    for (Index m = 0; m < kWideLanes; ++m) {
      if (!is_whole && m == count) break;
      const T* y = p.y + (r + m) * p.ldy;
      const T* action = p.action + (r + m) * p.ldaction;
      T* to = out + (r + m) * ldout;
      const bool vectors = is_whole || r + m < safe;
      const auto columns = [&](Index c, bool of_log_std) NATGRAD_LAMBDA {
        const Wide inverse_std = load_wide(p.inverse_std + c);
        const Wide x = vectors ? load_wide(action + c) : load_wide<false>(action + c, p.n - c);
        const Wide z = (x - load_wide(y + c)) * inverse_std;
        const Wide score = of_log_std ? z * z - 1.0 : z * inverse_std;
        const Wide value = only(scale[r + m] * score, first_lanes(p.n - c));
        T* at = to + (of_log_std ? p.n : 0) + c;
        if (vectors) {
          store_wide(at, value);
        } else {
          store_wide<false>(at, value, p.n - c);
        }
        sums[m] += value * value;
      };
      columns(0, false);
      for (Index c = kWideLanes; c < p.n; c += kWideLanes) columns(c, false);
      columns(0, true);
      for (Index c = kWideLanes; c < p.n; c += kWideLanes) columns(c, true);
    }
    store_wide<is_whole>(squares + r,
                         load_wide<is_whole>(squares + r, count) + fold_neighbours<double>(sums),
                         count);
  };
  for_each_strip(p.rows, safe, strip);
}

template <class T>
void squash_log_slopes(const T* u, Index ldu, Index rows, Index n, double* out) {
  for_each_strip(
      rows, whole_rows(rows, n, ldu), [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
        constexpr bool is_whole = decltype(whole)::is;
        constexpr double log_two = 0.69314718055994530942;
        Wide sums[kWideLanes] = {};
        for (Index c = 0; c < n; c += kWideLanes) {
          const IVec<double> inside = first_lanes(n - c);
#pragma GCC unroll 8
          for (Index m = 0; m < kWideLanes; ++m) {
            if (!is_whole && m == count) break;
            const Wide z =
                2.0 * magnitude<double>(load_wide<is_whole>(u + (r + m) * ldu + c, n - c));
            sums[m] += only(log_two - z - 2.0 * log1p<double>(exp<double>(-z)), inside);
          }
        }
        store_wide<is_whole>(out + r, fold_neighbours<double>(sums), count);
      });
}

template <class T>
void diagonal_products(const T* s, const double* scale, const T* u, Index ldu, Index rows,
                       Index columns, T* out, Index ldout) {
  typedef typename Simd<T>::loose Loose;
  for (Index c = 0; c < columns; c += Simd<T>::lanes) {
    const Vec<T> curvature = *(const Loose*)(s + c);
    for (Index r = 0; r < rows; ++r) {
      *(Loose*)(out + r * ldout + c) = (T)scale[r] * curvature * *(const Loose*)(u + r * ldu + c);
    }
  }
}

}  // namespace

template <class T>
void add_gaussian(Kernels<T>* kernels) {
  kernels->gaussian_distances = gaussian_distances<T>;
  kernels->gaussian_scores = gaussian_scores<T>;
  kernels->squash_log_slopes = squash_log_slopes<T>;
  kernels->diagonal_products = diagonal_products<T>;
}
template void add_gaussian(Kernels<float>*);
template void add_gaussian(Kernels<double>*);

}  // namespace NATGRAD_NAMESPACE
