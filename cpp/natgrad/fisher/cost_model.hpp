// How long it takes to multiply by a Fisher matrix and to solve with it, in each of the ways that there
// are: what every automatic choice of the core rests on. A cost is a number of constants, each counted
// as often as the shape of the problem says; a measured time enters nowhere, so that results do not
// depend on how fast or how busy the machine is.
//
// The unit is one multiply-add of a layer's matrix product in the type of the policy. Threads do not
// enter: all ways use them. `python -m benchmarks.solvers.fit_cost_model` fits the constants to a
// machine and prints them beside those that stand here, which were fitted on a Zen 5 with AVX-512.
#pragma once

#include <span>
#include <type_traits>

#include "natgrad/model/network.hpp"

namespace natgrad {

// How products are made: by two passes over the batch (eq. 4.1, 4.2), by cached adjoints (eq. 4.4, 4.5), or
// by the small matrix that a linear Gaussian policy has (eq. 6.1); automatic is the fastest of these.
enum class FisherMethod { automatic, passes, adjoints, closed_form };

// How (F + damping I) x = b is solved. Either the choice is left to the cost model, among all ways or
// among the direct forms alone, or it is made: `linear_gaussian` is that of linear_gaussian.hpp, `dense` and
// `sample` are those of direct_solver.hpp.
enum class Solver { automatic, direct, conjugate_gradient, linear_gaussian, dense, sample };

// Sizes beyond which a direct form does not exist.
inline constexpr Index kMostParameters = 4096;  // of the dense form, and
inline constexpr Index kMostEigenvalues = 512;  // of the dense form by eigenvalues
inline constexpr Index kMostSamples = 4096;     // rows times columns, of the sample form

// The pairs (i, j) of a Khatri-Rao product of two layers, j >= i where they are the same layer.
inline Index pair_count(Index n, Index m, bool same) {
  return same ? n * (n + 1) / 2 : n * m;
}

// What of a Fisher matrix decides how long it takes.
struct FisherShape {
  Index rows = 0;
  std::span<const Layer> layers;
  Index free_outputs = 0;        // outputs that are parameters
  Index columns = 1;             // of the root of M_n: adjoints of an observation in the layers
  bool float64 = false;          // the type of the policy
  bool softmax = false;          // whether M_n is that of a softmax, whose root takes time
  bool linear_gaussian = false;  // whether there is a closed form

  Index parameters() const { return layers.back().bias + layers.back().out + free_outputs; }
  Index outputs() const { return layers.back().out + free_outputs; }
};

template <class T>
FisherShape shape_of(const Network<T>& network, Index rows, Index columns) {
  FisherShape shape;
  shape.rows = rows;
  shape.layers = network.layers();
  shape.free_outputs = network.spec().free_outputs;
  shape.columns = columns;
  shape.float64 = std::is_same_v<T, double>;
  return shape;
}

struct CostModel {
  // What is not a matrix product takes as long in either type, and so half as many units in float64.
  struct Constant {
    double float32, float64;
    double of(const FisherShape& shape) const { return shape.float64 ? float64 : float32; }
  };

  // Products by passes or by adjoints: a product, whatever its size; a parameter, which is packed and
  // summed in each product; a row, for all products together.
  Constant product_call{37500, 18750};
  Constant product_parameter{260, 130};
  Constant product_row{430, 215};

  // In a product by passes: a row, of a network with hidden layers or without (then nothing is pulled
  // back); a row in each layer.
  Constant pass_row{1240, 620};
  Constant pass_linear_row{670, 335};
  Constant pass_layer{240, 120};

  // In a product by adjoints: a row; a row in each layer and column, for its sums across lanes; a
  // multiply-add, of matrix products that are shorter than those of passes and so slower; an adjoint,
  // which is read twice from the cache or, where adjoints and inputs are more than `cache_bytes`, from
  // memory. For all products together: a column of a row that is kept, which counts in the cost but not
  // in the choice between adjoints and passes.
  Constant sweep_row{1550, 775};
  Constant sweep_column{180, 90};
  Constant sweep_multiply{1.03, 1.03};
  Constant sweep_value{7.4, 7.4};
  Constant sweep_value_memory{22, 22};
  double cache_bytes = 10 << 20;
  Constant kept_column{3500, 1750};

  // In a product by the closed form: the product, a multiply-add, a parameter in the solver's vectors.
  // Making the small matrix is a matrix product over the batch.
  Constant closed_call{15000, 15000};
  Constant closed_multiply{28, 28};
  Constant closed_parameter{200, 200};

  // A solve by the closed form: the call; an output; an element of the small matrix of an output; one of
  // the n^3 of a Cholesky factor; one of the n^3 of eigenvalues.
  Constant linear_gaussian_call{10000, 10000};
  Constant linear_gaussian_output{32000, 32000};
  Constant linear_gaussian_element{150, 150};
  Constant linear_gaussian_cholesky{0.37, 0.37};
  Constant linear_gaussian_eigen{250, 250};

  // A dense solve: the call; a parameter; an element of F; a row; a column of a row; a value that is
  // transposed; a product of two of them; a multiply-add of such products.
  Constant dense_call{78000, 38200};
  Constant dense_parameter{8270, 1990};
  Constant dense_element{412, 255};
  Constant dense_row{306, 323};
  Constant dense_column{684, 584};
  Constant dense_turned{17, 22};
  Constant dense_outer{25, 23};
  Constant dense_inner{2.2, 0.74};
  Constant dense_eigen{150, 150};  // one of the P^3 of eigenvalues

  // A sample solve: the call; a parameter; an element of J J'; such an element in each layer; a
  // multiply-add; a value that is transposed; what the model says of two products.
  Constant sample_call{298000, 84500};
  Constant sample_parameter{63, 58};
  Constant sample_element{316, 178};
  Constant sample_layer{12, 8.1};
  Constant sample_inner{0.51, 0.57};
  Constant sample_turned{123, 79};
  Constant sample_sweeps{0.3, 0.45};

  // Of either: one of the n^3 / 6 multiply-adds of a Cholesky factor, which is always of doubles, and a
  // value of a softmax's root (eq. 2.5).
  Constant cholesky{2.2, 1.1};
  Constant softmax_root{320, 160};

  // Kronecker factors, fitted to benchmarks/time_to_accuracy.py. Making them: a multiply-add of their
  // sums and of what is pulled back for these; a row that takes part, with its random signs; an element,
  // summed over shards (6) and swept in the inversion (480); one of the n^3 of an inversion. Applying
  // them: a multiply-add, a parameter.
  Constant factor_multiply{0.95, 0.95};
  Constant factor_row{6000, 6000};
  Constant factor_element{486, 486};
  Constant factor_cube{2, 2};
  Constant apply_multiply{1.5, 1.5};
  Constant apply_parameter{20, 20};

  // So many products by the method given; `automatic` is that of choose(). What is made first counts.
  double products(FisherMethod method, const FisherShape& shape, int products) const;
  FisherMethod choose(const FisherShape& shape, int products) const;
  // Whether adjoints pay for so many products, where there is no closed form.
  bool adjoints_pay(const FisherShape& shape, int products) const;
  // A direct form, from what it makes to the solution; infinite where it does not exist for this shape,
  // or not without damping.
  double solve(Solver form, const FisherShape& shape, bool damped) const;
  // Averaging Kronecker factors over about one row in `every`, inverting and applying them so often.
  double kronecker_factors(const FisherShape& shape, Index every, int applications) const;

 private:
  struct RowCosts {
    double passes, adjoints;  // of one row, in so many products
  };
  RowCosts row_costs(const FisherShape& shape, int products) const;
  double gram(const FisherShape& shape) const;
  double dense(const FisherShape& shape, bool damped) const;
  double sample(const FisherShape& shape) const;
};

inline constexpr CostModel kCostModel;

// The constants by name, for fitting them; cache_bytes is a threshold and not among them. Every cost is
// a sum of multiples of these constants, but for sample_sweeps, which multiplies a cost.
struct NamedConstant {
  const char* name;
  CostModel::Constant CostModel::* constant;
};
std::span<const NamedConstant> named_constants();

}  // namespace natgrad
