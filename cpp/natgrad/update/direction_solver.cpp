#include "natgrad/update/direction_solver.hpp"

#include <algorithm>
#include <cmath>

#include "natgrad/base/stopwatch.hpp"

namespace natgrad {

// F, g and the damping of one solve, with F summed over the dimensions of an action.
struct DirectionSolver::System {
  Curvature& f;
  const double* g;  // (n)
  Index n;
  double damping;
};

namespace {

// Solves from one trial of both ways to the next: a fiftieth of a plain solve's time goes into trials.
constexpr int kTrialEvery = 50;

double first_damping(const Damping& damping) {
  if (const auto* fixed = std::get_if<FixedDamping>(&damping)) return fixed->value;
  if (const auto* trace = std::get_if<TraceDamping>(&damping)) return trace->factor;
  return std::get<AdaptiveDamping>(damping).initial;
}

// False where r'M^-1 r, or the curvature, is not positive in rounding from the beginning.
bool went_somewhere(const CgReport& summary) {
  return summary.iterations > 0 || summary.status != CgStatus::INDEFINITE;
}

}  // namespace

DirectionSolver::DirectionSolver(const DirectionOptions& options) : options_(options) {
  memory_.damping = first_damping(options.damping);
  next_ = memory_;
}

// With F / terms for F the system is (F + terms damping D) (x / terms) = g.
double* DirectionSolver::solve(Curvature& f, const double* g, double terms,
                               DirectionReport* report) {
  const Index n = f.size();
  next_ = memory_;
  next_.warm = memory_.warm && warm_.size() == n;
  x_.resize(n);
  if (options_.cg.warm_start) warm_.reserve(n);
  double* x = x_.data();
  if (next_.warm) std::copy_n(warm_.data(), n, x);

  const System system{f, g, n, report->damping = damping(f, terms)};
  if (!solve_directly(system, x, report)) {
    if (is_automatic()) {
      solve_automatically(system, x, report);
    } else {
      Preconditioner* const m = precondition(system, options_.preconditioner, report);
      const int iterations = options_.cg.iterations;
      if (m != nullptr) report->cg = iterate(system, iterations, CgOptions{}.model_goal, m, x);
      if (m == nullptr || !went_somewhere(report->cg)) {
        report->preconditioner = PreconditionerKind::none;
        report->cg = iterate(system, iterations, CgOptions{}.model_goal, nullptr, x);
      }
    }
  }

  for (Index i = 0; i < n; ++i) x[i] *= terms;
  report->damping /= terms;
  report->cg.quadratic_form *= terms;
  report->cg.squared_norm *= terms * terms;
  report->cg.model_value *= terms;
  return x;
}

void DirectionSolver::learn(bool accepted, double reduction_ratio) {
  next_.warm = accepted && options_.cg.warm_start;
  if (next_.warm) std::swap(x_, warm_);
  if (const auto* rule = std::get_if<AdaptiveDamping>(&options_.damping)) {
    LevenbergMarquardt adapt;
    adapt.low = rule->low;
    adapt.high = rule->high;
    next_.damping = adapt(next_.damping, accepted ? reduction_ratio : 0);
  }
  memory_ = next_;
}

double DirectionSolver::damping(Curvature& f, double terms) const {
  if (const auto* trace = std::get_if<TraceDamping>(&options_.damping)) {
    const double mean = f.trace() / static_cast<double>(f.size());
    return trace->factor * (std::isfinite(mean) ? mean : 1);  // else F says so in the solve
  }
  return terms * memory_.damping;
}

// Without iterations, where that is asked for or faster. What is left of the residual is rounding, or lies
// in the null space of F. There is no direct form with a metric.
bool DirectionSolver::solve_directly(const System& system, double* x, DirectionReport* report) {
  if (metric() != nullptr) return false;
  const Solver form = system.f.choose(options_.solver, system.damping, options_.cg.iterations);
  if (form == Solver::conjugate_gradient) return false;
  scratch_.p.resize(system.n);  // x may be a warm start, which is kept until there is a solution
  scratch_.q.resize(system.n);
  if (!system.f.solve(form, system.g, system.damping, scratch_.p.data(), scratch_.q.data())) {
    return false;
  }
  std::copy_n(scratch_.p.data(), system.n, x);
  report->solver = form;
  report->cg = summarize_solution(system.g, x, scratch_.q.data(), system.damping, system.n,
                                  system.f.rounding());
  return true;
}

// With Kronecker factors if they were as accurate in less time when both ways were tried last. The errors
// of two solutions of one system compare as the quadratic model's values there (eq. 8.1), which cost
// nothing; times compare by the cost models, so that results do not depend on how fast the machine is.
void DirectionSolver::solve_automatically(const System& system, double* x,
                                          DirectionReport* report) {
  const Index n = system.n;
  const KFac kfac;
  const double no_goal = CgOptions{}.model_goal;
  const bool trial = next_.until_trial == 0;
  next_.until_trial = (trial ? kTrialEvery : next_.until_trial) - 1;
  if (!trial && next_.sufficient > 0) {
    if (Preconditioner* const m = precondition(system, kfac, report)) {
      report->cg = iterate(system, next_.sufficient, no_goal, m, x);
      if (went_somewhere(report->cg)) return;
      report->preconditioner = PreconditionerKind::none;
    }
  }
  other_.resize(n);
  if (trial) std::copy_n(x, n, other_.data());
  report->cg = iterate(system, options_.cg.iterations, no_goal, nullptr, x);
  if (!trial) return;

  const double plain = system.f.cost(report->cg.products);
  int most = report->cg.products - 1;
  while (most > 0 && system.f.cost(kfac, most) > plain) --most;
  next_.sufficient = 0;
  if (most == 0) return;
  Preconditioner* const m = precondition(system, kfac, report);
  if (m == nullptr) return;
  std::swap_ranges(x, x + n, other_.data());
  const double goal = report->cg.model_value;
  CgReport summary = iterate(system, most, goal, m, x);
  const int products = summary.products;
  summary.products += report->cg.products;
  if (summary.model_value <= goal) {
    next_.sufficient = products;
    report->cg = summary;
  } else {
    std::copy_n(other_.data(), n, x);
    report->cg.products = summary.products;
    report->preconditioner = PreconditionerKind::none;
  }
}

// Null where none is asked for, or where it is not positive definite.
Preconditioner* DirectionSolver::precondition(const System& system,
                                              const PreconditionerChoice& choice,
                                              DirectionReport* report) {
  Stopwatch watch;
  Preconditioner* made = nullptr;
  PreconditionerKind kind = PreconditionerKind::none;
  if (const auto* kfac = std::get_if<KFac>(&choice)) {
    kind = PreconditionerKind::kfac;
    made = system.f.precondition(*kfac, system.damping);
  } else if (const auto* part = std::get_if<Subsample>(&choice)) {
    kind = PreconditionerKind::subsample;
    made = system.f.precondition(*part, system.damping, options_.cg.iterations);
  }
  report->precondition_seconds += watch.lap();
  report->preconditioner = made != nullptr ? kind : PreconditionerKind::none;
  return made;
}

// Conjugate gradients from the last step or from 0. A metric D becomes the identity in the coordinates
// y = D^1/2 x:
//
//   (D^-1/2 F D^-1/2 + damping I) y = D^-1/2 g                                            (eq. 8.4)
CgReport DirectionSolver::iterate(const System& system, int iterations, double goal,
                                  Preconditioner* preconditioner, double* x) {
  const Index n = system.n;
  Curvature& f = system.f;
  f.plan(iterations);
  CgOptions cg;
  cg.damping = system.damping;
  cg.rtol = options_.cg.rtol;
  cg.atol = options_.cg.atol;
  cg.max_iterations = iterations;
  cg.model_goal = goal;
  cg.rounding = f.rounding();
  cg.flexible = preconditioner != nullptr && preconditioner->varies();
  if (options_.cg.stop.has_value()) {
    cg.progress_tolerance = options_.cg.stop->tolerance;
    cg.progress_window = options_.cg.stop->window;
  }
  if (next_.warm && cg.max_iterations > 1) {
    cg.scale_start = true;
    --cg.max_iterations;  // one product is the start's
  } else {
    std::fill_n(x, n, 0.0);
  }

  const double* g = system.g;
  const std::vector<double>* const d = metric();
  if (d != nullptr) {
    for (Buffer<double>* buffer : {&root_, &scaled_g_, &scaled_}) buffer->resize(n);
    for (Index i = 0; i < n; ++i) {
      root_[i] = 1 / std::sqrt((*d)[static_cast<std::size_t>(i)]);
      scaled_g_[i] = root_[i] * g[i];
      x[i] /= root_[i];
    }
    g = scaled_g_.data();
  }
  const auto scale = [&](const double* v) {
    if (d == nullptr) return v;
    for (Index i = 0; i < n; ++i) scaled_[i] = root_[i] * v[i];
    return static_cast<const double*>(scaled_.data());
  };
  const auto product = [&](const double* v, double* out) {
    f.product(scale(v), out);
    for (Index i = 0; d != nullptr && i < n; ++i) out[i] *= root_[i];
  };
  const auto form_of = [&](const double* v) { return f.quadratic_form(scale(v)); };
  const auto inverse = [&](const double* r, double* z) { preconditioner->apply(r, z); };
  const LinearOperator inverse_operator(inverse);
  const QuadraticForm form(form_of);
  const CgReport summary = conjugate_gradient(
      product, n, g, x, cg, preconditioner != nullptr ? &inverse_operator : nullptr, &scratch_,
      options_.cg.last_residual ? nullptr : &form);
  for (Index i = 0; d != nullptr && i < n; ++i) x[i] *= root_[i];
  return summary;
}

const std::vector<double>* DirectionSolver::metric() const {
  const std::vector<double>* metric = nullptr;
  if (const auto* fixed = std::get_if<FixedDamping>(&options_.damping)) metric = &fixed->metric;
  if (const auto* rule = std::get_if<AdaptiveDamping>(&options_.damping)) metric = &rule->metric;
  return metric != nullptr && !metric->empty() ? metric : nullptr;
}

bool DirectionSolver::is_automatic() const {
  return std::holds_alternative<AutomaticPreconditioner>(options_.preconditioner);
}

bool DirectionSolver::is_adaptive() const {
  return std::holds_alternative<AdaptiveDamping>(options_.damping);
}

bool DirectionSolver::keeps_state() const {
  return is_adaptive() || is_automatic() || options_.cg.warm_start;
}

std::vector<double> DirectionSolver::state() const {
  if (!keeps_state()) return {};
  std::vector<double> state{memory_.damping};
  if (is_automatic()) {
    state.push_back(memory_.sufficient);
    state.push_back(memory_.until_trial);
  }
  if (memory_.warm) state.insert(state.end(), warm_.begin(), warm_.end());
  return state;
}

bool DirectionSolver::set_state(const std::vector<double>& state) {
  if (!keeps_state()) return state.empty();
  const std::size_t header = is_automatic() ? 3 : 1;
  const bool finite = all_finite(state.data(), static_cast<Index>(state.size()));
  if (state.size() < header || !finite) return false;
  if (is_adaptive() ? !(state[0] > 0) : state[0] != first_damping(options_.damping)) return false;
  const auto counts = [](double x, int most) { return x >= 0 && x <= most && x == std::floor(x); };
  if (is_automatic() &&
      !(counts(state[1], options_.cg.iterations) && counts(state[2], kTrialEvery))) {
    return false;
  }
  const bool warm = state.size() > header;
  if (warm && !options_.cg.warm_start) return false;

  // Memory comes first: should there be none, nothing has changed.
  if (warm) warm_.resize(static_cast<Index>(state.size() - header));
  memory_.damping = state[0];
  if (is_automatic()) {
    memory_.sufficient = static_cast<int>(state[1]);
    memory_.until_trial = static_cast<int>(state[2]);
  }
  memory_.warm = warm;
  if (warm) {
    std::copy(state.begin() + static_cast<std::ptrdiff_t>(header), state.end(), warm_.begin());
  }
  return true;
}

}  // namespace natgrad
