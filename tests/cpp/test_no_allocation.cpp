// After its first call, an update of the same size allocates nothing: neither the trust region update,
// nor the plain gradient, nor the fits of the critic. All allocations of the process are counted.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "natgrad/base/parallel.hpp"
#include "natgrad/update/policy_gradient_update.hpp"
#include "natgrad/update/trust_region_update.hpp"
#include "natgrad/update/value_fit.hpp"

static std::atomic<long> allocations{0};

// Whatever the library asks for ends here: plain, aligned, array and nothrow forms alike.
static void* counted(std::size_t size, std::size_t alignment) {
  ++allocations;
  void* p = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void* operator new(std::size_t size) {
  return counted(size, alignof(std::max_align_t));
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace {

using namespace natgrad;

int failures = 0;

template <class F>
void expect_no_allocation(const char* what, F f) {
  f();  // may allocate
  const long before = allocations;
  for (int i = 0; i < 3; ++i) f();
  const long after = allocations;
  std::printf("%-58s %s (%ld allocations)\n", what, after == before ? "ok" : "FAILED",
              after - before);
  failures += after == before ? 0 : 1;
}

template <class T>
void check(const char* dtype, const char* name, Distribution distribution, Index fourier_features,
           const TrustRegionOptions& options, std::vector<Index> hidden = {33, 16}) {
  constexpr Index rows = 700, inputs = 5;
  NetworkSpec spec;
  spec.inputs = inputs;
  spec.hidden = std::move(hidden);
  spec.activation = Activation::silu;
  spec.fourier_features = fourier_features;
  Policy<T> policy(spec, distribution, Initialization::orthogonal, 1.0, 0.0);
  ValueFunction<T> critic(spec, Initialization::orthogonal, 1.0);

  const Index width = action_size(distribution);
  Buffer<T> observations(rows * inputs), actions(rows * width), log_probs(rows);
  Buffer<double> advantages(rows);
  RandomStream random(1, 2, 3);
  for (T& x : observations) x = static_cast<T>(random.normal());
  for (double& x : advantages) x = random.normal();
  Rng rng{7, 0, 0};
  const Matrix<const T> batch{observations.data(), rows, inputs, inputs};
  const std::span<const double> given(advantages.data(), rows);
  const Matrix<T> taken{actions.data(), rows, width, width};
  char what[160];
  const auto label = [&](const char* piece) {
    std::snprintf(what, sizeof(what), "%s, %s, %s", piece, name, dtype);
    return what;
  };

  expect_no_allocation(label("sample"),
                       [&] { policy.sample(batch, &rng, taken, log_probs.data()); });
  TrustRegionUpdate update(options);
  expect_no_allocation(label("trust region update"),
                       [&] { update(policy, Batch<T>{batch, taken, given}); });
  PolicyGradientUpdate gradient;
  expect_no_allocation(label("policy gradient"),
                       [&] { gradient(policy, Batch<T>{batch, taken, given}); });
  GaussNewtonFit<T> gauss_newton(GaussNewtonOptions{});
  expect_no_allocation(label("Gauss-Newton fit"), [&] { gauss_newton(critic, batch, given); });
  for (const FisherMethod method : {FisherMethod::passes, FisherMethod::adjoints}) {
    GaussNewtonOptions either;
    either.method = method;
    GaussNewtonFit<T> fit(either);
    expect_no_allocation(label("Gauss-Newton fit, given method"),
                         [&] { fit(critic, batch, given); });
  }
  AdamFit<T> adam(AdamFitOptions{});
  expect_no_allocation(label("Adam fit"), [&] { adam(critic, batch, given); });
}

}  // namespace

int main() {
  set_num_threads(3);
  TrustRegionOptions part;
  part.problem.curvature_fraction = 0.3;
  part.problem.fisher = FisherKind::empirical;
  TrustRegionOptions closed_form;
  closed_form.line_search.reset();
  closed_form.problem.normalize_advantages = true;
  TrustRegionOptions kfac;
  kfac.direction.preconditioner = KFac{};
  TrustRegionOptions automatic;
  automatic.direction.preconditioner = AutomaticPreconditioner{};
  automatic.direction.cg.last_residual = false;
  TrustRegionOptions subsample;
  subsample.direction.preconditioner = Subsample{};
  TrustRegionOptions adaptive;
  // 33 (5 + 1) + 16 (33 + 1) + 2 (16 + 1) + 2 parameters
  AdaptiveDamping with_metric;
  with_metric.metric.assign(778, 0.5);
  adaptive.direction.damping = with_metric;
  adaptive.direction.cg.warm_start = true;
  adaptive.direction.cg.stop = Progress{1e-3, 3};
  TrustRegionOptions by_trace;
  by_trace.direction.damping = TraceDamping{};
  check<float>("float", "Gaussian", DiagonalGaussian{3, false}, 0, {});
  check<float>("float", "Gaussian, K-FAC", DiagonalGaussian{3, false}, 0, kfac);
  check<float>("float", "Gaussian, automatic K-FAC", DiagonalGaussian{3, false}, 0, automatic);
  check<float>("float", "Gaussian, inner iterations", DiagonalGaussian{3, false}, 0, subsample);
  check<double>("double", "Gaussian, empirical part", DiagonalGaussian{2, true}, 0, part);
  check<float>("float", "categoricals, closed form", Categoricals({3, 2}, false), 0, closed_form);
  check<double>("double", "Bernoulli, Fourier features", Bernoulli{4}, 20, {});
  const Bounds bounds{{-1, -1, -1}, {1, 2, 3}};
  check<float>("float", "Beta", Beta{3, bounds}, 0, kfac);
  check<double>("double", "Gaussian under tanh", SquashedGaussian{{3, false}, bounds}, 0, {});
  check<float>("float", "linear Gaussian", DiagonalGaussian{3, false}, 0, {}, {});
  check<double>("double", "Gaussian, adaptive, warm, with metric", DiagonalGaussian{2, false}, 0,
                adaptive);
  check<float>("float", "categoricals, damped by trace", Categoricals({3, 2}, false), 0, by_trace);
  check<float>("float", "two actions", Categoricals({2}, true), 0, {}, {64, 64});
  TrustRegionOptions direct;
  direct.direction.solver = Solver::dense;
  check<float>("float", "dense", Categoricals({3, 2}, false), 0, direct, {9});
  direct.direction.damping = FixedDamping{0, {}};
  check<double>("double", "dense, by eigenvalues", Bernoulli{2}, 0, direct, {5});
  direct.direction.damping = FixedDamping{};
  direct.direction.solver = Solver::sample;
  check<double>("double", "samples", DiagonalGaussian{2, false}, 0, direct);
  direct.problem.fisher = FisherKind::empirical;
  check<float>("float", "samples, empirical", DiagonalGaussian{2, false}, 0, direct);
  return failures == 0 ? 0 : 1;
}
