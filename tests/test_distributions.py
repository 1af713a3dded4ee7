"""Distributions on their own, in double: against the definitions, at the extremes, and sampling."""

import numpy as np
import pytest
from conftest import DISTRIBUTIONS, relative_error
from scipy import special, stats

from natgrad import _core as core

every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


def setting(name, count=200, seed=0, spread=1.0):
    make, twin = DISTRIBUTIONS[name]
    rng = np.random.default_rng(seed)
    outputs = spread * rng.normal(size=(count, twin.parameter_size))
    return make(), twin, outputs, twin.random_actions(rng, count), rng


@every_distribution
def test_every_formula_equals_its_definition(exact, distribution):
    d, twin, outputs, actions, rng = setting(distribution)
    old = outputs + 0.5 * rng.normal(size=outputs.shape)
    u = rng.normal(size=outputs.shape)
    rows = range(len(outputs))
    fisher = np.array([twin.fisher(o) for o in outputs])
    for quantity, got, want in [
        (
            "log_prob",
            d.log_prob(outputs, actions),
            [twin.log_prob(outputs[i], actions[i]) for i in rows],
        ),
        ("entropy", d.entropy(outputs), [twin.entropy(o) for o in outputs]),
        ("kl", d.kl(old, outputs), [twin.kl(old[i], outputs[i]) for i in rows]),
        ("score", d.score(outputs, actions), [twin.score(outputs[i], actions[i]) for i in rows]),
        ("fisher", d.fisher(outputs), fisher),
        ("fisher_product", d.fisher_product(outputs, u), np.einsum("nkl,nl->nk", fisher, u)),
    ]:
        assert got.dtype == np.float64
        exact(f"distribution {quantity}", "float64", got, want)
    root = d.fisher_sqrt(outputs)
    exact("distribution fisher_sqrt", "float64", np.einsum("nkr,nlr->nkl", root, root), fisher)
    modes = [twin.mode(o) for o in outputs]
    np.testing.assert_allclose(d.mode(outputs), modes, rtol=1e-14, atol=1e-15)


@every_distribution
def test_row_by_row_is_all_at_once(distribution):
    d, _, outputs, actions, _ = setting(distribution, count=9)
    for i in range(9):
        one = slice(i, i + 1)
        np.testing.assert_array_equal(
            d.log_prob(outputs[one], actions[one]), d.log_prob(outputs, actions)[one]
        )
        np.testing.assert_array_equal(d.fisher(outputs[one]), d.fisher(outputs)[one])


@every_distribution
def test_kl_is_zero_from_a_distribution_to_itself_and_never_negative(distribution):
    d, _, outputs, _, rng = setting(distribution)
    np.testing.assert_array_equal(d.kl(outputs, outputs), 0)
    for size in (1e-12, 1e-9, 1e-7, 1e-5, 1e-3, 1.0):
        assert np.all(d.kl(outputs, outputs + size * rng.normal(size=outputs.shape)) >= 0)


@every_distribution
def test_a_tiny_kl_keeps_its_relative_accuracy(distribution):
    """Written as a difference of logarithms it would lose every digit to cancellation."""
    d, _, outputs, _, rng = setting(distribution)
    step = 1e-6 * rng.normal(size=outputs.shape)
    quadratic = 0.5 * np.einsum("nk,nk->n", step, d.fisher_product(outputs, step))
    assert relative_error(d.kl(outputs, outputs + step), quadratic) < 1e-4


@every_distribution
def test_kl_is_not_symmetric_and_its_first_argument_is_the_old_distribution(distribution):
    d, twin, outputs, _, rng = setting(distribution)
    new = outputs + rng.normal(size=outputs.shape)
    assert not np.allclose(d.kl(outputs, new), d.kl(new, outputs))
    np.testing.assert_allclose(d.kl(outputs, new)[0], twin.kl(outputs[0], new[0]), rtol=1e-12)


@pytest.mark.parametrize("distribution", ["categorical", "multi-categorical", "bernoulli"])
@pytest.mark.parametrize("size", [40.0, 700.0, 1e5])
def test_extreme_logits_stay_finite(distribution, size):
    d, _, outputs, actions, _ = setting(distribution)
    outputs = np.sign(outputs) * size
    for result in (
        d.log_prob(outputs, actions),
        d.entropy(outputs),
        d.kl(outputs, -outputs),
        d.score(outputs, actions),
        d.fisher(outputs),
        d.fisher_sqrt(outputs),
    ):
        assert np.all(np.isfinite(result))
    assert np.all(d.log_prob(outputs, actions) <= 0)
    assert np.all(d.entropy(outputs) >= 0)
    assert np.all(d.kl(outputs, -outputs) >= 0)


def test_adding_a_constant_to_the_logits_changes_nothing():
    d, _, outputs, actions, _ = setting("categorical")
    for shift in (-1000.0, 1000.0):
        moved = outputs + shift
        np.testing.assert_allclose(
            d.log_prob(moved, actions), d.log_prob(outputs, actions), rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(d.fisher(moved), d.fisher(outputs), rtol=1e-9, atol=1e-12)


@every_distribution
def test_fisher_is_symmetric_and_positive_semidefinite(distribution):
    d, _, outputs, _, _ = setting(distribution, spread=3.0)
    m = d.fisher(outputs)
    np.testing.assert_array_equal(m, np.swapaxes(m, 1, 2))
    assert np.linalg.eigvalsh(m).min() > -1e-14 * np.abs(m).max()


@every_distribution
def test_a_sample_depends_on_seed_stream_and_counter_alone(distribution):
    d, _, outputs, _, _ = setting(distribution)
    first = d.sample(outputs, core.Rng(1))
    np.testing.assert_array_equal(first, d.sample(outputs, core.Rng(1)))
    np.testing.assert_array_equal(first[5:], d.sample(outputs[5:], core.Rng(1, stream=5)))
    np.testing.assert_array_equal(first[:5], d.sample(outputs[:5], core.Rng(1)))
    rng = core.Rng(1)
    rng.counter = 1
    assert not np.array_equal(first, d.sample(outputs, core.Rng(2)))
    assert not np.array_equal(first, d.sample(outputs, rng))


def test_sampled_frequencies_pass_a_chi_square_test():
    n = 30_000
    logits = np.array([0.3, -1.2, 1.0, -4.0])
    p = np.exp(logits) / np.exp(logits).sum()
    drawn = core.Categorical(4).sample(np.tile(logits, (n, 1)), core.Rng(4))
    assert drawn.dtype == np.int64
    assert stats.chisquare(np.bincount(drawn, minlength=4), n * p).pvalue > 1e-3

    z = np.array([0.7, -2.0])
    bits = core.Bernoulli(2).sample(np.tile(z, (n, 1)), core.Rng(4))
    p1 = 1 / (1 + np.exp(-z))
    joint = np.bincount(2 * bits[:, 0] + bits[:, 1], minlength=4)
    expected = n * np.array(
        [(1 - p1[0]) * (1 - p1[1]), (1 - p1[0]) * p1[1], p1[0] * (1 - p1[1]), p1[0] * p1[1]]
    )
    assert stats.chisquare(joint, expected).pvalue > 1e-3

    both = np.concatenate([logits, z])
    pairs = core.MultiCategorical((4, 2)).sample(np.tile(both, (n, 1)), core.Rng(4))
    q = np.exp(z) / np.exp(z).sum()
    joint = np.bincount(2 * pairs[:, 0] + pairs[:, 1], minlength=8)
    assert stats.chisquare(joint, n * np.outer(p, q).ravel()).pvalue > 1e-3


def test_consecutive_calls_are_independent_draws():
    outputs = np.zeros((1, 2))
    rng = core.Rng(8)
    drawn = np.array([core.DiagonalGaussian(1).sample(outputs, rng)[0, 0] for _ in range(4000)])
    assert rng.counter == 4000
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / np.sqrt(4000)


def test_an_impossible_action_is_never_drawn():
    logits = np.tile([0.0, -2000.0, 0.0], (5000, 1))
    assert not np.any(core.Categorical(3).sample(logits, core.Rng(0)) == 1)


# ---------------------------------------------------------------------------------- between bounds

BOUNDED = {
    "squashed": lambda low, high: core.SquashedGaussian(2, low=low, high=high),
    "squashed-state-std": lambda low, high: core.SquashedGaussian(2, True, low, high),
    "beta": lambda low, high: core.Beta(2, low, high),
}
every_bounded = pytest.mark.parametrize("make", BOUNDED.values(), ids=BOUNDED)
LOW, HIGH = np.array([-2.0, 0.0]), np.array([1.0, 1e-3])


def inverse_softplus(x):
    return x + np.log(-np.expm1(-x))


@every_bounded
def test_actions_reach_their_bounds_and_never_pass_them(make):
    d = make(LOW, HIGH)
    u = np.array([-1e30, -400.0, -19.0, -3.0, 0.0, 0.2, 3.0, 19.0, 400.0, 1e30])
    a = d.to_bounds(np.stack([u, u], axis=1))
    assert np.all((a >= LOW) & (a <= HIGH))
    assert np.all(np.diff(a, axis=0) >= 0)
    np.testing.assert_array_equal(a[[0, -1]], [LOW, HIGH])
    np.testing.assert_allclose(a, LOW + (HIGH - LOW) * special.expit(2 * u)[:, None], rtol=1e-15)
    np.testing.assert_array_equal(d.low, LOW)
    np.testing.assert_array_equal(d.high, HIGH)
    np.testing.assert_array_equal(d.to_bounds(np.array([0.2, 3.0])), [a[5, 0], a[6, 1]])


@every_bounded
def test_actions_of_others_are_taken_back_to_u(make):
    d = make(LOW, HIGH)
    u = np.random.default_rng(0).uniform(-4, 4, (100, 2))
    np.testing.assert_allclose(d.from_bounds(d.to_bounds(u)), u, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(d.from_bounds([LOW, HIGH]), [[-19, -19], [19, 19]])
    assert np.isfinite(d.log_prob([[0.1, 0.2, 0.3, 0.4]], d.from_bounds([HIGH])))
    with pytest.raises(ValueError, match=r"actions\[1, 1\]: want a number from 0.0\d* to 0.001"):
        d.from_bounds([[0.0, 0.0], [0.0, 2.0]])


@every_bounded
def test_the_bounds_change_the_density_by_their_width_and_nothing_else(make):
    narrow, wide = make(-1.0, 1.0), make(LOW, HIGH)
    rng = np.random.default_rng(0)
    y, old, u = rng.normal(size=(50, 4)), rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    logarithm = np.log((HIGH - LOW) / 2).sum()
    np.testing.assert_allclose(wide.log_prob(y, u), narrow.log_prob(y, u) - logarithm, rtol=1e-12)
    np.testing.assert_allclose(wide.entropy(y), narrow.entropy(y) + logarithm, rtol=1e-12)
    for f in (lambda d: d.kl(old, y), lambda d: d.score(y, u), lambda d: d.fisher(y)):
        np.testing.assert_array_equal(f(wide), f(narrow))
    np.testing.assert_array_equal(narrow.sample(y, core.Rng(0)), wide.sample(y, core.Rng(0)))


def test_a_squashed_gaussian_has_the_geometry_of_the_gaussian():
    rng = np.random.default_rng(0)
    y, old, u = rng.normal(size=(50, 4)), rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    squashed, plain = core.SquashedGaussian(2), core.DiagonalGaussian(2)
    for f in (
        lambda d: d.kl(old, y),
        lambda d: d.score(y, u),
        lambda d: d.fisher(y),
        lambda d: d.sample(y, core.Rng(0)),
        lambda d: d.mode(y),
    ):
        np.testing.assert_array_equal(f(squashed), f(plain))
    assert not np.any(squashed.log_prob(y, u) == plain.log_prob(y, u))
    assert not np.any(squashed.entropy(y) == plain.entropy(y))


@pytest.mark.parametrize("log_std", [-8.0, -3.0, 0.0, 2.0, 4.1])
def test_the_entropy_under_tanh_is_that_of_an_adaptive_quadrature(log_std):
    d, twin = (DISTRIBUTIONS["squashed"][0](), DISTRIBUTIONS["squashed"][1])
    for mean in (0.0, 0.7, -30.0):
        y = np.array([mean, mean / 2, -mean, log_std, log_std / 2, log_std])
        np.testing.assert_allclose(d.entropy([y])[0], twin.entropy(y), rtol=1e-12)


def test_densities_far_in_the_tails_are_exact():
    """log(1 - tanh^2 u) as it stands is the logarithm of zero from u = 19 on."""
    squashed, beta = core.SquashedGaussian(1), core.Beta(1)
    y = np.array([[0.0, 0.0]])
    for u in (30.0, 1e3, 1e6):
        want = -0.5 * u * u - 0.5 * np.log(2 * np.pi) + 2 * u - 2 * np.log(2)
        for sign in (-1, 1):
            np.testing.assert_allclose(squashed.log_prob(y, [[sign * u]]), want, rtol=1e-14)
            # x = exp(-2 u) to the last digit, to the power log 2
            want_beta = -2 * u * np.log(2) - 2 * special.gammaln(1 + np.log(2))
            want_beta += special.gammaln(2 + 2 * np.log(2)) - np.log(2)
            np.testing.assert_allclose(beta.log_prob(y, [[sign * u]]), want_beta, rtol=1e-13)


@pytest.mark.parametrize("beta", [1 + 1e-9, 1.01, 2.5, 9.99, 300.0, 1e5])
@pytest.mark.parametrize("alpha", [1 + 1e-9, 1.7, 10.0, 1e4, 1e8])
def test_functions_of_the_beta_distribution_are_scipys_over_all_magnitudes(alpha, beta):
    d = core.Beta(1, 0.0, 1.0)
    y = np.array([[inverse_softplus(alpha - 1), inverse_softplus(beta - 1)]])
    a, b = 1 + np.logaddexp(0, y[0])
    slopes = special.expit(y[0])
    u = 0.5 * np.log(a / b) + 0.1
    log_x, log_1_x = -np.logaddexp(0, -2 * u), -np.logaddexp(0, 2 * u)
    # SciPy's own numbers are differences here: their errors are those of the largest term.
    size = np.max([1.0, abs(a * log_x), abs(b * log_1_x), a, b])
    log_prob = (a - 1) * log_x + (b - 1) * log_1_x - special.betaln(a, b)
    np.testing.assert_allclose(d.log_prob(y, [[u]]), [log_prob], rtol=0, atol=2e-14 * size)
    score = slopes * [
        log_x - special.psi(a) + special.psi(a + b),
        log_1_x - special.psi(b) + special.psi(a + b),
    ]
    np.testing.assert_allclose(d.score(y, [[u]])[0], score, rtol=1e-13, atol=1e-13)
    if max(alpha, beta) < 1e6:  # SciPy returns 0 beyond
        entropy = stats.beta(a, b).entropy()
        np.testing.assert_allclose(d.entropy(y), [entropy], rtol=1e-9, atol=1e-13 * size)
    both = special.polygamma(1, a + b)
    diagonal = special.polygamma(1, [a, b])
    fisher = np.outer(slopes, slopes) * (np.diag(diagonal) - both)
    atol = 1e-14 * np.outer(slopes, slopes) * diagonal.max()
    assert np.all(np.abs(d.fisher(y)[0] - fisher) <= 1e-13 * np.abs(fisher) + atol)


@pytest.mark.parametrize("size", [40.0, 700.0, 1e5, 1e12])
def test_extreme_parameters_and_actions_of_a_beta_stay_finite(size):
    d = core.Beta(2)
    signs = np.array(np.meshgrid(*[[-1, 0, 1]] * 4)).reshape(4, -1).T
    y, old = size * signs.astype(float), size * np.roll(signs, 1, axis=0)
    for action in (0.0, 19.0, -300.0, 1e9):
        u = np.full((len(y), 2), action)
        for result in (d.log_prob(y, u), d.score(y, u)):
            assert np.all(np.isfinite(result))
    for result in (d.entropy(y), d.kl(old, y), d.fisher(y), d.mode(y), d.sample(y, core.Rng(0))):
        assert np.all(np.isfinite(result))
    assert np.all(d.kl(old, y) >= 0)
    root = d.fisher_sqrt(y)
    np.testing.assert_allclose(
        np.einsum("nkr,nlr->nkl", root, root), d.fisher(y), rtol=1e-12, atol=1e-300
    )
    # Both near 1 is uniform between the bounds.
    uniform = np.full((1, 4), -size)
    np.testing.assert_allclose(d.log_prob(uniform, [[0.3, -2.0]]), -np.log(4), rtol=1e-14)
    np.testing.assert_allclose(d.entropy(uniform), np.log(4), rtol=1e-14)
    np.testing.assert_array_equal(d.mode(uniform), [[0, 0]])


@pytest.mark.parametrize("beta", [1 + 1e-9, 1.5, 20.0, 1e4])
@pytest.mark.parametrize("alpha", [1 + 1e-9, 3.0, 1e6])
def test_beta_samples_pass_a_kolmogorov_smirnov_test(alpha, beta):
    y = np.tile([inverse_softplus(alpha - 1), inverse_softplus(beta - 1)], (20_000, 1))
    d = core.Beta(1, -3.0, 5.0)
    drawn = d.to_bounds(d.sample(y, core.Rng(1)))[:, 0]
    law = stats.beta(alpha, beta, loc=-3.0, scale=8.0)
    if alpha < 1e5:
        assert stats.kstest(drawn, law.cdf).pvalue > 1e-3
    assert abs(drawn.mean() - law.mean()) < 4 * law.std() / np.sqrt(len(drawn))
    np.testing.assert_allclose(drawn.std(), law.std(), rtol=0.05)


def test_actions_of_a_beta_are_independent_across_dimensions():
    d = core.Beta(3)
    drawn = d.to_bounds(d.sample(np.zeros((20_000, 6)), core.Rng(1)))
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(3), atol=4 / np.sqrt(20_000))


def test_the_mode_of_a_beta_maximises_the_density_of_u_and_is_the_mean():
    d = core.Beta(1, 0.0, 1.0)
    y = np.array([[0.3, -1.2]])
    a, b = 1 + np.logaddexp(0, y[0])
    mode = d.mode(y)
    np.testing.assert_allclose(d.to_bounds(mode), [[a / (a + b)]], rtol=1e-14)

    def density_of_u(u):
        x = d.to_bounds(u)
        return d.log_prob(y, u) + np.log(2 * x * (1 - x))[:, 0]

    for step in (-1e-3, 1e-3):
        assert density_of_u(mode + step) < density_of_u(mode)


def test_a_distribution_with_bounds_prints_what_would_make_it():
    for d in (
        core.Beta(2, low=LOW, high=HIGH),
        core.SquashedGaussian(2, low=LOW, high=HIGH),
        core.SquashedGaussian(1, state_dependent_std=True),
    ):
        again = eval(repr(d), {"Beta": core.Beta, "SquashedGaussian": core.SquashedGaussian})
        assert repr(again) == repr(d)
        assert type(again) is type(d)
        np.testing.assert_array_equal(again.low, d.low)
        np.testing.assert_array_equal(again.high, d.high)
    assert again.state_dependent_std is True
    assert core.SquashedGaussian(1).state_dependent_std is False
