// Sums over a batch that are neither products with its Jacobian nor gradients: what Kronecker factors and
// norms of gradients are made of. They use the activations of a linearisation and its scratch memory.
#pragma once

#include "natgrad/model/linearization.hpp"

namespace natgrad {

// What Kronecker factors are made of, for each layer l and over the `rows` that took part:
//
//   inputs[l]   = sum_n phi_n phi_n'           (in + 1, in + 1), phi = (h_{l-1}, 1)
//   adjoints[l] = sum_n sum_k d^k_n d^k_n'     (out, out)
struct KroneckerSums {
  std::vector<Buffer<double>> inputs, adjoints;
  Index rows = 0;
};

// Pulls `columns` cotangents of about one row in `every` back through all layers, without keeping them:
// fill(r, every, k, d (rows, K)) writes the k-th of the rows r, r + every, ...
template <class T>
void kronecker_sums(Linearization<T>* network, Index every, Index columns,
                    FunctionRef<void(Index first, Index every, Index column, Matrix<T> d)> fill,
                    KroneckerSums* sums);

// sum_n ||J_n' d_n||^2, where fill(first row, d (rows, K)) writes the rows d_n, tile by tile. They are
// pulled back once; no gradient is formed.
template <class T>
double squared_gradients(Linearization<T>* network,
                         FunctionRef<void(Index first, Matrix<T> d)> fill);

// gram (in + 1, in + 1) = sum_n weights_n phi_n phi_n' with phi = (h_0, 1), the first layer's input and a
// one for its bias; null weights are ones.
template <class T>
void input_gram(Linearization<T>* network, const double* weights, double* gram);

}  // namespace natgrad
