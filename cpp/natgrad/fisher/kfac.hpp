// The Fisher information of each layer as a Kronecker product of two small matrices (K-FAC; Martens
// and Grosse 2015), inverted to precondition conjugate gradients:
//
//   F_l ~ S_l (x) A_l,   A_l = E[phi phi'], phi = (h_{l-1}, 1),   S_l = E[sum_k d^k d^k']     (eq. 7.1)
//   M^-1 V = (S_l + gamma/pi I)^-1 V (A_l + gamma pi I)^-1,   gamma^2 = 0.3 damping          (eq. 7.2)
//
// with V (out, in + 1) the weights and bias of layer l, and pi^2 the ratio of mean eigenvalues of A_l
// and S_l, which shares the damping out evenly (their section 6.3). Free outputs have a diagonal block
// of their own, exact.
//
// What is different: F itself stays exact, so the factors decide how soon conjugate gradients arrive
// and not where. They may therefore be rough: averaged over a part of the batch, with one random
// combination of the columns of the root of M instead of all.
#pragma once

#include "natgrad/fisher/fisher.hpp"
#include "natgrad/solvers/preconditioner.hpp"

namespace natgrad {

struct KFac {
  Index every = 2;           // average over every `every`-th observation
  bool all_columns = false;  // exact expectation over actions instead of random signs
};

template <class T>
class KroneckerFactors : public Preconditioner {
 public:
  // Averages over the batch of `fisher`.
  void average(Fisher<T>* fisher, const KFac& options);

  // Prepares to apply M^-1 for this damping. False where a factor is not positive definite to the
  // precision of T, or not finite: there is no M then until the next average.
  bool factorize(double damping);

  // z = M^-1 r, both (P).
  void apply(const double* r, double* z) override;
  Index size() const override { return free_offset_ + free_.size(); }

 private:
  struct Block {
    Index in, out, weight, bias;                 // as of Layer; A is (in + 1, in + 1)
    Buffer<double> inputs, adjoints;             // A, S
    Buffer<T> inputs_inverse, adjoints_inverse;  // padded rows
    Buffer<T> v, u;                              // V (out, in + 1); (S^-1 V)' (in + 1, out)
    bool zero;                                   // S = 0: nothing to learn, M = damping I
  };

  std::vector<Block> blocks_;
  Buffer<double> free_;
  Index free_offset_ = 0;
  double damping_ = 0;
  KroneckerSums sums_;
  std::vector<Buffer<T>> scratch_;  // of each inversion
};

}  // namespace natgrad
