"""Parametric families: closed forms against sampling, differences and each other."""

import sys

import numpy as np
import pytest
from conftest import relative_error
from scipy import linalg, stats

import natgrad
from natgrad.theory import families
from natgrad.theory.families import (
    BernoulliFamily,
    BetaFamily,
    CategoricalFamily,
    GaussianFamily,
    NegativeLogLikelihood,
)

FAMILIES = {  # each with coordinates, and others not far from them
    "gaussian-sigma": (GaussianFamily(), [1.0, 0.7], [1.2, 0.9]),
    "gaussian-log-sigma": (GaussianFamily(log_diagonal=True), [1.0, -0.4], [0.8, -0.2]),
    "gaussian-cholesky": (
        GaussianFamily(3),
        [0.5, -1.0, 2.0, 1.2, -0.4, 0.8, 0.3, 0.5, 0.6],
        [0.4, -1.2, 2.1, 1.0, -0.3, 0.9, 0.2, 0.7, 0.5],
    ),
    "gaussian-log-cholesky": (
        GaussianFamily(2, log_diagonal=True),
        [0.5, -1.0, 0.3, -0.4, -0.2],
        [0.2, -1.1, 0.4, -0.1, -0.1],
    ),
    "categorical": (CategoricalFamily(4), [0.3, -1.2, 1.0, -0.5], [0.0, -1.0, 0.7, -0.6]),
    "bernoulli": (BernoulliFamily(3), [0.7, -2.0, 0.1], [0.5, -1.5, 0.4]),
    "beta": (BetaFamily(), [2.0, 0.7], [1.6, 0.9]),
}
each = pytest.mark.parametrize(
    ("family", "theta", "other"),
    [(family, np.array(theta), np.array(other)) for family, theta, other in FAMILIES.values()],
    ids=list(FAMILIES),
)


def differences(function, theta, step=1e-5):
    """Central differences of a function's values along each coordinate, as the last axis."""
    columns = []
    for unit in np.eye(len(theta)):
        columns.append((function(theta + step * unit) - function(theta - step * unit)) / (2 * step))
    return np.stack(columns, axis=-1)


def assert_within_standard_errors(samples, want, limit=5.0, rounding=1e-12):
    """The mean of samples (N, ...) is `want` as far as their scatter can tell."""
    error = np.abs(samples.mean(axis=0) - want)
    assert np.all(error <= limit * samples.std(axis=0) / np.sqrt(len(samples)) + rounding)


@each
def test_the_score_is_the_gradient_of_the_log_probability(family, theta, other):
    x = family.sample(theta, 40, natgrad.Rng(0))
    want = differences(lambda at: family.log_prob(at, x), theta)
    assert relative_error(family.score(theta, x), want) < 1e-8


@each
def test_the_expected_score_is_zero_and_its_covariance_the_fisher_matrix(family, theta, other):
    scores = family.score(theta, family.sample(theta, 100_000, natgrad.Rng(1)))
    assert_within_standard_errors(scores, 0.0)
    products = scores[:, :, None] * scores[:, None, :]
    assert_within_standard_errors(products, family.fisher(theta))


@each
def test_the_fisher_matrix_is_minus_the_expected_hessian(family, theta, other):
    """The other form of the definition, here with the model's own samples."""
    x = family.sample(theta, 20_000, natgrad.Rng(2))
    hessians = differences(lambda at: family.score(at, x), theta, step=1e-4)
    assert_within_standard_errors(-hessians, family.fisher(theta), rounding=1e-5)


@each
def test_the_fisher_matrix_is_the_hessian_of_the_divergence(family, theta, other):
    def gradient(at):  # of KL(theta || .), by differences
        return differences(lambda to: family.kl(theta, to), at, step=1e-4)

    np.testing.assert_allclose(gradient(theta), 0, atol=1e-7)
    hessian = differences(gradient, theta, step=1e-4)
    assert relative_error(hessian, family.fisher(theta)) < 1e-6


@each
def test_the_divergence_is_its_definition(family, theta, other):
    x = family.sample(theta, 100_000, natgrad.Rng(3))
    ratios = family.log_prob(theta, x) - family.log_prob(other, x)
    assert_within_standard_errors(ratios, family.kl(theta, other))
    assert family.kl(theta, theta) == 0
    assert family.kl(theta, other) > 0
    assert family.kl(theta, other) != pytest.approx(family.kl(other, theta), rel=1e-3)


@each
def test_half_the_quadratic_form_is_the_divergence_up_to_third_order(family, theta, other):
    step = other - theta
    form = 0.5 * step @ family.fisher(theta) @ step

    def error(length):
        return family.kl(theta, theta + length * step) - length**2 * form

    assert error(0.02) / error(0.01) == pytest.approx(8, rel=0.1)


@each
def test_both_orders_of_the_divergence_agree_in_the_limit(family, theta, other):
    def asymmetry(length):
        near = theta + length * (other - theta)
        return family.kl(theta, near) / family.kl(near, theta) - 1

    assert abs(asymmetry(1e-3)) < 2e-3
    assert asymmetry(2e-2) / asymmetry(1e-2) == pytest.approx(2, rel=0.1)


@each
def test_densities_add_up_to_one(family, theta, other):
    """Importance sampling from another member: E_q[p/q] = 1."""
    x = family.sample(other, 100_000, natgrad.Rng(4))
    ratios = np.exp(family.log_prob(theta, x) - family.log_prob(other, x))
    assert_within_standard_errors(ratios, 1.0, limit=6.0)


@each
def test_samples_follow_from_the_seed(family, theta, other):
    first = family.sample(theta, 8, natgrad.Rng(5))
    np.testing.assert_array_equal(first, family.sample(theta, 8, natgrad.Rng(5)))
    assert not np.array_equal(first, family.sample(theta, 8, natgrad.Rng(6)))


def test_log_densities_are_scipys():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    family, theta = FAMILIES["gaussian-cholesky"][:2]
    mu, L = family.mean_and_factor(theta)
    np.testing.assert_allclose(
        family.log_prob(theta, x), stats.multivariate_normal(mu, L @ L.T).logpdf(x), rtol=1e-12
    )
    u = rng.uniform(size=50)
    np.testing.assert_allclose(BetaFamily().log_prob([2.0, 0.7], u), stats.beta(2, 0.7).logpdf(u))
    np.testing.assert_allclose(
        GaussianFamily().log_prob([1, 2], x[:, 0]), stats.norm(1, 2).logpdf(x[:, 0]), rtol=1e-12
    )


def test_beta_samples_pass_a_kolmogorov_smirnov_test():
    x = BetaFamily().sample([2.0, 0.7], 20_000, natgrad.Rng(0))
    assert stats.kstest(x, stats.beta(2.0, 0.7).cdf).pvalue > 1e-3
    tiny = BetaFamily().sample(
        [1e-3, 1e-3], 1000, natgrad.Rng(0)
    )  # most of them would round to 0 or 1
    assert np.isfinite(BetaFamily().score([1e-3, 1e-3], tiny)).all()


def test_one_class_of_gaussians_has_three_charts():
    """(mu, sigma), (mu, log sigma) and a Cholesky factor in one dimension are one family."""
    sigma = 0.7
    np.testing.assert_allclose(GaussianFamily().fisher([1, sigma]), np.diag([1, 2]) / sigma**2)
    log = GaussianFamily(log_diagonal=True)
    np.testing.assert_allclose(log.fisher([1, np.log(sigma)]), np.diag([1 / sigma**2, 2]))
    core = natgrad.DiagonalGaussian(1, state_dependent_std=True)
    np.testing.assert_allclose(
        log.fisher([1, np.log(sigma)]), core.fisher([[1, np.log(sigma)]])[0], rtol=1e-15
    )


def test_a_tiny_divergence_keeps_its_digits():
    family, theta, other = FAMILIES["gaussian-cholesky"]
    theta, step = np.array(theta), 1e-6 * (np.array(other) - theta)
    form = 0.5 * step @ family.fisher(theta) @ step
    assert family.kl(theta, theta + step) == pytest.approx(form, rel=1e-5)


def test_the_wasserstein_distance_is_that_of_its_closed_form():
    family, theta, other = FAMILIES["gaussian-cholesky"]
    (mu, L), (new_mu, new_L) = family.mean_and_factor(theta), family.mean_and_factor(other)
    S, new_S = L @ L.T, new_L @ new_L.T
    root = linalg.sqrtm(S)
    cross = np.trace(linalg.sqrtm(root @ new_S @ root)).real
    want = ((mu - new_mu) ** 2).sum() + np.trace(S) + np.trace(new_S) - 2 * cross
    assert family.wasserstein(theta, other) == pytest.approx(np.sqrt(want), rel=1e-7)
    assert GaussianFamily().wasserstein([0, 1], [3, 5]) == pytest.approx(5)  # 3² + 4²


@pytest.mark.parametrize("name", [name for name in FAMILIES if "gaussian" in name])
def test_the_wasserstein_metric_is_the_squared_distance_of_small_steps(name):
    family, theta, other = FAMILIES[name]
    theta, step = np.array(theta), np.array(other) - theta

    def error(length):
        form = step @ family.wasserstein_metric(theta) @ step
        return abs(family.wasserstein(theta, theta + length * step) ** 2 / (length**2 * form) - 1)

    assert error(1e-4) < 1e-3
    if name != "gaussian-sigma":  # in which it is the identity, with no error at all
        assert error(0.02) / error(0.01) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("theta", [40.0, 700.0, 1e5])
def test_a_saturated_softmax_stays_finite(theta):
    family = BernoulliFamily()
    for sign in (1, -1):
        at = [sign * theta]
        F = family.fisher(at)
        assert np.isfinite(F).all()
        assert F[0, 0] == pytest.approx(np.exp(-theta), rel=1e-12)  # 0 in the end, never NaN
        assert np.isfinite(family.score(at, [[0], [1]])).all()
        assert np.isfinite(family.log_prob(at, [[0], [1]])).all()
        assert np.isfinite(family.kl(at, [-sign * theta]))


def test_the_softmax_of_one_parameter_is_that_of_two():
    one, two = BernoulliFamily().fisher([0.8])[0, 0], CategoricalFamily(2).fisher([0.0, 0.8])
    np.testing.assert_allclose(two, one * np.array([[1, -1], [-1, 1]]), rtol=1e-14)
    assert one == pytest.approx(np.exp(0.8) / (1 + np.exp(0.8)) ** 2)


# Maximum likelihood ------------------------------------------------------------------------------


def test_the_loss_is_minus_the_log_likelihood_with_its_gradient():
    family, x = GaussianFamily(), np.array([1.0, 2.0, 4.0])
    mean = NegativeLogLikelihood(family, x)
    total = NegativeLogLikelihood(family, x, reduction="sum")
    theta = np.array([1.5, 0.8])
    assert total(theta) == pytest.approx(-stats.norm(1.5, 0.8).logpdf(x).sum())
    assert total(theta) == pytest.approx(3 * mean(theta))
    np.testing.assert_allclose(total.jac(theta), 3 * mean.jac(theta))
    assert relative_error(total.jac(theta), differences(lambda at: total(at), theta)) < 1e-8


def test_the_loss_is_infinite_outside_of_the_family():
    loss = NegativeLogLikelihood(GaussianFamily(), [1.0, 2.0])
    for theta in ([0, 0], [0, -1], [np.nan, 1]):
        assert loss(theta) == np.inf
    logarithm = NegativeLogLikelihood(GaussianFamily(log_diagonal=True), [1.0, 2.0])
    assert logarithm([0, 800]) == np.inf
    assert logarithm([0, -800]) == np.inf


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GaussianFamily(0), "n is 0"),
        (lambda: GaussianFamily().fisher([0, -1]), r"theta is \[0, -1\]; wanted 2 finite numbers"),
        (lambda: GaussianFamily().kl([0, 1], [0, 0]), r"other is \[0, 0\]"),
        (lambda: GaussianFamily(2).fisher([0, 1]), "wanted 5 finite numbers"),
        (lambda: GaussianFamily().log_prob([0, 1], [[1, 2]]), r"x has the shape \(1, 2\)"),
        (lambda: BetaFamily().fisher([1, 0]), "above 0, alpha and beta"),
        (lambda: BetaFamily().log_prob([1, 1], [0.5, 1.0]), "between 0 and 1"),
        (lambda: CategoricalFamily(3).fisher([0, np.inf, 0]), "wanted 3 finite numbers"),
        (lambda: CategoricalFamily(3).log_prob([0, 0, 0], [3]), "actions"),
        (lambda: NegativeLogLikelihood(GaussianFamily(), [1], "max"), "reduction is 'max'"),
        (lambda: NegativeLogLikelihood(GaussianFamily(), []), "no data"),
    ],
)
def test_misuse_names_what_was_given(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_without_scipy_only_the_beta_family_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"pip install 'natgrad\[optimize\]'"):
        families.BetaFamily()
    assert GaussianFamily().kl([0, 1], [1, 1]) == pytest.approx(0.5)
