// The Fisher information of a linear Gaussian policy in closed form. Without hidden layers and with a
// standard deviation that is a parameter, J_n and M factorise and
//
//   F = Sigma^-1 (x) G  for the weights and biases,   G = (1/N) sum_n w_n phi_n phi_n'      (eq. 6.1)
//   F = 2 mean(w) I     for log sigma
//
// with phi = (h_0, 1). A Cholesky factor of the small matrix G / sigma_o^2 + damping I for each output o
// solves (F + damping I) x = b; its eigenvalues do where G is singular and there is no damping.
#pragma once

#include "natgrad/base/dense.hpp"
#include "natgrad/model/policy.hpp"
#include "natgrad/solvers/cholesky.hpp"

namespace natgrad {

template <class T>
class LinearGaussian {
 public:
  // Whether the policy is of this kind.
  static bool applies(const Policy<T>& policy);
  // Makes G; weights (N) are w_n / N, all equal to the first if `uniform`.
  void attach(LinearizedPolicy<T>* policy, const double* weights, bool uniform);
  bool is_attached() const { return attached_; }
  void detach() { attached_ = false; }

  void product(const double* v, double* out) const;        // without damping
  double add_quadratic_form(const double* v, double sum);  // sum + v'F v

  // x = (F + damping I)^-1 b. What of b lies in the null space of an undamped F stays residual, and
  // x is then the shortest of the least-squares solutions.
  void solve(const double* b, double damping, double* x);

 private:
  void solve_by_cholesky(double precision, double damping);
  void solve_by_eigenvalues(double precision, double damping);

  bool attached_ = false;
  Index in_ = 0, out_ = 0;
  double weight_ = 0;         // sum_n w_n / N
  Buffer<double> precision_;  // (out): 1 / sigma^2
  Eigen::MatrixXd gram_;      // (in + 1, in + 1)
  SymmetricEigen eigen_;
  Eigen::VectorXd phi_;  // (in + 1) of one output
  Buffer<double> factor_;
  Buffer<double> fv_;  // (P)
  CholeskyScratch cholesky_;
};

}  // namespace natgrad
