"""How updates end: an update either takes a step or changes nothing at all, and says why."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import DISTRIBUTIONS, id_of, make_problem
from updates import batch_of, both_updates, unchanged

from natgrad import _core as core

Status = core.UpdateStatus


@pytest.mark.parametrize(
    "options", [{}, {"line_search": None}, {"normalize_advantages": True}], ids=id_of
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


@pytest.mark.parametrize("options", [{}, {"line_search": None}], ids=id_of)
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
