#include "natgrad/solvers/conjugate_gradient.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace natgrad {

namespace {

// Curvatures p'Ap / p'p relative to the largest one so far: what rounding makes of 0, in multiples of the
// rounding error of a product and at least; what is nearly none; and what is small enough to blame for a
// residual that has grown, as a residual of kGrown times the first is.
constexpr double kNoise = 4, kLeastNoise = 1e-13, kVanishing = 1e-10, kSmall = 1e-2, kGrown = 5;

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

// ||x||, given x'x.
double norm(const double* x, Index n, double squared) {
  if (squared > 1e-280 && squared < 1e280) return std::sqrt(squared);
  double largest = 0;
  for (Index i = 0; i < n; ++i) {
    if (std::isnan(x[i])) return x[i];
    largest = std::max(largest, std::abs(x[i]));
  }
  if (largest == 0 || std::isinf(largest)) return largest;
  return largest * std::sqrt(sum(n, [=](Index i) {
           const double part = x[i] / largest;
           return part * part;
         }));
}

// The system of b and x0 times 2^-exponent, and its solution times 2^exponent: the same digits.
CgReport solve_scaled(int exponent, LinearOperator a, Index n, const double* b, double* x,
                      CgOptions options, const LinearOperator* preconditioner, CgScratch* scratch,
                      const QuadraticForm* form) {
  scratch->scaled.resize(n);
  for (Index i = 0; i < n; ++i) {
    scratch->scaled[i] = std::ldexp(b[i], -exponent);
    x[i] = std::ldexp(x[i], -exponent);
  }
  if (!all_finite(x, n)) std::fill_n(x, n, 0.0);
  options.atol = std::ldexp(options.atol, -exponent);
  options.model_goal = std::ldexp(options.model_goal, -2 * exponent);
  CgReport summary =
      conjugate_gradient(a, n, scratch->scaled.data(), x, options, preconditioner, scratch, form);
  for (Index i = 0; i < n; ++i) x[i] = std::ldexp(x[i], exponent);
  if (!all_finite(x, n)) {
    std::fill_n(x, n, 0.0);
    summary.status = CgStatus::INDEFINITE;
    summary.residual_norm = summary.rhs_norm;
    summary.quadratic_form = summary.squared_norm = summary.model_value = 0;
  }
  for (double* value : {&summary.residual_norm, &summary.rhs_norm}) {
    *value = std::ldexp(*value, exponent);
  }
  for (double* value :
       {&summary.quadratic_form, &summary.squared_norm, &summary.curvature, &summary.model_value}) {
    *value = std::ldexp(*value, 2 * exponent);
  }
  return summary;
}

}  // namespace

double norm(const double* x, Index n) {
  return norm(x, n, dot(x, x, n));
}

CgReport conjugate_gradient(LinearOperator a, Index n, const double* b, double* x,
                            const CgOptions& options, const LinearOperator* preconditioner,
                            CgScratch* scratch, const QuadraticForm* form) {
  for (Buffer<double>* buffer : {&scratch->r, &scratch->p, &scratch->q, &scratch->best}) {
    buffer->resize(n);
  }
  if (preconditioner != nullptr) scratch->z.resize(n);
  double* r = scratch->r.data();
  double* p = scratch->p.data();
  double* z = preconditioner != nullptr ? scratch->z.data() : r;
  double* q = scratch->q.data();

  CgReport summary;
  summary.rhs_norm = norm(b, n);
  if (summary.rhs_norm == 0) {
    std::fill_n(x, n, 0.0);
    return summary;
  }
  if ((summary.rhs_norm < 1e-140 || summary.rhs_norm > 1e140) && all_finite(b, n)) {
    const int exponent = std::isfinite(summary.rhs_norm) ? std::ilogb(summary.rhs_norm) : 1024;
    return solve_scaled(exponent, a, n, b, x, options, preconditioner, scratch, form);
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

  const auto model_of_residual = [&] { return -0.5 * (dot(b, x, n) + dot(r, x, n)); };

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
      if (!all_finite(x, n)) {
        std::fill_n(x, n, 0.0);
        std::fill_n(ax, n, 0.0);
      }
    }
    residual();
    summary.model_value = model_of_residual();
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
  double largest = 0;    // of p'(A + damping I)p / p'p
  double smallest = 1;   // of the same, relative to the largest before it
  bool limited = false;  // by rounding
  const double first_residual = summary.residual_norm;
  double least_residual = first_residual;
  std::copy_n(x, n, scratch->best.data());
  const auto measure = [&] {
    product_of_x();
    residual();
    summary.residual_norm = norm(r, n, squared_residual);
    summary.model_value = model_of_residual();
    unapplied = 0;
  };
  // Whether rounding may have carried r from b - (A + damping I) x by a tenth of `distance`.
  const auto drifted = [&](double distance) {
    const double size = largest * norm(x, n) + first_residual;
    return !(std::numeric_limits<double>::epsilon() * size <= 0.1 * distance);
  };
  summary.status = CgStatus::MAX_ITERATIONS;
  for (;;) {
    bool restart = summary.iterations == 0;
    if (summary.residual_norm <= tolerance && unapplied == 0 && drifted(tolerance)) {
      measure();
      restart = limited = true;  // p is not conjugate to what rounding has left
    }
    if (summary.residual_norm <= tolerance && std::isfinite(summary.residual_norm)) {
      summary.status = CgStatus::CONVERGED;
      break;
    }
    if (summary.residual_norm < least_residual && unapplied == 0) {
      least_residual = summary.residual_norm;
      std::copy_n(x, n, scratch->best.data());
    }
    if (summary.model_value <= options.model_goal && std::isfinite(summary.model_value)) {
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
    if (!restart) {
      const double beta =
          options.flexible ? -dot(z, q, n) / summary.curvature : rho / previous;  // (eq. 7.5)
      for (Index i = 0; i < n; ++i) p[i] = z[i] + beta * p[i];
    } else {
      std::copy_n(z, n, p);
    }

    // The step along p: alpha = r'z / p'(A + damping I)p.
    const bool last = form != nullptr && summary.iterations + 1 == options.max_iterations;
    const double squared_direction = dot(p, p, n);
    ++summary.products;
    if (last) {
      summary.curvature = (*form)(p) + damping * squared_direction;
    } else {
      a(p, q);
      summary.curvature = sum(n, [=](Index i) {
        q[i] += damping * p[i];
        return p[i] * q[i];
      });
    }
    const double alpha = rho / summary.curvature;
    largest = std::max(largest, summary.curvature / squared_direction);
    const double scale = largest * squared_direction;
    smallest = std::min(smallest, summary.curvature / scale);
    if (!(summary.curvature > std::max(kNoise * options.rounding, kLeastNoise) * scale) ||
        !std::isfinite(summary.curvature) || !std::isfinite(alpha)) {
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

  const bool vanishing = smallest <= kVanishing;
  if (vanishing && unapplied != 0) measure();
  const double growth = summary.residual_norm / first_residual;
  const bool diverging =
      vanishing || (options.bounded_residual && (smallest <= kSmall || growth > kGrown));
  const bool astray =
      (diverging && !(growth <= 1)) || (limited && summary.residual_norm > least_residual);
  if (astray || !all_finite(x, n)) {
    std::copy_n(scratch->best.data(), n, x);
    if (!all_finite(x, n)) std::fill_n(x, n, 0.0);  // beyond the range of doubles
    measure();
    if (summary.status == CgStatus::CONVERGED && !(summary.residual_norm <= tolerance)) {
      summary.status = CgStatus::INDEFINITE;
    }
  } else if (vanishing && drifted(summary.residual_norm)) {
    measure();
  }
  summary.squared_norm = dot(x, x, n);
  summary.quadratic_form = dot(x, b, n) - dot(x, r, n) + unapplied - damping * summary.squared_norm;
  return summary;
}

CgReport summarize_solution(const double* b, const double* x, const double* ax, double damping,
                            Index n, double rounding) {
  CgReport summary;
  summary.rhs_norm = norm(b, n);
  if (summary.rhs_norm == 0) return summary;
  summary.quadratic_form = dot(x, ax, n);
  summary.squared_norm = dot(x, x, n);
  summary.curvature = summary.quadratic_form + damping * summary.squared_norm;
  summary.model_value = 0.5 * summary.curvature - dot(b, x, n);
  summary.products = 1;
  double largest = 0;  // of the residual
  for (Index i = 0; i < n; ++i) {
    largest = std::max(largest, std::abs(b[i] - (ax[i] + damping * x[i])));
  }
  if (largest > 0 && std::isfinite(largest)) {
    summary.residual_norm = largest * std::sqrt(sum(n, [=](Index i) {
                              const double part = (b[i] - (ax[i] + damping * x[i])) / largest;
                              return part * part;
                            }));
  }
  const bool solved = summary.residual_norm <= std::sqrt(rounding) * summary.rhs_norm;
  summary.status = summary.curvature > 0 && solved ? CgStatus::CONVERGED : CgStatus::INDEFINITE;
  return summary;
}

double LevenbergMarquardt::operator()(double damping, double ratio) const {
  if (!(ratio > 0.25)) return std::min(damping * grow, high);
  return ratio > 0.75 ? std::max(damping / shrink, low) : damping;
}

}  // namespace natgrad
