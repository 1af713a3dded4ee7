#include "natgrad/model/network.hpp"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>

#include "natgrad/base/parallel.hpp"
#include "natgrad/base/random.hpp"

namespace natgrad {
namespace {

template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Streams of the seed, so that no two uses share random numbers.
enum Stream : std::uint32_t { kWeights = 0x57000000u, kFourier = 0x46000000u };

// Rows of W' (k = in) in panels of columns (n = out). `source` is (out, in), row-major, and read a
// few rows at a time, so that what is written stays in cache.
template <class T, class Source>
void pack_transposed(const Source* source, Index out, Index in, T* packed) {
  constexpr Index group = 8;
  const Index panel = kernels::table<T>().panel;
  const Index padded = round_up(out, kLanes<T>);
  for (Index c = 0; c < padded; c += group) {
    const Index begin = c / panel * panel, width = std::min(panel, padded - begin);
    T* to = packed + in * begin + (c - begin);
    const Source* from = source + c * in;
    const Index filled = std::clamp<Index>(out - c, 0, group);
    for (Index k = 0; k < in; ++k, to += width) {
      for (Index j = 0; j < filled; ++j) to[j] = static_cast<T>(from[j * in + k]);
      for (Index j = filled; j < group; ++j) to[j] = T(0);
    }
  }
}

// Rows of W (k = out) in panels of so many columns (n = in).
template <class T, class Source>
void pack_rows(const Source* source, Index out, Index in, Index panel, T* packed) {
  const Index padded = round_up(in, kLanes<T>);
  for (Index c = 0; c < padded; c += panel) {
    const Index width = std::min(panel, padded - c);
    const Index filled = std::clamp<Index>(in - c, 0, width);
    T* block = packed + out * c;
    for (Index k = 0; k < out; ++k) {
      for (Index j = 0; j < filled; ++j) {
        block[k * width + j] = static_cast<T>(source[k * in + c + j]);
      }
      for (Index j = filled; j < width; ++j) block[k * width + j] = T(0);
    }
  }
}

// Columns at the end of a layer's forward products that are better computed as dot products than in
// a padded lane of their own: there are few, and k is long enough to pay for the sums across lanes.
template <class T>
Index narrow_columns(const Layer& layer) {
  const Index rest = layer.out % kLanes<T>;
  return rest <= kernels::kNarrow<T> && 8 * rest <= layer.in ? rest : 0;
}

}  // namespace

// --- Network -------------------------------------------------------------------------------------

template <class T>
Network<T>::Network(NetworkSpec spec)
    : spec_(std::move(spec)),
      mean_(static_cast<std::size_t>(spec_.inputs), 0.0),
      std_(static_cast<std::size_t>(spec_.inputs), 1.0),
      inverse_std_(std_),
      clip_(std::numeric_limits<double>::infinity()) {
  Index offset = 0;
  Index in = spec_.fourier_features > 0 ? spec_.fourier_features : spec_.inputs;
  const auto add_layer = [&](Index out) {
    layers_.push_back({in, out, offset, offset + in * out});
    offset += (in + 1) * out;
    in = out;
  };
  for (const Index width : spec_.hidden) add_layer(width);
  add_layer(spec_.outputs);
  free_offset_ = offset;

  if (spec_.fourier_features > 0) {
    RandomStream random(spec_.seed, kFourier, 0);
    std::vector<double> weights(static_cast<std::size_t>(spec_.fourier_features * spec_.inputs));
    for (double& w : weights) w = random.normal() / spec_.fourier_bandwidth;
    const Index padded = round_up(spec_.fourier_features, kLanes<T>);
    fourier_.forward.emplace_back(spec_.inputs * padded);
    pack_transposed(weights.data(), spec_.fourier_features, spec_.inputs,
                    fourier_.forward[0].data());
    fourier_.bias.emplace_back(padded);
    for (Index i = 0; i < spec_.fourier_features; ++i) {
      fourier_.bias[0][i] = static_cast<T>(6.283185307179586476925 * (random.uniform() - 0.5));
    }
  }
}

template <class T>
void Network<T>::initialize(T* theta, Initialization kind, double output_scale,
                            double free_value) const {
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const auto [in, out, weight, bias] = layers_[l];
    RandomStream random(spec_.seed, kWeights + static_cast<std::uint32_t>(l), 0);
    RowMajor<double> w(out, in);
    for (Index i = 0; i < w.size(); ++i) w.data()[i] = random.normal();
    const bool last = l + 1 == layers_.size();
    if (kind == Initialization::orthogonal) {
      // Q of a tall Gaussian matrix, columns signed by R's diagonal, is uniform on the orthogonal
      // group (Mezzadri 2007).
      const bool wide = in > out;
      const Eigen::MatrixXd tall = wide ? Eigen::MatrixXd(w.transpose()) : Eigen::MatrixXd(w);
      const Eigen::HouseholderQR<Eigen::MatrixXd> qr(tall);
      Eigen::MatrixXd q = qr.householderQ() * Eigen::MatrixXd::Identity(tall.rows(), tall.cols());
      for (Index j = 0; j < q.cols(); ++j) {
        if (qr.matrixQR()(j, j) < 0) q.col(j) = -q.col(j);
      }
      if (wide) {
        w = q.transpose();
      } else {
        w = q;
      }
      if (!last) w *= std::sqrt(2.0);
    } else {
      w /= std::sqrt(static_cast<double>(in));
    }
    if (last) w *= output_scale;
    Eigen::Map<RowMajor<T>>(theta + weight, out, in) = w.cast<T>();
    std::fill_n(theta + bias, out, T(0));
  }
  std::fill_n(theta + free_offset_, spec_.free_outputs, static_cast<T>(free_value));
}

template <class T>
void Network<T>::set_normalizer(const double* mean, const double* std, double clip) {
  mean_.assign(mean, mean + spec_.inputs);
  std_.assign(std, std + spec_.inputs);
  for (std::size_t i = 0; i < std_.size(); ++i) inverse_std_[i] = 1 / std_[i];
  clip_ = clip;
  const auto is = [](double value) { return [=](double x) { return x == value; }; };
  normalizes_ = !std::all_of(mean_.begin(), mean_.end(), is(0)) ||
                !std::all_of(std_.begin(), std_.end(), is(1)) || std::isfinite(clip_);
}

template <class T>
void Network<T>::input(Matrix<const T> observations, Matrix<T> h, T* scratch) const {
  const bool fourier = spec_.fourier_features > 0;
  const Index stride = leading_dimension<T>(spec_.inputs);
  const Matrix<T> normalized = fourier ? Matrix<T>{scratch, h.rows, spec_.inputs, stride} : h;
  kernels::row_table<T>().normalize(observations.data, observations.stride, h.rows, spec_.inputs,
                                    mean_.data(), inverse_std_.data(), clip_, normalized.data,
                                    normalized.stride);
  if (!fourier) return;
  kernels::Multiply<T> p{};
  p.rows = h.rows;
  p.a = normalized.data;
  p.lda = normalized.stride;
  p.k = spec_.inputs;
  p.b = fourier_.forward[0].data();
  p.bias = fourier_.bias[0].data();
  p.c = h.data;
  p.ldc = h.stride;
  p.n = round_up(spec_.fourier_features, kLanes<T>);
  p.epilogue = Epilogue::none;
  kernels::table<T>().multiply(p);
  for (Index r = 0; r < h.rows; ++r) {
    T* row = h.row(r);
    for (Index i = 0; i < h.columns; ++i) row[i] = std::sin(row[i]);
    std::fill(row + h.columns, row + h.stride, T(0));
  }
}

template <class T>
template <class Source>
void Network<T>::pack(const Source* theta, bool with_backward, PackedLayers<T>* packed) const {
  const std::size_t count = layers_.size();
  packed->forward.resize(count);
  packed->bias.resize(count);
  if (with_backward) packed->backward.resize(count);
  for (std::size_t l = 0; l < count; ++l) {
    const auto [in, out, weight, bias] = layers_[l];
    const Index narrow = narrow_columns<T>(layers_[l]), wide = out - narrow;
    const Index wide_size = in * round_up(wide, kLanes<T>);
    packed->forward[l].resize(wide_size + narrow * round_up(in, kLanes<T>));
    pack_transposed(theta + weight, wide, in, packed->forward[l].data());
    pack_rows(theta + weight + wide * in, narrow, in, kernels::kNarrowPanel<T>,
              packed->forward[l].data() + wide_size);
    const bool last = l + 1 == count;
    const Index values = last ? output_columns() : out;  // theta continues with the free outputs
    packed->bias[l].resize(round_up(values, kLanes<T>));
    for (Index i = 0; i < values; ++i) packed->bias[l][i] = static_cast<T>(theta[bias + i]);
    if (with_backward && l > 0) {  // nothing is pulled back to the observations
      packed->backward[l].resize(out * round_up(in, kLanes<T>));
      pack_rows(theta + weight, out, in, kernels::table<T>().panel, packed->backward[l].data());
    }
  }
}

// --- Linearization -------------------------------------------------------------------------------

namespace {
// Shards: enough rows each that summing their gradients is small beside making them, which takes more
// where a gradient leaves the second-level cache, and a power of two of them to share among threads.
constexpr Index kShardRows = 256;
constexpr Index kLargeShardRows = 512;
constexpr Index kLargeGradient = 256 << 10;  // bytes
constexpr Index kMaxShards = 32;
constexpr Index kLargeReduction = 1 << 20;  // bytes of all shards, from which threads share the sum
constexpr int kReductionBands = 16;
// Rows of a tile: what it needs of all layers stays in the second-level cache.
constexpr Index kTileRows = 120;
// Rows of shards and tiles come in whole register blocks: a multiple of the heights of them all but
// that of three vectors, 8 with AVX-512.
constexpr Index kBlockRows = 12;
}  // namespace

template <class T>
Matrix<T> Linearization<T>::scratch(Buffer<T>& buffer, Index rows, Index columns) const {
  return {buffer.data(), rows, columns, leading_dimension<T>(columns)};
}

template <class T>
Index Linearization<T>::shard_begin(int shard, int shards) const {
  return shard == shards ? rows_ : rows_ / kBlockRows * shard / shards * kBlockRows;
}

template <class T>
Matrix<const T> Linearization<T>::layer_input(std::size_t layer) const {
  const Index columns = network_->layers()[layer].in;
  return {activations_[layer].data(), rows_, columns, leading_dimension<T>(columns)};
}

template <class T>
Matrix<const T> Linearization<T>::outputs() const {
  const Index columns = network_->output_columns();
  return {outputs_.data(), rows_, columns, leading_dimension<T>(columns)};
}

template <class T>
const Buffer<T>& Linearization<T>::cached(std::size_t layer) const {
  return kernels::slope_follows_from_value(network_->spec().activation) ? activations_[layer]
                                                                        : slopes_[layer];
}

template <class T>
void Linearization<T>::provide_workers() {
  workers_.resize(std::max(workers_.size(), static_cast<std::size_t>(num_threads())));
  reduced_.resize(static_cast<Index>(workers_.size()) * widest_);
  for (Worker& worker : workers_) {
    for (Buffer<T>* buffer : {&worker.ping, &worker.pong, &worker.outputs, &worker.cotangent}) {
      buffer->resize(tile_rows_ * widest_);
    }
  }
}

template <class T>
template <class F>
void Linearization<T>::for_each_tile(int shards, F f) {
  provide_workers();  // the number of threads may have changed since the last pass
  parallel_for(shards, [&](int shard, int worker) {
    for_each_tile_of(shard, shards, [&](Index first, Index rows) {
      f(first, rows, shard, &workers_[static_cast<std::size_t>(worker)]);
    });
  });
}

// Tiles of nearly equal height, so that the last one is not a sliver, in whole register blocks.
template <class T>
template <class F>
void Linearization<T>::for_each_tile_of(int shard, int shards, F f) const {
  const Index end = shard_begin(shard + 1, shards);
  Index first = shard_begin(shard, shards);
  for (Index left = (end - first + tile_rows_ - 1) / tile_rows_; first < end; --left) {
    const Index even = round_up((end - first) / left, kBlockRows);
    const Index rows = left > 1 ? std::min(even, end - first) : end - first;
    f(first, rows);
    first += rows;
  }
}

template <class T>
void Linearization<T>::attach(const Network<T>& network, const PackedLayers<T>& packed, Index rows,
                              bool is_part) {
  network_ = &network;
  packed_ = &packed;
  rows_ = rows;
  has_activations_ = false;
  adjoint_columns_ = 0;
  const std::vector<Layer>& layers = network.layers();
  const bool large = network.parameter_count() * static_cast<Index>(sizeof(T)) > kLargeGradient;
  const Index shard_rows = (large ? kLargeShardRows : kShardRows) / (is_part ? 2 : 1);
  shards_ = 1;
  while (2 * shards_ <= kMaxShards && 2 * shards_ * shard_rows <= rows_) shards_ *= 2;
  tile_rows_ = std::min(kTileRows, rows_);

  activations_.resize(layers.size());
  slopes_.resize(layers.size());
  gradient_blocks_.resize(layers.size());
  Index offset = 0;
  widest_ = std::max(leading_dimension<T>(network.output_columns()),
                     leading_dimension<T>(network.spec().inputs));
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const Index stride = leading_dimension<T>(layers[l].in);
    widest_ = std::max({widest_, stride, leading_dimension<T>(layers[l].out)});
    activations_[l].resize(rows_ * stride);
    if (l > 0 && !kernels::slope_follows_from_value(network.spec().activation)) {
      slopes_[l].resize(rows_ * stride);
    }
    const auto [in, out, weight, bias] = layers[l];
    const bool transposed = in * round_up(out, kLanes<T>) < out * round_up(in, kLanes<T>);
    const Index block_stride = leading_dimension<T>(transposed ? out : in);
    const Index bias_offset = offset + (transposed ? in : out) * block_stride;
    gradient_blocks_[l] = {offset, bias_offset, block_stride, transposed};
    offset = bias_offset + round_up(out + network.spec().free_outputs, kLanes<T>);
  }
  accumulator_size_ = offset;
  const Index stride = leading_dimension<T>(network.output_columns());
  outputs_.resize(rows_ * stride);
}

template <class T>
void Linearization<T>::evaluate(const Network<T>& network, const PackedLayers<T>& packed,
                                Matrix<const T> observations) {
  attach(network, packed, observations.rows);
  for_each_tile([&](Index first, Index rows, int, Worker* worker) {
    forward(first, observations.middle_rows(first, rows), worker);
  });
  has_activations_ = true;
}

template <class T>
void Linearization<T>::select(const Linearization& all, const PackedLayers<T>& packed, Index part) {
  attach(*all.network_, packed, part, true);
  const bool slopes = !kernels::slope_follows_from_value(network_->spec().activation);
  for_each_tile([&](Index first, Index rows, int, Worker*) {
    const auto copy = [&](const Buffer<T>& from, Buffer<T>& to) {
      const Index stride = from.size() / all.rows_;
      for (Index r = first; r < first + rows; ++r) {
        std::copy_n(from.data() + spaced_row(r, part, all.rows_) * stride, stride,
                    to.data() + r * stride);
      }
    };
    for (std::size_t l = 0; l < activations_.size(); ++l) {
      copy(all.activations_[l], activations_[l]);
      if (slopes && l > 0) copy(all.slopes_[l], slopes_[l]);
    }
    copy(all.outputs_, outputs_);
  });
  has_activations_ = true;
}

template <class T>
void Linearization<T>::evaluate_with_gradient(
    Matrix<const T> observations, FunctionRef<void(Index, Matrix<const T>, Matrix<T>, int)> fill,
    double* gradient) {
  accumulators_.resize(shards_ * accumulator_size_);
  for_each_tile([&](Index first, Index rows, int shard, Worker* worker) {
    const Matrix<const T> y = forward(first, observations.middle_rows(first, rows), worker);
    const Matrix<T> d = scratch(worker->cotangent, rows, network_->output_columns());
    fill(first, y, d, shard);
    reverse(first, d, first == shard_begin(shard), accumulators_.data() + shard * accumulator_size_,
            worker);
  });
  has_activations_ = true;
  reduce(gradient);
}

// The rows of one tile; returns their outputs.
template <class T>
Matrix<const T> Linearization<T>::forward(Index first, Matrix<const T> observations,
                                          Worker* worker) {
  const std::vector<Layer>& layers = network_->layers();
  const Index rows = observations.rows;
  Matrix<T> h{activations_[0].data(), rows_, layers[0].in, leading_dimension<T>(layers[0].in)};
  h = h.middle_rows(first, rows);
  network_->input(observations, h, worker->ping.data());
  for (std::size_t l = 0; l + 1 < layers.size(); ++l) {
    const Index stride = leading_dimension<T>(layers[l].out);
    const Matrix<T> result{activations_[l + 1].data() + first * stride, rows, layers[l].out,
                           stride};
    forward_layer(l, first, h, result, *packed_, true, slopes_[l + 1].data());
    h = result;
  }
  const Index stride = leading_dimension<T>(network_->output_columns());
  const Matrix<T> y{outputs_.data() + first * stride, rows, network_->output_columns(), stride};
  forward_layer(layers.size() - 1, first, h, y, *packed_, true, nullptr);
  return y;
}

// One layer of a forward pass. `slope` is the whole batch's buffer (kept) or a tile's scratch.
template <class T>
void Linearization<T>::forward_layer(std::size_t l, Index first, Matrix<const T> h,
                                     Matrix<T> result, const PackedLayers<T>& packed,
                                     bool keep_slope, T* slope) const {
  const Layer& layer = network_->layers()[l];
  const bool last = l + 1 == network_->layers().size();
  kernels::Multiply<T> p{};
  p.rows = h.rows;
  p.a = h.data;
  p.lda = h.stride;
  p.k = layer.in;
  p.b = packed.forward[l].data();
  p.bias = packed.bias[l].data();
  p.c = result.data;
  p.ldc = result.stride;
  p.epilogue = last ? Epilogue::none : Epilogue::activate;
  p.activation = network_->spec().activation;
  p.ldcached = leading_dimension<T>(layer.out);
  p.slope = keep_slope && slope != nullptr ? slope + first * p.ldcached : slope;
  p.a_streams = l == 0 && !keep_slope && !last;  // else A is hot, or too few blocks go by to fetch
  forward_product(l, p);
}

// h W' + ... of one layer by the kernels that suit its width. The last one gets its columns of free
// outputs as well: they equal their bias.
template <class T>
void Linearization<T>::forward_product(std::size_t l, kernels::Multiply<T> p) const {
  const Layer& layer = network_->layers()[l];
  const Index narrow = narrow_columns<T>(layer), wide = round_up(layer.out - narrow, kLanes<T>);
  p.n = wide;
  if (wide > 0) kernels::table<T>().multiply(p);
  if (narrow > 0) {
    kernels::Multiply<T> q = p;
    q.n = narrow;
    q.b += wide * layer.in;
    if (q.k2 > 0) q.b2 += wide * layer.in;
    q.bias += wide;
    q.c += wide;
    if (q.cached != nullptr) q.cached += wide;
    if (q.slope != nullptr) q.slope += wide;
    q.a_streams = q.a_streams && wide == 0;
    kernels::table<T>().multiply_narrow(q);
  }
  if (l + 1 < network_->layers().size()) return;
  const Index written = wide + (narrow > 0 ? kLanes<T> : 0), columns = network_->output_columns();
  for (Index r = 0; r < p.rows && written < columns; ++r) {
    std::copy(p.bias + written, p.bias + columns, p.c + r * p.ldc + written);
  }
}

template <class T>
void Linearization<T>::evaluate_at(
    const PackedLayers<T>& packed,
    FunctionRef<void(Index first, Matrix<const T> y, int shard)> visit) {
  const std::vector<Layer>& layers = network_->layers();
  for_each_tile([&](Index first, Index rows, int shard, Worker* worker) {
    Matrix<const T> h = layer_input(0);
    h = {h.row(first), rows, h.columns, h.stride};
    Buffer<T>* buffers[2] = {&worker->ping, &worker->pong};
    for (std::size_t l = 0; l + 1 < layers.size(); ++l) {
      const Matrix<T> result = scratch(*buffers[l % 2], rows, layers[l].out);
      forward_layer(l, first, h, result, packed, false, worker->cotangent.data());
      h = result;
    }
    Matrix<T> y = scratch(worker->outputs, rows, network_->output_columns());
    forward_layer(layers.size() - 1, first, h, y, packed, false, worker->cotangent.data());
    visit(first, y, shard);
  });
}

// dh_{l-1} W_l' + h_{l-1} dW_l' + db_l, derived or not; without dh the first term is left out.
template <class T>
void Linearization<T>::direction_layer(std::size_t l, Index first, Matrix<const T> dh,
                                       Matrix<T> result, Epilogue epilogue,
                                       const kernels::Adjoints<T>* dots) const {
  const Layer& layer = network_->layers()[l];
  const Matrix<const T> h = layer_input(l);
  kernels::Multiply<T> p{};
  p.rows = result.rows;
  p.a = h.row(first);
  p.lda = h.stride;
  p.k = layer.in;
  p.b = direction_.forward[l].data();
  p.bias = direction_.bias[l].data();
  p.a_streams = true;
  if (dh.data != nullptr) {
    p.a2 = dh.data;
    p.lda2 = dh.stride;
    p.k2 = layer.in;
    p.b2 = packed_->forward[l].data();
  }
  p.c = result.data;
  p.ldc = result.stride;
  p.epilogue = epilogue;
  p.dots = dots;
  if (epilogue == Epilogue::derive) {
    p.activation = network_->spec().activation;
    p.ldcached = leading_dimension<T>(layer.out);
    p.cached = cached(l + 1).data() + first * p.ldcached;
  }
  forward_product(l, p);
}

// u_l = dh_{l-1} W_l' + h_{l-1} dW_l' + db_l,  dh_l = act'(z_l) * u_l                     (eq. 12)
template <class T>
Matrix<const T> Linearization<T>::forward_mode(Index first, Index rows, Worker* worker) {
  Buffer<T>* buffers[2] = {&worker->ping, &worker->pong};
  Matrix<const T> dh{};  // the observations do not depend on theta
  const std::size_t last = network_->layers().size() - 1;
  for (std::size_t l = 0; l < last; ++l) {
    const Matrix<T> result = scratch(*buffers[l % 2], rows, network_->layers()[l].out);
    direction_layer(l, first, dh, result, Epilogue::derive);
    dh = result;
  }
  const Matrix<T> u = scratch(worker->outputs, rows, network_->output_columns());
  direction_layer(last, first, dh, u, Epilogue::none);
  return u;
}

// d_{l-1} = (d_l W_l) * act'(z_{l-1}), for the rows of a tile                             (eq. 13)
template <class T>
void Linearization<T>::pull_back(std::size_t l, Index first, Matrix<const T> d, Matrix<T> below,
                                 Index every) const {
  const Layer& layer = network_->layers()[l];
  kernels::Multiply<T> p{};
  p.rows = d.rows;
  p.a = d.data;
  p.lda = d.stride;
  p.k = layer.out;
  p.b = packed_->backward[l].data();
  p.c = below.data;
  p.ldc = below.stride;
  p.n = round_up(layer.in, kLanes<T>);
  p.epilogue = Epilogue::derive;
  p.activation = network_->spec().activation;
  const Index stride = leading_dimension<T>(layer.in);
  p.ldcached = every * stride;
  p.cached = cached(l).data() + first * stride;
  kernels::table<T>().multiply(p);
}

// g_W_l += d_l' h_{l-1}, for the rows of a tile                                           (eq. 13)
template <class T>
void Linearization<T>::accumulate_weights(std::size_t l, Index first, Matrix<const T> d,
                                          bool overwrite, T* accumulator) const {
  const Layer& layer = network_->layers()[l];
  const Matrix<const T> h = layer_input(l);
  const GradientBlock& block = gradient_blocks_[l];
  kernels::Accumulate<T> g{};
  g.rows = d.rows;
  g.d = d.data;
  g.ldd = d.stride;
  g.out = layer.out;
  g.h = h.row(first);
  g.ldh = h.stride;
  g.in = layer.in;
  if (block.transposed) {  // (D' H)' = H' D
    std::swap(g.d, g.h);
    std::swap(g.ldd, g.ldh);
    std::swap(g.out, g.in);
  }
  g.g = accumulator + block.offset;
  g.ldg = block.stride;
  g.overwrite = overwrite;
  kernels::table<T>().accumulate(g);
}

// Gradients of all layers; from each to the one below by pull_back.
template <class T>
void Linearization<T>::reverse(Index first, Matrix<T> d, bool overwrite, T* accumulator,
                               Worker* worker) {
  const std::vector<Layer>& layers = network_->layers();
  Buffer<T>* buffers[2] = {&worker->ping, &worker->pong};
  for (std::size_t l = layers.size(); l-- > 0;) {
    accumulate_weights(l, first, d, overwrite, accumulator);
    // g_b_l += colsum(d_l); of the last layer's d the free outputs are part.
    kernels::table<T>().column_sums(d.data, d.rows, d.stride, d.columns, overwrite,
                                    accumulator + gradient_blocks_[l].bias);
    if (l == 0) break;
    const Matrix<T> below = scratch(*buffers[l % 2], d.rows, layers[l].in);
    pull_back(l, first, d, below);
    d = below;
  }
}

template <class T>
void Linearization<T>::sweep(const double* direction,
                             FunctionRef<void(Index, Matrix<const T>, Matrix<T>, int)> fill,
                             double* gradient) {
  if (direction != nullptr) network_->pack(direction, false, &direction_);
  accumulators_.resize(shards_ * accumulator_size_);
  for_each_tile([&](Index first, Index rows, int shard, Worker* worker) {
    const Matrix<const T> u =
        direction != nullptr ? forward_mode(first, rows, worker) : Matrix<const T>{};
    const Matrix<T> d = scratch(worker->cotangent, rows, network_->output_columns());
    fill(first, u, d, shard);
    if (gradient == nullptr) return;
    reverse(first, d, first == shard_begin(shard), accumulators_.data() + shard * accumulator_size_,
            worker);
  });
  if (gradient != nullptr) reduce(gradient);
}

// Sums the shards' gradients in their order, into the flat layout of theta. Large gradients are cut
// into bands of rows for the threads: each sum is made by one of them, in the same order.
template <class T>
void Linearization<T>::reduce(double* gradient) {
  const auto sum = [&](Index offset, Index count, double* out) {
    kernels::table<T>().sum_shards(accumulators_.data() + offset, shards_, accumulator_size_, count,
                                   out);
  };
  const std::vector<Layer>& layers = network_->layers();
  const Index bytes = shards_ * accumulator_size_ * static_cast<Index>(sizeof(T));
  const int bands = bytes > kLargeReduction ? kReductionBands : 1;
  parallel_for(bands, [&](int band, int worker) {
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const auto [in, out, weight, bias] = layers[l];
      const GradientBlock& block = gradient_blocks_[l];
      const Index rows = block.transposed ? in : out;
      double* row = reduced_.data() + worker * widest_;
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

// --- cached adjoints -----------------------------------------------------------------------------

namespace {
// The cost model: time of one row of a batch, in multiply-adds of a matrix product. Fitted to the
// table that `benchmarks/solvers/adjoint_cache.py` prints, on a Zen 5 with AVX-512 and float32.
constexpr double kPass = 1240, kPassLayer = 240;  // of a product by passes, of each layer in it,
constexpr double kLinearPass = 670;               // and where nothing is pulled back
constexpr double kSweep = 1550;                   // of a product by adjoints,
constexpr double kColumn = 180;      // of each layer and column in it: sums across lanes
constexpr double kShort = 1.03;      // its matrix products are shorter, and so slower
constexpr double kTouch = 7.4;       // to read a number of the cache twice,
constexpr double kTouchMemory = 22;  // and where it and the activations are more than this
constexpr double kCacheBytes = 10 << 20;
// What matters in small batches, fitted to `benchmarks/solvers/solver_choice.py`: time of a product, whatever
// its size; of packing and summing a parameter; of a row, and of a column kept for it.
constexpr double kProduct = 37500, kParameter = 260, kRow = 430, kKeptColumn = 3500;
// Of them all, what is not matrix products takes as long in either type: as half as many in double.
template <class T>
constexpr double kUnit = static_cast<double>(sizeof(float)) / sizeof(T);
}  // namespace

template <class T>
Index Linearization<T>::width(std::size_t l) const {
  return l + 1 < network_->layers().size() ? network_->layers()[l].out : network_->output_columns();
}

template <class T>
auto Linearization<T>::costs(Index columns, int sweeps) const -> Costs {
  const std::vector<Layer>& layers = network_->layers();
  const double depth = static_cast<double>(layers.size()), k = static_cast<double>(columns);
  double passes = 0, products = 0, pulled = 0, values = 0, inputs = 0;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const double product = static_cast<double>((layers[l].in + 1) * layers[l].out);
    passes += l > 0 ? 4 * product : 2 * product;
    products += 2 * product;
    pulled += l > 0 ? product : 0;
    values += static_cast<double>(round_up(width(l), kLanes<T>));
    inputs += static_cast<double>(round_up(layers[l].in, kLanes<T>));
  }
  const double bytes = static_cast<double>(rows_) * (k * values + inputs) * sizeof(T);
  const double touch = bytes <= kCacheBytes ? kTouch : kTouchMemory;
  const double by_passes =
      passes + kUnit<T> * ((depth > 1 ? kPass : kLinearPass) + kPassLayer * depth);
  const double by_adjoints =
      kShort * products + k * touch * values + kUnit<T> * (kSweep + kColumn * k * depth);
  return {sweeps * by_passes, sweeps * by_adjoints + kShort * k * pulled};
}

template <class T>
bool Linearization<T>::adjoints_pay(Index columns, int sweeps) const {
  if (sweeps < 2) return false;  // little to gain, and much memory
  const Costs row = costs(columns, sweeps);
  return row.adjoints < row.passes;
}

template <class T>
double Linearization<T>::cost(Index columns, int sweeps) const {
  const Costs row = costs(columns, sweeps);
  const double parameters = static_cast<double>(network_->parameter_count());
  const double kept = row.adjoints + kUnit<T> * kKeptColumn * static_cast<double>(columns);
  const double per_row = kUnit<T> * kRow + (adjoints_pay(columns, sweeps) ? kept : row.passes);
  return sweeps * kUnit<T> * (kProduct + kParameter * parameters) +
         static_cast<double>(rows_) * per_row;
}

// Rows of one column: the columns of an observation lie beside each other.
template <class T>
Matrix<T> Linearization<T>::adjoint_rows(std::size_t l, Index first, Index rows, Index column) {
  const Index stride = leading_dimension<T>(width(l));
  return {adjoints_[l].data() + (first * adjoint_columns_ + column) * stride, rows, width(l),
          adjoint_columns_ * stride};
}

template <class T>
void Linearization<T>::keep_adjoints(Index columns,
                                     FunctionRef<void(Index, Index, Matrix<T>)> fill) {
  adjoint_columns_ = columns;
  adjoints_.resize(network_->layers().size());
  for (std::size_t l = 0; l < adjoints_.size(); ++l) {
    adjoints_[l].resize(rows_ * columns * leading_dimension<T>(width(l)));
  }
  for_each_tile([&](Index first, Index rows, int, Worker*) {
    for (Index column = 0; column < columns; ++column) {
      std::size_t l = adjoints_.size() - 1;
      Matrix<T> d = adjoint_rows(l, first, rows, column);
      fill(first, column, d);
      for (; l > 0; --l) {
        const Matrix<T> below = adjoint_rows(l - 1, first, rows, column);
        pull_back(l, first, d, below);
        d = below;
      }
    }
  });
}

// s_nk = sum_l d^k_l[n] . (dW_l h_{l-1}[n] + db_l)                                         (eq. 18)
// d_l[n] = sum_k s_nk d^k_l[n],  g_W_l += d_l' h_{l-1},  g_b_l += colsum(d_l)              (eq. 19)
template <class T>
void Linearization<T>::sweep_adjoints(const double* direction,
                                      FunctionRef<void(Index, Matrix<T>)> fill, double* gradient) {
  if (direction != nullptr) network_->pack(direction, false, &direction_);
  accumulators_.resize(shards_ * accumulator_size_);
  const std::size_t count = network_->layers().size();
  const Index columns = adjoint_columns_;
  for_each_tile([&](Index first, Index rows, int shard, Worker* worker) {
    const Matrix<T> s{worker->cotangent.data(), rows, columns, columns};
    const auto visit = [&](std::size_t l) {
      const Matrix<T> d = adjoint_rows(l, first, rows, 0);
      const Matrix<T> x = scratch(worker->ping, rows, d.columns);
      return kernels::Adjoints<T>{rows,   columns,  d.data, d.stride / columns, d.columns, s.data,
                                  x.data, x.stride, l == 0};
    };
    for (std::size_t l = 0; direction != nullptr && l < count; ++l) {
      const kernels::Adjoints<T> p = visit(l);
      const Matrix<T> x{p.x, rows, p.width, p.ldx};
      const Layer& layer = network_->layers()[l];
      const Index narrow = narrow_columns<T>(layer);
      if (p.width == layer.out && (layer.out == narrow || layer.out % kLanes<T> == 0)) {
        // Straight from the product's registers, where no columns are left over.
        direction_layer(l, first, {}, x, Epilogue::dot, &p);
      } else {
        direction_layer(l, first, {}, x, Epilogue::none);
        kernels::adjoint_table<T>().dots(p);
      }
    }
    fill(first, s);
    for (std::size_t l = 0; gradient != nullptr && l < count; ++l) {
      const kernels::Adjoints<T> p = visit(l);
      const bool overwrite = first == shard_begin(shard);
      T* accumulator = accumulators_.data() + shard * accumulator_size_;
      kernels::adjoint_table<T>().sums(p, overwrite, accumulator + gradient_blocks_[l].bias);
      accumulate_weights(l, first, {p.x, rows, p.width, p.ldx}, overwrite, accumulator);
    }
  });
  if (gradient != nullptr) reduce(gradient);
}

// --- Kronecker factors ---------------------------------------------------------------------------

namespace {
// Fewer tasks than shards where the sums of all would take more memory than this.
constexpr Index kKroneckerBytes = 64 << 20;
constexpr Index kGramBand = 32;  // rows; whole lanes of both types

// The upper triangle of G += X'X for x (rows, n), in bands of rows from the diagonal on; what a band
// has left of the diagonal is not defined.
template <class T>
void gram(Index rows, const T* x, Index ldx, Index n, T* g, Index ldg, bool overwrite) {
  for (Index b = 0; b < n; b += kGramBand) {
    kernels::table<T>().accumulate({rows, x + b, ldx, std::min(kGramBand, n - b), x + b, ldx, n - b,
                                    g + b * ldg + b, ldg, overwrite});
  }
}

// a (n, n) from rows of its upper triangle that are already in place.
void mirror(double* a, Index n) {
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < i; ++j) a[i * n + j] = a[j * n + i];
  }
}
}  // namespace

template <class T>
void Linearization<T>::kronecker_sums(Index every, Index columns,
                                      FunctionRef<void(Index, Index, Index, Matrix<T>)> fill,
                                      KroneckerSums* sums) {
  const std::vector<Layer>& layers = network_->layers();
  // Of one task, for each layer: H'H (in, in), colsum H (in), D'D (out, out), padded.
  Index size = 0;
  for (const Layer& layer : layers) {
    size += (layer.in + 1) * leading_dimension<T>(layer.in);
    size += layer.out * leading_dimension<T>(layer.out);
  }
  int tasks = shards_;
  while (tasks > 2 && tasks * size * static_cast<Index>(sizeof(T)) > kKroneckerBytes) tasks /= 2;
  accumulators_.resize(std::max(tasks * size, shards_ * accumulator_size_));

  for_each_tile(tasks, [&](Index first, Index tile_rows, int task, Worker* worker) {
    const Index rows = (tile_rows + every - 1) / every;
    const bool overwrite = first == shard_begin(task, tasks);
    for (Index column = 0; column < columns; ++column) {
      Matrix<T> d = scratch(worker->cotangent, rows, network_->output_columns());
      fill(first, every, column, d);
      T* end = accumulators_.data() + (task + 1) * size;  // the last layer's sums come last
      Buffer<T>* buffers[2] = {&worker->ping, &worker->pong};
      for (std::size_t l = layers.size(); l-- > 0;) {
        const auto [in, out, weight, bias] = layers[l];
        const Index stride = leading_dimension<T>(out), input_stride = leading_dimension<T>(in);
        end -= out * stride;
        gram(rows, d.data, d.stride, out, end, stride, overwrite && column == 0);
        end -= (in + 1) * input_stride;
        if (column == 0) {
          const T* h = layer_input(l).row(first);
          const Index ldh = every * input_stride;
          gram(rows, h, ldh, in, end, input_stride, overwrite);
          kernels::table<T>().column_sums(h, rows, ldh, in, overwrite, end + in * input_stride);
        }
        if (l == 0) break;
        const Matrix<T> below = scratch(*buffers[l % 2], rows, in);
        pull_back(l, first, d, below, every);
        d = below;
      }
    }
  });

  sums->inputs.resize(layers.size());
  sums->adjoints.resize(layers.size());
  sums->rows = 0;
  for (int task = 0; task < tasks; ++task) {
    for_each_tile_of(task, tasks,
                     [&](Index, Index rows) { sums->rows += (rows + every - 1) / every; });
  }
  parallel_for(static_cast<int>(layers.size()), [&](int task, int) {
    const auto l = static_cast<std::size_t>(task);
    Index offset = 0;
    for (std::size_t m = 0; m < l; ++m) {
      offset += (layers[m].in + 1) * leading_dimension<T>(layers[m].in);
      offset += layers[m].out * leading_dimension<T>(layers[m].out);
    }
    const auto sum = [&](Index columns_of_row, double* to, Index stride) {
      kernels::table<T>().sum_shards(accumulators_.data() + offset, tasks, size, columns_of_row,
                                     to);
      offset += stride;
    };
    const auto [in, out, weight, bias] = layers[l];
    sums->inputs[l].resize((in + 1) * (in + 1));
    sums->adjoints[l].resize(out * out);
    double* a = sums->inputs[l].data();
    for (Index i = 0; i <= in; ++i) sum(in, a + i * (in + 1), leading_dimension<T>(in));
    for (Index i = 0; i < in; ++i) a[i * (in + 1) + in] = a[in * (in + 1) + i];
    a[in * (in + 1) + in] = static_cast<double>(sums->rows);
    mirror(a, in + 1);
    double* s = sums->adjoints[l].data();
    for (Index i = 0; i < out; ++i) sum(out, s + i * out, leading_dimension<T>(out));
    mirror(s, out);
  });
}

// --- norms ---------------------------------------------------------------------------------------

namespace {
// In strands that the compiler makes vectors of; a row is short enough for sums in T.
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

// A layer's part of J_n' d_n is d_l (h_{l-1}, 1)': its squared norm is a product of two. The free
// outputs, which come last in the last d, have no input but the bias.
template <class T>
double Linearization<T>::squared_gradients(FunctionRef<void(Index, Matrix<T>)> fill) {
  const std::vector<Layer>& layers = network_->layers();
  shard_sums_.resize(shards_);
  shard_sums_.fill_zero();
  for_each_tile([&](Index first, Index rows, int shard, Worker* worker) {
    Matrix<T> d = scratch(worker->cotangent, rows, network_->output_columns());
    fill(first, d);
    double sum = 0;
    Buffer<T>* buffers[2] = {&worker->ping, &worker->pong};
    for (std::size_t l = layers.size(); l-- > 0;) {
      const auto [in, out, weight, bias] = layers[l];
      const Matrix<const T> h = layer_input(l);
      for (Index r = 0; r < rows; ++r) {
        sum += squared_norm(d.row(r), out) * (squared_norm(h.row(first + r), in) + 1) +
               squared_norm(d.row(r) + out, d.columns - out);
      }
      if (l == 0) break;
      const Matrix<T> below = scratch(*buffers[l % 2], rows, in);
      pull_back(l, first, d, below);
      d = below;
    }
    shard_sums_[shard] += sum;
  });
  double total = 0;
  for (Index shard = 0; shard < shards_; ++shard) total += shard_sums_[shard];
  return total;
}

// --- products of the inputs ----------------------------------------------------------------------

template <class T>
void Linearization<T>::input_gram(const double* weights, double* gram) {
  const Matrix<const T> inputs = layer_input(0);
  const Index in = inputs.columns, stride = inputs.stride, size = (in + 1) * stride;
  accumulators_.resize(shards_ * std::max(size, accumulator_size_));
  for_each_tile([&](Index first, Index rows, int shard, Worker* worker) {
    const Matrix<const T> h{inputs.row(first), rows, in, stride};
    Matrix<const T> d = h;
    if (weights != nullptr) {
      const Matrix<T> weighted = scratch(worker->ping, rows, in);
      for (Index r = 0; r < rows; ++r) {
        const T weight = static_cast<T>(weights[first + r]);
        for (Index i = 0; i < stride; ++i) weighted.row(r)[i] = weight * h.row(r)[i];
      }
      d = weighted;
    }
    T* sum = accumulators_.data() + shard * size;
    const bool overwrite = first == shard_begin(shard);
    kernels::table<T>().accumulate(
        {rows, d.data, stride, in, h.data, stride, in, sum, stride, overwrite});
    kernels::table<T>().column_sums(d.data, rows, stride, in, overwrite, sum + in * stride);
  });
  for (Index i = 0; i <= in; ++i) {
    kernels::table<T>().sum_shards(accumulators_.data() + i * stride, shards_, size, in,
                                   gram + i * (in + 1));
  }
  for (Index i = 0; i < in; ++i) gram[i * (in + 1) + in] = gram[in * (in + 1) + i];
  double total = weights != nullptr ? 0 : static_cast<double>(rows_);
  for (Index n = 0; weights != nullptr && n < rows_; ++n) total += weights[n];
  gram[in * (in + 1) + in] = total;
}

template <class T>
void Linearization<T>::adjoints(Index first, Matrix<const T> d,
                                std::vector<Matrix<T>>* adjoints) const {
  const std::vector<Layer>& layers = network_->layers();
  for (Index r = 0; r < d.rows; ++r) {
    std::copy_n(d.row(r), layers.back().out, adjoints->back().row(r));
  }
  for (std::size_t l = layers.size() - 1; l > 0; --l) {
    pull_back(l, first, (*adjoints)[l], (*adjoints)[l - 1]);
  }
}

template class Network<float>;
template class Network<double>;
template void Network<float>::pack(const float*, bool, PackedLayers<float>*) const;
template void Network<float>::pack(const double*, bool, PackedLayers<float>*) const;
template void Network<double>::pack(const double*, bool, PackedLayers<double>*) const;
template class Linearization<float>;
template class Linearization<double>;

}  // namespace natgrad
