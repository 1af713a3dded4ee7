"""Natural gradient descent on any metric: steps, metrics, how it ends, and what it is given."""

import sys

import numpy as np
import pytest
from conftest import relative_error
from scipy import optimize
from scipy.sparse.linalg import aslinearoperator

import natgrad
from natgrad.theory import BacktrackingStep, ExactStep, FixedStep, TrustRegionStep, metrics
from natgrad.theory.families import (
    BernoulliFamily,
    BetaFamily,
    CategoricalFamily,
    GaussianFamily,
    NegativeLogLikelihood,
)
from natgrad.theory.minimize import MinimizeStatus

rng = np.random.default_rng(0)
ROOT = rng.normal(size=(4, 4))
H = ROOT @ ROOT.T + np.eye(4)  # of a quadratic with its minimum at CENTER
CENTER = rng.normal(size=4)
ROOT = rng.normal(size=(4, 4))
G = ROOT @ ROOT.T + np.eye(4)  # a metric
START = rng.normal(size=4)
COUNTED = np.repeat([0, 1, 2], [5, 3, 2])
DATA = np.random.default_rng(1).normal(12, 4, size=1000)


def quadratic(x):
    return 0.5 * (x - CENTER) @ H @ (x - CENTER)


def quadratic_jac(x):
    return H @ (x - CENTER)


def descend(metric=G, fun=quadratic, x0=START, jac=quadratic_jac, **options):
    """A minimisation and all its iterates."""
    path = []
    result = natgrad.minimize(fun, x0, jac, metric, callback=lambda r: path.append(r.x), **options)
    return result, np.array(path)


def steps_of(metric=G, count=1, **options):
    path = descend(metric, max_iterations=count, **options)[1]
    return path[1:] - path[:-1]


def norm(step, metric=G):
    return np.sqrt(step @ metric @ step)


# Steps -------------------------------------------------------------------------------------------


def test_a_fixed_step_is_a_multiple_of_the_natural_gradient():
    (step,) = steps_of(step=FixedStep(0.3))
    np.testing.assert_allclose(step, -0.3 * np.linalg.solve(G, quadratic_jac(START)), rtol=1e-12)


def test_the_three_lengths_of_a_trust_region_are_one_up_to_convention():
    """epsilon has the half, delta has none, radius is its root (eq. 10.2)."""
    natural = np.linalg.solve(G, quadratic_jac(START))
    for options, radius in (
        ({"epsilon": 0.02}, np.sqrt(2 * 0.02)),
        ({"delta": 0.02}, np.sqrt(0.02)),
        ({"radius": 0.02}, 0.02),
    ):
        (step,) = steps_of(step=TrustRegionStep(**options))
        assert norm(step) == pytest.approx(radius, rel=1e-12)
        np.testing.assert_allclose(step, -radius * natural / norm(natural), rtol=1e-12)


def test_a_step_in_a_trust_region_solves_the_quadratic_programme():
    """No other step of the same length has a lower linear model."""
    (step,) = steps_of(step=TrustRegionStep(epsilon=0.02))
    others = np.random.default_rng(0).normal(size=(1000, 4))
    others *= norm(step) / np.sqrt(np.einsum("ni,ij,nj->n", others, G, others))[:, None]
    assert (others @ quadratic_jac(START)).min() > step @ quadratic_jac(START)
    solved = optimize.minimize(
        lambda d: d @ quadratic_jac(START), -0.1 * quadratic_jac(START), method="SLSQP",
        constraints={"type": "ineq", "fun": lambda d: 0.02 - 0.5 * d @ G @ d},
    )  # fmt: skip
    np.testing.assert_allclose(solved.x, step, rtol=1e-3, atol=1e-5)


def test_the_euclidean_metric_gives_the_normalised_gradient():
    (step,) = steps_of(metrics.euclidean, step=TrustRegionStep(radius=0.1))
    gradient = quadratic_jac(START)
    np.testing.assert_allclose(step, -0.1 * gradient / np.linalg.norm(gradient), rtol=1e-12)


def test_a_decaying_radius_is_divided_by_a_power_of_the_iteration():
    steps = steps_of(count=9, step=TrustRegionStep(radius=0.1, decay=0.5))
    lengths = [norm(step) for step in steps]
    np.testing.assert_allclose(lengths, 0.1 / np.sqrt(np.arange(1, 10)), rtol=1e-12)


def test_exact_steps_end_where_the_gradient_is_orthogonal_to_them():
    steps = steps_of(count=5, step=ExactStep())
    path = descend(step=ExactStep(), max_iterations=5)[1]
    for step, x in zip(steps, path[1:], strict=True):
        assert abs(step @ quadratic_jac(x)) < 1e-10 * norm(step, H)
    line = [quadratic(path[0] + t * steps[0]) for t in (0.999, 1.0, 1.001)]
    assert line[1] == min(line)


def test_an_exact_step_in_the_metric_of_the_curvature_is_newtons():
    result, path = descend(H, step=ExactStep())
    assert (result.success, result.nit) == (True, 1)
    np.testing.assert_allclose(path[1], CENTER, rtol=1e-12)


def test_backtracking_takes_the_first_step_that_decreases_enough():
    gradient = quadratic_jac(START)
    natural = np.linalg.solve(G, gradient)
    for options in ({}, {"shrink": 0.8}, {"initial": 3.0}, {"decrease": 0.9}):
        search = BacktrackingStep(**options)
        t = search.initial
        while not (
            quadratic(START) - quadratic(START - t * natural)
            > search.decrease * t * (gradient @ natural)
        ):
            t *= search.shrink
        (step,) = steps_of(step=search)
        np.testing.assert_allclose(step, -t * natural, rtol=1e-12)
        if not options:
            default = t
        else:
            assert t != default


def test_backtracking_tries_no_more_candidates_than_allowed():
    result, _ = descend(1e-6 * G, step=BacktrackingStep(max_backtracks=3))
    assert result.status is MinimizeStatus.LINE_SEARCH_FAILED
    assert "3 candidates" in result.message
    assert (result.nfev, result.nit) == (4, 0)
    np.testing.assert_array_equal(result.x, START)


# Metrics -----------------------------------------------------------------------------------------


class Product:
    """The least that an operator is."""

    def __init__(self, matrix):
        self._matrix = matrix

    def matvec(self, v):
        return self._matrix @ v


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_matrix_operator_and_functions_of_x_are_the_same_metric(damping):
    for step in (
        FixedStep(0.1),
        TrustRegionStep(epsilon=0.01),
        ExactStep(),
    ):
        want = steps_of(G, count=4, step=step, damping=damping)
        for metric in (
            G.tolist(),
            Product(G),
            aslinearoperator(G),
            lambda x: G,
            lambda x: Product(G),
        ):
            got = steps_of(metric, count=4, step=step, damping=damping)
            np.testing.assert_allclose(got, want, rtol=1e-8)


def test_damping_is_in_the_solution_and_not_in_the_length():
    (step,) = steps_of(step=TrustRegionStep(radius=0.1), damping=0.5)
    natural = np.linalg.solve(G + 0.5 * np.eye(4), quadratic_jac(START))
    np.testing.assert_allclose(step, -0.1 * natural / norm(natural), rtol=1e-12)


def test_products_with_an_operator_can_be_limited():
    (short,) = steps_of(Product(G), step=FixedStep(1.0), cg_iterations=1)
    gradient = quadratic_jac(START)
    best = (gradient @ gradient) / (gradient @ G @ gradient)  # conjugate gradients' first iterate
    np.testing.assert_allclose(short, -best * gradient, rtol=1e-12)


def test_the_fisher_operator_of_a_policy_is_a_metric():
    policy = natgrad.Policy(3, natgrad.DiagonalGaussian(1), hidden=(4,), dtype="float64", seed=1)
    observations = rng.normal(size=(50, 3))
    targets = np.sin(observations[:, :1])
    start = policy.parameters.copy()

    def at(theta):
        policy.parameters = theta
        return policy

    result = natgrad.minimize(
        lambda theta: -at(theta).log_prob(observations, targets).mean(),
        start,
        lambda theta: -at(theta).score(observations, targets, np.ones(50)),
        lambda theta: natgrad.Fisher(at(theta), observations),
        damping=1e-3,
        max_iterations=5,
    )
    dense = natgrad.minimize(
        lambda theta: -at(theta).log_prob(observations, targets).mean(),
        start,
        lambda theta: -at(theta).score(observations, targets, np.ones(50)),
        lambda theta: natgrad.Fisher(at(theta), observations).to_dense(),
        damping=1e-3,
        max_iterations=5,
    )
    assert result.fun < -at(start).log_prob(observations, targets).mean() - 0.1
    np.testing.assert_allclose(result.x, dense.x, rtol=1e-6)


def test_the_metric_in_polar_coordinates_is_the_euclidean_one():
    """Distances agree to second order: d'Gd in (r, angle), |.|² in the plane (eq. 10.4)."""

    def plane(x):
        return x[0] * np.array([np.cos(x[1]), np.sin(x[1])])

    x, step = np.array([2.0, 0.8]), np.array([0.3, -0.2])
    G = metrics.polar(x)
    np.testing.assert_array_equal(G, np.diag([1, 4]))

    def error(length):
        moved = np.linalg.norm(plane(x + length * step) - plane(x)) ** 2
        return abs(moved / (length**2 * step @ G @ step) - 1)

    assert error(1e-4) < 1e-4
    assert error(0.02) / error(0.01) == pytest.approx(2, rel=0.1)
    np.testing.assert_allclose(plane(np.array([np.sqrt(2), np.pi / 4])), [1, 1])


def test_the_sampled_metric_is_the_exact_one_within_its_standard_error():
    family, theta = GaussianFamily(), np.array([1.0, 0.7])
    draw = metrics.sampled_fisher(family, 50, natgrad.Rng(0))
    drawn = np.array([draw(theta) for _ in range(2000)])
    error = np.abs(drawn.mean(axis=0) - family.fisher(theta))
    assert np.all(error < 5 * drawn.std(axis=0) / np.sqrt(len(drawn)))
    assert drawn.std(axis=0).min() > 0
    more = metrics.sampled_fisher(family, 5000, natgrad.Rng(0))
    finer = np.array([more(theta) for _ in range(200)])
    np.testing.assert_allclose(drawn.std(axis=0) / finer.std(axis=0), 10, rtol=0.2)


def test_algorithm_2_reaches_the_maximum_likelihood_from_samples_of_the_model():
    family = GaussianFamily()
    loss = NegativeLogLikelihood(family, DATA)
    metric = metrics.sampled_fisher(family, 1000, natgrad.Rng(0))
    result, _ = descend(metric, loss, [0, 1], loss.jac, step=TrustRegionStep(epsilon=1e-3))
    assert result.status is MinimizeStatus.LIMIT_CYCLE
    radius = norm(result.x - [DATA.mean(), DATA.std()], family.fisher(result.x))
    assert radius < 1.5 * np.sqrt(2 * 1e-3)


def test_the_empirical_fisher_matrix_is_another_one():
    """In closed form, by the moments of standardised data (eq. 11.7)."""
    family = GaussianFamily()
    for theta in ([12.0, 4.0], [0.0, 1.0]):
        z = (DATA - theta[0]) / theta[1]
        m1, m2, m3, m4 = (np.mean(z**k) for k in (1, 2, 3, 4))
        want = np.array([[m2, m3 - m1], [m3 - m1, m4 - 2 * m2 + 1]]) / theta[1] ** 2
        np.testing.assert_allclose(metrics.empirical_fisher(family, DATA)(theta), want, rtol=1e-10)
        exact = family.fisher(theta)
        error = relative_error(want, exact)
        assert (error < 0.2) == (theta == [12.0, 4.0])  # alike only where the model fits


# How it ends -------------------------------------------------------------------------------------

FITS = {
    "gaussian": (GaussianFamily(), DATA, [10.0, 6.0], lambda g: g.fisher),
    "gaussian-log": (GaussianFamily(log_diagonal=True), DATA, [0.0, 0.0], lambda g: g.fisher),
    "gaussian-wasserstein": (GaussianFamily(), DATA, [10.0, 6.0], lambda g: g.wasserstein_metric),
    "gaussian-2d": (
        GaussianFamily(2),
        np.random.default_rng(2).normal(size=(300, 2)) @ [[1, 0.5], [0, 2]],
        [0.0, 0.0, 1.0, 0.0, 1.0],
        lambda g: g.fisher,
    ),
    "categorical": (CategoricalFamily(3), COUNTED, np.zeros(3), lambda g: g.fisher),
    "bernoulli": (BernoulliFamily(), np.array([[1], [1], [0], [1]]), [0.0], lambda g: g.fisher),
    "beta": (
        BetaFamily(), np.random.default_rng(3).beta(2.0, 0.7, 500), [1.0, 1.0], lambda g: g.fisher
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_maximum_likelihood_converges_to_scipys_optimum(name):
    family, x, start, metric = FITS[name]
    loss = NegativeLogLikelihood(family, x)
    result, _ = descend(metric(family), loss, start, loss.jac)
    assert result.success
    assert result.status == 0
    assert result.message.startswith("CONVERGED")
    reference = optimize.minimize(loss, result.x + 0.01, method="Nelder-Mead", tol=1e-12)
    assert result.fun <= reference.fun + 1e-10
    assert result.decrement <= 1e-6
    assert np.linalg.norm(result.jac) < 1e-5
    if name == "gaussian":
        np.testing.assert_allclose(result.x, [DATA.mean(), DATA.std()], rtol=1e-5)


def test_a_natural_step_of_one_is_newtons_for_a_family_at_its_optimum():
    """The Fisher matrix is the Hessian of the loss there, so the convergence is quadratic."""
    family = CategoricalFamily(3)
    loss = NegativeLogLikelihood(family, COUNTED)
    result, path = descend(family.fisher, loss, [0.5, 0.0, 0.0], loss.jac, step=FixedStep(1.0))
    assert result.success
    assert result.nit <= 5
    p = np.exp(path - path.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    errors = np.linalg.norm(p - [0.5, 0.3, 0.2], axis=1)
    assert errors[3] < 3 * errors[2] ** 2 < 3e-2 * errors[2]


def test_a_trust_region_of_constant_epsilon_ends_in_a_limit_cycle_that_is_recognised():
    epsilon = 0.01
    family = GaussianFamily()
    loss = NegativeLogLikelihood(family, DATA)
    optimum = np.array([DATA.mean(), DATA.std()])
    result, path = descend(
        family.fisher, loss, [0, 1], loss.jac, step=TrustRegionStep(epsilon=epsilon)
    )
    assert (result.success, result.status) == (False, MinimizeStatus.LIMIT_CYCLE)
    assert result.nit < 200
    around = path[-10:] - optimum
    radii = [norm(step, family.fisher(optimum)) for step in around]
    assert 0.4 < max(radii) / np.sqrt(2 * epsilon) < 1.2
    assert result.fun == min(loss(x) for x in path[-21:])
    stated = float(result.message.split("radius of ")[1].split()[0])
    assert stated == pytest.approx(np.sqrt(2 * epsilon), rel=0.5)


@pytest.mark.parametrize(
    "step",
    [FixedStep(2 / np.linalg.eigvalsh(H)[-1] * (1 + k * 1e-15)) for k in (-1, 0, 1)]
    + [TrustRegionStep(radius=0.1)],
)
def test_limit_cycles_of_a_quadratic_are_recognised(step):
    result, _ = descend(metrics.euclidean, step=step)
    assert result.status is MinimizeStatus.LIMIT_CYCLE


def test_a_decaying_radius_gets_closer_than_a_constant_one():
    def error(decay):
        step = TrustRegionStep(epsilon=0.05, decay=decay)
        path = descend(G, step=step, max_iterations=3000, tol=1e-4)[1]
        return np.linalg.norm(path[-1] - CENTER)

    assert error(0.75) < 0.05 * error(0.0)


def test_slow_progress_is_not_taken_for_a_cycle():
    """A valley: steps of fixed length jump across it, and still move along."""
    hessian = np.diag([1.0, 400.0])
    result, path = descend(
        metrics.euclidean, lambda x: 0.5 * x @ hessian @ x, [4.0, 0.04], lambda x: hessian @ x,
        step=FixedStep(1.99 / 400),
    )  # fmt: skip
    assert result.status in (MinimizeStatus.CONVERGED, MinimizeStatus.MAX_ITERATIONS)
    assert np.linalg.norm(path[-1]) < 0.05


def test_too_few_iterations_are_said_to_be_so():
    result, path = descend(step=FixedStep(1e-3), max_iterations=7)
    assert result.status is MinimizeStatus.MAX_ITERATIONS
    assert (result.nit, len(path)) == (7, 8)
    assert "after 7 steps" in result.message


def test_steps_that_are_too_long_end_at_the_last_finite_point():
    with np.errstate(over="ignore"):
        result, path = descend(metrics.euclidean, step=FixedStep(1e3))
    assert result.status is MinimizeStatus.NON_FINITE
    assert np.isfinite(result.fun)
    np.testing.assert_array_equal(result.x, path[-1])


def test_leaving_the_family_is_said_to_be_so():
    family = GaussianFamily()
    loss = NegativeLogLikelihood(family, DATA)
    result, _ = descend(family.fisher, loss, [12, 50.0], loss.jac, step=FixedStep(3.0))
    assert result.status is MinimizeStatus.NON_FINITE
    assert "fun is inf" in result.message
    assert family.contains(result.x)
    searched, _ = descend(
        family.fisher, loss, [12, 50.0], loss.jac, step=BacktrackingStep(initial=3.0)
    )
    assert searched.success  # a search tries shorter steps


@pytest.mark.parametrize(
    "metric", [-G, np.diag([1.0, 1, 1, -1]), Product(np.diag([1.0, 1, 1, -1]))]
)
def test_an_indefinite_metric_is_said_to_be_so(metric):
    result, _ = descend(metric)
    assert result.status is MinimizeStatus.NOT_POSITIVE_DEFINITE
    np.testing.assert_array_equal(result.x, START)
    assert result.decrement == np.inf


def test_a_singular_metric_serves_where_the_gradient_needs_no_more():
    """A softmax: adding a constant to all logits changes nothing."""
    family = CategoricalFamily(3)
    loss = NegativeLogLikelihood(family, COUNTED)
    start = np.array([0.3, -0.2, 2.0])
    result, _ = descend(family.fisher, loss, start, loss.jac)
    assert result.success
    np.testing.assert_allclose(
        np.exp(result.x) / np.exp(result.x).sum(), [0.5, 0.3, 0.2], rtol=1e-5
    )


def test_a_singular_metric_without_a_natural_gradient_is_said_to_be_so():
    for metric in (np.diag([1.0, 1, 1, 0]), np.ones((4, 4))):
        result, _ = descend(metric)
        assert result.status is MinimizeStatus.NOT_POSITIVE_DEFINITE
        assert "damping" in result.message
        assert descend(metric, damping=0.1)[0].success


def test_the_scale_of_a_coordinate_is_not_taken_for_rank():
    units = np.array([1e-9, 1.0, 1e9, 1.0])
    scaled, _ = descend(
        G * np.outer(units, units), lambda y: quadratic(units * y), START / units,
        lambda y: units * quadratic_jac(units * y),
    )  # fmt: skip
    assert scaled.success
    np.testing.assert_allclose(units * scaled.x, CENTER, rtol=1e-4)


def test_a_metric_that_is_not_finite_is_said_to_be_so():
    result, _ = descend(lambda x: np.full((4, 4), np.nan))
    assert result.status is MinimizeStatus.NON_FINITE
    assert "the metric" in result.message


def test_an_infinite_start_is_a_status():
    result, path = descend(fun=lambda x: np.inf)
    assert (result.status, len(path)) == (MinimizeStatus.NON_FINITE, 0)


def test_exact_steps_notice_what_is_not_a_convex_quadratic():
    quartic, _ = descend(
        metrics.euclidean, lambda x: (x**4).sum(), [2.0, 1.0], lambda x: 4 * x**3,
        step=ExactStep(),
    )  # fmt: skip
    assert quartic.status is MinimizeStatus.NOT_QUADRATIC
    concave, _ = descend(
        metrics.euclidean,
        lambda x: -x @ x,
        [2.0, 1.0],
        lambda x: -2 * x,
        step=ExactStep(),
    )
    assert concave.status is MinimizeStatus.NOT_CONVEX
    for result in (quartic, concave):
        np.testing.assert_array_equal(result.x, [2.0, 1.0])


def test_the_callback_sees_every_iterate_and_can_stop():
    seen = []

    def stop_at_three(r):
        seen.append((r.nit, r.fun, r.decrement))
        if r.nit == 3:
            raise StopIteration

    result = natgrad.minimize(quadratic, START, quadratic_jac, G, callback=stop_at_three)
    assert result.status is MinimizeStatus.STOPPED
    assert [nit for nit, *_ in seen] == [0, 1, 2, 3]
    gradient = quadratic_jac(START)
    assert seen[0][1] == quadratic(START)
    assert seen[0][2] == pytest.approx(np.sqrt(gradient @ np.linalg.solve(G, gradient)))


def test_the_result_is_scipys():
    result = natgrad.minimize(quadratic, START, quadratic_jac, G, tol=1e-9)
    assert isinstance(result, optimize.OptimizeResult)
    reference = optimize.minimize(quadratic, START, jac=quadratic_jac)
    np.testing.assert_allclose(result.x, reference.x, atol=1e-5)
    assert {"x", "fun", "jac", "success", "status", "message", "nit", "nfev", "njev"} <= {*result}
    assert result.fun == quadratic(result.x)
    np.testing.assert_array_equal(result.jac, quadratic_jac(result.x))


def test_a_function_may_return_its_gradient_as_well():
    calls = []

    def both(x):
        calls.append(x)
        return quadratic(x), quadratic_jac(x)

    want = natgrad.minimize(quadratic, START, quadratic_jac, G)
    got = natgrad.minimize(both, START, True, G)
    np.testing.assert_array_equal(got.x, want.x)
    assert len(calls) <= got.nfev


# What a natural gradient is ----------------------------------------------------------------------


def test_a_natural_gradient_is_within_90_degrees_of_the_gradient():
    random = np.random.default_rng(0)
    for _ in range(200):
        root = random.normal(size=(4, 4))
        (step,) = steps_of(root @ root.T + 1e-3 * np.eye(4), step=FixedStep(1.0))
        assert step @ quadratic_jac(START) < 0


def test_natural_steps_map_onto_each_other_under_linear_maps_and_gradient_steps_do_not():
    """theta = A phi + b (eq. 10.5): the same iterates to 1e-10; gradients differ by A A'."""
    random = np.random.default_rng(0)
    A, b = random.normal(size=(2, 2)) + 2 * np.eye(2), random.normal(size=2)
    family = GaussianFamily()
    loss = NegativeLogLikelihood(family, DATA)
    theta0 = np.array([8.0, 6.0])
    phi0 = np.linalg.solve(A, theta0 - b)

    def both(metric, phi_metric, **options):
        in_theta = descend(metric, loss, theta0, loss.jac, max_iterations=20, **options)[1]
        in_phi = descend(
            phi_metric, lambda phi: loss(A @ phi + b), phi0,
            lambda phi: A.T @ loss.jac(A @ phi + b), max_iterations=20, **options,
        )[1]  # fmt: skip
        return in_theta, in_phi @ A.T + b

    def carried(phi):
        return A.T @ family.fisher(A @ phi + b) @ A

    for step in (
        FixedStep(0.3),
        TrustRegionStep(epsilon=0.01),
        BacktrackingStep(),
    ):
        theta, mapped = both(family.fisher, carried, step=step)
        assert relative_error(mapped, theta) < 1e-10
    theta, mapped = both(metrics.euclidean, metrics.euclidean, step=FixedStep(0.3))
    assert relative_error(mapped, theta) > 1e-2
    np.testing.assert_allclose(mapped[1] - theta0, A @ A.T @ (theta[1] - theta0), rtol=1e-10)
    # Damping by a multiple of the identity breaks it, and a damping that is carried along does not.
    theta, mapped = both(family.fisher, carried, step=FixedStep(0.3), damping=0.1)
    assert relative_error(mapped, theta) > 1e-3
    theta, mapped = both(
        lambda x: family.fisher(x) + 0.1 * np.eye(2), lambda phi: carried(phi) + 0.1 * A.T @ A,
        step=FixedStep(0.3),
    )  # fmt: skip
    assert relative_error(mapped, theta) < 1e-10


def test_the_error_of_a_nonlinear_reparameterisation_falls_fourfold_when_the_step_halves():
    """(mu, sigma) and (mu, log sigma): one natural step in each (eq. 10.7)."""
    straight, log = GaussianFamily(), GaussianFamily(log_diagonal=True)
    loss, log_loss = NegativeLogLikelihood(straight, DATA), NegativeLogLikelihood(log, DATA)

    def gap(radius):
        options = {"step": TrustRegionStep(radius=radius), "max_iterations": 1}
        theta = descend(straight.fisher, loss, [8.0, 6.0], loss.jac, **options)[1][1]
        phi = descend(log.fisher, log_loss, [8.0, np.log(6.0)], log_loss.jac, **options)[1][1]
        return np.linalg.norm([phi[0], np.exp(phi[1])] - theta)

    for radius in (0.1, 0.05, 0.025):
        assert gap(radius) / gap(radius / 2) == pytest.approx(4, rel=0.05)


def test_the_natural_gradient_of_a_gaussian_grows_more_slowly_as_sigma_goes_to_zero():
    """1 / sigma instead of 1 / sigma³ (eq. 11.9), for data that are not all at the mean."""
    family = GaussianFamily()
    loss = NegativeLogLikelihood(family, DATA)

    def lengths(sigma):
        theta = np.array([12.0, sigma])
        gradient = loss.jac(theta)
        return np.linalg.norm(gradient), np.linalg.norm(
            np.linalg.solve(family.fisher(theta), gradient)
        )

    (gradient, natural), (near_gradient, near_natural) = lengths(1e-3), lengths(1e-4)
    assert near_gradient / gradient == pytest.approx(1000, rel=1e-3)
    assert near_natural / natural == pytest.approx(10, rel=1e-3)


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: descend(x0=[[1.0]]), ValueError, "x0 is"),
        (lambda: descend(x0=[1.0, np.nan]), ValueError, "x0 is"),
        (lambda: descend(x0=[]), ValueError, "x0 is"),
        (lambda: descend(np.eye(3)), ValueError, r"shape \(3, 3\); wanted \(4, 4\)"),
        (lambda: descend(np.triu(G)), ValueError, "not symmetric"),
        (lambda: descend(np.full((4, 4), np.inf)), ValueError, "not finite"),
        (lambda: descend(lambda x: np.eye(3)), ValueError, r"wanted \(4, 4\)"),
        (lambda: descend(fun=None), TypeError, "fun is None"),
        (lambda: descend(jac=False), TypeError, "jac is False"),
        (lambda: descend(jac=lambda x: x[:2]), ValueError, r"jac returned the shape \(2,\)"),
        (lambda: descend(fun=lambda x: x), ValueError, r"fun returned the shape \(4,\)"),
        (lambda: descend(jac=True), TypeError, "wanted a pair"),
        (lambda: descend(step=0.1), TypeError, "step is 0.1"),
        (lambda: descend(damping=-1), ValueError, "damping is -1"),
        (lambda: descend(tol=np.nan), ValueError, "tol is nan"),
        (lambda: descend(max_iterations=-1), ValueError, "max_iterations is -1"),
        (lambda: descend(cg_iterations=0), ValueError, "cg_iterations is 0"),
        (lambda: FixedStep(0), ValueError, "size is 0"),
        (lambda: TrustRegionStep(), ValueError, "wanted one of epsilon, delta and radius"),
        (lambda: TrustRegionStep(epsilon=1, delta=1), ValueError, "'delta', 'epsilon'"),
        (lambda: TrustRegionStep(radius=-1), ValueError, "radius is -1"),
        (lambda: TrustRegionStep(radius=1, decay=2), ValueError, "decay is 2"),
        (lambda: BacktrackingStep(initial=np.inf), ValueError, "initial is inf"),
        (lambda: BacktrackingStep(shrink=1.0), ValueError, "shrink"),
        (lambda: metrics.polar([1, 2, 3]), ValueError, "wanted \\(r, angle\\)"),
        (
            lambda: metrics.sampled_fisher(GaussianFamily(), 0, natgrad.Rng(0)),
            ValueError, "samples is 0",
        ),
    ],
)  # fmt: skip
def test_misuse_names_what_was_given(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_without_scipy_minimize_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"pip install 'natgrad\[optimize\]'"):
        descend()
