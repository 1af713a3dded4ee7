// The metric of a Fisher matrix at the outputs of the network: for each observation w_n / N M_n, with M_n
// the distribution's own Fisher information or, of the empirical kind, the outer product of the score of
// the action taken; and the columns of its square root.
#pragma once

#include "natgrad/model/policy.hpp"

namespace natgrad {

enum class FisherKind { exact, empirical };

template <class T>
class OutputMetric {
 public:
  // Reads the distribution parameters of `policy`, which must outlive this. `actions` are needed by the
  // empirical kind; null weights are ones.
  void attach(LinearizedPolicy<T>* policy, FisherKind kind,
              Matrix<const T> actions,  // (N, action size)
              const double* weights);   // (N)
  // Evaluates M_n for all rows, once for each attach(). The closed form does without, as it does without
  // activations; whatever follows here needs it.
  void prepare();

  FisherKind kind() const { return kind_; }
  const double* weights() const { return weights_.data(); }  // (N): w_n / N
  bool is_uniform() const { return uniform_; }

  // Columns of the root of M_n; those of the free outputs come last. At least one, which may be zero: a
  // variable with a single category has rank 0.
  Index columns() const;
  // Those with adjoints in the layers: of an exact metric the columns of the free outputs have none.
  Index adjoint_columns() const;

  // d_n = w_n / N M_n u_n, for rows from `first` on.
  void product(Index first, Matrix<const T> u, Matrix<T> d) const;
  // d_n = sqrt(w_n / N) times a column of the root of M_n, for n = first, first + every, ...
  void root_column(Index first, Index every, Index column, Matrix<T> d) const;
  // The sum of all columns, each with a random sign that is a function of row and column alone.
  void signed_root(Index first, Index every, Matrix<T> d) const;

  // Diagonal of F that belongs to the free outputs, made once for each attach(): an exact M_n is diagonal
  // there; of the empirical kind these are the squares of the scores.
  const Buffer<double>& free_diagonal();
  // The same where it stands outside of the adjoints, in an exact F; null where it does not.
  const double* separate_diagonal();

 private:
  const T* state(Index row) const { return state_.data() + row * state_stride_; }

  LinearizedPolicy<T>* policy_ = nullptr;
  FisherKind kind_ = FisherKind::exact;
  DistributionRows<T> distribution_;
  Buffer<T> state_;  // (N, K): curvature of the distribution, or scores; or one row for all
  Index state_stride_ = 0;
  Buffer<double> weights_;
  Buffer<double> free_;
  bool uniform_ = true;
  bool has_state_ = false, has_free_ = false;  // since attach()
};

}  // namespace natgrad
