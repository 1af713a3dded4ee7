// A stochastic policy: a network whose outputs are the parameters of an action distribution, with
// all parameters in one flat vector.
#pragma once

#include <span>

#include "natgrad/model/cached_adjoints.hpp"
#include "natgrad/model/distributions/distribution_rows.hpp"
#include "natgrad/model/linear_batch.hpp"

namespace natgrad {

// A network with its parameters, and the packed form of them that the kernels read. Parameters may
// be written from outside at any time (users hold views), so the packed form is checked against a
// copy before each use, which costs one pass over memory.
template <class T>
class ParameterizedNetwork {
 public:
  ParameterizedNetwork(NetworkSpec spec, Initialization kind, double output_scale,
                       double free_value);

  Network<T>& network() { return network_; }
  const Network<T>& network() const { return network_; }
  T* parameters() { return parameters_.data(); }
  const T* parameters() const { return parameters_.data(); }
  Index parameter_count() const { return parameters_.size(); }

  // Outputs for any number of observations, in chunks: visit(first row, y (rows, K)).
  void outputs(Matrix<const T> observations,
               FunctionRef<void(Index first, Matrix<const T> y)> visit);

 private:
  Network<T> network_;
  Buffer<T> parameters_;
  ForkSafeMutex mutex_;  // guards what follows
  PackedLayers<T> packed_;
  Buffer<T> packed_from_;
  Linearization<T> workspace_;
};

// Observations and the actions taken in them, which somebody else owns.
template <class T>
struct Batch {
  Matrix<const T> observations;        // (N, inputs)
  Matrix<const T> actions;             // (N, action size)
  std::span<const double> advantages;  // (N)
  std::span<const double> log_probs =
      {};  // (N) of the behaviour policy; empty: the current policy's
  Index rows() const { return observations.rows; }
};

template <class T>
class Policy : public ParameterizedNetwork<T> {
 public:
  Policy(NetworkSpec spec, Distribution distribution, Initialization kind, double output_scale,
         double log_std_init);

  const Distribution& distribution() const { return distribution_; }

  // Row i draws from stream rng.stream + i; the counter then grows by one.
  void sample(Matrix<const T> observations, Rng* rng, Matrix<T> actions, T* log_probs);
  void mode(Matrix<const T> observations, Matrix<T> actions);
  void log_prob(Matrix<const T> observations, Matrix<const T> actions, T* out);
  void entropy(Matrix<const T> observations, T* out);
  // KL(old || current), summed over action dimensions, for each observation.
  void kl(Matrix<const T> observations, const T* old_parameters, T* out);
  // mean_n weights_n * grad log pi(a_n | s_n); null weights are ones.
  void score(Matrix<const T> observations, Matrix<const T> actions, const double* weights,
             double* out);

 private:
  Distribution distribution_;
};

// x within bounds of its columns, row after row: what of a sample an environment gets to see. A NaN
// stays one.
template <class T>
void clip(Matrix<const T> x, const T* low, const T* high, T* out) {
  for (Index r = 0; r < x.rows; ++r) {
    for (Index i = 0; i < x.columns; ++i) {
      *out++ = std::min(std::max(x.row(r)[i], low[i]), high[i]);
    }
  }
}

// A policy at its present parameters, linearised on a batch. Keeps a packed copy of the parameters:
// what it computes does not change when the policy does. The policy must outlive it.
template <class T>
struct LinearizedPolicy {
  const Policy<T>* policy = nullptr;
  PackedLayers<T> packed;
  Linearization<T> network;
  CachedAdjoints<T> adjoints;    // where a series of products keeps them
  LinearBatch<T> linear;         // what a linear Gaussian policy has instead of activations
  Matrix<const T> observations;  // which must outlive it too

  // Nothing is computed yet.
  void attach(const Policy<T>& policy, Matrix<const T> observations);
  void evaluate(const Policy<T>& policy, Matrix<const T> observations);
  // A part of another's batch, evenly spaced, with the activations that are there.
  void select(LinearizedPolicy* all, Index part);
  // The activations of the network, where they are not there yet.
  void provide_activations();
  // The free parameters of the policy.
  const T* free() const { return packed.bias.back().data() + policy->network().spec().outputs; }
};

}  // namespace natgrad
