"""Interquartile means and bootstrap intervals against independent computations."""

import numpy as np
import pytest
from scipy import stats

from natgrad.agents.statistics import bootstrap_interval, interquartile_mean


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 11, 40])
def test_the_interquartile_mean_is_the_trimmed_mean(n):
    values = np.random.default_rng(n).normal(size=(3, n))
    np.testing.assert_allclose(interquartile_mean(values), stats.trim_mean(values, 0.25, axis=-1))


def test_one_outlier_in_five_does_not_count():
    assert interquartile_mean([1.0, 2.0, 3.0, 4.0, 1e9]) == 3.0


def test_the_interval_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(0).gamma(2.0, size=24)
    reference = stats.bootstrap(
        (values,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    low, high = bootstrap_interval([values], samples=20_000)
    width = reference.high - reference.low
    assert abs(low - reference.low) < 0.03 * width
    assert abs(high - reference.high) < 0.03 * width


def test_the_mean_and_its_interval_agree_with_rliable(monkeypatch):
    metrics = pytest.importorskip("rliable.metrics")
    from arch.bootstrap import IIDBootstrap
    from rliable import library

    # Newer versions of arch call the generator by another name than rliable does.
    begin = IIDBootstrap.__init__
    monkeypatch.setattr(
        IIDBootstrap,
        "__init__",
        lambda self, *args, random_state=None, **kwargs: begin(self, *args, seed=1, **kwargs),
    )
    monkeypatch.setattr(IIDBootstrap, "random_state", np.random.RandomState(1), raising=False)
    scores = np.random.default_rng(0).gamma(2.0, size=(5, 3))  # runs x tasks
    means, intervals = library.get_interval_estimates(
        {"ours": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=20_000
    )
    np.testing.assert_allclose(interquartile_mean(scores.ravel()), means["ours"][0])
    reference = intervals["ours"][:, 0]
    low, high = bootstrap_interval(list(scores.T), samples=20_000)
    np.testing.assert_allclose([low, high], reference, atol=0.03 * (reference[1] - reference[0]))


def test_tasks_are_drawn_one_by_one():
    # Two tasks far apart without any spread: every sample that keeps both has the same mean.
    low, high = bootstrap_interval([np.zeros(5), np.ones(5)])
    assert low == high == 0.5


def test_the_points_of_a_curve_share_their_draws():
    values = np.random.default_rng(0).normal(size=6)
    low, high = bootstrap_interval([np.stack([values, 2 * values])])
    np.testing.assert_allclose(low[1], 2 * low[0])
    np.testing.assert_allclose(high[1], 2 * high[0])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"values has shape \(0,\)"):
        interquartile_mean([])
    with pytest.raises(ValueError, match="tasks is empty"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match=r"confidence is 95"):
        bootstrap_interval([[1.0]], confidence=95)
