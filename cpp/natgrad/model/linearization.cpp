#include "natgrad/model/linearization.hpp"

#include <algorithm>

namespace natgrad {
namespace {

// h W' + ... of one layer by the kernels that suit its width. The last layer gets its columns of free
// outputs as well: they equal their bias.
template <class T>
void multiply_layer(const Network<T>& network, std::size_t l, kernels::Multiply<T> p) {
  const Layer& layer = network.layers()[l];
  const Index narrow = narrow_columns<T>(layer), wide = round_up(layer.out - narrow, kLanes<T>);
  p.n = wide;
  if (wide > 0) kernels::active<T>().multiply(p);
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
    kernels::active<T>().multiply_narrow(q);
  }
  if (l + 1 < network.layers().size()) return;
  const Index written = wide + (narrow > 0 ? kLanes<T> : 0), columns = network.output_columns();
  for (Index r = 0; r < p.rows && written < columns; ++r) {
    std::copy(p.bias + written, p.bias + columns, p.c + r * p.ldc + written);
  }
}

// One layer of a forward pass: result (rows, out), and act'(z) in `slope` where the value does not
// determine it. `h_streams` if the rows of h come from memory and those after them are read next.
template <class T>
void forward_layer(const Network<T>& network, const PackedLayers<T>& packed, std::size_t l,
                   Matrix<const T> h, Matrix<T> result, T* slope, bool h_streams) {
  const Layer& layer = network.layers()[l];
  kernels::Multiply<T> p{};
  p.rows = h.rows;
  p.a = h.data;
  p.lda = h.stride;
  p.k = layer.in;
  p.b = packed.forward[l].data();
  p.bias = packed.bias[l].data();
  p.c = result.data;
  p.ldc = result.stride;
  p.epilogue = l + 1 == network.layers().size() ? Epilogue::none : Epilogue::activate;
  p.activation = network.spec().activation;
  p.ldcached = leading_dimension<T>(layer.out);
  p.slope = slope;
  p.a_streams = h_streams;
  multiply_layer(network, l, p);
}

}  // namespace

// --- activations ---------------------------------------------------------------------------------

template <class T>
void Activations<T>::resize(const Network<T>& network, Index rows) {
  network_ = &network;
  rows_ = rows;
  output_columns_ = network.output_columns();
  keeps_slopes_ = !kernels::slope_follows_from_value(network.spec().activation);
  const std::size_t count = network.layers().size();
  inputs_.resize(count);
  slopes_.resize(count);
  for (std::size_t l = 0; l < count; ++l) {
    inputs_[l].resize(rows * stride_of(l));
    if (l > 0 && keeps_slopes_) slopes_[l].resize(rows * stride_of(l));
  }
  outputs_.resize(rows * output_stride());
}

template <class T>
void Activations<T>::copy_rows(const Activations& from, const Tile& tile, Index part) {
  const auto copy = [&](const Buffer<T>& source, Buffer<T>& to, Index stride) {
    for (Index r = tile.first; r < tile.first + tile.rows; ++r) {
      std::copy_n(source.data() + spaced_row(r, part, from.rows_) * stride, stride,
                  to.data() + r * stride);
    }
  };
  for (std::size_t l = 0; l < inputs_.size(); ++l) {
    copy(from.inputs_[l], inputs_[l], stride_of(l));
    if (keeps_slopes_ && l > 0) copy(from.slopes_[l], slopes_[l], stride_of(l));
  }
  copy(from.outputs_, outputs_, output_stride());
}

// --- passes over the batch -----------------------------------------------------------------------

template <class T>
void Linearization<T>::attach(const Network<T>& network, const PackedLayers<T>& packed, Index rows,
                              bool is_part) {
  network_ = &network;
  packed_ = &packed;
  has_activations_ = false;
  tiles_.attach(network, rows, is_part);
  activations_.resize(network, rows);
  gradient_.attach(network);
}

template <class T>
void Linearization<T>::evaluate(const Network<T>& network, const PackedLayers<T>& packed,
                                Matrix<const T> observations) {
  attach(network, packed, observations.rows);
  tiles_.for_each([&](const Tile& tile, Worker* worker) { forward(tile, observations, worker); });
  has_activations_ = true;
}

template <class T>
void Linearization<T>::select(const Linearization& all, const PackedLayers<T>& packed, Index part) {
  attach(*all.network_, packed, part, true);
  tiles_.for_each(
      [&](const Tile& tile, Worker*) { activations_.copy_rows(all.activations_, tile, part); });
  has_activations_ = true;
}

template <class T>
void Linearization<T>::evaluate_with_gradient(Matrix<const T> observations, Fill fill,
                                              double* gradient) {
  gradient_.begin(&tiles_);
  tiles_.for_each([&](const Tile& tile, Worker* worker) {
    const Matrix<const T> y = forward(tile, observations, worker);
    const Matrix<T> d = Worker::matrix(worker->cotangent, tile.rows, network_->output_columns());
    fill(tile.first, y, d, tile.shard);
    reverse_mode(tile, d, worker);
  });
  has_activations_ = true;
  gradient_.finish(gradient);
}

template <class T>
void Linearization<T>::evaluate_at(const PackedLayers<T>& packed, Visit visit) {
  const std::size_t last = network_->layers().size() - 1;
  tiles_.for_each([&](const Tile& tile, Worker* worker) {
    Matrix<const T> h = layer_input(0, tile);
    T* slope = worker->cotangent.data();  // which nobody reads
    for (std::size_t l = 0; l < last; ++l) {
      const Matrix<T> result = worker->between(l, tile.rows, network_->layers()[l].out);
      forward_layer<T>(*network_, packed, l, h, result, slope, l == 0);
      h = result;
    }
    const Matrix<T> y = Worker::matrix(worker->outputs, tile.rows, network_->output_columns());
    forward_layer<T>(*network_, packed, last, h, y, nullptr, false);
    visit(tile.first, y, tile.shard);
  });
}

template <class T>
void Linearization<T>::sweep(const double* direction, Fill fill, double* gradient) {
  if (direction != nullptr) set_direction(direction);
  gradient_.begin(&tiles_);
  tiles_.for_each([&](const Tile& tile, Worker* worker) {
    const Matrix<const T> u = direction != nullptr ? forward_mode(tile, worker) : Matrix<const T>{};
    const Matrix<T> d = Worker::matrix(worker->cotangent, tile.rows, network_->output_columns());
    fill(tile.first, u, d, tile.shard);
    if (gradient != nullptr) reverse_mode(tile, d, worker);
  });
  if (gradient != nullptr) gradient_.finish(gradient);
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

// --- one tile ------------------------------------------------------------------------------------

// Returns the outputs of the tile.
template <class T>
Matrix<const T> Linearization<T>::forward(const Tile& tile, Matrix<const T> observations,
                                          Worker* worker) {
  const auto rows_of = [&](Matrix<T> all) { return all.middle_rows(tile.first, tile.rows); };
  Matrix<T> h = rows_of(activations_.input(0));
  network_->input(observations.middle_rows(tile.first, tile.rows), h, worker->ping.data());
  const std::size_t last = network_->layers().size() - 1;
  for (std::size_t l = 0; l < last; ++l) {
    const Matrix<T> result = rows_of(activations_.input(l + 1));
    T* slope = activations_.slope(l + 1);
    if (slope != nullptr) slope += tile.first * result.stride;
    forward_layer<T>(*network_, *packed_, l, h, result, slope, false);
    h = result;
  }
  const Matrix<T> y = rows_of(activations_.outputs());
  forward_layer<T>(*network_, *packed_, last, h, y, nullptr, false);
  return y;
}

template <class T>
void Linearization<T>::set_direction(const double* direction) {
  network_->pack(direction, false, &direction_);
}

template <class T>
void Linearization<T>::push_layer(std::size_t l, Index first, Matrix<const T> dh, Matrix<T> u,
                                  Epilogue epilogue, const kernels::Adjoints<T>* dots) const {
  const Layer& layer = network_->layers()[l];
  const Matrix<const T> h = layer_input(l);
  kernels::Multiply<T> p{};
  p.rows = u.rows;
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
  p.c = u.data;
  p.ldc = u.stride;
  p.epilogue = epilogue;
  p.dots = dots;
  if (epilogue == Epilogue::derive) {
    p.activation = network_->spec().activation;
    p.ldcached = leading_dimension<T>(layer.out);
    p.cached = activations_.source_of_slope(l + 1) + first * p.ldcached;
  }
  multiply_layer(*network_, l, p);
}

// u_l = dh_{l-1} W_l' + h_{l-1} dW_l' + db_l,  dh_l = act'(z_l) * u_l                     (eq. 4.1)
template <class T>
Matrix<const T> Linearization<T>::forward_mode(const Tile& tile, Worker* worker) const {
  Matrix<const T> dh{};  // the observations do not depend on theta
  const std::size_t last = network_->layers().size() - 1;
  for (std::size_t l = 0; l < last; ++l) {
    const Matrix<T> u = worker->between(l, tile.rows, network_->layers()[l].out);
    push_layer(l, tile.first, dh, u, Epilogue::derive);
    dh = u;
  }
  const Matrix<T> u = Worker::matrix(worker->outputs, tile.rows, network_->output_columns());
  push_layer(last, tile.first, dh, u, Epilogue::none);
  return u;
}

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
  p.cached = activations_.source_of_slope(l) + first * stride;
  kernels::active<T>().multiply(p);
}

// Adds the gradients of all layers.                                                       (eq. 4.2)
template <class T>
void Linearization<T>::reverse_mode(const Tile& tile, Matrix<T> d, Worker* worker) const {
  for (std::size_t l = network_->layers().size(); l-- > 0;) {
    gradient_.add_weights(l, tile, d, layer_input(l, tile));
    gradient_.add_biases(l, tile, d);
    if (l == 0) break;
    const Matrix<T> below = worker->between(l, d.rows, network_->layers()[l].in);
    pull_back(l, tile.first, d, below);
    d = below;
  }
}

template class Activations<float>;
template class Activations<double>;
template class Linearization<float>;
template class Linearization<double>;

}  // namespace natgrad
