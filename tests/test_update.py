"""Whole trust-region updates are equal to those of the oracle."""

import itertools
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from conftest import DISTRIBUTIONS, core_options, id_of, make_problem, relative_error
from updates import OPTIONS, batch_of, both_updates

from natgrad import _core as core

Status = core.UpdateStatus


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
    ids=id_of,
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
