#include "natgrad/solvers/conjugate_gradient.hpp"

#include <algorithm>
#include <cmath>

namespace natgrad {

namespace {

// sum_i term(i), in independent sums so that the compiler may use vectors.
template <class Term>
double sum(Index n, Term term) {
  constexpr Index kStrands = 8;
  double sums[kStrands] = {};
  Index i = 0;
  for (; i + kStrands <= n; i += kStrands) {
    for (Index j = 0; j < kStrands; ++j) sums[j] += term(i + j);
  }
  for (Index j = 0; i < n; ++i, ++j) sums[j] += term(i);
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

}  // namespace

double dot(const double* x, const double* y, Index n) {
  return sum(n, [=](Index i) { return x[i] * y[i]; });
}

namespace {

// The norm of x, given x'x, without overflow or underflow of the squares.
double norm(const double* x, Index n, double squared) {
  if (squared > 1e-280 && squared < 1e280) return std::sqrt(squared);
  double largest = 0;
  for (Index i = 0; i < n; ++i) {
    if (std::isnan(x[i])) return x[i];
    largest = std::max(largest, std::abs(x[i]));
  }
  if (largest == 0 || std::isinf(largest)) return largest;
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += (x[i] / largest) * (x[i] / largest);
  return largest * std::sqrt(sum);
}

}  // namespace

CgSummary conjugate_gradient(LinearOperator a, Index n, const double* b, double* x,
                             const CgOptions& options, const LinearOperator* preconditioner,
                             CgScratch* scratch, const QuadraticForm* form) {
  for (Buffer<double>* buffer : {&scratch->r, &scratch->p, &scratch->q}) buffer->resize(n);
  if (preconditioner != nullptr) scratch->z.resize(n);
  double* r = scratch->r.data();
  double* p = scratch->p.data();
  double* z = preconditioner != nullptr ? scratch->z.data() : r;
  double* q = scratch->q.data();

  CgSummary summary;
  summary.rhs_norm = norm(b, n, dot(b, b, n));
  if (summary.rhs_norm == 0) {
    std::fill_n(x, n, 0.0);
    return summary;
  }

  // The vectors do not stay in the first-level cache, so there are as few passes over them as possible.
  const double damping = options.damping;
  double squared_residual = 0;
  double* const ax = options.flexible ? z : q;  // q is needed once more then
  const auto product_of_x = [&] {
    a(x, ax);
    ++summary.products;
  };
  const auto residual = [&] {  // of x
    squared_residual = sum(n, [=](Index i) {
      r[i] = b[i] - (ax[i] + damping * x[i]);
      return r[i] * r[i];
    });
  };

  // r = b - (A + damping I) x; no product for the usual start at 0.
  if (std::all_of(x, x + n, [](double value) { return value == 0; })) {
    std::copy_n(b, n, r);
    squared_residual = dot(r, r, n);
  } else {
    product_of_x();
    if (options.scale_start) {  // by c = b'x / x'(A + damping I)x                      (eq. 8.2)
      const double curvature = sum(n, [=](Index i) { return x[i] * (ax[i] + damping * x[i]); });
      const double c = dot(b, x, n) / curvature;
      const bool usable = curvature > 0 && std::isfinite(curvature) && std::isfinite(c);
      for (Index i = 0; i < n; ++i) {
        x[i] = usable ? c * x[i] : 0;
        ax[i] = usable ? c * ax[i] : 0;
      }
    }
    residual();
    summary.model_value = -0.5 * (dot(b, x, n) + dot(r, x, n));
  }
  summary.residual_norm = norm(r, n, squared_residual);
  // A residual below eps^2 ||b|| counts as zero: double has no more to give.
  const double tolerance = std::max(std::max(options.rtol, 1e-32) * summary.rhs_norm, options.atol);

  // Whether phi fell by less than k eps |phi| over the last k iterations; records phi on the way.
  const bool watched =
      options.progress_tolerance > 0 && options.progress_window <= options.max_iterations;
  const Index window = watched ? options.progress_window : 0;
  scratch->models.resize(window);
  const auto progress_is_slow = [&] {
    if (window == 0) return false;
    double& oldest = scratch->models[summary.iterations % window];
    const double fallen = oldest - summary.model_value;
    oldest = summary.model_value;
    return summary.iterations >= window &&
           fallen < static_cast<double>(window) * options.progress_tolerance * -summary.model_value;
  };

  double rho = 0;        // r'z
  double unapplied = 0;  // x'(A + damping I)x - x'(b - r), where r belongs to an earlier x
  summary.status = CgStatus::MAX_ITERATIONS;
  for (;;) {
    if (summary.residual_norm <= tolerance) {
      summary.status = CgStatus::CONVERGED;
      break;
    }
    if (summary.model_value <= options.model_goal) {
      summary.status = CgStatus::CONVERGED;
      break;
    }
    if (progress_is_slow()) {
      summary.status = CgStatus::SLOW_PROGRESS;
      break;
    }
    if (summary.iterations == options.max_iterations) break;

    // z = M^-1 r, and the next direction p = z + beta p.
    if (preconditioner != nullptr) (*preconditioner)(r, z);
    const double previous = rho;
    rho = preconditioner != nullptr ? dot(r, z, n) : squared_residual;
    if (!(rho > 0) || !std::isfinite(rho)) {  // M is not positive definite, or r is not finite
      summary.status = CgStatus::INDEFINITE;
      summary.curvature = rho;
      break;
    }
    if (summary.iterations > 0) {
      const double beta =
          options.flexible ? -dot(z, q, n) / summary.curvature : rho / previous;  // (eq. 7.5)
      for (Index i = 0; i < n; ++i) p[i] = z[i] + beta * p[i];
    } else {
      std::copy_n(z, n, p);
    }

    // The step along p: alpha = r'z / p'(A + damping I)p.
    const bool last = form != nullptr && summary.iterations + 1 == options.max_iterations;
    ++summary.products;
    if (last) {
      summary.curvature = (*form)(p) + damping * dot(p, p, n);
    } else {
      a(p, q);
      summary.curvature = sum(n, [=](Index i) {
        q[i] += damping * p[i];
        return p[i] * q[i];
      });
    }
    const double alpha = rho / summary.curvature;
    if (!(summary.curvature > 0) || !std::isfinite(summary.curvature) || !std::isfinite(alpha)) {
      summary.status = CgStatus::INDEFINITE;
      break;
    }
    ++summary.iterations;
    summary.model_value -= 0.5 * alpha * rho;  // exactly the gain of a step along p      (eq. 8.1)
    if (last) {
      for (Index i = 0; i < n; ++i) x[i] += alpha * p[i];
      unapplied = alpha * (dot(p, b, n) - dot(p, r, n)) + alpha * alpha * summary.curvature;
      continue;
    }
    if (options.residual_replacement > 0 &&
        summary.iterations % options.residual_replacement == 0) {
      for (Index i = 0; i < n; ++i) x[i] += alpha * p[i];
      product_of_x();
      residual();
    } else {
      squared_residual = sum(n, [=](Index i) {
        x[i] += alpha * p[i];
        r[i] -= alpha * q[i];
        return r[i] * r[i];
      });
    }
    summary.residual_norm = norm(r, n, squared_residual);
  }
  summary.squared_norm = dot(x, x, n);
  summary.quadratic_form = dot(x, b, n) - dot(x, r, n) + unapplied - damping * summary.squared_norm;
  return summary;
}

CgSummary summarize_solution(const double* b, const double* x, const double* ax, double damping,
                             Index n) {
  CgSummary summary;
  summary.rhs_norm = norm(b, n, dot(b, b, n));
  if (summary.rhs_norm == 0) return summary;
  summary.quadratic_form = dot(x, ax, n);
  summary.squared_norm = dot(x, x, n);
  summary.curvature = summary.quadratic_form + damping * summary.squared_norm;
  summary.model_value = 0.5 * summary.curvature - dot(b, x, n);
  summary.products = 1;
  summary.status = summary.curvature > 0 ? CgStatus::CONVERGED : CgStatus::INDEFINITE;
  summary.residual_norm = std::sqrt(sum(n, [=](Index i) {
    const double residual = b[i] - (ax[i] + damping * x[i]);
    return residual * residual;
  }));
  return summary;
}

double LevenbergMarquardt::operator()(double damping, double ratio) const {
  if (!(ratio > 0.25)) return std::min(damping * grow, high);
  return ratio > 0.75 ? std::max(damping / shrink, low) : damping;
}

}  // namespace natgrad
