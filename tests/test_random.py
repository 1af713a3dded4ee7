"""The counter-based generator: its quality, and what a draw may depend on."""

import numpy as np
import pytest
from scipy import stats

from natgrad import _core as core

N = 50_000


def test_uniforms_are_uniform():
    u = core.Rng(1).uniform(N)
    assert u.shape == (N,)
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * N)
    assert abs(u.var() - 1 / 12) < 4 / np.sqrt(180 * N)
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert len(np.unique(u)) == N


def test_normals_are_normal():
    z = core.Rng(2).normal(N)
    assert np.all(np.isfinite(z))
    assert abs(z.mean()) < 4 / np.sqrt(N)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / N)
    assert abs(stats.skew(z)) < 4 * np.sqrt(6 / N)
    assert abs(stats.kurtosis(z)) < 4 * np.sqrt(24 / N)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert np.abs(z).max() > 3.5  # the tails are there


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_the_same_seed_draws_the_same_numbers_and_another_does_not(kind):
    def draw(*args):
        return getattr(core.Rng(*args), kind)(100)

    np.testing.assert_array_equal(draw(5), draw(5))
    np.testing.assert_array_equal(draw(5), draw(5, 0))
    for other in [(6,), (5, 1), (5, 2**32 - 1), (2**63,), (2**64 - 1,)]:
        assert not np.any(draw(5) == draw(*other))


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_consecutive_draws_differ_and_a_restored_counter_repeats_them(kind):
    rng = core.Rng(5, stream=3)
    assert (rng.seed, rng.stream, rng.counter) == (5, 3, 0)
    first = getattr(rng, kind)(50)
    state = rng.counter
    assert state > 0
    second = getattr(rng, kind)(50)
    assert not np.any(first == second)
    rng.counter = state
    np.testing.assert_array_equal(getattr(rng, kind)(50), second)
    fresh = core.Rng(5, 3)
    fresh.counter = state
    np.testing.assert_array_equal(getattr(fresh, kind)(50), second)


def test_neighbouring_seeds_streams_and_counters_are_uncorrelated():
    streams = np.array([core.Rng(5, s).normal(2000) for s in range(8)])
    seeds = np.array([core.Rng(s).normal(2000) for s in range(8)])
    rng = core.Rng(5)
    calls = np.array([rng.normal(2000) for _ in range(8)])
    for block in (streams, seeds, calls):
        correlation = np.corrcoef(block) - np.eye(8)
        assert np.abs(correlation).max() < 4.5 / np.sqrt(2000)


def test_draws_within_a_call_are_uncorrelated():
    u = core.Rng(7).uniform(N) - 0.5
    for lag in (1, 2, 3, 4, 8):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 4 / np.sqrt(N)


def test_the_bits_of_a_uniform_are_balanced():
    u = core.Rng(9).uniform(N)
    for bit in range(1, 40):
        ones = np.sum(np.floor(u * 2.0**bit) % 2)
        assert abs(ones - N / 2) < 5 * np.sqrt(N) / 2


def test_nothing_is_drawn_when_nothing_is_asked_for():
    assert core.Rng(0).uniform(0).shape == (0,)
    assert core.Rng(0).normal(0).shape == (0,)
