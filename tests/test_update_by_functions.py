"""The same update for a policy that is given by its functions."""

import numpy as np
import pytest
from conftest import DISTRIBUTIONS, core_options, make_problem
from updates import OPTIONS, batch_of

from natgrad import _core as core

Status = core.UpdateStatus


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


@pytest.mark.parametrize(
    "change",
    [
        lambda update: update.step(np.ones(3), np.eye(3), lambda step: (1.0, 0.0)),
        lambda update: update(*(lambda p: (p.core, batch_of(p)))(make_problem("gaussian"))),
        lambda update: setattr(update, "max_kl", 0.5),
        lambda update: setattr(update, "state", []),
    ],
    ids=["step", "call", "max_kl", "state"],
)
def test_a_function_reads_its_own_update_and_is_refused_to_change_it(change):
    update = core.TrustRegionUpdate(max_kl=0.01)

    def evaluate(step):
        assert (update.max_kl, update.kl_direction, len(update.state)) == (0.01, "old_new", 0)
        change(update)
        return 1.0, 0.0

    with pytest.raises(RuntimeError, match="already running"):
        update.step(np.ones(3), np.eye(3), evaluate)
    assert update.max_kl == 0.01
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
