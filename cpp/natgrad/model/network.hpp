// The feed-forward network: parameter layout, and passes over whole batches.
//
//   h_0 = input(obs)      normalisation, then optionally random Fourier features; both fixed
//   z_l = W_l h_{l-1} + b_l,  h_l = act(z_l)        l = 1 .. L-1
//   y   = (W_L h_{L-1} + b_L, free)                 outputs, then the free outputs
//
// A free output is a parameter of its own, the same for every observation: the state-independent
// log standard deviation of a Gaussian policy. To every pass it is one more column of y whose bias is
// the parameter and whose weights are zero.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "natgrad/base/types.hpp"
#include "natgrad/kernels/kernels.hpp"

namespace natgrad {

using kernels::Activation;
using kernels::Epilogue;

enum class Initialization { orthogonal, scaled };

struct NetworkSpec {
  Index inputs = 0;           // observation size
  std::vector<Index> hidden;  // widths; empty for a linear policy
  Index outputs = 0;          // outputs computed from the observation
  Index free_outputs = 0;     // outputs that are parameters
  Activation activation = Activation::tanh;
  Index fourier_features = 0;    // 0: none
  double fourier_bandwidth = 1;  // nu of Rajeswaran et al. (2017): sin(P x / nu + phi)
  std::uint64_t seed = 0;        // of the Fourier features and of the initial weights
};

struct Layer {
  Index in, out;
  Index weight;  // offset in theta of W (out, in), row-major
  Index bias;    // offset in theta of b (out)
};

// One (W, b) of each layer as the kernels want them; see kernels.hpp for the panels. The last layer's
// bias is followed by the free outputs.
template <class T>
struct PackedLayers {
  std::vector<Buffer<T>>
      forward;  // W' : (in, out padded) in panels, then the narrow columns' rows of W
  std::vector<Buffer<T>> backward;  // W  : (out, in padded) in panels; empty for a direction
  std::vector<Buffer<T>> bias;      // (out padded)
};

template <class T>
class Network {
 public:
  explicit Network(NetworkSpec spec);

  const NetworkSpec& spec() const { return spec_; }
  const std::vector<Layer>& layers() const { return layers_; }
  Index parameter_count() const { return free_offset_ + spec_.free_outputs; }
  Index free_offset() const { return free_offset_; }
  Index output_columns() const { return spec_.outputs + spec_.free_outputs; }

  // Orthogonal (Saxe et al. 2014): gain sqrt(2) for hidden layers. Scaled (LeCun et al. 1998):
  // normal with variance 1 / fan-in. The last layer is multiplied by output_scale; biases are 0.
  void initialize(T* theta, Initialization kind, double output_scale, double free_value) const;

  // (obs - mean) / std, clipped to [-clip, clip]. Starts as the identity without clipping.
  void set_normalizer(const double* mean, const double* std, double clip);
  const std::vector<double>& normalizer_mean() const { return mean_; }
  const std::vector<double>& normalizer_std() const { return std_; }
  double normalizer_clip() const { return clip_; }

  // The network's input for `observations` (n, inputs) -> h (n, layers()[0].in), padded with zeros.
  // `scratch` holds n * leading_dimension(inputs) values.
  void input(Matrix<const T> observations, Matrix<T> h, T* scratch) const;
  // Whether that is the observations as they are.
  bool input_is_observation() const { return spec_.fourier_features == 0 && !normalizes_; }

  // Rearranges the weights in theta, or a direction of the solver, for the kernels.
  template <class Source>
  void pack(const Source* theta, bool with_backward, PackedLayers<T>* packed) const;

 private:
  NetworkSpec spec_;
  std::vector<Layer> layers_;
  Index free_offset_ = 0;
  std::vector<double> mean_, std_, inverse_std_;
  double clip_;
  bool normalizes_ = false;
  PackedLayers<T> fourier_;  // one layer: P / nu and phi
};

// Sums over a batch that Kronecker factors are made of, for each layer l:
//
//   inputs[l]   = sum_n phi_n phi_n'           (in + 1, in + 1), phi = (h_{l-1}, 1)
//   adjoints[l] = sum_n sum_k d^k_n d^k_n'     (out, out)
//
// over the rows that took part.
struct KroneckerSums {
  std::vector<Buffer<double>> inputs, adjoints;
  Index rows = 0;
};

// Row i of `part` that are spaced evenly over so many.
inline Index spaced_row(Index i, Index part, Index rows) {
  return i * rows / part;
}

// A network at one parameter vector on one batch: cached activations, and the two products with its
// Jacobian that everything else is made of. The batch is cut into shards by its size alone and each
// shard into tiles of rows; a tile goes through all layers while it is in cache.
//
// Owns: inputs, activations (N x widths), one gradient accumulator per shard (shards x P), scratch
// per worker, and cached adjoints where they are asked for. All of it is grow-only.
template <class T>
class Linearization {
 public:
  // Makes room for a batch of so many rows. `packed` must outlive the passes. Shards of a part of a batch
  // are half as large as others, so that threads can share its few rows.
  void attach(const Network<T>& network, const PackedLayers<T>& packed, Index rows,
              bool is_part = false);
  // Attaches, and runs forward; keeps h_l and, for silu and gelu, act'(z_l).
  void evaluate(const Network<T>& network, const PackedLayers<T>& packed,
                Matrix<const T> observations);  // (N, inputs)
  // Attaches `part` rows of another, evenly spaced, with their activations.
  void select(const Linearization& all, const PackedLayers<T>& packed, Index part);
  // Of what is attached: forward, and each tile backward while it is in cache:
  // gradient = sum_n J_n' d_n, with the rows d_n supplied as functions of the outputs y_n:
  // fill(first row, y (rows, K), d (rows, K), shard) writes d.
  void evaluate_with_gradient(
      Matrix<const T> observations,
      FunctionRef<void(Index first, Matrix<const T> y, Matrix<T> d, int shard)> fill,
      double* gradient);

  const Network<T>& network() const { return *network_; }
  bool has_activations() const { return has_activations_; }  // of what is attached
  Index rows() const { return rows_; }
  Matrix<const T> outputs() const;  // (N, outputs + free outputs)

  // Outputs at other parameters on the same batch, tile by tile, nothing kept:
  // visit(first row, y (rows, K), shard). Tiles of a shard are visited in order.
  void evaluate_at(const PackedLayers<T>& packed,
                   FunctionRef<void(Index first, Matrix<const T> y, int shard)> visit);

  // gradient = sum_n J_n' d_n, with the rows d_n supplied tile by tile:
  // fill(first row, u (rows, K), d (rows, K), shard) writes d. With a direction v (parameter_count
  // values), u_n = J_n v; without one u is empty. Without a gradient fill only reads u.
  void sweep(const double* direction,
             FunctionRef<void(Index first, Matrix<const T> u, Matrix<T> d, int shard)> fill,
             double* gradient);

  // Cached adjoints. keep_adjoints pulls `columns` cotangents q^k_n per row back through all layers
  // once; fill(first row, k, d (rows, K)) writes the k-th. Then sweep_adjoints is
  //
  //   gradient = sum_n sum_k s_nk J_n' q^k_n,    s_nk = <J_n' q^k_n, direction>        (eq. 18, 19)
  //
  // with two of the four products of a layer. fill(first row, s (rows, columns)) may change the
  // coefficients; without a direction it writes them, and without a gradient it only reads them.
  // evaluate() drops the adjoints.
  void keep_adjoints(Index columns, FunctionRef<void(Index first, Index column, Matrix<T> d)> fill);
  bool has_adjoints() const { return adjoint_columns_ > 0; }
  Index adjoint_columns() const { return adjoint_columns_; }
  // Those of one column, of the last layer with the free outputs.
  Matrix<T> adjoint_rows(std::size_t layer, Index first, Index rows, Index column);
  void sweep_adjoints(const double* direction, FunctionRef<void(Index first, Matrix<T> s)> fill,
                      double* gradient);

  // sum_n ||J_n' d_n||^2, with the rows d_n supplied tile by tile: fill(first row, d (rows, K)). They
  // are pulled back once; no gradient is formed.
  double squared_gradients(FunctionRef<void(Index first, Matrix<T> d)> fill);

  // gram (in + 1, in + 1) = sum_n weights_n phi_n phi_n' with phi = (h_0, 1), the first layer's input
  // and a one for its bias; null weights are ones.
  void input_gram(const double* weights, double* gram);

  // Pulls `columns` cotangents of about one row in `every` back through all layers, without keeping
  // them: fill(r, every, k, d) writes the k-th of the rows r, r + every, ...
  void kronecker_sums(Index every, Index columns,
                      FunctionRef<void(Index first, Index every, Index column, Matrix<T> d)> fill,
                      KroneckerSums* sums);

  // Adjoints of one tile: d (rows, K) is pulled back through all layers; adjoints[l] (rows, out_l)
  // is the derivative with respect to z_l. For dense matrices and diagonals.
  void adjoints(Index first, Matrix<const T> d, std::vector<Matrix<T>>* adjoints) const;
  Matrix<const T> layer_input(std::size_t layer) const;  // h_{l-1}, (N, in_l)

  int shards() const { return shards_; }

 private:
  Index shard_begin(int shard) const { return shard_begin(shard, shards_); }
  Index shard_begin(int shard, int shards) const;
  struct Worker {
    Buffer<T> ping, pong, outputs, cotangent;
  };

  Matrix<const T> forward(Index first, Matrix<const T> observations, Worker* worker);
  void forward_layer(std::size_t layer, Index first, Matrix<const T> h, Matrix<T> result,
                     const PackedLayers<T>& packed, bool keep_slope, T* scratch_slope) const;
  void forward_product(std::size_t layer, kernels::Multiply<T> p) const;
  void direction_layer(std::size_t layer, Index first, Matrix<const T> dh, Matrix<T> result,
                       Epilogue epilogue, const kernels::Adjoints<T>* dots = nullptr) const;
  Matrix<const T> forward_mode(Index first, Index rows, Worker* worker);
  // Row i of d is that of observation first + every i.
  void pull_back(std::size_t layer, Index first, Matrix<const T> d, Matrix<T> below,
                 Index every = 1) const;
  void accumulate_weights(std::size_t layer, Index first, Matrix<const T> d, bool overwrite,
                          T* accumulator) const;
  void reverse(Index first, Matrix<T> d, bool overwrite, T* accumulator, Worker* worker);
  Index width(std::size_t layer) const;  // of z_l, of the last with the free outputs
  void reduce(double* gradient);
  const Buffer<T>& cached(std::size_t layer) const;  // what act'(z_layer) is derived from
  Matrix<T> scratch(Buffer<T>& buffer, Index rows, Index columns) const;
  void provide_workers();
  template <class F>
  void for_each_tile(F f) {
    for_each_tile(shards_, f);
  }
  template <class F>
  void for_each_tile(int shards, F f);  // f(first, rows, shard, worker)
  template <class F>
  void for_each_tile_of(int shard, int shards, F f) const;  // f(first, rows)

  const Network<T>* network_ = nullptr;
  const PackedLayers<T>* packed_ = nullptr;
  PackedLayers<T> direction_;
  Index rows_ = 0, tile_rows_ = 0, widest_ = 0;
  int shards_ = 0;
  bool has_activations_ = false;
  std::vector<Buffer<T>> activations_;  // h_0 .. h_{L-1}
  std::vector<Buffer<T>> slopes_;       // act'(z_1) .. act'(z_{L-1}), silu and gelu only
  Buffer<T> outputs_;
  Buffer<T> accumulators_;  // (shards, accumulator_size_)
  Buffer<double> shard_sums_;
  Buffer<double> reduced_;  // (workers, widest_): a row of a transposed g_W
  // Of g_W within an accumulator; g_b follows it, and the free outputs' gradient the last g_b. g_W is
  // kept as (out, in) or, where that pads less, as (in, out).
  struct GradientBlock {
    Index offset, bias, stride;
    bool transposed;
  };
  std::vector<GradientBlock> gradient_blocks_;
  Index accumulator_size_ = 0;
  std::vector<Buffer<T>> adjoints_;  // for each layer (N, columns, width)
  Index adjoint_columns_ = 0;
  std::vector<Worker> workers_;
};

}  // namespace natgrad
