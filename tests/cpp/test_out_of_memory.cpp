// Whatever allocation fails, an update or a fit has changed nothing: every allocation of a first call is made
// to fail in turn, in the calling thread and in the others.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

#include "natgrad/base/parallel.hpp"
#include "natgrad/update/policy_gradient_update.hpp"
#include "natgrad/update/trust_region_update.hpp"
#include "natgrad/update/value_fit.hpp"

// Allocations until one fails; negative: none does.
static std::atomic<long> until_failure{-1};

[[gnu::noinline]] static void* failing(std::size_t size, std::size_t alignment) {
  if (until_failure >= 0 && until_failure-- == 0) return nullptr;
  return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}
[[gnu::noinline]] static void release(void* p) noexcept {
  std::free(p);
}
static void* or_throw(void* p) {
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void* operator new(std::size_t size) {
  return or_throw(failing(size, alignof(std::max_align_t)));
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return or_throw(failing(size, static_cast<std::size_t>(alignment)));
}
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return failing(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* p) noexcept {
  release(p);
}
void operator delete(void* p, std::size_t) noexcept {
  release(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
  release(p);
}
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  release(p);
}

namespace {

using namespace natgrad;

int failures = 0;

template <class T>
struct Case {
  Policy<T> policy;
  ValueFunction<T> critic;
  Buffer<T> observations, actions;
  Buffer<double> advantages;

  Case(const Distribution& distribution, std::vector<Index> hidden)
      : policy(spec_of(hidden), distribution, Initialization::orthogonal, 1.0, 0.0),
        critic(spec_of(hidden), Initialization::orthogonal, 1.0),
        observations(kRows * kInputs),
        actions(kRows * action_size(distribution)),
        advantages(kRows) {
    RandomStream random(1, 2, 3);
    for (T& x : observations) x = static_cast<T>(random.normal());
    for (double& x : advantages) x = random.normal();
  }
  static NetworkSpec spec_of(const std::vector<Index>& hidden) {
    NetworkSpec spec;
    spec.inputs = kInputs;
    spec.hidden = hidden;
    return spec;
  }
  Batch<T> batch(Index rows) const {
    const Index width = action_size(policy.distribution());
    return {{observations.data(), rows, kInputs, kInputs},
            {actions.data(), rows, width, width},
            {advantages.data(), static_cast<std::size_t>(rows)}};
  }
  std::vector<double> parameters() const {
    std::vector<double> all(policy.parameters(), policy.parameters() + policy.parameter_count());
    all.insert(all.end(), critic.parameters(), critic.parameters() + critic.parameter_count());
    all.push_back(critic.target_mean());
    all.push_back(critic.target_std());
    return all;
  }

  static constexpr Index kInputs = 5, kRows = 700;
};

// A new object learns from a few rows, so that it has a state, and then from all of them with its k-th
// allocation failing, for every k that there is.
template <class T, class Make, class Run>
void check(const char* what, const Distribution& distribution, Make make, Run run,
           std::vector<Index> hidden = {33, 16}) {
  long k = 0;
  bool good = true;
  for (bool failed = true; failed; ++k) {
    failed = false;
    Case<T> with(distribution, hidden);
    auto learner = make();
    run(learner, with, 40);
    const std::vector<double> parameters = with.parameters(), state = learner.state();
    until_failure = k;
    try {
      run(learner, with, Case<T>::kRows);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    until_failure = -1;
    if (failed && (with.parameters() != parameters || learner.state() != state)) {
      std::printf("  allocation %ld of %s: something has changed\n", k, what);
      good = false;
    }
  }
  const bool ok = good && k > 1;
  std::printf("%-50s %s (%ld allocations)\n", what, ok ? "ok" : "FAILED", k - 1);
  failures += ok ? 0 : 1;
}

template <class T>
void check_updates(const char* what, const TrustRegionOptions& options,
                   const Distribution& distribution, std::vector<Index> hidden = {33, 16}) {
  check<T>(
      what, distribution, [&] { return TrustRegionUpdate(options); },
      [](TrustRegionUpdate& update, Case<T>& with, Index rows) {
        update(with.policy, with.batch(rows));
      },
      std::move(hidden));
}

template <class T, class Fit>
void check_fit(const char* what) {
  check<T>(
      what, Categoricals({2}, true), [] { return Fit({}); },
      [](Fit& fit, Case<T>& with, Index rows) {
        const Batch<T> batch = with.batch(rows);
        fit(with.critic, batch.observations, batch.advantages);
      });
}

}  // namespace

int main() {
  const Distribution gaussian = DiagonalGaussian{3, false},
                     categorical = Categoricals({3, 2}, false);
  for (const int threads : {1, 3}) {
    set_num_threads(threads);
    std::printf("%d threads\n", threads);
    check_updates<float>("trust region update", {}, gaussian);
    TrustRegionOptions kfac;
    kfac.direction.preconditioner = KFac{};
    check_updates<float>("K-FAC", kfac, gaussian);
    TrustRegionOptions automatic;
    automatic.direction.preconditioner = AutomaticPreconditioner{};
    check_updates<double>("automatic K-FAC", automatic, categorical);
    TrustRegionOptions subsample;
    subsample.direction.preconditioner = Subsample{};
    check_updates<float>("inner iterations", subsample, categorical);
    TrustRegionOptions adaptive;
    adaptive.direction.damping = AdaptiveDamping{};
    adaptive.direction.cg.warm_start = true;
    adaptive.problem.curvature_fraction = 0.3;
    adaptive.problem.fisher = FisherKind::empirical;
    check_updates<double>("adaptive damping, warm start", adaptive, gaussian);
    TrustRegionOptions direct;
    direct.direction.solver = Solver::dense;
    check_updates<float>("dense", direct, categorical, {9});
    direct.direction.damping = FixedDamping{0, {}};
    check_updates<double>("dense, by eigenvalues", direct, Bernoulli{2}, {5});
    direct.direction.damping = FixedDamping{};
    direct.direction.solver = Solver::sample;
    check_updates<double>("samples", direct, gaussian);
    check_updates<float>("linear Gaussian", {}, gaussian, {});
    check<double>(
        "policy gradient", gaussian, [] { return PolicyGradientUpdate(); },
        [](PolicyGradientUpdate& update, Case<double>& with, Index rows) {
          update(with.policy, with.batch(rows));
        });
    check_fit<float, GaussNewtonFit<float>>("Gauss-Newton fit");
    check_fit<double, AdamFit<double>>("Adam fit");
  }
  return failures == 0 ? 0 : 1;
}
