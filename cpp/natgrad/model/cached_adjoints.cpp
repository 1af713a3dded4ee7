#include "natgrad/model/cached_adjoints.hpp"

namespace natgrad {

template <class T>
Index CachedAdjoints<T>::width(std::size_t l) const {
  const Network<T>& network = network_->network();
  return l + 1 < network.layers().size() ? network.layers()[l].out : network.output_columns();
}

// The columns of an observation lie beside each other.
template <class T>
Matrix<T> CachedAdjoints<T>::rows(std::size_t l, Index first, Index rows, Index column) {
  const Index stride = leading_dimension<T>(width(l));
  return {layers_[l].data() + (first * columns_ + column) * stride, rows, width(l),
          columns_ * stride};
}

template <class T>
void CachedAdjoints<T>::keep(Linearization<T>* network, Index columns,
                             FunctionRef<void(Index, Index, Matrix<T>)> fill) {
  network_ = network;
  columns_ = columns;
  layers_.resize(network->network().layers().size());
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    layers_[l].resize(network->rows() * columns * leading_dimension<T>(width(l)));
  }
  network->tiles().for_each([&](const Tile& tile, typename Tiles<T>::Worker*) {
    for (Index column = 0; column < columns; ++column) {
      std::size_t l = layers_.size() - 1;
      Matrix<T> d = rows(l, tile.first, tile.rows, column);
      fill(tile.first, column, d);
      for (; l > 0; --l) {
        const Matrix<T> below = rows(l - 1, tile.first, tile.rows, column);
        network->pull_back(l, tile.first, d, below);
        d = below;
      }
    }
  });
}

template <class T>
void CachedAdjoints<T>::sweep(const double* direction, FunctionRef<void(Index, Matrix<T>)> fill,
                              double* gradient) {
  using Worker = typename Tiles<T>::Worker;
  if (direction != nullptr) network_->set_direction(direction);
  GradientSums<T>& sums = network_->gradient_sums();
  sums.begin(&network_->tiles());
  const std::vector<Layer>& layers = network_->network().layers();
  network_->tiles().for_each([&](const Tile& tile, Worker* worker) {
    const Matrix<T> s{worker->cotangent.data(), tile.rows, columns_, columns_};
    // The adjoints of a layer, and x on the way from the direction to s, or from s to the gradient.
    const auto adjoints_of = [&](std::size_t l) {
      const Matrix<T> d = rows(l, tile.first, tile.rows, 0);
      const Matrix<T> x = Worker::matrix(worker->ping, tile.rows, d.columns);
      return kernels::Adjoints<T>{tile.rows, columns_, d.data, d.stride / columns_,
                                  d.columns, s.data,   x.data, x.stride,
                                  l == 0};
    };
    for (std::size_t l = 0; direction != nullptr && l < layers.size(); ++l) {
      const kernels::Adjoints<T> p = adjoints_of(l);
      const Matrix<T> x{p.x, tile.rows, p.width, p.ldx};
      const Layer& layer = layers[l];
      const Index narrow = narrow_columns<T>(layer);
      if (p.width == layer.out && (layer.out == narrow || layer.out % kLanes<T> == 0)) {
        // Straight from the product's registers, where no columns are left over.
        network_->push_layer(l, tile.first, {}, x, Epilogue::dot, &p);
      } else {
        network_->push_layer(l, tile.first, {}, x, Epilogue::none);
        kernels::active<T>().adjoint_dots(p);
      }
    }
    fill(tile.first, s);
    for (std::size_t l = 0; gradient != nullptr && l < layers.size(); ++l) {
      const kernels::Adjoints<T> p = adjoints_of(l);
      kernels::active<T>().adjoint_sums(p, tile.opens_shard, sums.biases(l, tile));
      sums.add_weights(l, tile, Matrix<const T>{p.x, tile.rows, p.width, p.ldx},
                       network_->layer_input(l, tile));
    }
  });
  if (gradient != nullptr) sums.finish(gradient);
}

template class CachedAdjoints<float>;
template class CachedAdjoints<double>;

}  // namespace natgrad
