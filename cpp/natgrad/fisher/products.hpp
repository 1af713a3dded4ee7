// Two ways to multiply by F without damping, from a linearised network and the metric at its outputs. The
// third one is the closed form of linear_gaussian.hpp.
#pragma once

#include "natgrad/fisher/output_metric.hpp"

namespace natgrad {

// F v = J'(M (J v)), by a forward-mode and a reverse-mode pass over the batch (eq. 4.1, 4.2).
template <class T>
class Passes {
 public:
  void prepare(LinearizedPolicy<T>* policy, OutputMetric<T>* metric);
  void product(const double* v, double* out);
  // sum + v'F v, from the first half of a product: sum_n u_n' M_n u_n w_n / N with u_n = J_n v.
  double add_quadratic_form(const double* v, double sum);

 private:
  Linearization<T>* network_ = nullptr;
  const OutputMetric<T>* metric_ = nullptr;
  Buffer<double> forms_;  // (N)
};

// The same by adjoints q of the root's columns, which are made once (eq. 4.4, 4.5).
template <class T>
class Adjoints {
 public:
  void detach() { policy_ = nullptr; }
  // Makes the adjoints, once until they are detached.
  void prepare(LinearizedPolicy<T>* policy, OutputMetric<T>* metric);
  void product(const double* v, double* out);
  // sum + v'F v, from the first half of a product: the squares of the coefficients s of (eq. 4.4).
  double add_quadratic_form(const double* v, double sum);

 private:
  LinearizedPolicy<T>* policy_ = nullptr;
  OutputMetric<T>* metric_ = nullptr;
  Buffer<double> forms_;  // (N)
};

}  // namespace natgrad
