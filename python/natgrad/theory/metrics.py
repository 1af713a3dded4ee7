"""Ready-made metrics for `natgrad.minimize`: functions of x (P,) that return G(x), (P, P).

The exact Fisher metric of a family of distributions is its method `fisher`, the Wasserstein-2
metric of Gaussians `families.GaussianFamily.wasserstein_metric`; here are the others.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from natgrad import _core
from natgrad.theory.families import Family

__all__ = ["Metric", "empirical_fisher", "euclidean", "polar", "sampled_fisher"]

Doubles: TypeAlias = NDArray[np.float64]
Metric: TypeAlias = Callable[[Doubles], Doubles]


def euclidean(x: ArrayLike) -> Doubles:
    """The identity, for which a natural gradient is the gradient."""
    return np.eye(np.size(x))


def polar(x: ArrayLike) -> Doubles:
    """The Euclidean plane in polar coordinates x = (r, angle): diag(1, r²), docs/math.md, eq. 10.4.

    Raises:
        ValueError: x is not a pair.
    """
    if np.shape(x) != (2,):
        raise ValueError(f"x is {x!r}; wanted (r, angle)")
    radius = float(np.asarray(x)[0])
    return np.diag([1.0, radius**2])


def sampled_fisher(family: Family, samples: int, rng: _core.Rng) -> Metric:
    """The Fisher metric from samples of the model, drawn anew at each x.

    It is the mean outer product of their scores. It is unbiased, the errors of its entries decrease
    as 1 / sqrt(samples), and its rank is at most `samples`.

    Raises:
        ValueError: fewer than one sample.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples!r}; wanted at least 1")

    def metric(x: Doubles) -> Doubles:
        return _mean_outer_product(family.score(x, family.sample(x, samples, rng)))

    return metric


def empirical_fisher(family: Family, data: ArrayLike) -> Metric:
    """The mean outer product of the scores of data, as `family.log_prob` takes them.

    It is the Fisher metric only where the data look as if they came from the model (Kunstner et
    al. 2019); docs/math.md, eq. 11.7, says how far off it is for a Gaussian.
    """
    kept = np.array(data)
    return lambda x: _mean_outer_product(family.score(x, kept))


def _mean_outer_product(scores: Doubles) -> Doubles:
    return np.asarray(scores.T @ scores / len(scores))
