"""Summaries of a few runs: interquartile means and their bootstrap intervals.

Agarwal et al. (2021), Deep reinforcement learning at the edge of the statistical precipice: with
five runs a mean follows one outlier, and a median throws away most of what was measured.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["bootstrap_interval", "interquartile_mean"]


def interquartile_mean(values: ArrayLike) -> NDArray[np.float64]:
    """Mean of the middle half along the last axis.

    Args:
        values: (..., n), n at least 1. The floor(n / 4) least and greatest are left out.

    Returns:
        (...) float64.

    Raises:
        ValueError: there are no values.
    """
    array = np.sort(np.asarray(values, np.float64), axis=-1)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"values has shape {array.shape}; wanted at least one along the last axis")
    cut = array.shape[-1] // 4
    middle: NDArray[np.float64] = array[..., cut : array.shape[-1] - cut].mean(axis=-1)
    return middle


def bootstrap_interval(
    tasks: Sequence[ArrayLike], *, confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile interval of the interquartile mean over the runs of all tasks.

    Stratified: each sample draws as many runs with replacement as a task has, task by task, so that
    every task keeps its weight.

    Args:
        tasks: one array (..., runs) for each task, with the same leading axes (points of a curve,
            say), over which the same runs are drawn.
        confidence: of the interval.
        samples: how many are drawn.
        seed: of the draws.

    Returns:
        low, high: (...) each.

    Raises:
        ValueError: no task, or a confidence that is no probability.
    """
    if not tasks:
        raise ValueError("tasks is empty; wanted at least one array of runs")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; wanted a number between 0 and 1")
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(values, np.float64) for values in tasks]
    draws = [rng.integers(0, a.shape[-1], (samples, a.shape[-1])) for a in arrays]
    means = np.stack(
        [
            interquartile_mean(
                np.concatenate([a[..., d[k]] for a, d in zip(arrays, draws, strict=True)], axis=-1)
            )
            for k in range(samples)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high
