// A network at one parameter vector on one batch: its activations, and the two products with its Jacobian
// that everything else is made of.
//
//   u_n = J_n v                Jacobian-vector product, forward mode            (eq. 4.1)
//   g   = sum_n J_n' d_n       vector-Jacobian product, reverse mode            (eq. 4.2)
//
// What else is computed from the same passes has files of its own: cached_adjoints.hpp, batch_sums.hpp.
#pragma once

#include "natgrad/model/tiles.hpp"

namespace natgrad {

// Row i of `part` rows that are spaced evenly over `rows`.
inline Index spaced_row(Index i, Index part, Index rows) {
  return i * rows / part;
}

// What a forward pass leaves of a batch, N rows for each layer.
template <class T>
class Activations {
 public:
  void resize(const Network<T>& network, Index rows);
  // Copies evenly spaced rows of another batch into the rows of a tile; `part` of them make up this batch.
  void copy_rows(const Activations& from, const Tile& tile, Index part);

  // h_{l-1}, what layer l reads: (N, in).
  Matrix<T> input(std::size_t l) { return {inputs_[l].data(), rows_, columns_of(l), stride_of(l)}; }
  Matrix<const T> input(std::size_t l) const {
    return {inputs_[l].data(), rows_, columns_of(l), stride_of(l)};
  }
  // act'(z_l) of the layer below layer l, as input(l) is act(z_l); null where it follows from the value.
  T* slope(std::size_t l) { return keeps_slopes_ ? slopes_[l].data() : nullptr; }
  // What act'(z_l) of the layer below layer l is derived from, in rows as those of input(l).
  const T* source_of_slope(std::size_t l) const {
    return keeps_slopes_ ? slopes_[l].data() : inputs_[l].data();
  }
  Matrix<T> outputs() { return {outputs_.data(), rows_, output_columns_, output_stride()}; }
  Matrix<const T> outputs() const {
    return {outputs_.data(), rows_, output_columns_, output_stride()};
  }

 private:
  Index columns_of(std::size_t l) const { return network_->layers()[l].in; }
  Index stride_of(std::size_t l) const { return leading_dimension<T>(columns_of(l)); }
  Index output_stride() const { return leading_dimension<T>(output_columns_); }

  const Network<T>* network_ = nullptr;
  Index rows_ = 0, output_columns_ = 0;
  bool keeps_slopes_ = false;      // silu and gelu
  std::vector<Buffer<T>> inputs_;  // h_0 .. h_{L-1}
  std::vector<Buffer<T>> slopes_;  // none for layer 0, then act'(z_1) .. act'(z_{L-1})
  Buffer<T> outputs_;
};

// Owns activations, accumulators and scratch memory; all of it only grows.
template <class T>
class Linearization {
 public:
  using Worker = typename Tiles<T>::Worker;
  // fill(first row, u (rows, K), d (rows, K), shard) reads u and writes d, tile by tile.
  using Fill = FunctionRef<void(Index first, Matrix<const T> u, Matrix<T> d, int shard)>;
  using Visit = FunctionRef<void(Index first, Matrix<const T> y, int shard)>;

  // Makes room for a batch of `rows`. The network and `packed` must outlive the passes. A part of another
  // batch is cut more finely.
  void attach(const Network<T>& network, const PackedLayers<T>& packed, Index rows,
              bool is_part = false);
  // Attaches, and runs forward; keeps h_l and, for silu and gelu, act'(z_l).
  void evaluate(const Network<T>& network, const PackedLayers<T>& packed,
                Matrix<const T> observations);  // (N, inputs)
  // Attaches `part` rows of another batch, evenly spaced, with their activations.
  void select(const Linearization& all, const PackedLayers<T>& packed, Index part);

  // For the batch that is attached: forward, and each tile backward while it is in cache. gradient =
  // sum_n J_n' d_n, where fill computes the rows d_n from the outputs y_n.
  void evaluate_with_gradient(Matrix<const T> observations, Fill fill, double* gradient);

  // Outputs at other parameters on the same batch, tile by tile, of which nothing is kept.
  void evaluate_at(const PackedLayers<T>& packed, Visit visit);

  // gradient = sum_n J_n' d_n. With a direction v (P) fill gets u_n = J_n v, without one an empty u.
  // Without a gradient fill only reads u.
  void sweep(const double* direction, Fill fill, double* gradient);

  // Pulls d (rows, K) of the rows from `first` on back through all layers: adjoints[l] (rows, out) is the
  // derivative with respect to z_l.
  void adjoints(Index first, Matrix<const T> d, std::vector<Matrix<T>>* adjoints) const;

  const Network<T>& network() const { return *network_; }
  Index rows() const { return tiles_.rows(); }
  int shards() const { return tiles_.shards(); }
  bool has_activations() const { return has_activations_; }
  Matrix<const T> outputs() const { return activations_.outputs(); }  // (N, K)
  // h_{l-1} (N, in)
  Matrix<const T> layer_input(std::size_t l) const { return activations_.input(l); }

  // The steps of these passes, for others over the same batch.
  Tiles<T>& tiles() { return tiles_; }
  GradientSums<T>& gradient_sums() { return gradient_; }
  void set_direction(const double* direction);  // (P)
  // u = dh_{l-1} W_l' + h_{l-1} dW_l' + db_l for a tile, with W and b of the network, dW and db of the
  // direction, and through the epilogue; without dh its term is left out. `dots` is for Epilogue::dot.
  void push_layer(std::size_t l, Index first, Matrix<const T> dh, Matrix<T> u, Epilogue epilogue,
                  const kernels::Adjoints<T>* dots = nullptr) const;
  // d_{l-1} = (d_l W_l) * act'(z_{l-1}) for l > 0 (eq. 4.2). Row i of d belongs to observation
  // first + every i.
  void pull_back(std::size_t l, Index first, Matrix<const T> d, Matrix<T> below,
                 Index every = 1) const;
  // h_{l-1} of a tile.
  Matrix<const T> layer_input(std::size_t l, const Tile& tile) const {
    return layer_input(l).middle_rows(tile.first, tile.rows);
  }

 private:
  Matrix<const T> forward(const Tile& tile, Matrix<const T> observations, Worker* worker);
  Matrix<const T> forward_mode(const Tile& tile, Worker* worker) const;
  void reverse_mode(const Tile& tile, Matrix<T> d, Worker* worker) const;

  const Network<T>* network_ = nullptr;
  const PackedLayers<T>* packed_ = nullptr;
  PackedLayers<T> direction_;
  Tiles<T> tiles_;
  Activations<T> activations_;
  GradientSums<T> gradient_;
  bool has_activations_ = false;
};

}  // namespace natgrad
