#include "natgrad/model/tiles.hpp"

#include <algorithm>

namespace natgrad {
namespace {

// A shard has enough rows that summing its gradient takes little time beside making it, and more where a
// gradient leaves the second-level cache. There is a power of two of them to share among threads.
constexpr Index kShardRows = 256;
constexpr Index kLargeShardRows = 512;
constexpr Index kLargeGradient = 256 << 10;  // bytes
// Rows of a tile: what it needs of all layers stays in the second-level cache.
constexpr Index kTileRows = 120;
// Bytes of all accumulators from which on threads share their sum, and the bands of rows that they share.
constexpr Index kLargeReduction = 1 << 20;
constexpr int kReductionBands = 16;

}  // namespace

template <class T>
void Tiles<T>::attach(const Network<T>& network, Index rows, bool is_part) {
  rows_ = rows;
  const bool large = network.parameter_count() * static_cast<Index>(sizeof(T)) > kLargeGradient;
  const Index shard_rows = (large ? kLargeShardRows : kShardRows) / (is_part ? 2 : 1);
  shards_ = 1;
  while (2 * shards_ <= kMaxShards && 2 * shards_ * shard_rows <= rows_) shards_ *= 2;
  tile_rows_ = std::min(kTileRows, rows_);
  widest_ = std::max(leading_dimension<T>(network.output_columns()),
                     leading_dimension<T>(network.spec().inputs));
  for (const Layer& layer : network.layers()) {
    widest_ = std::max({widest_, leading_dimension<T>(layer.in), leading_dimension<T>(layer.out)});
  }
}

template <class T>
Index Tiles<T>::shard_begin(int shard, int shards) const {
  return shard == shards ? rows_ : rows_ / kBlockRows * shard / shards * kBlockRows;
}

template <class T>
void Tiles<T>::provide_workers() {
  workers_.resize(std::max(workers_.size(), static_cast<std::size_t>(num_threads())));
  for (Worker& worker : workers_) {
    for (Buffer<T>* buffer : {&worker.ping, &worker.pong, &worker.outputs, &worker.cotangent}) {
      buffer->resize(tile_rows_ * widest_);
    }
  }
}

template <class T>
void GradientSums<T>::attach(const Network<T>& network) {
  network_ = &network;
  const std::vector<Layer>& layers = network.layers();
  blocks_.resize(layers.size());
  size_ = widest_ = 0;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto [in, out, weight, bias] = layers[l];
    const bool transposed = in * round_up(out, kLanes<T>) < out * round_up(in, kLanes<T>);
    const Index stride = leading_dimension<T>(transposed ? out : in);
    const Index bias_offset = size_ + (transposed ? in : out) * stride;
    blocks_[l] = {size_, bias_offset, stride, transposed};
    size_ = bias_offset + round_up(out + network.spec().free_outputs, kLanes<T>);
    widest_ = std::max(widest_, stride);
  }
}

template <class T>
void GradientSums<T>::begin(Tiles<T>* tiles) {
  shards_ = tiles->shards();
  accumulators_ = tiles->accumulators(shards_, size_);
}

template <class T>
void GradientSums<T>::add_weights(std::size_t l, const Tile& tile, Matrix<const T> d,
                                  Matrix<const T> h) const {
  const Layer& layer = network_->layers()[l];
  const Block& block = blocks_[l];
  kernels::Accumulate<T> g{};
  g.rows = d.rows;
  g.d = d.data;
  g.ldd = d.stride;
  g.out = layer.out;
  g.h = h.data;
  g.ldh = h.stride;
  g.in = layer.in;
  if (block.transposed) {  // (D' H)' = H' D
    std::swap(g.d, g.h);
    std::swap(g.ldd, g.ldh);
    std::swap(g.out, g.in);
  }
  g.g = accumulator(tile.shard) + block.offset;
  g.ldg = block.stride;
  g.overwrite = tile.opens_shard;
  kernels::active<T>().accumulate(g);
}

template <class T>
void GradientSums<T>::add_biases(std::size_t l, const Tile& tile, Matrix<const T> d) const {
  kernels::active<T>().column_sums(d.data, d.rows, d.stride, d.columns, tile.opens_shard,
                                   biases(l, tile));
}

// Large gradients are cut into bands of rows for the threads: each sum is made by one of them, in the
// order of the shards.
template <class T>
void GradientSums<T>::finish(double* gradient) {
  const auto sum = [&](Index offset, Index count, double* out) {
    kernels::active<T>().sum_shards(accumulators_ + offset, shards_, size_, count, out);
  };
  const std::vector<Layer>& layers = network_->layers();
  const Index bytes = shards_ * size_ * static_cast<Index>(sizeof(T));
  const int bands = bytes > kLargeReduction ? kReductionBands : 1;
  rows_.resize(num_threads() * widest_);
  parallel_for(bands, [&](int band, int worker) {
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const auto [in, out, weight, bias] = layers[l];
      const Block& block = blocks_[l];
      const Index rows = block.transposed ? in : out;
      double* row = rows_.data() + worker * widest_;
      for (Index r = rows * band / bands; r < rows * (band + 1) / bands; ++r) {
        if (block.transposed) {
          sum(block.offset + r * block.stride, out, row);
          for (Index o = 0; o < out; ++o) gradient[weight + o * in + r] = row[o];
        } else {
          sum(block.offset + r * block.stride, in, gradient + weight + r * in);
        }
      }
      if (band > 0) continue;
      const bool last = l + 1 == layers.size();
      sum(block.bias, last ? network_->output_columns() : out, gradient + bias);
    }
  });
}

template class Tiles<float>;
template class Tiles<double>;
template class GradientSums<float>;
template class GradientSums<double>;

}  // namespace natgrad
