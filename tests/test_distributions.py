"""Distributions on their own, in double: against the definitions, at the extremes, and sampling."""

import numpy as np
import pytest
from conftest import DISTRIBUTIONS, relative_error
from scipy import stats

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
    np.testing.assert_allclose(d.mode(outputs), [twin.mode(o) for o in outputs], rtol=1e-14)


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
