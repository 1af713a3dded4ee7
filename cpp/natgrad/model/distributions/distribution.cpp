#include "natgrad/model/distributions/distribution.hpp"

namespace natgrad {

// From the nearer bound, so that neither is passed by rounding.
template <class T>
void Bounds::apply(Matrix<const T> u, T* a) const {
  for (Index r = 0; r < u.rows; ++r) {
    for (std::size_t i = 0; i < low.size(); ++i) {
      const double at = static_cast<double>(u.row(r)[i]), width = high[i] - low[i];
      *a++ =
          static_cast<T>(at > 0 ? high[i] - width * fraction(-at) : low[i] + width * fraction(at));
    }
  }
}

double Bounds::invert(double a, std::size_t i) const {
  constexpr double kFarthest = 19;  // 1 - tanh(19) is below half a unit in the last place
  const double u = 0.5 * (std::log(a - low[i]) - std::log(high[i] - a));
  return std::clamp(u, -kFarthest, kFarthest);
}

template void Bounds::apply(Matrix<const float>, float*) const;
template void Bounds::apply(Matrix<const double>, double*) const;

// Column by column, as M is symmetric.
void fisher_matrix(const Distribution& distribution, const double* y, double* m) {
  const Index size = parameter_size(distribution);
  Buffer<double> s(curvature_size(distribution)), unit(size);
  std::visit(
      [&](const auto& d) {
        d.curvature(y, s.data());
        for (Index k = 0; k < size; ++k) {
          unit[k] = 1;
          d.fisher_product(s.data(), unit.data(), 1.0, m + k * size);
          unit[k] = 0;
        }
      },
      distribution);
}

void fisher_root(const Distribution& distribution, const double* y, double* q) {
  const Index size = parameter_size(distribution), rank = fisher_rank(distribution);
  Buffer<double> s(curvature_size(distribution)), column(size);
  std::visit(
      [&](const auto& d) {
        d.curvature(y, s.data());
        for (Index k = 0; k < rank; ++k) {
          d.fisher_root_column(s.data(), k, 1.0, column.data());
          for (Index i = 0; i < size; ++i) q[i * rank + k] = column[i];
        }
      },
      distribution);
}

}  // namespace natgrad
