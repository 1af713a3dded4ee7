"""Solvers where there is no solution, and updates at the ends of the range of doubles."""

import numpy as np
import oracle
import pytest
from conftest import make_problem
from mpmath import mp, mpf
from updates import batch_of, unchanged

import natgrad
from natgrad import _core as core

CONVERGED, INDEFINITE = core.CgStatus.CONVERGED, core.CgStatus.INDEFINITE


def singular(seed):
    """A of some rank below n, with eigenvalues over four orders, and a b outside its range."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 40))
    rank = int(rng.integers(1, n))
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    spectrum = np.zeros(n)
    spectrum[:rank] = 10.0 ** rng.uniform(-int(rng.integers(0, 5)), 0, size=rank)
    a = (q * spectrum) @ q.T
    return (a + a.T) / 2, rng.normal(size=n)


@pytest.mark.parametrize("iterations", [1, 2, 10, 50, 200])
def test_an_inconsistent_system_does_not_blow_up_and_never_counts_as_solved(iterations):
    for seed in range(100):
        a, b = singular(seed)
        r = core.conjugate_gradient(a, b, max_iterations=iterations)
        residual = np.linalg.norm(b - a @ r.x)
        assert r.status != CONVERGED
        assert np.isclose(r.residual_norm, residual, rtol=1e-6)
        assert residual < 5 * np.linalg.norm(b)
        assert np.linalg.norm(r.x) < 100 * np.linalg.norm(np.linalg.pinv(a, rcond=1e-9) @ b)


def test_a_projection_of_a_vector_outside_of_its_range_is_left_after_one_step():
    a, b = np.diag([1.0, 1.0, 1.0, 0.0]), np.array([1.0, 2.0, -1.0, 0.5])
    for iterations in (2, 10, 50):
        r = core.conjugate_gradient(a, b, max_iterations=iterations)
        assert r.status == INDEFINITE
        assert r.iterations == 1
        assert np.isclose(r.residual_norm, np.linalg.norm(b - a @ r.x))


def test_convergence_is_measured_where_rounding_could_have_faked_it():
    rng = np.random.default_rng(0)
    for condition in (1e6, 1e9, 1e12):
        q, _ = np.linalg.qr(rng.normal(size=(20, 20)))
        a = (q * np.geomspace(1, condition, 20)) @ q.T
        a = (a + a.T) / 2
        b = a @ rng.normal(size=20)
        r = core.conjugate_gradient(a, b, rtol=1e-15, max_iterations=400)
        residual = np.linalg.norm(b - a @ r.x)
        assert np.isclose(r.residual_norm, residual, rtol=1e-3)
        if r.status == CONVERGED:
            assert residual <= 1.01e-15 * np.linalg.norm(b)


@pytest.mark.parametrize("exponent", [-1060, -600, -150, 150, 600, 1020])
def test_a_right_hand_side_of_any_magnitude_is_solved_like_any_other(exponent):
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    a, b = (q * np.linspace(1, 5, 8)) @ q.T, np.ldexp(1.0, rng.integers(-1, 2, size=8))
    want = core.conjugate_gradient(a, b, max_iterations=20)
    got = core.conjugate_gradient(a, np.ldexp(b, exponent), max_iterations=20)
    assert got.status == want.status == CONVERGED
    np.testing.assert_allclose(np.ldexp(got.x, -exponent), want.x, rtol=1e-10, atol=1e-3)
    assert np.isfinite(got.x).all()


def test_the_direct_form_says_when_a_part_of_b_is_in_the_null_space():
    p = make_problem("categorical", hidden=(3,), count=30)
    fisher = core.Fisher(p.core, p.observations)
    inside = fisher @ np.random.default_rng(0).normal(size=p.theta.size)
    assert fisher.solve(inside, 0.0).status == CONVERGED
    outside = inside.copy()
    outside[-4:] += 1  # a softmax does not see what all logits have in common
    result = fisher.solve(outside, 0.0)
    assert result.status == INDEFINITE
    assert np.isclose(result.residual_norm, np.linalg.norm(outside - fisher @ result.x))


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_without_damping_and_search_an_accepted_step_has_the_divergence_it_promised(kind):
    accepted = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        distribution = core.Categorical(4) if kind == "categorical" else core.DiagonalGaussian(2)
        policy = core.Policy(6, distribution, hidden=(32, 32), dtype="float32", seed=seed)
        observations = rng.normal(size=(20, 6))
        if seed % 3 == 0:
            observations[:] = observations[0]
        actions, log_probs = policy.sample(observations, core.Rng(seed))
        batch = natgrad.Batch(observations, actions, rng.normal(size=20), log_probs)
        update = core.TrustRegionUpdate(
            0.01, damping=0.0, line_search=None, solver="cg", cg_iterations=50
        )
        before = policy.parameters.copy()
        report = update(policy, batch)
        if not report.accepted:
            assert policy.parameters.tobytes() == before.tobytes()
            continue
        accepted += 1
        kl = np.mean(policy.kl(observations, before), dtype=float)
        assert np.isclose(kl, report.kl, rtol=1e-3)
        assert kl <= 10 * 0.01
    assert accepted > 20


def test_a_step_whose_divergence_is_out_of_all_proportion_is_not_taken():
    p = make_problem("categorical", count=30)
    before = p.core.parameters.tobytes()
    damped = {"damping": 1e3, "step_scale": "damped", "line_search": None}
    assert core.TrustRegionUpdate(1e-2, **damped)(p.core, batch_of(p)).accepted
    p.core.parameters = np.frombuffer(before)
    report = core.TrustRegionUpdate(1e6, line_search=None)(p.core, batch_of(p))
    kl = report.kl
    assert report.accepted == (np.isfinite(kl) and kl <= 10e6)


@pytest.mark.parametrize("accept_ratio", [0.0, 0.1, 0.9])
def test_a_candidate_that_is_worse_is_never_accepted(accept_ratio):
    for expected in (-10.0, -1e-300, -1e300, 0.0):
        r = core.backtracking_line_search(
            lambda f: (-0.5 * f, 1e-3), expected, 0.01, accept_ratio=accept_ratio
        )
        assert r.status == core.LineSearchStatus.LINE_SEARCH_FAILED
        r = core.backtracking_line_search(
            lambda f: (0.5 * f, 1e-3), expected, 0.01, accept_ratio=accept_ratio
        )
        assert r.status == core.LineSearchStatus.ACCEPTED


# ------------------------------------------------------------------------------- what is not finite


def overflowing(dtype):
    """Large parameters and a gradient as large: one step leaves the range of the dtype."""
    policy = core.Policy(1, core.Categorical(2), (1,), "tanh", dtype)
    weight = 1e30 if dtype == "float32" else 1e300
    policy.parameters = np.array([0, 0, weight, -weight, 0, 0], dtype)
    batch = natgrad.Batch(np.zeros((4, 1)), np.zeros(4, int), np.ones(4))
    return policy, batch


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "update",
    [
        lambda: core.PolicyGradientUpdate(1e10, "sgd"),
        lambda: core.PolicyGradientUpdate(1e300, "adam"),
        lambda: core.TrustRegionUpdate(step_scale=1e80, line_search=None, damping=1e70),
        lambda: core.TrustRegionUpdate(max_kl=1e300, step_scale=1e80, damping=1e70),
    ],
)
def test_no_parameter_and_no_moment_becomes_infinite(update, dtype):
    policy, batch = overflowing(dtype)
    update = update()
    for _ in range(3):
        before = policy.parameters.tobytes()
        report = update(policy, batch)
        assert np.isfinite(policy.parameters).all()
        assert np.isfinite(update.state).all()
        assert report.accepted or policy.parameters.tobytes() == before


@pytest.mark.parametrize("scale", [1e200, 1e160])
def test_moments_that_would_overflow_reject_the_step(scale):
    value = core.ValueFunction(2, hidden=(), dtype="float64")
    p = make_problem("gaussian", count=20)
    update = core.PolicyGradientUpdate(1e-3)
    before = p.core.parameters.tobytes()
    report = update(p.core, batch_of(p, advantages=p.advantages * scale))
    assert report.status == core.UpdateStatus.NON_FINITE
    unchanged(p, before)
    assert np.isfinite(update.state).all()
    fit = core.AdamFit()
    before = value.parameters.tobytes()
    fit(value, np.full((5, 2), scale), np.arange(5.0))
    assert np.isfinite(fit.state).all()
    assert np.isfinite(value.parameters).all()


@pytest.mark.parametrize("exponent", [-1070, -1022, -950, 0, 990, 1019])
def test_advantages_of_any_magnitude_are_normalised_alike(exponent):
    p, twin = (make_problem("gaussian", count=30) for _ in range(2))
    # Of few digits, so that denormal numbers have them all.
    advantages = np.random.default_rng(0).integers(-8, 9, size=30).astype(float)
    want = core.TrustRegionUpdate(normalize_advantages=True)(
        p.core, batch_of(p, None, advantages=advantages)
    )
    got = core.TrustRegionUpdate(normalize_advantages=True)(
        twin.core, batch_of(twin, None, advantages=np.ldexp(advantages, exponent))
    )
    assert want.accepted
    assert got.accepted
    np.testing.assert_allclose(twin.core.parameters, p.core.parameters, rtol=1e-12)


# ------------------------------------------------------------------------------- special functions


def beta_kl(old, new):
    """KL(old || new) of two Beta distributions, from outputs, in as many digits as it takes."""

    def excess(y):
        return 1 + (y if y > 60 * mp.log(10) + 400 else mp.log1p(mp.exp(y)))

    (a, b), (c, d) = ([excess(mpf(float(y))) for y in pair] for pair in (old, new))
    log_beta = lambda p, q: mp.loggamma(p) + mp.loggamma(q) - mp.loggamma(p + q)  # noqa: E731
    psi = lambda z: mp.digamma(z) if z < 1e30 else mp.log(z) - 1 / (2 * z)  # noqa: E731
    return (
        log_beta(c, d)
        - log_beta(a, b)
        + (a - c) * psi(a)
        + (b - d) * psi(b)
        + (c - a + d - b) * psi(a + b)
    )


def test_the_divergence_of_beta_distributions_is_right_over_the_whole_range():
    beta = core.Beta(1)
    ends = [-1e308, -1e17, -700.0, -30.0, -1.0, 0.0, 1e-300, 2.0, 40.0, 1e4, 1e9, 1e17, 1e20]
    with mp.workdps(120):
        for y in ends:
            for z in ends:
                for old, new in (((0.3, y), (0.3, z)), ((y, y), (z, z)), ((y, 1.0), (1.0, z))):
                    want = beta_kl(old, new)
                    got = beta.kl([old], [new])[0]
                    # Errors are relative to the largest term, of the order of alpha + beta.
                    size = 2 + sum(max(0.0, v) for v in (*old, *new))
                    assert abs(got - want) <= 1e-9 * abs(want) + 1e-14 * size, (
                        old,
                        new,
                        got,
                        want,
                    )


def test_every_function_of_a_beta_distribution_returns_over_the_whole_range():
    beta = core.Beta(1)
    ends = np.array([-1e308, -1e17, -40.0, 0.0, 5e-324, 40.0, 1e9, 1e17, 1e100, 1e300, 1.7e308])
    pairs = np.stack(np.meshgrid(ends, ends), axis=-1).reshape(-1, 2)
    for old in pairs:
        kl = beta.kl(np.broadcast_to(old, pairs.shape), pairs)
        assert (kl >= 0).all()
    for call in (beta.entropy, beta.fisher, beta.mode, lambda y: beta.sample(y, core.Rng(0))):
        assert not np.isnan(call(pairs)).any()


def test_the_entropy_and_density_of_beta_distributions_are_right_over_the_whole_range():
    beta = core.Beta(1)
    for y in (-700.0, -30.0, -1.0, 0.0, 2.0, 40.0, 1e4, 1e7):
        for z in (-700.0, -1.0, 3.0, 1e3):
            with mp.workdps(60):
                a, b = (1 + mp.log1p(mp.exp(mpf(v))) for v in (y, z))
                log_beta = mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)
                entropy = log_beta - (a - 1) * mp.digamma(a) - (b - 1) * mp.digamma(b)
                entropy += (a + b - 2) * mp.digamma(a + b) + mp.log(2)
                u = mpf("0.25")
                x = 1 / (1 + mp.exp(-2 * u))
                log_prob = (a - 1) * mp.log(x) + (b - 1) * mp.log(1 - x) - log_beta - mp.log(2)
                size = abs(log_beta) + a + b
            assert abs(beta.entropy([[y, z]])[0] - entropy) <= 1e-14 * size
            assert abs(beta.log_prob([[y, z]], [[0.25]])[0] - log_prob) <= 1e-14 * size


def test_a_distribution_whose_actions_are_not_finite_does_not_act():
    gaussian, rng = core.DiagonalGaussian(1), core.Rng(0)
    with pytest.raises(ValueError, match=r"outputs\[1\]: want a distribution of finite actions"):
        gaussian.sample([[0.0, 0.0], [0.0, 1e3]], rng)
    assert rng.counter == 0
    policy = core.Policy(2, gaussian, hidden=(), log_std_init=200.0)
    with pytest.raises(ValueError, match=r"observations\[0\]: want a distribution of finite"):
        policy.sample(np.ones((3, 2)), rng)
    assert rng.counter == 0


def test_advantages_that_overflow_are_refused():
    rewards, zeros = np.full(4, 1.7e308), np.zeros(4)
    never = np.zeros(4, bool)
    with pytest.raises(ValueError, match="rewards: want rewards and values whose discounted sums"):
        natgrad.gae(rewards, zeros, zeros, never, never, 1.0, 1.0)
    got = natgrad.gae(rewards, zeros, zeros, never, never, 0.0, 0.0)[0]
    want = oracle.gae(*(x[:, None] for x in (rewards, zeros, zeros, never, never)), 0.0, 0.0)[0]
    np.testing.assert_array_equal(got, want[:, 0])


# ------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("masked", [True, False])
def test_masked_values_are_refused_by_name_and_masks_without_any_are_taken(masked):
    array = np.ma.array([1.0, 2.0, 3.0], mask=[False, masked, False])
    rows = np.ma.array(np.eye(3), mask=np.diag([masked, False, False]))
    policy = core.Policy(3, core.Categorical(2))
    batch = natgrad.Batch(np.eye(3), np.array([0, 1, 0]), array)
    calls = {
        "b": lambda: core.conjugate_gradient(np.eye(3), array),
        "A": lambda: core.conjugate_gradient(rows, np.ones(3)),
        "observations": lambda: policy.outputs(rows),
        "advantages": lambda: core.TrustRegionUpdate()(policy, batch),
        "weights": lambda: policy.score(np.eye(3), np.array([0, 1, 0]), array),
        "rewards": lambda: natgrad.gae(
            array, *[np.zeros(3)] * 2, *[np.zeros(3, bool)] * 2, 0.9, 0.9
        ),
    }
    for name, call in calls.items():
        if masked:
            with pytest.raises(ValueError, match=f"{name}: want values only, got a masked array"):
                call()
        else:
            call()
