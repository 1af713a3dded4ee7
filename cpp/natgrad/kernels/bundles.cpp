// A linear Gaussian policy on bundles of rows. A bundle is a line of rows, kept column by column:
//
//                 column 0       column 1             column n-1
//   bundle 0   | rows 0 .. 15 | rows 0 .. 15 | ... | rows 0 .. 15 |      of float; 8 rows of double
//   bundle 1   | rows 16 .. 31 | ...
//
// A layer as narrow as 17 -> 6 does not fill a vector with columns, but always with rows. Then sums over
// columns need no addition across lanes, sums over rows need one for each tile, and nothing is padding.
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/lanes.hpp"
#include "natgrad/kernels/wide.hpp"

namespace NATGRAD_NAMESPACE {
namespace {

template <class T>
constexpr Index kRows = 64 / sizeof(T);  // of a bundle; a column of it has kLineVectors vectors

// Where vector q of the first column begins.
template <class T>
NATGRAD_INLINE Index vector_at(Index q, Index columns) {
  return q / kLineVectors * columns * kRows<T> + q % kLineVectors * Simd<T>::lanes;
}
// Where row r of the first column is.
template <class T>
NATGRAD_INLINE Index rows_at(Index r, Index columns) {
  return r / kRows<T> * columns * kRows<T> + r % kRows<T>;
}

// --- pack ----------------------------------------------------------------------------------------

// Exchanges `bit` and the bits below it between the numbers of the vectors and those of their lanes.
template <class T, int N, int bit>
NATGRAD_INLINE void exchange(Vec<T>* v) {
  constexpr int lanes = Simd<T>::lanes;
  IVec<T> low, high;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) {
    low[i] = i & bit ? lanes + (i ^ bit) : i;
    high[i] = i & bit ? lanes + i : i ^ bit;
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    if (i & bit) continue;
    const Vec<T> x = v[i], y = v[i | bit];
    v[i] = pick<T>(x, y, low);
    v[i | bit] = pick<T>(x, y, high);
  }
  if constexpr (bit > 1) exchange<T, N, bit / 2>(v);
}

// As many rows as a vector has lanes, eight columns at a time. Where there are 16 lanes, the second half of
// a vector is eight rows further down.
template <class T>
NATGRAD_INLINE void transpose(const T* x, Index ldx, Index columns, T* to) {
  constexpr int lanes = Simd<T>::lanes, N = lanes < 8 ? lanes : 8;
  IVec<T> halves;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) halves[i] = i < N ? i : lanes + i - N;
  for (Index c = 0; c < columns; c += N) {
    Vec<T> v[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      v[i] = load<T>(x + i * ldx + c);
      if constexpr (lanes > N) v[i] = pick<T>(v[i], load<T>(x + (i + N) * ldx + c), halves);
    }
    exchange<T, N, N / 2>(v);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      if (c + i < columns) store<T>(to + (c + i) * kRows<T>, v[i]);
    }
  }
}

template <class T>
void pack_bundles(const T* x, Index ldx, Index rows, Index columns, bool ones, T* to) {
  constexpr Index lanes = Simd<T>::lanes, N = lanes < 8 ? lanes : 8;
  const Index read = (columns - 1) / N * N + lanes;  // of a row, from its beginning
  const Index readable = rows - (read - columns + ldx - 1) / ldx;
  const Index width = columns + (ones ? 1 : 0);
  for (Index r = 0; r < rows; r += kRows<T>, to += width * kRows<T>) {
    const T* from = x + r * ldx;
    if (r + kRows<T> <= readable) {
      for (Index i = 0; i < kRows<T>; i += lanes) {
        transpose<T>(from + i * ldx, ldx, columns, to + i);
      }
    } else {
      for (Index c = 0; c < columns; ++c) {
        for (Index i = 0; i < kRows<T>; ++i) {
          to[c * kRows<T> + i] = r + i < rows ? from[i * ldx + c] : T(0);
        }
      }
    }
    for (Index i = 0; ones && i < kRows<T>; ++i) {
      to[columns * kRows<T> + i] = r + i < rows ? T(1) : T(0);
    }
  }
}

// --- products ------------------------------------------------------------------------------------

constexpr int kTogether = NATGRAD_VECTOR_BYTES == 64 ? 4 : 2;  // vectors of a block

// V vectors of rows from number q on, O columns from o on. The last column of the input, of ones, comes
// first: the sums then equal to the last bit those of `multiply`, which starts with the bias.
template <class T, int V, int O>
NATGRAD_INLINE void product_block(const T* h, Index in, const T* w, Index out, T* y, Index q,
                                  Index o) {
  const T* from[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) from[v] = h + vector_at<T>(q + v, in);
  w += o * in;
  Vec<T> acc[O][V] = {};
  const auto step = [&](Index c) NATGRAD_LAMBDA {
    Vec<T> x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = load<T>(from[v] + c * kRows<T>);
#pragma GCC unroll 4
    for (int i = 0; i < O; ++i) {
      const T scalar = w[i * in + c];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[i][v] += scalar * x[v];
    }
  };
  step(in - 1);
  for (Index c = 0; c + 1 < in; ++c) step(c);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    T* to = y + vector_at<T>(q + v, out) + o * kRows<T>;
#pragma GCC unroll 4
    for (int i = 0; i < O; ++i) store<T>(to + i * kRows<T>, acc[i][v]);
  }
}

template <class T, int V>
NATGRAD_INLINE void product_rows(const T* h, Index in, const T* w, Index out, T* y, Index q) {
  Index o = 0;
  for (; o + 4 <= out; o += 4) product_block<T, V, 4>(h, in, w, out, y, q, o);
  if (o + 3 == out) return product_block<T, V, 3>(h, in, w, out, y, q, o);
  if (o + 2 == out) return product_block<T, V, 2>(h, in, w, out, y, q, o);
  if (o < out) product_block<T, V, 1>(h, in, w, out, y, q, o);
}

template <class T>
void bundle_products(Index bundles, const T* h, Index in, const T* w, Index out, T* y) {
  const Index count = bundles * kLineVectors;
  Index q = 0;
  for (; q + kTogether <= count; q += kTogether) product_rows<T, kTogether>(h, in, w, out, y, q);
  for (; q < count; ++q) product_rows<T, 1>(h, in, w, out, y, q);
}

// --- residuals -----------------------------------------------------------------------------------

template <class T>
void subtract_means(const Residuals<T>& p, const T* means, double* magnitudes) {
  for_each_strip(p.rows, p.rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    T* at = p.e + rows_at<T>(r, p.n);
    const T* mean_at = means + rows_at<T>(r, p.n);
    Wide squares = {}, magnitude_sum = {};
    for (Index o = 0; o < p.n; ++o, at += kRows<T>, mean_at += kRows<T>) {
      const Wide mean = load_wide(mean_at);
      store_wide(at, load_wide(at) - mean);
      const Wide z = load_wide(at) * p.inverse_std[o];
      squares += z * z;
      magnitude_sum += p.inverse_std[o] * p.inverse_std[o] * magnitude<double>(mean);
    }
    store_wide<is_whole>(p.distances + r, squares, count);
    store_wide<is_whole>(magnitudes + r, magnitude_sum, count);
  });
}

template <class T>
double moved_distances(const Residuals<T>& p, const T* moves, const double* inverse_std_of_moves) {
  Wide total = {};
  for_each_strip(p.rows, p.rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    const T* at = p.e + rows_at<T>(r, p.n);
    const T* move_at = moves + rows_at<T>(r, p.n);
    Wide squares = {};
    for (Index o = 0; o < p.n; ++o, at += kRows<T>, move_at += kRows<T>) {
      const Wide move = load_wide(move_at), z = (load_wide(at) - move) * p.inverse_std[o];
      const Wide moved = move * inverse_std_of_moves[o];
      squares += z * z;
      total += moved * moved;
    }
    store_wide<decltype(whole)::is>(p.distances + r, squares, count);
  });
  return sum(total);
}

template <class T>
void residual_scores(const Residuals<T>& p, const double* weights, T* d, double* by_log_std,
                     double* squares) {
  for (Index o = 0; o < p.n; ++o) {
    Wide total = {};
    for_each_strip(p.rows, p.rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
      constexpr bool is_whole = decltype(whole)::is;
      const Index at = rows_at<T>(r, p.n) + o * kRows<T>;
      const Wide weight = load_wide<is_whole>(weights + r, count);
      const Wide z = load_wide(p.e + at) * p.inverse_std[o];
      const Wide by_mean = weight * z * p.inverse_std[o], along = weight * (z * z - 1.0);
      store_wide(d + at, by_mean);
      total += along;
      const Wide before = o > 0 ? load_wide<is_whole>(squares + r, count) : Wide{};
      store_wide<is_whole>(squares + r, before + by_mean * by_mean + along * along, count);
    });
    by_log_std[o] += sum(total);
  }
}

// --- sums of products ----------------------------------------------------------------------------

// M columns of a from i on and O columns of b from j on; lanes are added up once for each sum.
template <class T, int M, int O>
NATGRAD_INLINE void sum_block(Index bundles, const T* a, Index m, const T* b, Index n, Index i,
                              Index j, bool overwrite, T* c, Index ldc) {
  Vec<T> acc[M][O] = {};
  a += i * kRows<T>;
  b += j * kRows<T>;
  for (Index q = 0; q < bundles * kLineVectors; ++q) {
    const T *from_a = a + vector_at<T>(q, m), *from_b = b + vector_at<T>(q, n);
    Vec<T> row[O];
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o) row[o] = load<T>(from_b + o * kRows<T>);
#pragma GCC unroll 4
    for (int k = 0; k < M; ++k) {
      const Vec<T> x = load<T>(from_a + k * kRows<T>);
#pragma GCC unroll 4
      for (int o = 0; o < O; ++o) acc[k][o] += x * row[o];
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < M; ++k) {
    const Vec<T> sums = lane_sums<T, O>(acc[k]);
    T* to = c + (i + k) * ldc + j;
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o) to[o] = overwrite ? sums[o] : to[o] + sums[o];
  }
}

template <class T, int M>
NATGRAD_INLINE void sum_rows(Index bundles, const T* a, Index m, const T* b, Index n, Index i,
                             Index j, bool overwrite, T* c, Index ldc) {
  constexpr int O = Simd<T>::lanes < 4 ? Simd<T>::lanes : 4;
  for (; j + O <= n; j += O) {
    sum_block<T, M, O>(bundles, a, m, b, n, i, j, overwrite, c, ldc);
  }
  if constexpr (O == 4) {
    if (j + 3 == n) return sum_block<T, M, 3>(bundles, a, m, b, n, i, j, overwrite, c, ldc);
    if (j + 2 == n) return sum_block<T, M, 2>(bundles, a, m, b, n, i, j, overwrite, c, ldc);
  }
  if (j < n) sum_block<T, M, 1>(bundles, a, m, b, n, i, j, overwrite, c, ldc);
}

template <class T>
void bundle_column_products(Index bundles, const T* a, Index m, const T* b, Index n, bool upper,
                            bool overwrite, T* c, Index ldc) {
  constexpr int M = NATGRAD_VECTOR_BYTES == 64 ? 4 : 2;
  Index i = 0;
  for (; i + M <= m; i += M) {
    sum_rows<T, M>(bundles, a, m, b, n, i, upper ? i : 0, overwrite, c, ldc);
  }
  if constexpr (M == 4) {
    if (i + 3 == m) {
      return sum_rows<T, 3>(bundles, a, m, b, n, i, upper ? i : 0, overwrite, c, ldc);
    }
    if (i + 2 == m) {
      return sum_rows<T, 2>(bundles, a, m, b, n, i, upper ? i : 0, overwrite, c, ldc);
    }
  }
  if (i < m) sum_rows<T, 1>(bundles, a, m, b, n, i, upper ? i : 0, overwrite, c, ldc);
}

}  // namespace

template <class T>
void add_bundles(Kernels<T>* kernels) {
  kernels->pack_bundles = pack_bundles<T>;
  kernels->bundle_products = bundle_products<T>;
  kernels->subtract_means = subtract_means<T>;
  kernels->moved_distances = moved_distances<T>;
  kernels->residual_scores = residual_scores<T>;
  kernels->bundle_column_products = bundle_column_products<T>;
}
template void add_bundles(Kernels<float>*);
template void add_bundles(Kernels<double>*);

}  // namespace NATGRAD_NAMESPACE
