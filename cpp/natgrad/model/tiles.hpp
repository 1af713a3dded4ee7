// How a batch is cut for the threads, and how what they sum is added up. The batch is cut into shards by
// its size alone and each shard into tiles of rows; a tile goes through all layers while it is in cache.
// Each shard has an accumulator of its own, and the accumulators are added in the order of the shards:
// the threads never decide about an order of additions.
#pragma once

#include <vector>

#include "natgrad/base/parallel.hpp"
#include "natgrad/model/network.hpp"

namespace natgrad {

inline constexpr int kMaxShards = 32;

// Rows of one shard. Sums of the shard begin at the tile that opens it.
struct Tile {
  Index first, rows;
  int shard;
  bool opens_shard;
};

template <class T>
class Tiles {
 public:
  // Scratch memory of one thread: each buffer has room for a tile of the widest layer.
  struct Worker {
    Buffer<T> ping, pong, outputs, cotangent;

    // Where layer l writes what layer l + 1 reads, or the other way round.
    Matrix<T> between(std::size_t l, Index rows, Index columns) {
      return matrix(l % 2 == 0 ? ping : pong, rows, columns);
    }
    static Matrix<T> matrix(Buffer<T>& buffer, Index rows, Index columns) {
      return {buffer.data(), rows, columns, leading_dimension<T>(columns)};
    }
  };

  // Cuts a batch of `rows`. The shards of a part of another batch are half as large as others, so that
  // threads can share its few rows.
  void attach(const Network<T>& network, Index rows, bool is_part);

  Index rows() const { return rows_; }
  int shards() const { return shards_; }

  // f(tile, worker) for each tile; the tiles of a shard in their order.
  template <class F>
  void for_each(F f) {
    for_each(shards_, f);
  }
  // The same for a cut into another number of shards.
  template <class F>
  void for_each(int shards, F f) {
    provide_workers();  // the number of threads may have changed since the last pass
    parallel_for(shards, [&](int shard, int worker) {
      for_each_of(shard, shards,
                  [&](const Tile& tile) { f(tile, &workers_[static_cast<std::size_t>(worker)]); });
    });
  }
  // f(tile) for each tile of one shard.
  template <class F>
  void for_each_of(int shard, int shards, F f) const;

  // Memory for `size` values of each shard, its contents undefined. All sums over the batch share it.
  T* accumulators(int shards, Index size) {
    accumulators_.resize(shards * size);
    return accumulators_.data();
  }

 private:
  Index shard_begin(int shard, int shards) const;
  void provide_workers();

  Index rows_ = 0, tile_rows_ = 0;
  Index widest_ = 0;  // values of a row of the widest layer
  int shards_ = 0;
  std::vector<Worker> workers_;
  Buffer<T> accumulators_;
};

// Rows of shards and tiles come in whole register blocks: a multiple of the heights of all kernels' blocks
// but the one of three vectors, which is 8 with AVX-512.
inline constexpr Index kBlockRows = 12;

// The tiles have nearly equal heights, so that the last one is not a sliver.
template <class T>
template <class F>
void Tiles<T>::for_each_of(int shard, int shards, F f) const {
  const Index begin = shard_begin(shard, shards), end = shard_begin(shard + 1, shards);
  Index first = begin;
  for (Index left = (end - first + tile_rows_ - 1) / tile_rows_; first < end; --left) {
    const Index even = round_up((end - first) / left, kBlockRows);
    const Index rows = left > 1 ? std::min(even, end - first) : end - first;
    f(Tile{.first = first, .rows = rows, .shard = shard, .opens_shard = first == begin});
    first += rows;
  }
}

// The gradient of a sum over the batch, for all layers: g_W_l = sum d_l' h_{l-1}, g_b_l = colsum(d_l)
// (eq. 4.2), tile by tile in the accumulator of each shard and at last over the shards.
template <class T>
class GradientSums {
 public:
  void attach(const Network<T>& network);

  // Begins a gradient in the accumulators of `tiles`.
  void begin(Tiles<T>* tiles);
  // Adds d_l' h_{l-1} for a tile: d (rows, out), h (rows, in).
  void add_weights(std::size_t l, const Tile& tile, Matrix<const T> d, Matrix<const T> h) const;
  // Adds colsum(d_l); the free outputs are a part of the last layer's d.
  void add_biases(std::size_t l, const Tile& tile, Matrix<const T> d) const;
  // The sum for the biases of a layer, padded, for a kernel that makes it beside other things.
  T* biases(std::size_t l, const Tile& tile) const {
    return accumulator(tile.shard) + blocks_[l].bias;
  }
  // gradient (P) = the sum over the shards, in their order.
  void finish(double* gradient);

 private:
  // Where g_W of a layer is within an accumulator; g_b comes after it, and the free outputs' gradient after
  // the last g_b. g_W is kept as (out, in) or, where that needs less padding, as (in, out).
  struct Block {
    Index offset, bias, stride;
    bool transposed;
  };
  T* accumulator(int shard) const { return accumulators_ + shard * size_; }

  const Network<T>* network_ = nullptr;
  std::vector<Block> blocks_;
  Index size_ = 0, widest_ = 0;
  T* accumulators_ = nullptr;  // (shards, size_), memory of the tiles
  int shards_ = 0;
  Buffer<double> rows_;  // (threads, widest_): a row of a transposed g_W
};

}  // namespace natgrad
