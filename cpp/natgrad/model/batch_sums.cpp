#include "natgrad/model/batch_sums.hpp"

#include <algorithm>

namespace natgrad {
namespace {

// There are fewer tasks than shards where the sums of all shards would take more memory than this.
constexpr Index kKroneckerBytes = 64 << 20;
constexpr Index kGramBand = 32;  // rows; whole lanes of both types

// The upper triangle of G += X'X for x (rows, n), in bands of rows from the diagonal on. What a band has
// left of the diagonal is not defined.
template <class T>
void add_gram(Matrix<const T> x, Matrix<T> g, bool overwrite) {
  const Index n = x.columns;
  for (Index b = 0; b < n; b += kGramBand) {
    kernels::active<T>().accumulate({.rows = x.rows,
                                     .d = x.data + b,
                                     .ldd = x.stride,
                                     .out = std::min(kGramBand, n - b),
                                     .h = x.data + b,
                                     .ldh = x.stride,
                                     .in = n - b,
                                     .g = g.row(b) + b,
                                     .ldg = g.stride,
                                     .overwrite = overwrite});
  }
}

// a (n, n) from rows of its upper triangle that are already in place.
void mirror(double* a, Index n) {
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < i; ++j) a[i * n + j] = a[j * n + i];
  }
}

// One task's sums for a layer: H'H (in, in) and colsum H (in), then D'D (out, out), in padded rows.
template <class T>
struct LayerSums {
  Index inputs, adjoints;  // values
  explicit LayerSums(const Layer& layer)
      : inputs((layer.in + 1) * leading_dimension<T>(layer.in)),
        adjoints(layer.out * leading_dimension<T>(layer.out)) {}
};

// ||x||^2, in strands that the compiler makes vectors of; a row is short enough for sums in T.
template <class T>
double squared_norm(const T* x, Index n) {
  constexpr Index kStrands = 16;
  T sums[kStrands] = {};
  Index i = 0;
  for (; i + kStrands <= n; i += kStrands) {
    for (Index j = 0; j < kStrands; ++j) sums[j] += x[i + j] * x[i + j];
  }
  for (Index j = 0; i < n; ++i, ++j) sums[j] += x[i] * x[i];
  double total = 0;
  for (const T sum : sums) total += static_cast<double>(sum);
  return total;
}

}  // namespace

template <class T>
void kronecker_sums(Linearization<T>* network, Index every, Index columns,
                    FunctionRef<void(Index, Index, Index, Matrix<T>)> fill, KroneckerSums* sums) {
  using Worker = typename Tiles<T>::Worker;
  const std::vector<Layer>& layers = network->network().layers();
  Tiles<T>& tiles = network->tiles();
  Index size = 0;  // of one task's sums
  for (const Layer& layer : layers) {
    size += LayerSums<T>(layer).inputs + LayerSums<T>(layer).adjoints;
  }
  int tasks = tiles.shards();
  while (tasks > 2 && tasks * size * static_cast<Index>(sizeof(T)) > kKroneckerBytes) tasks /= 2;
  T* accumulators = tiles.accumulators(tasks, size);

  tiles.for_each(tasks, [&](const Tile& tile, Worker* worker) {
    const Index rows = (tile.rows + every - 1) / every;
    for (Index column = 0; column < columns; ++column) {
      Matrix<T> d = Worker::matrix(worker->cotangent, rows, network->network().output_columns());
      fill(tile.first, every, column, d);
      T* end = accumulators + (tile.shard + 1) * size;  // the last layer's sums come last
      for (std::size_t l = layers.size(); l-- > 0;) {
        const Layer& layer = layers[l];
        const Index stride = leading_dimension<T>(layer.out);
        end -= LayerSums<T>(layer).adjoints;
        add_gram<T>({d.data, rows, layer.out, d.stride}, {end, layer.out, layer.out, stride},
                    tile.opens_shard && column == 0);
        end -= LayerSums<T>(layer).inputs;
        if (column == 0) {
          const Index input_stride = leading_dimension<T>(layer.in);
          const Matrix<const T> h{network->layer_input(l).row(tile.first), rows, layer.in,
                                  every * input_stride};
          const Matrix<T> g{end, layer.in + 1, layer.in, input_stride};
          add_gram<T>(h, g, tile.opens_shard);
          kernels::active<T>().column_sums(h.data, rows, h.stride, layer.in, tile.opens_shard,
                                           g.row(layer.in));
        }
        if (l == 0) break;
        const Matrix<T> below = worker->between(l, rows, layer.in);
        network->pull_back(l, tile.first, d, below, every);
        d = below;
      }
    }
  });

  sums->inputs.resize(layers.size());
  sums->adjoints.resize(layers.size());
  sums->rows = 0;
  for (int task = 0; task < tasks; ++task) {
    tiles.for_each_of(task, tasks,
                      [&](const Tile& tile) { sums->rows += (tile.rows + every - 1) / every; });
  }
  parallel_for(static_cast<int>(layers.size()), [&](int task, int) {
    const auto l = static_cast<std::size_t>(task);
    Index offset = 0;
    for (std::size_t m = 0; m < l; ++m) {
      offset += LayerSums<T>(layers[m]).inputs + LayerSums<T>(layers[m]).adjoints;
    }
    // The next row of `values` values, summed over the tasks.
    const auto sum_row = [&](Index values, double* to) {
      kernels::active<T>().sum_shards(accumulators + offset, tasks, size, values, to);
      offset += leading_dimension<T>(values);
    };
    const auto [in, out, weight, bias] = layers[l];
    sums->inputs[l].resize((in + 1) * (in + 1));
    sums->adjoints[l].resize(out * out);
    double* a = sums->inputs[l].data();
    for (Index i = 0; i <= in; ++i) sum_row(in, a + i * (in + 1));
    for (Index i = 0; i < in; ++i) a[i * (in + 1) + in] = a[in * (in + 1) + i];
    a[in * (in + 1) + in] = static_cast<double>(sums->rows);
    mirror(a, in + 1);
    double* s = sums->adjoints[l].data();
    for (Index i = 0; i < out; ++i) sum_row(out, s + i * out);
    mirror(s, out);
  });
}

// A layer's part of J_n' d_n is d_l (h_{l-1}, 1)', whose squared norm is a product of two. The free outputs,
// which come last in the last d, have no input but the bias.
template <class T>
double squared_gradients(Linearization<T>* network, FunctionRef<void(Index, Matrix<T>)> fill) {
  using Worker = typename Tiles<T>::Worker;
  const std::vector<Layer>& layers = network->network().layers();
  double sums[kMaxShards] = {};
  network->tiles().for_each([&](const Tile& tile, Worker* worker) {
    Matrix<T> d = Worker::matrix(worker->cotangent, tile.rows, network->network().output_columns());
    fill(tile.first, d);
    double sum = 0;
    for (std::size_t l = layers.size(); l-- > 0;) {
      const auto [in, out, weight, bias] = layers[l];
      const Matrix<const T> h = network->layer_input(l, tile);
      for (Index r = 0; r < tile.rows; ++r) {
        sum += squared_norm(d.row(r), out) * (squared_norm(h.row(r), in) + 1) +
               squared_norm(d.row(r) + out, d.columns - out);
      }
      if (l == 0) break;
      const Matrix<T> below = worker->between(l, tile.rows, in);
      network->pull_back(l, tile.first, d, below);
      d = below;
    }
    sums[tile.shard] += sum;
  });
  double total = 0;
  for (int shard = 0; shard < network->shards(); ++shard) total += sums[shard];
  return total;
}

template <class T>
void input_gram(Linearization<T>* network, const double* weights, double* gram) {
  using Worker = typename Tiles<T>::Worker;
  const Index in = network->network().layers()[0].in, stride = leading_dimension<T>(in);
  const Index size = (in + 1) * stride;
  const int shards = network->shards();
  T* accumulators = network->tiles().accumulators(shards, size);
  network->tiles().for_each([&](const Tile& tile, Worker* worker) {
    const Matrix<const T> h = network->layer_input(0, tile);
    Matrix<const T> d = h;
    if (weights != nullptr) {
      const Matrix<T> weighted = Worker::matrix(worker->ping, tile.rows, in);
      for (Index r = 0; r < tile.rows; ++r) {
        const T weight = static_cast<T>(weights[tile.first + r]);
        for (Index i = 0; i < stride; ++i) weighted.row(r)[i] = weight * h.row(r)[i];
      }
      d = weighted;
    }
    T* sum = accumulators + tile.shard * size;
    kernels::active<T>().accumulate({.rows = tile.rows,
                                     .d = d.data,
                                     .ldd = stride,
                                     .out = in,
                                     .h = h.data,
                                     .ldh = stride,
                                     .in = in,
                                     .g = sum,
                                     .ldg = stride,
                                     .overwrite = tile.opens_shard});
    kernels::active<T>().column_sums(d.data, tile.rows, stride, in, tile.opens_shard,
                                     sum + in * stride);
  });
  for (Index i = 0; i <= in; ++i) {
    kernels::active<T>().sum_shards(accumulators + i * stride, shards, size, in,
                                    gram + i * (in + 1));
  }
  for (Index i = 0; i < in; ++i) gram[i * (in + 1) + in] = gram[in * (in + 1) + i];
  double total = weights != nullptr ? 0 : static_cast<double>(network->rows());
  for (Index n = 0; weights != nullptr && n < network->rows(); ++n) total += weights[n];
  gram[in * (in + 1) + in] = total;
}

template void kronecker_sums(Linearization<float>*, Index, Index,
                             FunctionRef<void(Index, Index, Index, Matrix<float>)>, KroneckerSums*);
template void kronecker_sums(Linearization<double>*, Index, Index,
                             FunctionRef<void(Index, Index, Index, Matrix<double>)>,
                             KroneckerSums*);
template double squared_gradients(Linearization<float>*, FunctionRef<void(Index, Matrix<float>)>);
template double squared_gradients(Linearization<double>*, FunctionRef<void(Index, Matrix<double>)>);
template void input_gram(Linearization<float>*, const double*, double*);
template void input_gram(Linearization<double>*, const double*, double*);

}  // namespace natgrad
