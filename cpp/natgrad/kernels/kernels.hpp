// The dense-layer kernels, one table of plain function pointers per instruction set.
//
// Everything that costs O(N P) in natgrad is one of three products:
//
//   multiply          C = epilogue(A B + A2 B2 + bias)   a layer: forward, forward mode, reverse mode
//   multiply_narrow   the same for a few columns         the outputs
//   accumulate        G += D' H                          the gradient of a layer's weights
//
// What is done with cached adjoints besides, and row by row at both ends of the network, has tables of
// its own.
//
// The translation units behind the tables are compiled once per level with that level's flags. They
// hold raw pointers only (no Eigen, no std templates, no static initialisers): the linker merges
// inline functions across levels, and an AVX-512 copy of one would then run on a machine without it.
#pragma once

#include <cstddef>

namespace natgrad::kernels {

enum class Activation { tanh, relu, elu, silu, gelu, identity };

// True where act'(z) is a function of act(z) alone; otherwise the forward pass stores it.
constexpr bool slope_follows_from_value(Activation activation) {
  return activation != Activation::silu && activation != Activation::gelu;
}

enum class Epilogue {
  none,      // C = acc
  activate,  // C = act(acc), and slope = act'(acc) where the value does not determine it
  derive,    // C = acc * act'(z), from the cached value act(z) or the cached slope
  dot,       // rows of acc times cached adjoints; C holds partial sums, or nothing
};

// Row r of x and the rows r * columns, ... of d, its adjoints, on their way into and out of the
// coefficients s = <adjoint, direction>.
template <class T>
struct Adjoints {
  std::ptrdiff_t rows, columns;
  const T* d;  // (rows * columns, width), stride ldd
  std::ptrdiff_t ldd, width;
  T* s;  // (rows, columns)
  T* x;  // (rows, width), stride ldx
  std::ptrdiff_t ldx;
  bool overwrite;  // dots: s = instead of s +=
};

// B operands are packed in panels: the columns are cut into panels of Table::panel, a whole number of the
// widest blocks of the level, the last one narrower but a whole number of 64-byte lanes; within a panel
// the k rows follow each other.
//
//        n (padded to lanes)
//      +--------+--------+----+
//    k | panel0 | panel1 | p2 |     panel p starts at b + k * (columns before it)
//      +--------+--------+----+

// Products of at most this many columns (half of a 64-byte lane) may go to multiply_narrow. Its B
// operands are packed as B' : (n, k padded to lanes) in panels of kNarrowPanel columns, its n is the
// true number of columns, and it writes the whole lane of C, as if B were padded with zeros.
template <class T>
inline constexpr std::ptrdiff_t kNarrow = 32 / static_cast<std::ptrdiff_t>(sizeof(T));
template <class T>
inline constexpr std::ptrdiff_t kNarrowPanel = 256 / static_cast<std::ptrdiff_t>(sizeof(T));

template <class T>
struct Multiply {
  std::ptrdiff_t rows;
  const T* a;  // (rows, k), stride lda
  std::ptrdiff_t lda, k;
  const T* b;   // (k, n) packed
  const T* a2;  // (rows, k2), stride lda2; k2 = 0 leaves it out
  std::ptrdiff_t lda2, k2;
  const T* b2;            // (k2, n) packed
  const T* bias;          // (n) or null
  T* c;                   // (rows, n), stride ldc
  std::ptrdiff_t ldc, n;  // n is a whole number of 64-byte lanes
  Epilogue epilogue;
  Activation activation;
  T* slope;                 // activate: act'(z), written where the value does not determine it
  const T* cached;          // derive: act(z), or act'(z) where the value does not determine it
  std::ptrdiff_t ldcached;  // stride of slope and of cached
  const Adjoints<T>* dots;  // dot: s[r][k] += d[r columns + k] . acc[r]; its x is not used
  bool a_streams;           // A is read tile after tile: the rows after these come next
};

template <class T>
struct Accumulate {
  std::ptrdiff_t rows;
  const T* d;  // (rows, out), stride ldd
  std::ptrdiff_t ldd, out;
  const T* h;  // (rows, in), stride ldh; readable up to ldg columns
  std::ptrdiff_t ldh, in;
  T* g;  // (out, in), stride ldg, padded columns are written too
  std::ptrdiff_t ldg;
  bool overwrite;  // G = D' H instead
};

template <class T>
struct Table {
  std::ptrdiff_t panel;  // columns
  void (*multiply)(const Multiply<T>&);
  void (*multiply_narrow)(const Multiply<T>&);
  void (*accumulate)(const Accumulate<T>&);
  // sums[c] += sum_r d[r][c], or = if `overwrite`; d and sums are padded to whole lanes.
  void (*column_sums)(const T* d, std::ptrdiff_t rows, std::ptrdiff_t ldd, std::ptrdiff_t columns,
                      bool overwrite, T* sums);
  // sums[c] = sum_s shards[s * stride + c] for s < count, in this order and in double; shards are
  // padded to whole lanes.
  void (*sum_shards)(const T* shards, std::ptrdiff_t count, std::ptrdiff_t stride,
                     std::ptrdiff_t columns, double* sums);
};

// Rows of a times rows of b: c += a b'. Both are zero from k on to a whole number of lanes.
template <class T>
struct InnerProducts {
  const T* a;  // (rows_a, k), stride lda
  std::ptrdiff_t rows_a, lda;
  const T* b;  // (rows_b, k), stride ldb
  std::ptrdiff_t rows_b, ldb, k;
  T* c;  // (rows_a, rows_b), stride ldc
  std::ptrdiff_t ldc;
  bool overwrite;  // c = a b' instead
};

template <class T>
struct AdjointTable {
  void (*dots)(const Adjoints<T>&);  // s[r][k] += d[r columns + k] . x[r]
  // x[r] = sum_k s[r][k] d[r columns + k], and column_sums[c] += sum_r x[r][c], or = if `overwrite`;
  // both are padded to whole vectors.
  void (*sums)(const Adjoints<T>&, bool overwrite, T* column_sums);
  void (*inner_products)(const InnerProducts<T>&);
};

// Rows with the parameters y of one categorical variable (n logits; an action is a number from 0 on), or
// of a Gaussian of n dimensions whose standard deviations are the same for all rows (n means).
template <class T>
struct Rows {
  std::ptrdiff_t rows, n;
  const T* y;
  std::ptrdiff_t ldy;
  const T* action;
  std::ptrdiff_t ldaction;
  const double* inverse_std;  // (n) of a Gaussian
};

// What is done row by row: the input of the network, and distributions at its output. All is computed
// in double. Buffers of ours are padded to whole 64-byte lanes and read that far; observations and
// actions may be anybody's. Sums over rows come in an order that depends on the level alone.
template <class T>
struct RowTable {
  // h = (x - mean) * inverse_std within [-clip, clip] for x (rows, columns), and zeros up to ldh.
  void (*normalize)(const T* x, std::ptrdiff_t ldx, std::ptrdiff_t rows, std::ptrdiff_t columns,
                    const double* mean, const double* inverse_std, double clip, T* h,
                    std::ptrdiff_t ldh);
  // ratios[r] = exp(log_probs[r] - behaviour[r]), kept unless null; returns
  // sum_r (ratios[r] - baseline[r]) weights[r]. A null baseline is zero.
  double (*ratios)(const double* log_probs, const double* behaviour, const double* baseline,
                   const double* weights, std::ptrdiff_t rows, double* ratios);
  double (*sum_of_roots)(const double* squares, std::ptrdiff_t rows);

  // distances[r] = sum_i ((x[r][i] - y[r][i]) / sigma_i)^2, kept unless null; returns their sum.
  double (*gaussian_distances)(const Rows<T>&, const T* x, std::ptrdiff_t ldx, double* distances);
  // out[r] = scale[r] grad log p(action[r]), by the means and by log sigma; squares[r] += out[r]^2.
  void (*gaussian_scores)(const Rows<T>&, const double* scale, T* out, std::ptrdiff_t ldout,
                          double* squares);
  // out[r] = sum_i log((1 - tanh^2 u[r][i]) / 2), for u (rows, n): see Bounds.
  void (*log_slopes)(const T* u, std::ptrdiff_t ldu, std::ptrdiff_t rows, std::ptrdiff_t n,
                     double* out);
  // out[r][c] = scale[r] s[c] u[r][c]
  void (*diagonal_products)(const T* s, const double* scale, const T* u, std::ptrdiff_t ldu,
                            std::ptrdiff_t rows, std::ptrdiff_t columns, T* out,
                            std::ptrdiff_t ldout);

  // log_probs[r] += log p(action[r]); returns the sum of the entropies.
  double (*categorical_log_probs)(const Rows<T>&, double* log_probs);
  // Sum of KL(old || new), from old_y (rows, n).
  double (*categorical_divergence)(const Rows<T>&, const T* old_y, std::ptrdiff_t ldold);
  // out[r] = scale[r] grad log p(action[r]); squares[r] += out[r]^2.
  void (*categorical_scores)(const Rows<T>&, const double* scale, T* out, std::ptrdiff_t ldout,
                             double* squares);
  void (*probabilities)(const Rows<T>&, T* p, std::ptrdiff_t ldp);
  // out[r] = scale[r] (diag(p) - p p') u[r], with p (rows, n).
  void (*categorical_products)(std::ptrdiff_t rows, std::ptrdiff_t n, const T* p,
                               std::ptrdiff_t ldp, const double* scale, const T* u,
                               std::ptrdiff_t ldu, T* out, std::ptrdiff_t ldout);
};

// Rows of a linear Gaussian policy in bundles: 64 bytes of rows, column by column; see bundles.cpp. What
// the last bundle has no rows for is zero. Everything else of `rows` has no more than these.
template <class T>
struct Residuals {
  std::ptrdiff_t rows, n;     // columns
  T* e;                       // bundles of a - mu
  const double* inverse_std;  // (n)
  double* distances;          // (rows): sum_o (e_o / sigma_o)^2
};

template <class T>
struct BundleTable {
  // x (rows, columns) as bundles, with a column of ones after them if `ones`.
  void (*pack)(const T* x, std::ptrdiff_t ldx, std::ptrdiff_t rows, std::ptrdiff_t columns,
               bool ones, T* to);
  // y = h W' for bundles h with `in` columns, y with `out`, and w (out, in).
  void (*products)(std::ptrdiff_t bundles, const T* h, std::ptrdiff_t in, const T* w,
                   std::ptrdiff_t out, T* y);
  // Of actions e: e -= means; their distances; magnitudes[r] = sum_o |mean_o| / sigma_o^2.
  void (*leave_residuals)(const Residuals<T>&, const T* means, double* magnitudes);
  // Distances of e - moves, which leaves e as it is; returns the sum of (move_o / sigma_o)^2 over rows
  // and columns, with standard deviations of its own.
  double (*moved_residuals)(const Residuals<T>&, const T* moves,
                            const double* inverse_std_of_moves);
  // d = weights e / sigma^2 as bundles, the scores by the means; by_log_std[o] += sum_r weights[r]
  // ((e_o / sigma_o)^2 - 1); squares[r] of both. Distances are not written.
  void (*residual_scores)(const Residuals<T>&, const double* weights, T* d, double* by_log_std,
                          double* squares);
  // c (m, n) += a' b for bundles with m and n columns; of `upper`, blocks from the diagonal on.
  void (*column_products)(std::ptrdiff_t bundles, const T* a, std::ptrdiff_t m, const T* b,
                          std::ptrdiff_t n, bool upper, bool overwrite, T* c, std::ptrdiff_t ldc);
};

struct Level {
  const char* name;  // "baseline", "v3", "v4"
  bool (*supported)();
  const Table<float>* f32;
  const Table<double>* f64;
  const AdjointTable<float>* adjoints_f32;
  const AdjointTable<double>* adjoints_f64;
  const RowTable<float>* rows_f32;
  const RowTable<double>* rows_f64;
  const BundleTable<float>* bundles_f32;
  const BundleTable<double>* bundles_f64;
  // Runs independent chains of x = x a + b in registers, `steps` long, from *sink on, and returns the
  // number of floating point operations; what they add up to goes back there.
  double (*fma_chains_f32)(std::ptrdiff_t steps, float* sink);
  double (*fma_chains_f64)(std::ptrdiff_t steps, double* sink);
};

// The level in use: the best that the machine supports, or the one that NATGRAD_ISA names.
// Chosen at the first call; throws std::runtime_error for a name that is unknown or unsupported.
const Level& level();

template <class T>
const Table<T>& table();
template <>
inline const Table<float>& table<float>() {
  return *level().f32;
}
template <>
inline const Table<double>& table<double>() {
  return *level().f64;
}

template <class T>
const AdjointTable<T>& adjoint_table();
template <>
inline const AdjointTable<float>& adjoint_table<float>() {
  return *level().adjoints_f32;
}
template <>
inline const AdjointTable<double>& adjoint_table<double>() {
  return *level().adjoints_f64;
}

template <class T>
const RowTable<T>& row_table();
template <>
inline const RowTable<float>& row_table<float>() {
  return *level().rows_f32;
}
template <>
inline const RowTable<double>& row_table<double>() {
  return *level().rows_f64;
}

template <class T>
const BundleTable<T>& bundle_table();
template <>
inline const BundleTable<float>& bundle_table<float>() {
  return *level().bundles_f32;
}
template <>
inline const BundleTable<double>& bundle_table<double>() {
  return *level().bundles_f64;
}

}  // namespace natgrad::kernels
