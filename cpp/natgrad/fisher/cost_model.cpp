#include "natgrad/fisher/cost_model.hpp"

#include <limits>

namespace natgrad {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

double cube(double x) {
  return x * x * x;
}

// What a row of n values takes in memory, in values.
double padded(const FisherShape& shape, Index n) {
  return static_cast<double>(round_up(n, shape.float64 ? kLanes<double> : kLanes<float>));
}

}  // namespace

// --- products ------------------------------------------------------------------------------------

auto CostModel::row_costs(const FisherShape& shape, int count) const -> RowCosts {
  const std::size_t layers = shape.layers.size();
  const double depth = static_cast<double>(layers), k = static_cast<double>(shape.columns);
  double passes = 0, multiplies = 0, pulled = 0, values = 0, inputs = 0;
  for (std::size_t l = 0; l < layers; ++l) {
    const Layer& layer = shape.layers[l];
    const double product = static_cast<double>((layer.in + 1) * layer.out);
    passes += l > 0 ? 4 * product : 2 * product;
    multiplies += 2 * product;
    pulled += l > 0 ? product : 0;
    values += padded(shape, layer.out + (l + 1 == layers ? shape.free_outputs : 0));
    inputs += padded(shape, layer.in);
  }
  const double size = shape.float64 ? sizeof(double) : sizeof(float);
  const double bytes = static_cast<double>(shape.rows) * (k * values + inputs) * size;
  const Constant& value = bytes <= cache_bytes ? sweep_value : sweep_value_memory;
  const Constant& row = layers > 1 ? pass_row : pass_linear_row;
  const double by_passes = passes + (row.of(shape) + pass_layer.of(shape) * depth);
  const double by_adjoints = sweep_multiply.of(shape) * multiplies + k * value.of(shape) * values +
                             (sweep_row.of(shape) + sweep_column.of(shape) * k * depth);
  return {count * by_passes, count * by_adjoints + sweep_multiply.of(shape) * k * pulled};
}

bool CostModel::adjoints_pay(const FisherShape& shape, int count) const {
  if (count < 2) return false;  // little to gain, and much memory
  const RowCosts row = row_costs(shape, count);
  return row.adjoints < row.passes;
}

// The matrix of (eq. 6.1).
double CostModel::gram(const FisherShape& shape) const {
  const Index in = shape.layers.front().in + 1;
  return static_cast<double>(shape.rows) * padded(shape, in) * static_cast<double>(in);
}

// The closed form is taken where making its matrix takes less time than the passes' matrix products.
FisherMethod CostModel::choose(const FisherShape& shape, int count) const {
  const Layer& layer = shape.layers.front();
  const double sweep = static_cast<double>(2 * shape.rows) * padded(shape, layer.out) *
                       static_cast<double>(layer.in + 1);
  if (shape.linear_gaussian && gram(shape) < count * sweep) return FisherMethod::closed_form;
  return adjoints_pay(shape, count) ? FisherMethod::adjoints : FisherMethod::passes;
}

double CostModel::products(FisherMethod method, const FisherShape& shape, int count) const {
  if (method == FisherMethod::automatic) method = choose(shape, count);
  if (method == FisherMethod::closed_form) {
    const double in = static_cast<double>(shape.layers.front().in + 1);
    const double out = static_cast<double>(shape.layers.front().out);
    return gram(shape) +
           count * (closed_call.of(shape) + closed_multiply.of(shape) * out * in * in +
                    closed_parameter.of(shape) * out * (in + 1));
  }
  const RowCosts row = row_costs(shape, count);
  const double parameters = static_cast<double>(shape.parameters());
  const double kept = row.adjoints + kept_column.of(shape) * static_cast<double>(shape.columns);
  const double per_row =
      product_row.of(shape) + (method == FisherMethod::adjoints ? kept : row.passes);
  return count * (product_call.of(shape) + product_parameter.of(shape) * parameters) +
         static_cast<double>(shape.rows) * per_row;
}

// --- direct solves -------------------------------------------------------------------------------

double CostModel::dense(const FisherShape& shape, bool damped) const {
  const double n = static_cast<double>(shape.rows), k = static_cast<double>(shape.columns);
  const double parameters = static_cast<double>(shape.parameters());
  double inputs = 0, outputs = 0, outer = 0, inner = 0, multiplies = 0;
  for (std::size_t l = 0; l < shape.layers.size(); ++l) {
    const Layer& a = shape.layers[l];
    inputs += static_cast<double>(a.in + 1);
    outputs += static_cast<double>(a.out);
    for (std::size_t m = l; m < shape.layers.size(); ++m) {
      const Layer& b = shape.layers[m];
      const Index outers = pair_count(a.out, b.out, l == m);
      const Index inners = pair_count(a.in + 1, b.in + 1, l == m);
      outer += static_cast<double>(outers);
      inner += static_cast<double>(inners);
      multiplies += static_cast<double>(outers * inners);
    }
  }
  const double factor = damped ? cholesky.of(shape) / 6 : dense_eigen.of(shape);
  return dense_call.of(shape) +
         (dense_parameter.of(shape) + dense_element.of(shape) * parameters) * parameters +
         factor * cube(parameters) +
         n * (dense_row.of(shape) + dense_column.of(shape) * k +
              dense_turned.of(shape) * (inputs + k * outputs) +
              dense_outer.of(shape) * (inner + k * outer) + dense_inner.of(shape) * multiplies);
}

double CostModel::sample(const FisherShape& shape) const {
  const double n = static_cast<double>(shape.rows);
  const double size = static_cast<double>(shape.columns) * n;
  const double depth = static_cast<double>(shape.layers.size());
  double inputs = 0, outputs = 0;
  for (const Layer& layer : shape.layers) {
    inputs += static_cast<double>(layer.in + 1);
    outputs += static_cast<double>(layer.out);
  }
  const FisherMethod method =
      adjoints_pay(shape, 2) ? FisherMethod::adjoints : FisherMethod::passes;
  return sample_call.of(shape) +
         sample_parameter.of(shape) * static_cast<double>(shape.parameters()) +
         cholesky.of(shape) / 6 * cube(size) +
         size * size *
             (sample_element.of(shape) + sample_layer.of(shape) * depth +
              sample_inner.of(shape) * outputs / 2) +
         n * size * sample_inner.of(shape) * inputs / 2 +
         sample_turned.of(shape) * (size * outputs + n * inputs) +
         sample_sweeps.of(shape) * products(method, shape, 2);
}

double CostModel::solve(Solver form, const FisherShape& shape, bool damped) const {
  if (form == Solver::linear_gaussian) {
    if (!shape.linear_gaussian) return kInfinite;
    const double in = static_cast<double>(shape.layers.front().in + 1);
    const double out = static_cast<double>(shape.layers.front().out);
    return gram(shape) + linear_gaussian_call.of(shape) +
           out * (linear_gaussian_output.of(shape) + linear_gaussian_element.of(shape) * in * in +
                  (damped ? linear_gaussian_cholesky.of(shape) * in * in * in : 0)) +
           (damped ? 0 : linear_gaussian_eigen.of(shape) * in * in * in);
  }
  const bool samples = form == Solver::sample;
  if (samples ? !damped || shape.rows > kMostSamples / shape.columns
              : shape.parameters() > (damped ? kMostParameters : kMostEigenvalues)) {
    return kInfinite;
  }
  const Index roots = shape.rows * shape.columns * shape.outputs();
  return (samples ? sample(shape) : dense(shape, damped)) +
         (shape.softmax ? softmax_root.of(shape) * static_cast<double>(roots) : 0);
}

// --- Kronecker factors ---------------------------------------------------------------------------

double CostModel::kronecker_factors(const FisherShape& shape, Index every, int applications) const {
  double multiplies = 0, elements = 0, cubes = 0, applied = 0, parameters = 0;
  for (const Layer& layer : shape.layers) {
    const double in = static_cast<double>(layer.in + 1), out = static_cast<double>(layer.out);
    multiplies += (in * in + out * out) / 2 + (parameters > 0 ? in * out : 0);
    elements += in * in + out * out;
    cubes += in * in * in + out * out * out;
    applied += in * out * (in + out);
    parameters += in * out;
  }
  const double rows = static_cast<double>(shape.rows) / static_cast<double>(every);
  const double made = rows * (factor_multiply.of(shape) * multiplies + factor_row.of(shape)) +
                      factor_cube.of(shape) * cubes + factor_element.of(shape) * elements;
  return made + applications *
                    (apply_multiply.of(shape) * applied + apply_parameter.of(shape) * parameters);
}

// --- names ---------------------------------------------------------------------------------------

std::span<const NamedConstant> named_constants() {
  using C = CostModel;
  static constexpr NamedConstant kConstants[] = {
      {"product_call", &C::product_call},
      {"product_parameter", &C::product_parameter},
      {"product_row", &C::product_row},
      {"pass_row", &C::pass_row},
      {"pass_linear_row", &C::pass_linear_row},
      {"pass_layer", &C::pass_layer},
      {"sweep_row", &C::sweep_row},
      {"sweep_column", &C::sweep_column},
      {"sweep_multiply", &C::sweep_multiply},
      {"sweep_value", &C::sweep_value},
      {"sweep_value_memory", &C::sweep_value_memory},
      {"kept_column", &C::kept_column},
      {"closed_call", &C::closed_call},
      {"closed_multiply", &C::closed_multiply},
      {"closed_parameter", &C::closed_parameter},
      {"linear_gaussian_call", &C::linear_gaussian_call},
      {"linear_gaussian_output", &C::linear_gaussian_output},
      {"linear_gaussian_element", &C::linear_gaussian_element},
      {"linear_gaussian_cholesky", &C::linear_gaussian_cholesky},
      {"linear_gaussian_eigen", &C::linear_gaussian_eigen},
      {"dense_call", &C::dense_call},
      {"dense_parameter", &C::dense_parameter},
      {"dense_element", &C::dense_element},
      {"dense_row", &C::dense_row},
      {"dense_column", &C::dense_column},
      {"dense_turned", &C::dense_turned},
      {"dense_outer", &C::dense_outer},
      {"dense_inner", &C::dense_inner},
      {"dense_eigen", &C::dense_eigen},
      {"sample_call", &C::sample_call},
      {"sample_parameter", &C::sample_parameter},
      {"sample_element", &C::sample_element},
      {"sample_layer", &C::sample_layer},
      {"sample_inner", &C::sample_inner},
      {"sample_turned", &C::sample_turned},
      {"sample_sweeps", &C::sample_sweeps},
      {"cholesky", &C::cholesky},
      {"softmax_root", &C::softmax_root},
      {"factor_multiply", &C::factor_multiply},
      {"factor_row", &C::factor_row},
      {"factor_element", &C::factor_element},
      {"factor_cube", &C::factor_cube},
      {"apply_multiply", &C::apply_multiply},
      {"apply_parameter", &C::apply_parameter},
  };
  return kConstants;
}

}  // namespace natgrad
