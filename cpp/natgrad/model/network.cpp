#include "natgrad/model/network.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>

#include "natgrad/base/dense.hpp"
#include "natgrad/base/random.hpp"

namespace natgrad {
namespace {

template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Streams of the seed, so that no two uses share random numbers. Layer l draws from kWeightStream + l.
constexpr std::uint32_t kWeightStream = 0x57000000u, kFourierStream = 0x46000000u;

// Rows of W' (k = in) in panels of columns (n = out). `source` is (out, in), row-major, and read a
// few rows at a time, so that what is written stays in cache.
template <class T, class Source>
void pack_transposed(const Source* source, Index out, Index in, T* packed) {
  constexpr Index group = 8;
  const Index panel = kernels::active<T>().panel;
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

// Rows of W (k = out) in panels of `panel` columns (n = in).
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

}  // namespace

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
    RandomStream random(spec_.seed, kFourierStream, 0);
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
    RandomStream random(spec_.seed, kWeightStream + static_cast<std::uint32_t>(l), 0);
    RowMajor<double> w(out, in);
    for (Index i = 0; i < w.size(); ++i) w.data()[i] = random.normal();
    const bool last = l + 1 == layers_.size();
    if (kind == Initialization::orthogonal) {
      // Q of a tall Gaussian matrix, columns signed by R's diagonal, is uniform on the orthogonal
      // group (Mezzadri 2007).
      const bool wide = in > out;
      const Eigen::MatrixXd tall = wide ? Eigen::MatrixXd(w.transpose()) : Eigen::MatrixXd(w);
      const Eigen::MatrixXd q = orthonormal_columns(tall, true);
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
void Network<T>::set_normalizer(std::span<const double> mean, std::span<const double> std,
                                double clip) {
  mean_.assign(mean.begin(), mean.end());
  std_.assign(std.begin(), std.end());
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
  kernels::active<T>().normalize(observations.data, observations.stride, h.rows, spec_.inputs,
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
  kernels::active<T>().multiply(p);
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
      pack_rows(theta + weight, out, in, kernels::active<T>().panel, packed->backward[l].data());
    }
  }
}

template class Network<float>;
template class Network<double>;
template void Network<float>::pack(const float*, bool, PackedLayers<float>*) const;
template void Network<float>::pack(const double*, bool, PackedLayers<float>*) const;
template void Network<double>::pack(const double*, bool, PackedLayers<double>*) const;

}  // namespace natgrad
