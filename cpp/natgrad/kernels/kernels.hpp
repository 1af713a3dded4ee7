// The kernels: everything that costs O(N P), or that is done to each row of a batch, as plain functions
// on raw pointers. One table of them, Kernels<T>, exists for each instruction set level.
//
// The expensive ones are three products:
//
//   multiply          C = epilogue(A B + A2 B2 + bias)   a layer: forward, forward mode, reverse mode
//   multiply_narrow   the same for a few columns         the outputs
//   accumulate        G += D' H                          the gradient of a layer's weights
//
// The translation units behind a table are compiled once for each level, with that level's flags. They
// hold raw pointers and arithmetic only (no Eigen, no std templates, no static initialisers): the linker
// merges inline functions of the same name, and an AVX-512 copy of one would then run on a machine
// without AVX-512.
//
// Alignment and padding: a *line* is 64 bytes, one AVX-512 register. The library's own buffers start on
// a line and are padded to whole lines, and kernels read and write that far. Observations and actions
// come from outside, and nothing beyond them is read.
//
// Naming: `ldx` is the stride of x, in elements from row to row. `overwrite` writes a sum where the
// kernel would otherwise add to what is there.
#pragma once

#include "natgrad/base/index.hpp"

namespace natgrad::kernels {

enum class Activation { tanh, relu, elu, silu, gelu, identity };

// True where act'(z) is a function of act(z) alone; otherwise the forward pass stores it.
constexpr bool slope_follows_from_value(Activation activation) {
  return activation != Activation::silu && activation != Activation::gelu;
}

// What multiply does with the finished sums `acc`.
enum class Epilogue {
  none,      // C = acc
  activate,  // C = act(acc), and slope = act'(acc) where the value does not determine it
  derive,    // C = acc * act'(z), from the cached value act(z) or the cached slope
  dot,  // dot products of the rows of acc with cached adjoints; C holds partial sums, or nothing
};

// Cached adjoints d: row r of x belongs to the rows r * columns to (r + 1) * columns of d, and the
// coefficients are s[r][k] = <d[r * columns + k], x[r]>.
template <class T>
struct Adjoints {
  Index rows, columns;
  const T* d;  // (rows * columns, width), stride ldd
  Index ldd, width;
  T* s;  // (rows, columns)
  T* x;  // (rows, width), stride ldx
  Index ldx;
  bool overwrite;  // dot products: s = instead of s +=
};

// B operands are packed in panels. The columns are cut into panels of Kernels::panel columns, a whole
// number of the widest blocks of the level. The last panel is narrower, but a whole number of lines.
// Within a panel the k rows follow each other.
//
//        n (padded to lines)
//      +--------+--------+----+
//    k | panel0 | panel1 | p2 |     panel p starts at b + k * (columns before it)
//      +--------+--------+----+

// Products of at most this many columns (half a line) may go to multiply_narrow. Its B operands are
// packed as B' : (n, k padded to lines) in panels of kNarrowPanel columns, its n is the true number of
// columns, and it writes the whole line of C, as if B were padded with zeros.
template <class T>
inline constexpr Index kNarrow = 32 / static_cast<Index>(sizeof(T));
template <class T>
inline constexpr Index kNarrowPanel = 256 / static_cast<Index>(sizeof(T));

template <class T>
struct Multiply {
  Index rows;
  const T* a;  // (rows, k), stride lda
  Index lda, k;
  const T* b;   // (k, n) packed
  const T* a2;  // (rows, k2), stride lda2; k2 = 0 leaves the second product out
  Index lda2, k2;
  const T* b2;    // (k2, n) packed
  const T* bias;  // (n) or null
  T* c;           // (rows, n), stride ldc
  Index ldc, n;   // n is a whole number of lines
  Epilogue epilogue;
  Activation activation;
  T* slope;                 // activate: act'(z), written where the value does not determine it
  const T* cached;          // derive: act(z), or act'(z) where the value does not determine it
  Index ldcached;           // stride of slope and of cached
  const Adjoints<T>* dots;  // dot: s[r][k] += <d[r * columns + k], acc[r]>; its x is not used
  bool a_streams;           // A is read tile after tile: the rows after these come next
};

template <class T>
struct Accumulate {
  Index rows;
  const T* d;  // (rows, out), stride ldd
  Index ldd, out;
  const T* h;  // (rows, in), stride ldh; readable up to ldg columns
  Index ldh, in;
  T* g;  // (out, in), stride ldg; the padding of the columns is written too
  Index ldg;
  bool overwrite;  // G = D' H
};

// C += A B', the inner products of the rows of A and of B. Both are zero from column k to the next
// whole line.
template <class T>
struct InnerProducts {
  const T* a;  // (rows_a, k), stride lda
  Index rows_a, lda;
  const T* b;  // (rows_b, k), stride ldb
  Index rows_b, ldb, k;
  T* c;  // (rows_a, rows_b), stride ldc
  Index ldc;
  bool overwrite;  // C = A B'
};

// One random variable in each row: its parameters y and the action taken. It is categorical (n logits;
// an action is a number from 0 to n - 1), or a Gaussian of n dimensions (n means) with the same standard
// deviations in all rows.
template <class T>
struct VariableRows {
  Index rows, n;
  const T* y;
  Index ldy;
  const T* action;
  Index ldaction;
  const double* inverse_std;  // (n) of a Gaussian
};

// The rows of a linear Gaussian policy in bundles: a line of rows, column by column; see bundles.cpp.
// The rows that the last bundle lacks are zero.
template <class T>
struct Residuals {
  Index rows, n;              // n columns
  T* e;                       // bundles of a - mu
  const double* inverse_std;  // (n)
  double* distances;          // (rows): sum_o (e_o / sigma_o)^2
};

// All kernels of one level. Kernels on rows compute in double whatever T is, and add up over the rows in
// an order that depends on the level alone.
template <class T>
struct Kernels {
  // --- products: multiply.cpp, narrow.cpp, accumulate.cpp ---

  Index panel;  // columns of a packed panel
  void (*multiply)(const Multiply<T>&);
  void (*multiply_narrow)(const Multiply<T>&);
  void (*accumulate)(const Accumulate<T>&);
  // sums[c] += sum_r d[r][c]; d and sums are padded to whole lines.
  void (*column_sums)(const T* d, Index rows, Index ldd, Index columns, bool overwrite, T* sums);
  // sums[c] = sum_s shards[s * stride + c] for s < count, in this order and in double; shards are
  // padded to whole lines.
  void (*sum_shards)(const T* shards, Index count, Index stride, Index columns, double* sums);

  // --- cached adjoints: adjoint.cpp ---

  // s[r][k] += <d[r * columns + k], x[r]>
  void (*adjoint_dots)(const Adjoints<T>&);
  // x[r] = sum_k s[r][k] d[r * columns + k] and column_sums[c] += sum_r x[r][c]; both are padded to whole
  // vectors.
  void (*adjoint_sums)(const Adjoints<T>&, bool overwrite, T* column_sums);
  void (*inner_products)(const InnerProducts<T>&);

  // --- rows without a distribution: rows.cpp ---

  // h = (x - mean) * inverse_std, clipped to [-clip, clip], for x (rows, columns); zeros up to ldh.
  void (*normalize)(const T* x, Index ldx, Index rows, Index columns, const double* mean,
                    const double* inverse_std, double clip, T* h, Index ldh);
  // ratios[r] = exp(log_probs[r] - behaviour[r]), stored unless null; returns
  // sum_r (ratios[r] - baseline[r]) weights[r]. A null baseline is zero.
  double (*ratios)(const double* log_probs, const double* behaviour, const double* baseline,
                   const double* weights, Index rows, double* ratios);
  double (*sum_of_roots)(const double* squares, Index rows);
  // out[r][c] = scale[r] s[c] u[r][c]
  void (*diagonal_products)(const T* s, const double* scale, const T* u, Index ldu, Index rows,
                            Index columns, T* out, Index ldout);

  // --- Gaussian rows: gaussian.cpp ---

  // distances[r] = sum_i ((x[r][i] - y[r][i]) / sigma_i)^2, stored unless null; returns their sum.
  double (*gaussian_distances)(const VariableRows<T>&, const T* x, Index ldx, double* distances);
  // out[r] = scale[r] grad log p(action[r]), by the means and then by log sigma; squares[r] += |out[r]|^2.
  void (*gaussian_scores)(const VariableRows<T>&, const double* scale, T* out, Index ldout,
                          double* squares);
  // out[r] = sum_i log((1 - tanh^2 u[r][i]) / 2) for u (rows, n): the slopes of a squashed Gaussian.
  void (*squash_log_slopes)(const T* u, Index ldu, Index rows, Index n, double* out);

  // --- categorical rows: categorical.cpp ---

  // log_probs[r] += log p(action[r]); returns the sum of the entropies.
  double (*categorical_log_probs)(const VariableRows<T>&, double* log_probs);
  // The sum of KL(old || new), with the old logits old_y (rows, n).
  double (*categorical_divergence)(const VariableRows<T>&, const T* old_y, Index ldold);
  // out[r] = scale[r] grad log p(action[r]); squares[r] += |out[r]|^2.
  void (*categorical_scores)(const VariableRows<T>&, const double* scale, T* out, Index ldout,
                             double* squares);
  void (*categorical_probabilities)(const VariableRows<T>&, T* p, Index ldp);
  // out[r] = scale[r] (diag(p) - p p') u[r], with the probabilities p (rows, n).
  void (*categorical_products)(Index rows, Index n, const T* p, Index ldp, const double* scale,
                               const T* u, Index ldu, T* out, Index ldout);

  // --- linear Gaussian policies: bundles.cpp ---

  // x (rows, columns) as bundles, with a column of ones after them if `ones`.
  void (*pack_bundles)(const T* x, Index ldx, Index rows, Index columns, bool ones, T* to);
  // y = h W' for bundles h with `in` columns, bundles y with `out` columns, and w (out, in).
  void (*bundle_products)(Index bundles, const T* h, Index in, const T* w, Index out, T* y);
  // e holds actions: e -= means, and their distances; magnitudes[r] = sum_o |mean_o| / sigma_o^2.
  void (*subtract_means)(const Residuals<T>&, const T* means, double* magnitudes);
  // Distances of e - moves, where e stays as it is. Returns the sum of (move_o / sigma_o)^2 over rows and
  // columns, with standard deviations of its own.
  double (*moved_distances)(const Residuals<T>&, const T* moves,
                            const double* inverse_std_of_moves);
  // d = weights e / sigma^2 as bundles, the scores by the means; by_log_std[o] += sum_r weights[r]
  // ((e_o / sigma_o)^2 - 1); squares[r] of both. Distances are not written.
  void (*residual_scores)(const Residuals<T>&, const double* weights, T* d, double* by_log_std,
                          double* squares);
  // c (m, n) += a' b for bundles with m and n columns; with `upper`, blocks from the diagonal on.
  void (*bundle_column_products)(Index bundles, const T* a, Index m, const T* b, Index n,
                                 bool upper, bool overwrite, T* c, Index ldc);

  // --- the machine: fma_peak.cpp ---

  // Runs independent chains of x = x a + b in registers, `steps` long, starting at *sink. Returns the
  // number of floating-point operations; the sum of the chains goes to *sink.
  double (*fma_chains)(Index steps, T* sink);
};

struct Level {
  const char* name;  // "baseline", "v3", "v4"
  Kernels<float> f32;
  Kernels<double> f64;
};

// The level in use: the best that the machine supports, or the one that NATGRAD_ISA names. It is chosen
// at the first call, which throws std::runtime_error for a name that is unknown or unsupported.
const Level& level();

// The kernels of the level in use.
template <class T>
const Kernels<T>& active();
template <>
inline const Kernels<float>& active<float>() {
  return level().f32;
}
template <>
inline const Kernels<double>& active<double>() {
  return level().f64;
}

}  // namespace natgrad::kernels
