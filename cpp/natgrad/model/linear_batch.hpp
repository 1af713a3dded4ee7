// A linear Gaussian policy on a batch: no hidden layers, and standard deviations that are parameters.
// Log probabilities and their gradient then need no more than inputs phi_n = (h_0, 1) and residuals,
//
//   e_n = a_n - mu_n,        log p(a_n) = -1/2 sum_o (e_no / sigma_o)^2 + ...             (eq. 2.1)
//   e_n(theta + d) = e_n - (dW, db) phi_n                                                 (eq. 6.2)
//
// which are kept in bundles of rows (kernels/bundles.cpp). A candidate costs one product, and its
// divergence the squares of what the means have moved; no mean is the difference of two others.
#pragma once

#include "natgrad/model/network.hpp"

namespace natgrad {

template <class T>
class LinearBatch {
 public:
  static bool applies(const NetworkSpec& spec) {
    return spec.hidden.empty() && spec.free_outputs > 0;
  }

  // What rounding the scores of a batch could make of its gradient is estimated from: the sum of their
  // 2-norms, and that of (w_n sum_o |mu_no| / sigma_o^2)^2.
  struct ScoreSizes {
    double norms = 0, magnified = 0;
  };

  // Attaches theta and a batch, and gradient = sum_n w_n grad log p(a_n), tile by tile: values (N) are
  // distances sum_o (e_no / sigma_o)^2 when weigh(first row, rows, shard) sees those of a tile, and
  // weights w_n when it has. `shards` is that of weigh, at most one for each kGroupRows rows.
  ScoreSizes evaluate_with_gradient(const Network<T>& network, const T* theta,
                                    Matrix<const T> observations, Matrix<const T> actions,
                                    int shards, const double* inverse_std, double* values,
                                    FunctionRef<void(Index first, Index rows, int shard)> weigh,
                                    double* gradient);
  bool is_attached() const { return network_ != nullptr; }
  void detach() { network_ = nullptr; }

  // Distances at other parameters, for visit(first row, rows, shard) to see, tile by tile. Returns
  // sum_n sum_o (moved mean_no / tau_o)^2, with 1 / tau = inverse_std_of_moves.
  double evaluate_at(const T* theta, const double* inverse_std, const double* inverse_std_of_moves,
                     double* distances,
                     FunctionRef<void(Index first, Index rows, int shard)> visit);

  // gram (in + 1, in + 1) = sum_n phi_n phi_n'.
  void input_gram(double* gram);

 private:
  struct Worker {
    Buffer<T> inputs, scratch;  // rows as the network makes them
    Buffer<T> moves;            // a tile's bundles: means, scores, or moves of the means
    Buffer<double> magnitudes, squares;
  };
  template <class F>
  void for_each_tile(F f);  // f(first, rows, bundles, shard, worker)
  Index shard_begin(int shard) const;
  void pack_inputs(Matrix<const T> observations, T* to, Worker* worker) const;
  void sum_shards(Index rows, Index columns, double* sums) const;

  const Network<T>* network_ = nullptr;
  Index rows_ = 0, in_ = 0, out_ = 0;  // `in` with the ones of the bias
  int shards_ = 0;
  Buffer<T> theta_, weights_;     // (P) as attached; (out, in): W and b, or what they have moved
  Buffer<T> inputs_, residuals_;  // bundles of the batch
  Buffer<T> sums_;                // (shards, out or in, leading_dimension(in))
  Buffer<double> shard_values_;   // (shards, out + 2): sums of a shard beside these
  Buffer<double> reduced_;        // (out, in)
  std::vector<Worker> workers_;
};

}  // namespace natgrad
