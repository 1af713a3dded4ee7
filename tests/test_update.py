"""The line search alone, then whole updates: equal to the oracle's, or nothing changes at all."""

import itertools
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from conftest import DISTRIBUTIONS, core_options, make_problem, relative_error

from natgrad import _core as core

Status = core.UpdateStatus


# ------------------------------------------------------------------------------- line search


def searched(candidates, expected=1.0, max_kl=1.0, **options):
    """Runs the search over a list of (improvement, kl); returns its result and what it tried."""
    tried = []

    def evaluate(fraction):
        tried.append(fraction)
        return candidates[len(tried) - 1]

    return core.backtracking_line_search(evaluate, expected, max_kl, **options), tried


def test_the_full_step_is_taken_when_it_is_acceptable():
    r, tried = searched([(0.9, 0.5)])
    assert r.status == core.LineSearchStatus.ACCEPTED
    assert tried == [1.0]
    assert (r.fraction, r.improvement, r.kl, r.evaluations) == (1.0, 0.9, 0.5, 1)
    assert r.message


def test_fractions_shrink_geometrically_until_one_is_acceptable():
    r, tried = searched([(-1, 0.1), (0.5, 2.0), (0.2, 0.4)], shrink=0.5)
    assert r.status == core.LineSearchStatus.ACCEPTED
    assert tried == [1.0, 0.5, 0.25]
    assert (r.fraction, r.improvement, r.kl, r.evaluations) == (0.25, 0.2, 0.4, 3)


def test_the_search_gives_up_after_max_backtracks_tries():
    r, tried = searched([(-1.0, 0.0)] * 9, shrink=0.5, max_backtracks=4)
    assert r.status == core.LineSearchStatus.LINE_SEARCH_FAILED
    assert tried == [1.0, 0.5, 0.25, 0.125]
    assert r.evaluations == 4
    assert r.fraction == 0.0
    assert r.message


def test_the_defaults_are_ten_tries_a_factor_of_eight_tenths_and_any_improvement():
    _, tried = searched([(0.0, 0.0)] * 10)
    np.testing.assert_allclose(tried, 0.8 ** np.arange(10), rtol=1e-14)
    assert searched([(1e-300, 0.0)])[0].evaluations == 1
    search = core.LineSearch()
    assert (search.shrink, search.max_backtracks, search.accept_ratio) == (0.8, 10, 0.0)


def test_a_kl_equal_to_the_bound_passes_and_one_above_does_not():
    assert searched([(1.0, 0.25)], max_kl=0.25)[0].evaluations == 1
    above = np.nextafter(0.25, 1.0)
    assert searched([(1.0, above), (1.0, 0.1)], max_kl=0.25)[0].evaluations == 2


def test_the_improvement_must_exceed_the_ratio_times_the_expected_one():
    # expected 4, ratio 0.5: more than 2 at the full step, more than 1 at half of it
    options = {"expected": 4.0, "accept_ratio": 0.5, "shrink": 0.5}
    assert searched([(2.0, 0.0), (1.5, 0.0)], **options)[0].fraction == 0.5
    assert searched([(2.1, 0.0)], **options)[0].fraction == 1.0
    assert searched([(0.0, 0.0), (1.0, 0.0), (0.6, 0.0)], **options)[0].fraction == 0.25


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_candidate_that_is_not_finite_counts_as_rejected_and_the_search_goes_on(bad):
    for candidate in [(bad, 0.0), (1.0, bad), (bad, bad)]:
        r, _ = searched([candidate, (0.5, 0.5)])
        assert r.status == core.LineSearchStatus.ACCEPTED
        assert r.evaluations == 2


def test_an_exception_in_evaluate_reaches_the_caller():
    def evaluate(fraction):
        raise ZeroDivisionError("in evaluate")

    with pytest.raises(ZeroDivisionError, match="in evaluate"):
        core.backtracking_line_search(evaluate, 1.0, 1.0)


@pytest.mark.parametrize("returned", [None, 1.0, (1.0,), (1.0, 2.0, 3.0), ("a", "b")])
def test_evaluate_must_return_two_numbers(returned):
    with pytest.raises((TypeError, ValueError), match="evaluate"):
        core.backtracking_line_search(lambda fraction: returned, 1.0, 1.0)


# ------------------------------------------------------------------------------- trust region


def batch_of(p, log_probs=None, **changes):
    fields = {
        "observations": p.observations,
        "actions": p.actions,
        "advantages": p.advantages,
        "log_probs": log_probs,
    }
    return SimpleNamespace(**{**fields, **changes})


def both_updates(p, log_probs=None, **options):
    """The core's report and the oracle's, for the same update; the core's policy has moved."""
    twin_options = dict(options)
    search = twin_options.get("line_search", "default")
    if isinstance(search, core.LineSearch):
        twin_options["line_search"] = (search.shrink, search.max_backtracks, search.accept_ratio)
    elif search == "default":
        twin_options.pop("line_search", None)
    want = oracle.trust_region_update(
        p.oracle,
        p.theta,
        p.observations.astype(float),
        p.actions,
        p.advantages,
        log_probs,
        **twin_options,
    )
    update = core.TrustRegionUpdate(**core_options(or_direct=False, **options))
    return update(p.core, batch_of(p, log_probs)), want


OPTIONS = {
    "defaults": {},
    "little damping": {"damping": 1e-3, "cg_iterations": 5},
    "no damping, few iterations": {"damping": 0.0, "cg_iterations": 3},
    "large steps": {"max_kl": 0.5},
    "very large steps": {"max_kl": 4.0, "line_search": core.LineSearch(0.7, 25, 0.1)},
    "loose cg": {"cg_rtol": 0.3},
    "closed-form step": {"line_search": None},
    "damped step": {"damped_step": True},
    "normalised advantages": {"normalize_advantages": True},
    # Few iterations: after ten, conjugate gradients have amplified the rounding of either side.
    "empirical": {"fisher": "empirical", "cg_iterations": 5},
    "a fraction of the batch": {"curvature_fraction": 0.26, "cg_iterations": 5},
    "a fraction, empirically": {
        "curvature_fraction": 0.26,
        "fisher": "empirical",
        "cg_iterations": 5,
    },
    "absolute tolerance": {"cg_rtol": 0.0, "cg_atol": 0.05},
    "averaged over dimensions": {"kl_reduction": "mean"},
    "the other divergence": {"kl_direction": "new_old", "max_kl": 0.5},
    "as sb3-contrib": {
        "kl_reduction": "mean",
        "kl_direction": "new_old",
        "cg_rtol": 0.0,
        "cg_atol": 1e-5,
        "damped_step": True,
        "max_kl": 0.2,
    },
    "a fixed step": {"step_size": 0.03, "line_search": None, "kl_reduction": "mean"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_whole_update_is_the_oracles(exact, distribution, options):
    p = make_problem(distribution, count=43, normalized=True, seed=2)
    report, want = both_updates(p, **OPTIONS[options])
    assert report.status.name == want.status, report.message
    assert relative_error(p.core.parameters, want.parameters) < 1e-9
    assert relative_error(p.core.parameters - p.theta, want.parameters - p.theta) < 1e-7
    for name, tolerance in {
        "kl": 1e-7,
        "improvement": 1e-7,
        "expected_improvement": 1e-8,
        "step_fraction": 1e-14,
        "backtracks": 0,
    }.items():
        np.testing.assert_allclose(
            getattr(report, name), getattr(want, name), rtol=tolerance, err_msg=name
        )
    assert report.cg.iterations == want.cg_iterations


@pytest.mark.parametrize("options", ["defaults", "closed-form step", "normalised advantages"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_an_update_weighs_by_the_ratio_to_the_policy_that_acted(distribution, options):
    p = make_problem(distribution, count=43, seed=2)
    behaviour = p.oracle.log_prob(
        p.theta + 0.05 * np.random.default_rng(0).normal(size=p.theta.size),
        p.observations,
        p.actions,
    )
    report, want = both_updates(p, behaviour, **OPTIONS[options])
    assert report.status.name == want.status == "ACCEPTED"
    assert relative_error(p.core.parameters, want.parameters) < 1e-9
    np.testing.assert_allclose(report.improvement, want.improvement, rtol=1e-7)
    on_policy = make_problem(distribution, count=43, seed=2)
    core.TrustRegionUpdate(**core_options(**OPTIONS[options]))(on_policy.core, batch_of(on_policy))
    assert not np.allclose(on_policy.core.parameters, p.core.parameters, rtol=1e-6)


def test_log_probs_of_the_current_policy_are_the_same_as_none():
    p, q = (make_problem("gaussian", count=43) for _ in range(2))
    update = core.TrustRegionUpdate()
    update(p.core, batch_of(p, p.core.log_prob(p.observations, p.actions)))
    update(q.core, batch_of(q))
    np.testing.assert_allclose(p.core.parameters, q.core.parameters, rtol=1e-12)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("line_search", [core.LineSearch(), None])
def test_an_update_in_float32_is_close_to_the_oracles(distribution, line_search):
    p = make_problem(distribution, dtype="float32", count=200, seed=2)
    report, want = both_updates(p, cg_iterations=5, line_search=line_search)
    assert report.status.name == want.status
    assert report.backtracks == want.backtracks
    assert relative_error(p.core.parameters - p.theta, want.parameters - p.theta) < 1e-4
    np.testing.assert_allclose(report.kl, want.kl, rtol=1e-3)
    np.testing.assert_allclose(report.improvement, want.improvement, rtol=1e-3)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_products_in_float32_cost_the_solver_less_than_one_iteration(distribution):
    """Rounding in the products delays conjugate gradients; the quadratic model says by how much."""
    for seed in range(5):
        p = make_problem(distribution, dtype="float32", count=200, seed=seed)
        g = p.oracle.score(p.theta, p.observations, p.actions, p.advantages)
        A = p.oracle.fisher(p.theta, p.observations) + 0.1 * np.eye(g.size)
        x = core.conjugate_gradient(core.Fisher(p.core, p.observations), g, damping=0.1).x
        nine, _, _ = oracle.conjugate_gradient(A, g, 9)
        gain, least = (g @ y - 0.5 * y @ A @ y for y in (x, nine))
        assert gain > least


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_kl", [1e-4, 0.01, 1.0])
def test_an_accepted_step_respects_the_bound_and_improves(distribution, dtype, max_kl):
    for seed in range(4):
        p = make_problem(distribution, dtype=dtype, count=64, seed=seed)
        before = p.core.log_prob(p.observations, p.actions).astype(float)
        update = core.TrustRegionUpdate(
            max_kl=max_kl, line_search=core.LineSearch(max_backtracks=40)
        )
        report = update(p.core, batch_of(p))
        assert report.status == Status.ACCEPTED
        assert report.accepted is True
        assert 0 < report.kl <= max_kl
        assert report.improvement > 0
        after = p.core.log_prob(p.observations, p.actions).astype(float)
        kl = p.core.kl(p.observations, p.theta).astype(float).mean()
        improvement = np.mean((np.exp(after - before) - 1) * p.advantages)
        tolerance = 1e-9 if dtype == "float64" else 1e-2
        np.testing.assert_allclose(report.kl, kl, rtol=tolerance)
        np.testing.assert_allclose(report.improvement, improvement, rtol=tolerance)


@pytest.mark.parametrize("distribution", ["squashed", "squashed-state-std"])
def test_the_entropy_under_tanh_is_estimated_from_the_actions(distribution):
    p = make_problem(distribution, count=4000)
    p.actions, _ = p.core.sample(p.observations, core.Rng(0))
    report = core.TrustRegionUpdate()(p.core, batch_of(p))
    p.core.parameters = p.theta
    d = p.core.distribution
    normal = core.DiagonalGaussian(d.action_size, d.state_dependent_std)
    outputs = p.core.outputs(p.observations)
    volumes = normal.log_prob(outputs, p.actions) - d.log_prob(outputs, p.actions)
    estimates = normal.entropy(outputs) + volumes
    np.testing.assert_allclose(report.entropy, estimates.mean(), rtol=1e-12)
    error = report.entropy - p.core.entropy(p.observations).mean()
    assert 0 < abs(error) < 4 * volumes.std() / np.sqrt(4000)


@pytest.mark.parametrize("distribution", ["gaussian", "squashed"])
def test_a_standard_deviation_stops_at_its_floor_and_the_step_is_judged_there(distribution):
    p = make_problem(distribution, count=64)
    free = next(block.offset for block in p.core.layout if block.name == "log_std")
    first = core.TrustRegionUpdate(max_kl=0.1)(p.core, batch_of(p))
    there = p.core.parameters.copy()
    step = (there - p.theta) / first.step_fraction
    fell = np.flatnonzero(there < p.theta)
    fell = fell[fell >= free]
    assert len(fell) > 0
    for floor in ((there[fell[0]] + p.theta[fell[0]]) / 2, p.theta[fell[0]] + 1):
        p.core.parameters = p.theta
        report = core.TrustRegionUpdate(max_kl=0.1, log_std_min=floor)(p.core, batch_of(p))
        assert report.status == Status.ACCEPTED
        want = p.theta + report.step_fraction * step
        lowest = np.minimum(p.theta[free:], floor)  # one that is below already may only rise
        want[free:] = np.maximum(want[free:], lowest)
        np.testing.assert_allclose(p.core.parameters, want, rtol=1e-9)
        assert p.core.parameters[fell[0]] == lowest[fell[0] - free]
        kl = p.core.kl(p.observations, p.theta).mean()
        np.testing.assert_allclose(report.kl, kl, rtol=1e-9)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="log_std_min: want a finite number"):
            core.TrustRegionUpdate(log_std_min=bad)


def test_the_report_holds_every_quantity_that_one_may_want_to_log():
    p = make_problem("gaussian", count=64)
    theta = p.theta.copy()
    entropy = p.core.entropy(p.observations).mean()
    report, want = both_updates(p)
    step = p.core.parameters - theta
    np.testing.assert_allclose(report.gradient_norm, np.linalg.norm(want.gradient), rtol=1e-10)
    np.testing.assert_allclose(report.step_norm, np.linalg.norm(step), rtol=1e-8)
    scaled = report.step_fraction * report.step_scale * want.solution
    np.testing.assert_allclose(step, scaled, rtol=1e-6, atol=1e-10)
    assert np.isfinite(report.surrogate)
    assert (
        min(abs(report.entropy - e) for e in (entropy, p.core.entropy(p.observations).mean()))
        < 1e-12
    )
    F = p.oracle.fisher(theta, p.observations)
    np.testing.assert_allclose(
        report.cg.quadratic_form, want.solution @ F @ want.solution, rtol=1e-8
    )
    residual = want.gradient - F @ want.solution - 0.1 * want.solution
    np.testing.assert_allclose(report.cg.residual_norm, np.linalg.norm(residual), rtol=1e-3)
    np.testing.assert_allclose(
        report.cg.relative_residual, report.cg.residual_norm / report.gradient_norm, rtol=1e-9
    )
    assert report.cg.status in (core.CgStatus.MAX_ITERATIONS, core.CgStatus.CONVERGED)
    assert report.message
    assert report.timings
    assert all(isinstance(k, str) and t >= 0 for k, t in report.timings.items())


def test_the_report_as_a_dictionary_is_flat_and_has_every_number():
    p = make_problem("gaussian", count=64)
    report = core.TrustRegionUpdate()(p.core, batch_of(p))
    flat = report.as_dict()
    assert flat
    for key, value in flat.items():
        assert isinstance(key, str)
        assert isinstance(value, (float, int, str)), key
    numbers = [v for v in flat.values() if not isinstance(v, str)]
    for name in ("kl", "improvement", "expected_improvement", "step_fraction", "entropy"):
        assert getattr(report, name) in numbers, name
    assert "ACCEPTED" in flat.values()


@pytest.mark.parametrize(
    "options",
    [
        {"max_kl": 0.02},
        {"damping": 0.01},
        {"cg_iterations": 2},
        {"solver": core.ConjugateGradient(rtol=0.5)},
        {"line_search": core.LineSearch(accept_ratio=0.99, shrink=0.5)},
        {"normalize_advantages": True},
        {"fisher": "empirical"},
        {"curvature_fraction": 0.3},
        {"step_scale": "damped"},
        {"solver": core.ConjugateGradient(rtol=0.0, atol=0.1)},
        {"kl_reduction": "mean"},
        {"step_scale": 0.01},
        {"solver": core.ConjugateGradient(stop=core.Progress(0.05))},
        {"solver": core.ConjugateGradient(4)},
        {"damping": core.TraceDamping()},
        {"damping": core.FixedDamping(metric=np.linspace(0.5, 2.0, 96))},
        {"solver": "direct"},
    ],
    ids=str,
)
def test_every_option_changes_the_step(options):
    steps = []
    for chosen in ({}, options):
        p = make_problem("gaussian", count=64)
        assert core.TrustRegionUpdate(**chosen)(p.core, batch_of(p)).accepted
        steps.append(p.core.parameters - p.theta)
    assert relative_error(steps[1], steps[0]) > 1e-6


def test_averaging_over_dimensions_is_a_larger_bound_and_more_damping():
    steps = []
    for options in (
        {"max_kl": 0.01, "damping": 0.2, "kl_reduction": "mean"},
        {"max_kl": 0.03, "damping": 0.6},  # three dimensions
    ):
        p = make_problem("gaussian", count=64)
        report = core.TrustRegionUpdate(**options)(p.core, batch_of(p))
        steps.append((report.kl / options["max_kl"], *p.core.parameters))
    np.testing.assert_allclose(steps[0], steps[1], rtol=1e-10)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bound_holds_in_the_direction_asked_for(distribution, dtype):
    found = {}
    for direction in ("old_new", "new_old"):
        p = make_problem(distribution, dtype=dtype, count=64)
        report = core.TrustRegionUpdate(
            max_kl=2.0, kl_direction=direction, line_search=core.LineSearch(max_backtracks=40)
        )(p.core, batch_of(p))
        assert report.accepted
        moved = p.core.parameters.copy()
        forward = p.core.kl(p.observations, p.theta).mean()
        p.core.parameters = p.theta
        backward = p.core.kl(p.observations, moved).mean()
        found[direction] = report.kl
        want = {"old_new": forward, "new_old": backward}[direction]
        np.testing.assert_allclose(report.kl, want, rtol=1e-9 if dtype == "float64" else 1e-2)
        assert abs(forward - backward) > 0.02 * forward
    assert found["old_new"] != found["new_old"]


# ---------------------------------------------------------------- the same, given by functions


def functions_of(p, direction="old_new"):
    """Gradient, product and evaluation of the oracle's policy."""
    theta, observations = p.theta, p.observations
    log_probs = p.oracle.log_prob(theta, observations, p.actions)
    F = p.oracle.fisher(theta, observations)

    def evaluate(step):
        new = theta + step
        ratio = np.exp(p.oracle.log_prob(new, observations, p.actions) - log_probs)
        first, second = (theta, new) if direction == "old_new" else (new, theta)
        kl = np.mean(p.oracle.kl(second, observations, first))
        return np.mean((ratio - 1) * p.advantages), kl

    gradient = p.oracle.score(theta, observations, p.actions, p.advantages)
    return gradient, lambda v: F @ v, evaluate


BATCHWISE = {"fisher", "curvature_fraction", "normalize_advantages"}  # the functions' business
STEP_OPTIONS = [name for name in OPTIONS if not BATCHWISE & set(OPTIONS[name])]


@pytest.mark.parametrize("options", STEP_OPTIONS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_an_update_given_by_functions_is_the_same_update(distribution, options):
    p = make_problem(distribution, count=43, seed=2)
    update = core.TrustRegionUpdate(**core_options(**OPTIONS[options]))
    dimensions = p.core.distribution.action_size
    surrogate = np.mean(p.advantages)
    found = update.step(*functions_of(p, update.kl_direction), dimensions, surrogate)
    want = update(p.core, batch_of(p))
    for name in ("status", "backtracks", "step_fraction"):
        assert getattr(found, name) == getattr(want, name)
    numbers = ("kl", "improvement", "expected_improvement", "gradient_norm", "step_norm")
    for name in (*numbers, "surrogate"):
        np.testing.assert_allclose(getattr(found, name), getattr(want, name), rtol=1e-6)
    np.testing.assert_allclose(found.cg.quadratic_form, want.cg.quadratic_form, rtol=1e-6)
    assert found.timings["total"] >= found.timings["solve"] > 0


DIRECTIONS = {
    "warm start": {"solver": core.ConjugateGradient(5, warm_start=True)},
    "adaptive": {"damping": core.AdaptiveDamping(), "max_kl": 0.3},
    "metric": {"damping": core.FixedDamping(metric=np.linspace(0.5, 2.0, 96))},
    "without last residual": {"solver": core.ConjugateGradient(5, last_residual=False)},
    "progress": {"solver": core.ConjugateGradient(30, stop=core.Progress(0.05))},
    "direct": {"solver": "dense", "cg_iterations": 60},
    "K-FAC": {"solver": core.ConjugateGradient(60), "preconditioner": "kfac"},
    "automatic": {"solver": core.ConjugateGradient(60), "preconditioner": "auto"},
}


@pytest.mark.parametrize("options", DIRECTIONS)
def test_every_option_of_the_direction_applies_to_functions(options):
    p = make_problem("gaussian", count=43, seed=2)
    of_functions, of_policy = (core.TrustRegionUpdate(**DIRECTIONS[options]) for _ in range(2))
    for _ in range(3):
        p.theta = np.array(p.core.parameters, dtype=float)
        found = of_functions.step(*functions_of(p), 3, np.mean(p.advantages))
        want = of_policy(p.core, batch_of(p))
        assert found.status == want.status == Status.ACCEPTED
        assert (found.solver, found.preconditioner) == ("cg", "none")
        for name in ("kl", "improvement", "step_norm", "damping", "reduction_ratio"):
            np.testing.assert_allclose(getattr(found, name), getattr(want, name), rtol=1e-6)
    np.testing.assert_allclose(of_functions.state[:1], of_policy.state[:1])


def test_the_trace_of_an_operator_is_estimated():
    p = make_problem("gaussian", count=43, seed=2)
    trace = np.trace(p.oracle.fisher(p.theta, p.observations))
    report = core.TrustRegionUpdate(damping=core.TraceDamping(2.0)).step(*functions_of(p), 3)
    assert report.accepted
    np.testing.assert_allclose(report.damping, 2 * trace / p.theta.size, rtol=0.3)
    identity = np.eye(96)
    report = core.TrustRegionUpdate(damping=core.TraceDamping(2.0)).step(
        np.ones(96), 3 * identity, lambda step: (1.0, 0.0)
    )
    np.testing.assert_allclose(report.damping, 6.0, rtol=1e-14)


def test_a_function_that_calls_its_own_update_is_told_so():
    update = core.TrustRegionUpdate()

    def evaluate(step):
        update.step(np.ones(3), np.eye(3), evaluate)

    with pytest.raises(RuntimeError, match="already running"):
        update.step(np.ones(3), np.eye(3), evaluate)
    assert update.step(np.ones(3), np.eye(3), lambda step: (1.0, 0.0)).accepted


def test_functions_that_fail_end_in_a_status_or_reach_the_caller():
    p = make_problem("gaussian", count=43)
    update = core.TrustRegionUpdate()
    gradient, product, evaluate = functions_of(p)
    statuses = {
        Status.ZERO_GRADIENT: (0 * gradient, product, evaluate),
        Status.NON_FINITE: (gradient, product, lambda step: (np.nan, 0.0)),
        Status.NOT_POSITIVE_DEFINITE: (gradient, lambda v: np.nan * v, evaluate),
        Status.LINE_SEARCH_FAILED: (gradient, product, lambda step: (1.0, 9.0)),
    }
    for status, functions in statuses.items():
        assert update.step(*functions).status == status
    assert update.step(np.nan * gradient, product, evaluate).status == Status.NON_FINITE
    with pytest.raises(TypeError, match="evaluate"):
        update.step(gradient, product, lambda step: None)
    with pytest.raises(ZeroDivisionError):
        update.step(gradient, lambda v: 1 / 0, evaluate)
    with pytest.raises(ValueError, match="fisher"):
        update.step(gradient, np.eye(3), evaluate)
    with pytest.raises(ValueError, match="log_std_min: want None"):
        core.TrustRegionUpdate(log_std_min=-1.0).step(gradient, product, evaluate)
    with pytest.raises(ValueError, match=r"metric: want shape \(96,\)"):
        core.TrustRegionUpdate(damping=core.FixedDamping(metric=[1.0])).step(
            gradient, product, evaluate
        )
    with pytest.raises(ValueError, match="dimensions"):
        update.step(gradient, product, evaluate, 0)
    with pytest.raises(ValueError, match="gradient"):
        update.step([], product, evaluate)


def test_without_a_line_search_the_full_step_is_taken_whatever_its_kl():
    p = make_problem("categorical", count=64)
    for max_kl in (0.01, 2.0):
        p.core.parameters = p.theta
        report, want = both_updates(p, max_kl=max_kl, line_search=None)
        assert report.status == Status.ACCEPTED
        assert report.step_fraction == 1.0
        assert report.backtracks == 0
        np.testing.assert_allclose(p.core.parameters, p.theta + want.full_step, rtol=1e-9)
    assert report.kl != pytest.approx(2.0, rel=0.01)


def test_the_undamped_full_step_has_exactly_the_requested_quadratic_kl():
    p = make_problem("gaussian", count=64)
    core.TrustRegionUpdate(max_kl=0.02, damping=0.3, line_search=None)(p.core, batch_of(p))
    d = p.core.parameters - p.theta
    assert np.isclose(0.5 * d @ p.oracle.fisher(p.theta, p.observations) @ d, 0.02, rtol=1e-8)
    p.core.parameters = p.theta
    core.TrustRegionUpdate(max_kl=0.02, damping=0.3, line_search=None, step_scale="damped")(
        p.core, batch_of(p)
    )
    e = p.core.parameters - p.theta
    damped = p.oracle.fisher(p.theta, p.observations) + 0.3 * np.eye(e.size)
    assert np.isclose(0.5 * e @ damped @ e, 0.02, rtol=1e-8)
    assert np.linalg.norm(e) < np.linalg.norm(d)


def test_the_step_does_not_depend_on_the_scale_of_the_advantages():
    steps = []
    for scale in (1.0, 2.0**-60, 2.0**60):
        p = make_problem("gaussian", count=64)
        report = core.TrustRegionUpdate()(p.core, batch_of(p, advantages=scale * p.advantages))
        assert report.accepted
        steps.append(p.core.parameters.copy())
    np.testing.assert_allclose(steps[1], steps[0], rtol=1e-12)
    np.testing.assert_allclose(steps[2], steps[0], rtol=1e-12)


def test_normalising_makes_shift_and_scale_of_the_advantages_irrelevant():
    steps = []
    for a, b in ((1.0, 0.0), (1e-3, 50.0), (1e3, -7.0)):
        p = make_problem("gaussian", count=64)
        update = core.TrustRegionUpdate(normalize_advantages=True)
        assert update(p.core, batch_of(p, advantages=a * p.advantages + b)).accepted
        steps.append(p.core.parameters.copy())
    np.testing.assert_allclose(steps[1], steps[0], rtol=1e-9)
    np.testing.assert_allclose(steps[2], steps[0], rtol=1e-9)


def test_one_update_object_serves_many_policies_and_batches_of_any_size():
    update = core.TrustRegionUpdate()
    for count, distribution in itertools.product((50, 7, 300, 1), ("gaussian", "categorical")):
        p, q = (make_problem(distribution, count=count, seed=count) for _ in range(2))
        reused = update(p.core, batch_of(p))
        fresh = core.TrustRegionUpdate()(q.core, batch_of(q))
        assert reused.status == fresh.status
        assert p.core.parameters.tobytes() == q.core.parameters.tobytes()


def test_many_updates_in_a_row_learn_a_bandit():
    policy = core.Policy(2, core.Categorical(3), hidden=(8,), dtype="float32", seed=1)
    update = core.TrustRegionUpdate(normalize_advantages=True)
    rng, observations = core.Rng(0), np.random.default_rng(0).normal(size=(256, 2))
    best = (observations[:, 0] > 0).astype(int) + (observations[:, 1] > 0)
    for _ in range(60):
        actions, log_probs = policy.sample(observations, rng)
        rewards = (actions == best).astype(float)
        batch = SimpleNamespace(
            observations=observations, actions=actions, advantages=rewards, log_probs=log_probs
        )
        assert update(policy, batch).kl <= 0.01
    assert np.mean(policy.mode(observations) == best) > 0.9


# ------------------------------------------------------------------------------- statuses


def unchanged(p, before):
    assert p.core.parameters.tobytes() == before


@pytest.mark.parametrize(
    "options", [{}, {"line_search": None}, {"normalize_advantages": True}], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_advantages_are_nothing_to_learn_from(options, dtype):
    p = make_problem("gaussian", dtype=dtype, count=30)
    before = p.core.parameters.tobytes()
    report = core.TrustRegionUpdate(**options)(p.core, batch_of(p, advantages=np.zeros(30)))
    assert report.status == Status.ZERO_ADVANTAGES
    assert report.accepted is False
    assert report.message
    unchanged(p, before)


@pytest.mark.parametrize("value", [1.0, -3.0, 0.1, 1 / 3, 1e8 + 0.1, 1e-300])
@pytest.mark.parametrize("count", [1, 3, 7, 300])
def test_constant_advantages_are_zero_once_normalised(value, count):
    p = make_problem("gaussian", count=count)
    before = p.core.parameters.tobytes()
    update = core.TrustRegionUpdate(normalize_advantages=True)
    report = update(p.core, batch_of(p, advantages=np.full(count, value)))
    assert report.status == Status.ZERO_ADVANTAGES
    unchanged(p, before)


def test_constant_advantages_are_fine_when_they_are_not_normalised():
    p = make_problem("gaussian", count=30)
    assert core.TrustRegionUpdate()(p.core, batch_of(p, advantages=np.ones(30))).accepted


@pytest.mark.parametrize("options", [{}, {"line_search": None}], ids=str)
def test_a_gradient_that_cancels_exactly_is_reported(options):
    p = make_problem("categorical", count=2)
    before = p.core.parameters.tobytes()
    batch = batch_of(
        p,
        observations=np.repeat(p.observations[:1], 2, axis=0),
        actions=np.array([1, 1]),
        advantages=np.array([1.0, -1.0]),
    )
    report = core.TrustRegionUpdate(**options)(p.core, batch)
    assert report.status == Status.ZERO_GRADIENT
    assert report.gradient_norm < 1e-15
    unchanged(p, before)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_search_without_an_acceptable_fraction_is_reported(distribution):
    search = core.LineSearch(shrink=0.99, max_backtracks=2)
    for seed in range(40):
        p = make_problem(distribution, count=30, seed=seed)
        before = p.core.parameters.tobytes()
        report, want = both_updates(p, max_kl=2.0, line_search=search)
        assert report.status.name == want.status
        if want.status == "LINE_SEARCH_FAILED":
            assert report.status == Status.LINE_SEARCH_FAILED
            assert report.step_fraction == 0.0
            assert report.message
            unchanged(p, before)
            return
    pytest.fail("no seed made the search fail")


@pytest.mark.parametrize("damping", [0.5, 0.1, 1e-3])
@pytest.mark.parametrize("line_search", [core.LineSearch(), None])
def test_a_direction_without_curvature_has_no_step_length(damping, line_search):
    """The one row that the curvature looks at has observation zero, and the gradient lives in W."""
    policy = core.Policy(1, core.Categorical(2), hidden=(), dtype="float64")
    policy.parameters = np.zeros(4)
    batch = SimpleNamespace(
        observations=np.array([[0.0], [1.0], [-1.0]]),
        actions=np.array([0, 0, 0]),
        advantages=np.array([0.0, 0.3, -0.3]),
        log_probs=None,
    )
    update = core.TrustRegionUpdate(
        damping=damping, curvature_fraction=1 / 3, line_search=line_search
    )
    before = policy.parameters.tobytes()
    report = update(policy, batch)
    assert report.status == Status.NOT_POSITIVE_DEFINITE, (report.message, report.step_norm)
    assert policy.parameters.tobytes() == before


def test_a_singular_system_whose_gradient_has_no_curvature_at_all_is_reported():
    policy = core.Policy(1, core.Categorical(2), hidden=(), dtype="float64")
    policy.parameters = np.zeros(4)
    batch = SimpleNamespace(
        observations=np.array([[0.0], [1.0], [-1.0]]),
        actions=np.array([0, 0, 0]),
        advantages=np.array([0.0, 0.3, -0.3]),
        log_probs=None,
    )
    update = core.TrustRegionUpdate(damping=0.0, curvature_fraction=1 / 3)
    before = policy.parameters.tobytes()
    report = update(policy, batch)
    assert report.status == Status.NOT_POSITIVE_DEFINITE
    assert report.cg.status == core.CgStatus.INDEFINITE
    assert policy.parameters.tobytes() == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 0.5, -1])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_that_are_not_finite_are_reported_and_kept(bad, position, distribution, dtype):
    for options in ({}, {"line_search": None}):
        p = make_problem(distribution, dtype=dtype, count=30)
        p.core.parameters[int(position * p.theta.size) if position != -1 else -1] = bad
        before = p.core.parameters.tobytes()
        report = core.TrustRegionUpdate(**options)(p.core, batch_of(p))
        assert report.status == Status.NON_FINITE, report.message
        unchanged(p, before)


@pytest.mark.parametrize("log_std", [-25.0, -80.0, 80.0, -400.0, 400.0, -1e4, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("line_search", [core.LineSearch(), None])
def test_a_collapsed_or_exploded_std_never_leaves_a_broken_policy(log_std, dtype, line_search):
    p = make_problem("gaussian", dtype=dtype, count=30)
    p.core.parameters[-3:] = log_std
    before = p.core.parameters.tobytes()
    for actions in (p.actions, p.core.mode(p.observations)):
        p.core.parameters[:] = np.frombuffer(before, dtype)
        report = core.TrustRegionUpdate(line_search=line_search)(
            p.core, batch_of(p, actions=actions)
        )
        if report.accepted:
            assert np.all(np.isfinite(p.core.parameters))
            assert np.isfinite(report.kl)
            assert np.isfinite(report.improvement)
        else:
            unchanged(p, before)


@pytest.mark.parametrize("state_dependent", [False, True])
def test_actions_that_differ_from_the_means_by_rounding_alone_teach_nothing(state_dependent):
    """As when somebody else computed the means: (a - mu) / sigma is large, and only rounding."""
    kind = core.DiagonalGaussian(3, state_dependent_std=state_dependent)
    policy = core.Policy(4, kind, hidden=(32,), seed=1, log_std_init=-25.0, output_scale=1e-3)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(64, 4)).astype(np.float32)
    means = policy.outputs(observations)[:, :3]
    actions = np.nextafter(means, np.where(rng.random(means.shape) < 0.5, -np.inf, np.inf))
    before = policy.parameters.copy()
    batch = SimpleNamespace(
        observations=observations,
        actions=actions.astype(np.float32),
        advantages=rng.normal(size=64),
        log_probs=None,
    )
    report = core.TrustRegionUpdate()(policy, batch)
    assert report.status == Status.ZERO_GRADIENT, report.message
    np.testing.assert_array_equal(policy.parameters, before)
    std = 0.05  # sampled with a deviation that the dtype resolves, the same policy learns
    policy = core.Policy(4, kind, hidden=(32,), seed=1, log_std_init=np.log(std), output_scale=1e-3)
    batch.actions = means + std * rng.normal(size=means.shape)
    assert core.TrustRegionUpdate()(policy, batch).accepted


def test_a_small_but_sane_std_still_learns():
    for log_std in (-8.0, -15.0):
        p = make_problem("gaussian", count=30)
        p.core.parameters[-3:] = log_std
        actions, _ = p.core.sample(p.observations, core.Rng(0))
        report = core.TrustRegionUpdate()(p.core, batch_of(p, actions=actions))
        assert report.status == Status.ACCEPTED, report.message


@pytest.mark.parametrize("max_kl", [1e30, 1e308])
def test_a_closed_form_step_that_cannot_be_evaluated_is_not_taken(max_kl):
    for dtype in ("float32", "float64"):
        p = make_problem("gaussian", dtype=dtype, count=30)
        p.core.parameters[-3:] = 0
        before = p.core.parameters.tobytes()
        report = core.TrustRegionUpdate(max_kl=max_kl, line_search=None)(p.core, batch_of(p))
        if report.accepted:
            assert np.all(np.isfinite(p.core.parameters))
            assert np.isfinite(report.kl)
            assert np.isfinite(report.improvement)
        else:
            assert report.status == Status.NON_FINITE
            unchanged(p, before)
    assert max_kl < 1e308 or report.status == Status.NON_FINITE


@pytest.mark.parametrize("kind", ["huge advantages", "huge ratio", "tiny ratio"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_overflow_on_the_way_is_a_status_and_not_an_exception(kind, dtype):
    p = make_problem("gaussian", dtype=dtype, count=30)
    log_probs = {"huge ratio": np.full(30, -1e4), "tiny ratio": np.full(30, 1e4)}.get(kind)
    advantages = 1e300 * p.advantages if kind == "huge advantages" else p.advantages
    before = p.core.parameters.tobytes()
    report = core.TrustRegionUpdate()(p.core, batch_of(p, log_probs, advantages=advantages))
    if report.accepted:
        assert np.all(np.isfinite(p.core.parameters))
    else:
        assert report.status in (Status.NON_FINITE, Status.ZERO_GRADIENT, Status.LINE_SEARCH_FAILED)
        unchanged(p, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 15, 29])
@pytest.mark.parametrize("field", ["observations", "actions", "advantages", "log_probs"])
@pytest.mark.parametrize("rule", ["trpo", "npg", "sgd", "adam"])
def test_one_bad_number_in_a_batch_is_refused_by_name_and_changes_nothing(
    rule, field, position, bad
):
    p = make_problem("gaussian", count=30)
    batch = batch_of(p, p.core.log_prob(p.observations, p.actions))
    poisoned = getattr(batch, field).copy()
    poisoned[position if poisoned.ndim == 1 else (position, -1)] = bad
    setattr(batch, field, poisoned)
    update = {
        "trpo": core.TrustRegionUpdate,
        "npg": lambda: core.TrustRegionUpdate(line_search=None),
        "sgd": lambda: core.PolicyGradientUpdate(optimizer="sgd"),
        "adam": core.PolicyGradientUpdate,
    }[rule]()
    before = p.core.parameters.tobytes()
    with pytest.raises(ValueError, match=field):
        update(p.core, batch)
    unchanged(p, before)
    # ... and the same object is as good as new.
    setattr(batch, field, np.nan_to_num(poisoned, nan=0.0, posinf=0.0, neginf=0.0))
    assert update(p.core, batch).accepted


# ------------------------------------------------------------------------------- plain gradient


def test_the_plain_gradient_step_is_the_learning_rate_times_the_gradient():
    p = make_problem("gaussian", count=40)
    g = p.oracle.score(p.theta, p.observations, p.actions, p.advantages)
    report = core.PolicyGradientUpdate(learning_rate=0.05, optimizer="sgd")(p.core, batch_of(p))
    assert report.status == Status.ACCEPTED
    np.testing.assert_allclose(p.core.parameters, p.theta + 0.05 * g, rtol=1e-12)
    np.testing.assert_allclose(report.gradient_norm, np.linalg.norm(g), rtol=1e-12)
    np.testing.assert_allclose(report.step_norm, 0.05 * np.linalg.norm(g), rtol=1e-9)
    kl = p.oracle.kl(p.core.parameters, p.observations, p.theta).mean()
    np.testing.assert_allclose(report.kl, kl, rtol=1e-7)


def test_the_plain_gradient_can_normalise_the_advantages():
    p = make_problem("gaussian", count=40)
    standard = (p.advantages - p.advantages.mean()) / p.advantages.std()
    g = p.oracle.score(p.theta, p.observations, p.actions, standard)
    update = core.PolicyGradientUpdate(0.05, "sgd", normalize_advantages=True)
    update(p.core, batch_of(p))
    np.testing.assert_allclose(p.core.parameters, p.theta + 0.05 * g, rtol=1e-12)


def test_adam_is_kingma_and_bas():
    p = make_problem("gaussian", count=40)
    update = core.PolicyGradientUpdate(learning_rate=0.02)
    theta, m, v = p.theta.copy(), 0.0, 0.0
    for t in range(1, 6):
        g = p.oracle.score(theta, p.observations, p.actions, p.advantages)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta = theta + 0.02 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert update(p.core, batch_of(p)).accepted
        np.testing.assert_allclose(p.core.parameters, theta, rtol=1e-9)


def test_the_state_of_adam_can_be_saved_and_restored():
    p = make_problem("gaussian", count=40)
    first = core.PolicyGradientUpdate()
    for _ in range(3):
        first(p.core, batch_of(p))
    state, theta = first.state.copy(), p.core.parameters.copy()
    first(p.core, batch_of(p))
    want = p.core.parameters.tobytes()
    second = core.PolicyGradientUpdate()
    p.core.parameters = theta
    second(p.core, batch_of(p))
    assert p.core.parameters.tobytes() != want
    second = core.PolicyGradientUpdate()
    second.state = state
    p.core.parameters = theta
    second(p.core, batch_of(p))
    assert p.core.parameters.tobytes() == want


def test_a_refused_or_useless_batch_leaves_the_state_of_adam_alone():
    p = make_problem("gaussian", count=40)
    update = core.PolicyGradientUpdate()
    update(p.core, batch_of(p))
    state, theta = update.state.tobytes(), p.core.parameters.tobytes()
    with pytest.raises(ValueError, match="advantages"):
        update(p.core, batch_of(p, advantages=np.full(40, np.nan)))
    assert update(p.core, batch_of(p, advantages=np.zeros(40))).status == Status.ZERO_ADVANTAGES
    p.core.parameters[3] = np.nan
    assert update(p.core, batch_of(p)).status == Status.NON_FINITE
    assert update.state.tobytes() == state
    p.core.parameters[3] = np.frombuffer(theta)[3]
    unchanged(p, theta)


def test_a_plain_step_that_overflows_is_not_taken():
    p = make_problem("gaussian", count=40, dtype="float32")
    before = p.core.parameters.tobytes()
    report = core.PolicyGradientUpdate(1e300, "sgd")(p.core, batch_of(p))
    assert report.status == Status.NON_FINITE
    unchanged(p, before)


# ------------------------------------------------------------------------------- linear Gaussian


def linear_gaussian(dtype, constant=False):
    p = make_problem("gaussian", dtype=dtype, hidden=(), observation_size=4, count=400)
    if constant:
        p.observations[:, 2] = 1.5  # beside the bias, a second constant feature
    return p


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("damping", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_a_linear_gaussian_policy_takes_the_exact_step_without_iterations(dtype, damping, fraction):
    p = linear_gaussian(dtype)
    rows = oracle.curvature_rows(400, fraction)
    F = p.oracle.fisher(p.theta, p.observations[rows])
    g = p.core.score(p.observations, p.actions, p.advantages)
    x = np.linalg.solve(F + damping * np.eye(g.size), g)
    update = core.TrustRegionUpdate(
        max_kl=1e-3, damping=damping, curvature_fraction=fraction, line_search=None
    )
    report = update(p.core, p.batch)
    assert report.accepted
    assert report.cg.status is core.CgStatus.CONVERGED
    assert report.cg.iterations == 0
    tolerance = {"float64": 1e-10, "float32": 2e-4}[dtype]
    np.testing.assert_allclose(report.cg.quadratic_form, x @ F @ x, rtol=tolerance)
    assert report.cg.relative_residual < tolerance
    step = np.sqrt(2e-3 / (x @ F @ x)) * x
    moved = p.core.parameters.astype(float) - p.theta
    assert np.linalg.norm(moved - step) < tolerance * np.linalg.norm(step)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_a_singular_linear_gaussian_policy_ends_in_a_status(dtype, damping):
    p = linear_gaussian(dtype, constant=True)
    report = core.TrustRegionUpdate(damping=damping, max_kl=1e-3)(p.core, p.batch)
    assert report.status is core.UpdateStatus.ACCEPTED
    assert report.cg.relative_residual < {"float64": 1e-10, "float32": 1e-4}[dtype]
    assert report.kl <= 1e-3


def test_the_empirical_fisher_of_a_linear_gaussian_policy_has_no_closed_form():
    p = linear_gaussian("float64")
    for solver in ("auto", "direct"):
        report = core.TrustRegionUpdate(fisher="empirical", solver=solver)(p.core, p.batch)
        assert report.solver != "kronecker"


# Ten iterations of conjugate gradients would solve this small system, and then amplify rounding.
FEW = {"cg_iterations": 4}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("distribution", ["gaussian", "squashed"])
@pytest.mark.parametrize(("count", "normalized"), [(43, True), (64, False), (1100, False)])
def test_a_linear_gaussian_update_is_the_oracles(distribution, options, count, normalized):
    p = make_problem(distribution, hidden=(), count=count, normalized=normalized, seed=2)
    behaviour = p.oracle.log_prob(
        p.theta + 0.05 * np.random.default_rng(0).normal(size=p.theta.size),
        p.observations,
        p.actions,
    )
    report, want = both_updates(p, behaviour, **{**OPTIONS[options], **FEW})
    assert report.status.name == want.status, report.message
    assert relative_error(p.core.parameters - p.theta, want.parameters - p.theta) < 1e-7
    for name in ("kl", "improvement", "expected_improvement", "step_fraction", "backtracks"):
        np.testing.assert_allclose(
            getattr(report, name), getattr(want, name), rtol=1e-7, err_msg=name
        )
    ratio = np.exp(p.oracle.log_prob(p.theta, p.observations, p.actions) - behaviour)
    if not OPTIONS[options].get("normalize_advantages"):
        np.testing.assert_allclose(report.surrogate, np.mean(ratio * p.advantages), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("fourier_features", [0, 12])
def test_a_linear_gaussian_report_says_what_the_policy_does(dtype, fourier_features):
    rng = np.random.default_rng(0)
    policy = core.Policy(
        5, core.DiagonalGaussian(3), hidden=(), dtype=dtype, output_scale=1.0, seed=1,
        fourier_features=fourier_features,
    )  # fmt: skip
    observations = rng.normal(size=(777, 5)).astype(dtype)
    actions, log_probs = policy.sample(observations, core.Rng(0))
    advantages, old = rng.normal(size=777), policy.parameters.copy()
    gradient = policy.score(observations, actions, advantages)
    entropy = policy.entropy(observations).mean()
    for direction in ("old_new", "new_old"):
        policy.parameters = old
        update = core.TrustRegionUpdate(max_kl=0.3, kl_direction=direction)
        report = update(policy, SimpleNamespace(
            observations=observations, actions=actions, advantages=advantages, log_probs=log_probs,
        ))  # fmt: skip
        assert report.accepted
        assert report.solver == "kronecker"
        new = policy.parameters.copy()
        if direction == "old_new":
            kl = policy.kl(observations, old).astype(float).mean()
        else:
            policy.parameters = old
            kl = policy.kl(observations, new).astype(float).mean()
            policy.parameters = new
        after = policy.log_prob(observations, actions).astype(float)
        improvement = np.mean((np.exp(after - log_probs) - 1) * advantages)
        tolerance = 1e-10 if dtype == "float64" else 1e-4
        np.testing.assert_allclose(report.kl, kl, rtol=tolerance)
        np.testing.assert_allclose(report.improvement, improvement, rtol=tolerance)
        np.testing.assert_allclose(report.gradient_norm, np.linalg.norm(gradient), rtol=tolerance)
        np.testing.assert_allclose(report.surrogate, advantages.mean(), atol=tolerance)
        np.testing.assert_allclose(report.entropy, entropy, rtol=tolerance)


def test_a_tiny_linear_gaussian_step_in_float32_has_its_divergence_and_improvement():
    """Moves of the means are computed as such: nothing of them is lost to the means' own size."""
    p = make_problem("gaussian", dtype="float32", hidden=(), count=300)
    p.core.parameters[12:15] = p.theta[12:15] = 100.0  # biases
    p.actions += 100.0
    report = core.TrustRegionUpdate(max_kl=1e-10)(p.core, p.batch)
    assert report.accepted
    new, observations = p.core.parameters.astype(float), p.observations.astype(float)
    kl = p.oracle.kl(new, observations, p.theta).mean()
    before = p.oracle.log_prob(p.theta, observations, p.actions.astype(float))
    after = p.oracle.log_prob(new, observations, p.actions.astype(float))
    np.testing.assert_allclose(report.kl, kl, rtol=1e-4)
    np.testing.assert_allclose(
        report.improvement, np.mean((np.exp(after - before) - 1) * p.advantages), rtol=1e-4
    )


@pytest.mark.parametrize(
    "options",
    [
        {"preconditioner": "kfac"},
        {"damping": core.TraceDamping(0.3)},
        {"fisher": "empirical"},
        {"curvature_fraction": 0.5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_needs_the_activations_of_a_linear_policy_finds_them(options):
    found = []
    for solver in ("auto", "cg"):
        p = make_problem("gaussian", hidden=(), count=300)
        update = core.TrustRegionUpdate(solver=solver, cg_iterations=40, **options)
        assert update(p.core, p.batch).accepted
        found.append(p.core.parameters - p.theta)
    assert relative_error(found[0], found[1]) < 1e-7


def test_candidates_of_a_linear_policy_that_are_not_finite_are_rejected():
    p = make_problem("gaussian", dtype="float32", hidden=(), count=300)
    before = p.core.parameters.tobytes()
    report = core.TrustRegionUpdate(step_scale=1e38)(p.core, p.batch)
    assert report.status is Status.NON_FINITE
    assert p.core.parameters.tobytes() == before
    search = core.LineSearch(shrink=1e-4, max_backtracks=20)
    report = core.TrustRegionUpdate(step_scale=1e38, line_search=search)(p.core, p.batch)
    assert report.accepted
    assert report.backtracks > 5
    assert np.all(np.isfinite(p.core.parameters))
