// The Fisher information of a policy on a batch, without automatic differentiation:
//
//   F = (1/N) sum_n w_n J_n' M_n J_n + damping I                                          (eq. 3.3)
//
// with J_n the Jacobian of the network's outputs and M_n the metric there (output_metric.hpp). A series of
// products is planned, and then made by passes, by adjoints or in closed form:
//
//   const FisherProducts<T> f = fisher.plan(10);
//   f.product(v, out);
#pragma once

#include <variant>

#include "natgrad/fisher/cost_model.hpp"
#include "natgrad/fisher/direct_solver.hpp"
#include "natgrad/fisher/linear_gaussian.hpp"
#include "natgrad/fisher/products.hpp"
#include "natgrad/model/batch_sums.hpp"

namespace natgrad {

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

// Products with a Fisher matrix in the way that was planned for them, with all that they need. A view: the
// Fisher<T> must outlive it, and attach() ends it; other plans do not.
template <class T>
class FisherProducts {
 public:
  using Way = std::variant<Passes<T>*, Adjoints<T>*, LinearGaussian<T>*>;

  FisherProducts() = default;
  FisherProducts(Way way, Index size, double damping, double cost)
      : way_(way), size_(size), damping_(damping), cost_(cost) {}

  // out = F v, both (P).
  void product(const double* v, double* out) const;
  // v'F v, in the time of half a product: what is pushed forward is not pulled back.
  double quadratic_form(const double* v) const;
  // What the cost model says of all products that were planned.
  double cost() const { return cost_; }

 private:
  Way way_;
  Index size_ = 0;
  double damping_ = 0, cost_ = 0;
};

template <class T>
class Fisher {
 public:
  // Reads the distribution parameters of `policy`, which must outlive this. `actions` are needed by
  // the empirical kind; null weights are ones. Both arrays have one entry for each row of policy.
  void attach(LinearizedPolicy<T>* policy, FisherKind kind,
              Matrix<const T> actions,  // (N, action size)
              const double* weights,    // (N)
              double damping = 0);

  Index size() const { return policy_->policy->parameter_count(); }
  Index rows() const { return policy_->network.rows(); }
  const Network<T>& network() const { return policy_->policy->network(); }
  double damping() const { return damping_; }

  // Chooses the way that is fastest for about so many products, and makes what it needs: activations and
  // curvatures, adjoints, or the matrix of the closed form. The choice depends on the shape of the problem
  // and on the arguments alone. Planning again, for another number, makes nothing twice.
  FisherProducts<T> plan(int products, FisherMethod method = FisherMethod::automatic);
  // What the cost model says of so many products, before anything is made.
  double cost(int products) const {
    return kCostModel.products(FisherMethod::automatic, shape(), products);
  }
  // What the cost model looks at.
  FisherShape shape() const;

  // What solves (F + damping I) x = b as asked, the damping F's own and that given: of several the one
  // that takes the least time by the cost model, where conjugate gradients take so many products. These
  // also where there is no direct form as asked for.
  Solver choose(Solver asked, double more_damping, int products) const;
  // Solves in a direct form that was chosen, and makes fx = F x without damping. False if rounding
  // forbids it.
  bool solve(Solver form, const double* b, double more_damping, double* x, double* fx);

  // What Kronecker factors are made of (eq. 7.1), from about one observation in `every`: adjoints of all
  // columns of the root of M, or of one combination of them with random signs, whose outer product
  // has the same expectation.
  void kronecker_sums(Index every, bool all_columns, KroneckerSums* sums);
  // Diagonal of F that belongs to the free outputs; without damping.
  const Buffer<double>& free_diagonal();

  // F (P, P), row-major, assembled from blocks of layers (eq. 4.3); never by P products.
  void to_dense(double* out);
  void diagonal(double* out);

  // tr F from one pass of pull-backs: each observation's own trace is the expected squared norm of
  // J_n' Q_n z_n for random signs z_n, which are fixed here (eq. 8.3). Exact where no more than one
  // column of Q_n reaches the layers: two actions, one mean, the empirical kind.
  double trace();

 private:
  // Calls visit(h, d) for chunks of rows and, in these, column by column of the square root of M, with
  // the adjoints d[l] (rows, out_l) of every layer; h[l] (rows, in_l + 1) ends with ones.
  template <class Visit>
  void for_each_adjoint(Visit visit);
  void prepare_closed_form();

  LinearizedPolicy<T>* policy_ = nullptr;
  double damping_ = 0;
  OutputMetric<T> metric_;
  Passes<T> passes_;
  Adjoints<T> adjoints_;
  LinearGaussian<T> closed_form_;
  DirectSolver<T> direct_;
};

}  // namespace natgrad
