#include "natgrad/model/linear_batch.hpp"

#include <algorithm>

#include "natgrad/base/parallel.hpp"

namespace natgrad {
namespace {

// Shards and tiles begin at whole groups of bundles, so that blocks of four of them are full; a tile
// and its scores stay in the first-level cache for the policies that are narrow.
constexpr Index kGroupRows = 64, kTileRows = 512;

template <class T>
constexpr Index bundles_of(Index rows) {
  return (rows + kLanes<T> - 1) / kLanes<T>;
}

}  // namespace

template <class T>
Index LinearBatch<T>::shard_begin(int shard) const {
  return shard == shards_ ? rows_ : rows_ / kGroupRows * shard / shards_ * kGroupRows;
}

template <class T>
template <class F>
void LinearBatch<T>::for_each_tile(F f) {
  workers_.resize(std::max(workers_.size(), static_cast<std::size_t>(num_threads())));
  for (Worker& worker : workers_) {
    worker.moves.resize(kTileRows * out_);
    worker.magnitudes.resize(kTileRows);
    worker.squares.resize(kTileRows);
    if (network_->input_is_observation()) continue;
    worker.inputs.resize(kTileRows * leading_dimension<T>(in_ - 1));
    worker.scratch.resize(kTileRows * leading_dimension<T>(network_->spec().inputs));
  }
  parallel_for(shards_, [&](int shard, int worker) {
    const Index end = shard_begin(shard + 1);
    for (Index first = shard_begin(shard); first < end; first += kTileRows) {
      const Index rows = std::min(kTileRows, end - first);
      f(first, rows, bundles_of<T>(rows), shard, &workers_[static_cast<std::size_t>(worker)]);
    }
  });
}

template <class T>
void LinearBatch<T>::pack_inputs(Matrix<const T> observations, T* to, Worker* worker) const {
  Matrix<const T> h = observations;
  if (!network_->input_is_observation()) {
    const Index stride = leading_dimension<T>(in_ - 1);
    const Matrix<T> made{worker->inputs.data(), observations.rows, in_ - 1, stride};
    network_->input(observations, made, worker->scratch.data());
    h = made;
  }
  kernels::active<T>().pack_bundles(h.data, h.stride, h.rows, h.columns, true, to);
}

// sums (rows, columns) of all shards' (rows, leading_dimension(in)), in their order.
template <class T>
void LinearBatch<T>::sum_shards(Index rows, Index columns, double* sums) const {
  const Index stride = leading_dimension<T>(in_);
  for (Index r = 0; r < rows; ++r) {
    kernels::active<T>().sum_shards(sums_.data() + r * stride, shards_, rows * stride, columns,
                                    sums + r * columns);
  }
}

// Of row n, with z = e / sigma: d log p / d mu = z / sigma and d log p / d log sigma = z^2 - 1.
template <class T>
auto LinearBatch<T>::evaluate_with_gradient(const Network<T>& network, const T* theta,
                                            Matrix<const T> observations, Matrix<const T> actions,
                                            int shards, const double* inverse_std, double* values,
                                            FunctionRef<void(Index, Index, int)> weigh,
                                            double* gradient) -> ScoreSizes {
  const kernels::Kernels<T>& kernel = kernels::active<T>();
  const Layer& layer = network.layers().front();
  network_ = &network;
  rows_ = observations.rows;
  in_ = layer.in + 1;
  out_ = layer.out;
  shards_ = shards;
  theta_.resize(network.parameter_count());
  std::copy_n(theta, theta_.size(), theta_.data());
  weights_.resize(out_ * in_);
  for (Index o = 0; o < out_; ++o) {
    std::copy_n(theta + layer.weight + o * layer.in, layer.in, weights_.data() + o * in_);
    weights_[o * in_ + layer.in] = theta[layer.bias + o];
  }
  const Index padded = bundles_of<T>(rows_) * kLanes<T>, stride = leading_dimension<T>(in_);
  inputs_.resize(padded * in_);
  residuals_.resize(padded * out_);
  sums_.resize(shards_ * std::max(in_, out_) * stride);
  shard_values_.resize(shards_ * (out_ + 2));
  shard_values_.fill_zero();
  for_each_tile([&](Index first, Index rows, Index bundles, int shard, Worker* worker) {
    T *h = inputs_.data() + first * in_, *e = residuals_.data() + first * out_;
    T* moves = worker->moves.data();
    pack_inputs(observations.middle_rows(first, rows), h, worker);
    kernel.pack_bundles(actions.row(first), actions.stride, rows, out_, false, e);
    kernel.bundle_products(bundles, h, in_, weights_.data(), out_, moves);
    const kernels::Residuals<T> residuals{rows, out_, e, inverse_std, values + first};
    kernel.subtract_means(residuals, moves, worker->magnitudes.data());
    weigh(first, rows, shard);

    double* sums = shard_values_.data() + shard * (out_ + 2);
    kernel.residual_scores(residuals, values + first, moves, sums, worker->squares.data());
    sums[out_] += kernels::active<T>().sum_of_roots(worker->squares.data(), rows);
    for (Index r = 0; r < rows; ++r) {
      const double size = values[first + r] * worker->magnitudes[r];
      sums[out_ + 1] += size * size;
    }
    const bool overwrite = first == shard_begin(shard);
    kernel.bundle_column_products(bundles, moves, out_, h, in_, false, overwrite,
                                  sums_.data() + shard * out_ * stride, stride);
  });

  reduced_.resize(out_ * in_);
  sum_shards(out_, in_, reduced_.data());
  std::fill_n(gradient + layer.bias + out_, out_, 0.0);
  for (Index o = 0; o < out_; ++o) {
    std::copy_n(reduced_.data() + o * in_, layer.in, gradient + layer.weight + o * layer.in);
    gradient[layer.bias + o] = reduced_[o * in_ + layer.in];
  }
  ScoreSizes sizes;
  for (int shard = 0; shard < shards_; ++shard) {
    const double* sums = shard_values_.data() + shard * (out_ + 2);
    for (Index o = 0; o < out_; ++o) gradient[layer.bias + out_ + o] += sums[o];
    sizes.norms += sums[out_];
    sizes.magnified += sums[out_ + 1];
  }
  return sizes;
}

template <class T>
double LinearBatch<T>::evaluate_at(const T* theta, const double* inverse_std,
                                   const double* inverse_std_of_moves, double* distances,
                                   FunctionRef<void(Index, Index, int)> visit) {
  const kernels::Kernels<T>& kernel = kernels::active<T>();
  const Layer& layer = network_->layers().front();
  for (Index o = 0; o < out_; ++o) {
    for (Index i = 0; i < in_; ++i) {
      const Index at = i < layer.in ? layer.weight + o * layer.in + i : layer.bias + o;
      weights_[o * in_ + i] =
          static_cast<T>(static_cast<double>(theta[at]) - static_cast<double>(theta_[at]));
    }
  }
  shard_values_.fill_zero();
  for_each_tile([&](Index first, Index rows, Index bundles, int shard, Worker* worker) {
    T* moves = worker->moves.data();
    kernel.bundle_products(bundles, inputs_.data() + first * in_, in_, weights_.data(), out_,
                           moves);
    const kernels::Residuals<T> residuals{rows, out_, residuals_.data() + first * out_, inverse_std,
                                          distances + first};
    shard_values_[shard] += kernel.moved_distances(residuals, moves, inverse_std_of_moves);
    visit(first, rows, shard);
  });
  double moved = 0;
  for (Index shard = 0; shard < shards_; ++shard) moved += shard_values_[shard];
  return moved;
}

template <class T>
void LinearBatch<T>::input_gram(double* gram) {
  const Index stride = leading_dimension<T>(in_);
  sums_.resize(shards_ * in_ * stride);
  for_each_tile([&](Index first, Index, Index bundles, int shard, Worker*) {
    const T* h = inputs_.data() + first * in_;
    kernels::active<T>().bundle_column_products(bundles, h, in_, h, in_, true,
                                                first == shard_begin(shard),
                                                sums_.data() + shard * in_ * stride, stride);
  });
  sum_shards(in_, in_, gram);
  for (Index i = 0; i < in_; ++i) {
    for (Index j = 0; j < i; ++j) gram[i * in_ + j] = gram[j * in_ + i];
  }
}

template class LinearBatch<float>;
template class LinearBatch<double>;

}  // namespace natgrad
