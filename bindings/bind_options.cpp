// The options of an update that are values: dampings, conjugate gradients, preconditioners, line search.
#include "options.hpp"
#include "values.hpp"

namespace natgrad::bindings {
namespace {

constexpr Range<double> kPositive{"float > 0", [](const double& x) { return x > 0; }};
constexpr Range<double> kNonNegative{"float >= 0", [](const double& x) { return x >= 0; }};
constexpr Range<int> kCount{"int >= 1", [](const int& n) { return n >= 1; }};
constexpr Range<Index> kEvery{"int >= 1", [](const Index& n) { return n >= 1 && n <= 1 << 24; }};
constexpr Range<bool> kBool{"bool"};
constexpr Range<std::vector<double>> kMetric{
    "(P,) array of values > 0, or None", [](const std::vector<double>& d) {
      return std::all_of(d.begin(), d.end(), [](double x) { return x > 0; });
    }};
constexpr const char* kMetricHelp =
    "The diagonal of D in F + damping D; ones for None. Steps map onto each other under\n"
    "    theta_i = a_i psi_i if D is transported, D_psi = a^2 D_theta (eq. 8.4). D is then the\n"
    "    preconditioner as well, and there is no direct form.";

void check_bounds(const AdaptiveDamping& d) {
  number(d.high, "high", d.high >= d.low, "a number >= low");
  number(d.initial, "initial", d.initial >= d.low && d.initial <= d.high,
         "a number between low and high");
}

}  // namespace

void bind_options(py::module_& m) {
  bind_value<LineSearchOptions>(
      m, "LineSearch", "The backtracking line search of an update (eq. 5.2).", nullptr,
      Field<LineSearchOptions, double>{
          "shrink",
          &LineSearchOptions::shrink,
          {"float, 0 < shrink < 1", [](const double& x) { return x > 0 && x < 1; }},
          "Factor from one candidate to the next."},
      Field<LineSearchOptions, int>{
          "max_backtracks", &LineSearchOptions::max_backtracks, kCount,
          "Candidates tried in all: fractions 1, shrink, ..., shrink**(max_backtracks - 1)."},
      Field<LineSearchOptions, double>{
          "accept_ratio",
          &LineSearchOptions::accept_ratio,
          {"float, 0 <= accept_ratio < 1", [](const double& x) { return x >= 0 && x < 1; }},
          "A candidate must improve by more than this part of the predicted improvement."});

  bind_value<FixedDamping>(m, "FixedDamping",
                           "The same damping in every update; a number is short for it.", nullptr,
                           Field<FixedDamping, double>{"value", &FixedDamping::value, kNonNegative,
                                                       "lambda of (F + lambda D) x = g."},
                           Field<FixedDamping, std::vector<double>>{"metric", &FixedDamping::metric,
                                                                    kMetric, kMetricHelp});
  bind_value<TraceDamping>(
      m, "TraceDamping",
      "Damping by factor * tr(F) / P (eq. 8.3), which follows the scale of F. It takes a reverse "
      "pass.",
      nullptr,
      Field<TraceDamping, double>{"factor", &TraceDamping::factor, kNonNegative,
                                  "Multiple of the mean eigenvalue of F."});
  bind_value<AdaptiveDamping>(
      m, "AdaptiveDamping",
      "Damping by the rule of Levenberg and Marquardt (Martens 2010, section 4.1): it is divided "
      "by\n"
      "1.5 after an update whose reduction ratio (eq. 8.5) was above 3/4, and multiplied by 1.5 "
      "if\n"
      "that was below 1/4 or the update failed.",
      &check_bounds,
      Field<AdaptiveDamping, double>{"initial", &AdaptiveDamping::initial, kNonNegative,
                                     "Damping of the first update, between the bounds."},
      Field<AdaptiveDamping, double>{"low", &AdaptiveDamping::low, kPositive, "Lower bound."},
      Field<AdaptiveDamping, double>{"high", &AdaptiveDamping::high, kPositive,
                                     "Upper bound, at least `low`."},
      Field<AdaptiveDamping, std::vector<double>>{"metric", &AdaptiveDamping::metric, kMetric,
                                                  kMetricHelp});

  bind_value<Progress>(
      m, "Progress",
      "Conjugate gradients stop where the quadratic model hardly falls (eq. 8.1; Martens 2010,\n"
      "section 4.4).",
      nullptr,
      Field<Progress, double>{"tolerance", &Progress::tolerance, kPositive,
                              "Least progress per iteration, relative to the model's value."},
      Field<Progress, int>{"window", &Progress::window, kCount,
                           "Iterations over which the progress is averaged."});
  bind_value<PyConjugateGradient>(
      m, "ConjugateGradient", "Damped conjugate gradients as the solver of an update.", nullptr,
      Field<PyConjugateGradient, int>{"iterations", &PyConjugateGradient::iterations, kCount,
                                      "Fisher-vector products at most."},
      Field<PyConjugateGradient, double>{"rtol", &PyConjugateGradient::rtol, kNonNegative,
                                         "Stop at ||r|| <= max(rtol ||g||, atol)."},
      Field<PyConjugateGradient, double>{"atol", &PyConjugateGradient::atol, kNonNegative,
                                         "Stop at ||r|| <= max(rtol ||g||, atol)."},
      Field<PyConjugateGradient, std::optional<Progress>>{
          "stop",
          &PyConjugateGradient::stop,
          {"Progress or None"},
          "Stop earlier, where the quadratic model hardly falls."},
      Field<PyConjugateGradient, bool>{
          "warm_start", &PyConjugateGradient::warm_start, kBool,
          "Start from the last accepted step, scaled as is best for the quadratic model (eq. "
          "8.2).\n"
          "    The product that this takes is one of the iterations; a single one starts from 0."},
      Field<PyConjugateGradient, bool>{
          "last_residual", &PyConjugateGradient::last_residual, kBool,
          "Measure the residual after the last product as well. Without it the first half of that\n"
          "    product is enough for the same step, and the report has the residual before it."},
      Field<PyConjugateGradient, bool>{
          "or_direct", &PyConjugateGradient::or_direct, kBool,
          "Take a direct form where a cost model says that it is faster, as solver='auto' does."});

  bind_value<KFac>(
      m, "KFac",
      "Kronecker factors of the Fisher matrix (K-FAC; Martens and Grosse 2015) as the\n"
      "preconditioner of an update, averaged anew for each.",
      nullptr,
      Field<KFac, Index>{"every", &KFac::every, kEvery,
                         "Average the factors over every `every`-th observation."},
      Field<KFac, bool>{"all_columns", &KFac::all_columns, kBool,
                        "Take the exact expectation over actions instead of random signs."});
  bind_value<Subsample>(m, "Subsample",
                        "Inner conjugate gradient iterations on the Fisher matrix of a part of the "
                        "observations, with\n"
                        "K-FAC of these, as the preconditioner of an update (InnerSolver; decision "
                        "23). Their products\n"
                        "are not counted as products.",
                        nullptr,
                        Field<Subsample, Index>{"every", &Subsample::every, kEvery,
                                                "The part has every `every`-th observation."},
                        Field<Subsample, int>{"iterations", &Subsample::iterations, kCount,
                                              "Inner iterations for each outer one."});
}

}  // namespace natgrad::bindings
