// Adjoints of a batch, kept for a series of products with its Jacobian: `columns` cotangents q^k_n of each
// observation are pulled back through all layers once. A product is then
//
//   s_nk = <J_n' q^k_n, v> = sum_l d^k_l[n] . (dW_l h_{l-1}[n] + db_l)                      (eq. 4.4)
//   g    = sum_n sum_k s_nk J_n' q^k_n:  d_l[n] = sum_k s_nk d^k_l[n],
//          g_W_l += d_l' h_{l-1},  g_b_l += colsum(d_l)                                     (eq. 4.5)
//
// with two of the four matrix products of a layer.
#pragma once

#include "natgrad/model/linearization.hpp"

namespace natgrad {

template <class T>
class CachedAdjoints {
 public:
  // Pulls the cotangents back: fill(first row, k, d (rows, K)) writes the k-th of some rows. They belong to
  // the network's present batch and parameters; whoever changes these drops them.
  void keep(Linearization<T>* network, Index columns,
            FunctionRef<void(Index first, Index column, Matrix<T> d)> fill);
  void drop() { columns_ = 0; }
  bool are_kept() const { return columns_ > 0; }

  // gradient = sum_n sum_k s_nk J_n' q^k_n. With a direction v (P), s = <J_n' q^k_n, v> and
  // fill(first row, s (rows, columns)) may change them; without one it writes them, and without a gradient
  // it only reads them.
  void sweep(const double* direction, FunctionRef<void(Index first, Matrix<T> s)> fill,
             double* gradient);

  Linearization<T>& network() const { return *network_; }
  Index columns() const { return columns_; }
  // Adjoints of one column at layer l, (rows, out); those of the last layer with the free outputs.
  Matrix<T> rows(std::size_t l, Index first, Index rows, Index column);

 private:
  Index width(std::size_t l) const;  // of z_l, of the last with the free outputs

  Linearization<T>* network_ = nullptr;
  Index columns_ = 0;
  std::vector<Buffer<T>> layers_;  // for each layer (N, columns, width)
};

}  // namespace natgrad
