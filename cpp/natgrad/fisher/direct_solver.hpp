// (F + damping I) x = b without iterations, for F = J'J: J has a row sqrt(w_n / N) (Q_n' J_n)_k for each
// observation n and each column k of the root of M_n, and is never made. Two forms:
//
//   dense   F itself from blocks of layers (eq. 4.3), and its Cholesky factor: few parameters
//   sample  the Gram matrix J J' from adjoints and inputs of layers (eq. 6.4), and its Cholesky
//           factor in x = (b - J'(J J' + damping I)^-1 J b) / damping (eq. 6.3): few observations
//
// The free outputs of an exact Fisher matrix stand outside of J: they have a diagonal of their own.
#pragma once

#include "natgrad/base/dense.hpp"
#include "natgrad/fisher/cost_model.hpp"
#include "natgrad/model/cached_adjoints.hpp"
#include "natgrad/solvers/cholesky.hpp"

namespace natgrad {

template <class T>
class DirectSolver {
 public:
  // Columns k of J for rows from `first` on, at the outputs: d (rows, K).
  using Fill = FunctionRef<void(Index first, Index column, Matrix<T> d)>;

  // F (P, P), with `free` (free outputs) on its diagonal, or null where J has the free outputs.
  void assemble(const Linearization<T>& network, Index columns, Fill fill, const double* free,
                Matrix<double> out);

  // x = (F + damping I)^-1 b and fx = F x, with F assembled. Where the damping is not above what
  // rounding may have done to F, eigenvalues that rounding may have made are zeros, and x is the
  // shortest least-squares solution if damping = 0. False if that would be too much work.
  bool solve_dense(const Linearization<T>& network, Index columns, Fill fill, const double* free,
                   const double* b, double damping, double* x, double* fx);

  // The same by the sample form, from the adjoints, without fx. False if the
  // damping is not above the rounding error of the Gram matrix.
  bool solve_sample(CachedAdjoints<T>* adjoints, const double* free, const double* b,
                    double damping, double* x);

 private:
  // The part of theta that belongs to one layer. The free outputs of J are one more layer, with no input
  // but the bias.
  struct Part {
    Index in, out;  // in: with the one of the bias
    Index weight, bias;

    Index position(Index o, Index i) const {
      return i + 1 < in ? weight + o * (in - 1) + i : bias + o;
    }
  };
  // A block of F: parts l and m, the lengths of their Khatri-Rao products, and where its sums stand
  // among those of a group.
  struct Block {
    Part l, m;
    Index part_l, part_m, outers, inners, offset;
    bool same;
  };
  struct Worker {
    Buffer<T> cotangent, adjoints, inputs, columns, outer_d, outer_h;
    std::vector<Matrix<T>> layers;
  };

  static Part part_of(const Network<T>& network, Index p);
  void provide_workers(const Network<T>& network, Index columns);
  void add_tile(const Linearization<T>& network, Index columns, Fill fill, Index first, Index rows,
                bool overwrite, T* sums, Worker* worker) const;
  void make_gram(CachedAdjoints<T>* adjoints, bool with_free);

  std::vector<Block> blocks_;  // pairs of layers
  Index sums_size_ = 0;
  Buffer<T> sums_;  // (groups of rows, sums_size_)
  std::vector<Worker> workers_;
  Buffer<double> matrix_, factor_;  // F or nothing; F or J J', damped and factorised
  CholeskyScratch cholesky_;
  SymmetricEigen eigen_;
  std::vector<Buffer<T>> adjoints_, inputs_;  // (width, K' N) and (in, N): features as rows
  Buffer<double> coefficients_;               // (K' N)
};

}  // namespace natgrad
