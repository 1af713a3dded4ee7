"""Updates of linear Gaussian policies, which have a closed form."""

from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from conftest import make_problem, relative_error
from updates import OPTIONS, both_updates

from natgrad import _core as core

Status = core.UpdateStatus


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
        assert report.solver != "linear_gaussian"


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
        assert report.solver == "linear_gaussian"
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
