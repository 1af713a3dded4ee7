// The Fisher information of a policy on a batch, without automatic differentiation:
//
//   F = (1/N) sum_n w_n J_n' M_n J_n + damping I                                          (eq. 10)
//
// with J_n the Jacobian of the network's outputs and M_n the distribution's own Fisher information.
// kind = empirical replaces M_n by the outer product of the score of the action taken.
#pragma once

#include "natgrad/fisher/direct_solver.hpp"
#include "natgrad/fisher/linear_gaussian.hpp"
#include "natgrad/model/batch_sums.hpp"

namespace natgrad {

enum class FisherKind { exact, empirical };

// How products are made: by two passes over the batch (eq. 12, 13), by cached adjoints (eq. 18, 19),
// or, automatic, by what a cost model says is fastest for a series of products; a linear Gaussian
// policy then has the small matrix of (eq. 20).
enum class FisherMethod { automatic, passes, adjoints };

// A fixed part of a batch: `part` of `rows` observations, evenly spaced.
inline Index subsample_size(Index rows, double fraction) {
  const auto part = static_cast<Index>(std::lround(fraction * static_cast<double>(rows)));
  return std::clamp<Index>(part, 1, rows);
}
template <class T>
Matrix<const T> subsample_rows(Matrix<const T> all, Index part, Buffer<T>* storage) {
  storage->resize(part * all.columns);
  for (Index i = 0; i < part; ++i) {
    std::copy_n(all.row(spaced_row(i, part, all.rows)), all.columns,
                storage->data() + i * all.columns);
  }
  return {storage->data(), part, all.columns, all.columns};
}

template <class T>
class Fisher {
 public:
  double damping = 0;
  FisherMethod method = FisherMethod::automatic;

  // Reads the distribution parameters of `policy`, which must outlive this. `actions` are needed by
  // the empirical kind; null weights are ones. Both arrays have one entry for each row of policy.
  void attach(LinearizedPolicy<T>* policy, FisherKind kind,
              Matrix<const T> actions,  // (N, action size)
              const double* weights);   // (N)

  Index size() const { return policy_->policy->parameter_count(); }
  Index rows() const { return policy_->network.rows(); }
  const Network<T>& network() const { return policy_->policy->network(); }

  // out = F v, as one of a series of so many. What makes the series faster is made by its first
  // product and kept; which way is taken depends on the problem and on the argument alone.
  void product(const double* v, double* out, int series = 1);
  // v'F v by the first half of such a product: what is pushed forward is not pulled back.
  double quadratic_form(const double* v, int series = 1);
  // Time of a series, in multiply-adds of the kernels: a cost model.
  double cost_of_products(int series) const;

  // What solves (F + damping I) x = b as asked, the damping F's own and that given: of several the one
  // that takes the least time by a cost model, conjugate gradients with a series of so many products.
  // These also where there is no direct form as asked for.
  Solver choose(Solver asked, double more_damping, int series) const;
  // Solves in a direct form that was chosen, and makes fx = F x without damping. False if rounding
  // forbids it.
  bool solve(Solver form, const double* b, double more_damping, double* x, double* fx);

  // What Kronecker factors are made of (eq. 21), of every `every`-th observation or so; adjoints of all
  // columns of the root of M, or of one combination of them with random signs, whose outer product
  // has the same expectation. Scaled so that the sums of all observations would be means.
  void kronecker_sums(Index every, bool all_columns, KroneckerSums* sums);
  // Diagonal of F that belongs to the free outputs; without damping.
  const Buffer<double>& free_diagonal();

  // F (P, P), row-major, assembled from blocks of layers (eq. 14); never by P products.
  void to_dense(double* out);
  void diagonal(double* out);

  // tr F from one pass of pull-backs: each observation's own trace is the expected squared norm of
  // J_n' Q_n z_n for random signs z_n, which are fixed here (eq. 33). Exact where no more than one
  // column of Q_n reaches the layers: two actions, one mean, the empirical kind.
  double trace();

 private:
  // Calls visit(first, h, d) for chunks of rows, where column by column of the square root of M the
  // adjoints d[l] (rows, out_l) of every layer are given; h[l] (rows, in_l + 1) ends with ones.
  template <class Visit>
  void for_each_adjoint(Visit visit);
  Index columns() const;
  Index adjoint_columns() const;
  void fill_column(Index first, Index every, Index column, Matrix<T> d) const;
  void fill_signed(Index first, Index every, Matrix<T> d) const;
  double cost(Solver solver, double more_damping, int series) const;
  bool is_linear_gaussian() const;
  bool uses_gram(int series) const;
  bool uses_adjoints(int series) const;
  const T* state(Index row) const;
  void provide_state();
  void provide_gram();
  void provide_adjoints();
  const double* separate_diagonal();
  void metric_product(Index first, Matrix<const T> u, Matrix<T> d) const;
  void product_by_passes(const double* v, double* out);
  void product_by_adjoints(const double* v, double* out);

  LinearizedPolicy<T>* policy_ = nullptr;
  FisherKind kind_ = FisherKind::exact;
  DistributionRows<T> distribution_;
  Buffer<T> state_;  // (N, K): curvature of the distribution, or scores; or one for all
  Index state_stride_ = 0;
  Buffer<double> weights_;     // (N): w_n / N
  Buffer<double> free_state_;  // of the free outputs: sum_n w_n / N M_n, which is diagonal there
  Buffer<double> forms_;       // (N) of a quadratic form; or F v (P) where G makes it
  LinearGaussian<T> linear_;
  DirectSolver<T> direct_;
  bool uniform_ = true, has_state_ = false, has_gram_ = false, has_free_ = false;
};

}  // namespace natgrad
