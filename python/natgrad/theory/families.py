"""Parametric families of distributions, with everything in closed form, in double.

A family is a set of distributions with coordinates theta. For policies, where each observation has
a distribution of its own, see `natgrad.Distribution`; a family is one distribution at a time.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from natgrad import _core

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "BernoulliFamily",
    "BetaFamily",
    "CategoricalFamily",
    "Family",
    "GaussianFamily",
    "NegativeLogLikelihood",
]

Doubles = NDArray[np.float64]


class Family(ABC):
    """A set of distributions with coordinates theta, a vector of `size` numbers (P).

    All methods raise ValueError if theta is no vector of the family, or x no set of its samples.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def size(self) -> int:
        """P: the number of coordinates."""
        return self._size

    def contains(self, theta: ArrayLike) -> bool:
        """Whether theta (P,) are coordinates of a distribution of this family."""
        theta = np.asarray(theta, np.float64)
        return theta.shape == (self.size,) and bool(np.isfinite(theta).all())

    @abstractmethod
    def log_prob(self, theta: ArrayLike, x: ArrayLike) -> Doubles:
        """Log density, or log probability, of each sample: (N,)."""

    @abstractmethod
    def score(self, theta: ArrayLike, x: ArrayLike) -> Doubles:
        """Gradient of `log_prob` in theta for each sample: (N, P)."""

    @abstractmethod
    def fisher(self, theta: ArrayLike) -> Doubles:
        """The Fisher information of one sample, E[score score'] under the model: (P, P)."""

    @abstractmethod
    def kl(self, theta: ArrayLike, other: ArrayLike) -> float:
        """KL(p_theta || p_other) in nats."""

    @abstractmethod
    def sample(self, theta: ArrayLike, n: int, rng: _core.Rng) -> NDArray[Any]:
        """n independent samples, a row each."""

    def _coordinates(self, theta: ArrayLike, name: str = "theta") -> Doubles:
        values = np.asarray(theta, np.float64)
        if not self.contains(values):
            raise ValueError(f"{name} is {theta!r}; wanted {self._wanted()}")
        return values

    def _wanted(self) -> str:
        return f"{self.size} finite numbers"

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _OfCore(Family):
    """A distribution of the core; its coordinates are one row of outputs."""

    def __init__(self, distribution: _core.Distribution) -> None:
        super().__init__(distribution.parameter_size)
        self._distribution = distribution

    def log_prob(self, theta: ArrayLike, x: ArrayLike) -> Doubles:
        return self._distribution.log_prob(*self._rows(theta, x))

    def score(self, theta: ArrayLike, x: ArrayLike) -> Doubles:
        return self._distribution.score(*self._rows(theta, x))

    def fisher(self, theta: ArrayLike) -> Doubles:
        return np.asarray(self._distribution.fisher(self._coordinates(theta)[None])[0])

    def kl(self, theta: ArrayLike, other: ArrayLike) -> float:
        old, new = self._coordinates(theta), self._coordinates(other, "other")
        return float(self._distribution.kl(old[None], new[None])[0])

    def sample(self, theta: ArrayLike, n: int, rng: _core.Rng) -> NDArray[Any]:
        return self._distribution.sample(self._outputs(theta, n), rng)

    def _rows(self, theta: ArrayLike, x: ArrayLike) -> tuple[Doubles, NDArray[Any]]:
        samples = np.asarray(x)
        if samples.ndim == 1 and self._distribution.action_size == 1:
            samples = samples if self._distribution.discrete else samples[:, None]
        return self._outputs(theta, len(samples)), samples

    def _outputs(self, theta: ArrayLike, n: int) -> Doubles:
        return np.tile(self._coordinates(theta), (n, 1))


class CategoricalFamily(_OfCore):
    """One of n values; theta (n,) are its logits, up to an additive constant.

    Samples are int64 (N,). Its Fisher matrix has rank n - 1 (docs/math.md, eq. 2.5).
    """

    def __init__(self, n: int) -> None:
        super().__init__(_core.Categorical(n))


class BernoulliFamily(_OfCore):
    """n independent bits; theta (n,) are the logits of ones (docs/math.md, eq. 2.6).

    Samples are (N, n), or (N,) where n is 1. With n = 1 it is the softmax of one parameter.
    """

    def __init__(self, n: int = 1) -> None:
        super().__init__(_core.Bernoulli(n))


class GaussianFamily(Family):
    """N(mu, L L') in n dimensions; theta is mu (n,), then L (lower triangle) row by row.

    In one dimension theta is (mu, sigma), or (mu, log sigma) with `log_diagonal`.

    Args:
        n: dimensions.
        log_diagonal: whether theta has the logarithms of L's diagonal, so that any theta is valid.

    Samples are (N, n); if n is 1, (N,) is accepted as well.
    """

    def __init__(self, n: int = 1, log_diagonal: bool = False) -> None:
        if n < 1:
            raise ValueError(f"n is {n!r}; wanted at least one dimension")
        super().__init__(n + n * (n + 1) // 2)
        self._n, self._log = n, log_diagonal
        self._row, self._column = np.tril_indices(n)
        self._on_diagonal = self._row == self._column

    @property
    def n(self) -> int:
        """Dimensions."""
        return self._n

    def mean_and_factor(self, theta: ArrayLike) -> tuple[Doubles, Doubles]:
        """mu (n,) and the lower triangular L (n, n) with a positive diagonal."""
        return self._unpack(self._coordinates(theta))

    def contains(self, theta: ArrayLike) -> bool:
        """Whether theta (P,) is finite and L has a finite, positive diagonal."""
        if not super().contains(theta):
            return False
        diagonal = self._unpack(np.asarray(theta, np.float64))[1].diagonal()
        return bool(np.all((diagonal > 0) & np.isfinite(diagonal)))

    def log_prob(self, theta: ArrayLike, x: ArrayLike) -> Doubles:
        """Log density of each sample: (N,)."""
        mu, L = self.mean_and_factor(theta)
        z = self._standardized(mu, L, x)
        constant = np.log(L.diagonal()).sum() + 0.5 * self.n * np.log(2 * np.pi)
        return np.asarray(-0.5 * np.einsum("ni,ni->n", z, z) - constant)

    def score(self, theta: ArrayLike, x: ArrayLike) -> Doubles:
        """(N, P), docs/math.md, eq. 11.2."""
        mu, L = self.mean_and_factor(theta)
        z = self._standardized(mu, L, x)
        pulled = z @ np.linalg.inv(L)  # rows L^-T z
        by_factor = pulled[:, self._row] * z[:, self._column]
        by_factor[:, self._on_diagonal] -= 1 / L.diagonal()
        return np.hstack([pulled, by_factor]) * self._chart(L)

    def fisher(self, theta: ArrayLike) -> Doubles:
        """(P, P), docs/math.md, eq. 11.3."""
        _, L = self.mean_and_factor(theta)
        inverse = np.linalg.inv(L)
        precision = inverse.T @ inverse
        F = np.zeros((self.size, self.size))
        F[: self.n, : self.n] = precision
        same_column = self._column[:, None] == self._column
        F[self.n :, self.n :] = same_column * precision[np.ix_(self._row, self._row)]
        diagonal = self.n + np.flatnonzero(self._on_diagonal)
        F[diagonal, diagonal] += L.diagonal() ** -2
        chart = self._chart(L)
        return F * np.outer(chart, chart)

    def kl(self, theta: ArrayLike, other: ArrayLike) -> float:
        """KL(p_theta || p_other) in nats, docs/math.md, eq. 11.4."""
        mu, L = self.mean_and_factor(theta)
        new_mu, new_L = self._unpack(self._coordinates(other, "other"))
        M = np.linalg.solve(new_L, L - new_L)  # the change of L in units of new_L
        m = np.linalg.solve(new_L, new_mu - mu)
        change = M.diagonal()
        kept = change - np.log1p(change)  # not a difference of logarithms, which would cancel
        return float(0.5 * ((M**2).sum() + m @ m) + kept.sum())

    def sample(self, theta: ArrayLike, n: int, rng: _core.Rng) -> Doubles:
        """n samples: (n, dimensions)."""
        mu, L = self.mean_and_factor(theta)
        return np.asarray(mu + rng.normal(n * self.n).reshape(n, self.n) @ L.T)

    def wasserstein(self, theta: ArrayLike, other: ArrayLike) -> float:
        """The Wasserstein-2 distance: root of the least mean squared distance of a transport."""
        mu, L = self.mean_and_factor(theta)
        new_mu, new_L = self._unpack(self._coordinates(other, "other"))
        # The best coupling of L z and new_L w has w = Q'z with the Q of Procrustes' problem.
        U, _, Vt = np.linalg.svd(new_L.T @ L)
        return float(np.sqrt(((mu - new_mu) ** 2).sum() + ((L - new_L @ U @ Vt) ** 2).sum()))

    def wasserstein_metric(self, theta: ArrayLike) -> Doubles:
        """G with d'Gd = W2(theta, theta + d)² to second order: (P, P), docs/math.md, eq. 11.5."""
        _, L = self.mean_and_factor(theta)
        G = np.eye(self.size)
        eigenvalues, U = np.linalg.eigh(L @ L.T)
        # Rotated changes of the covariance, one for each entry of L: (entries, n, n).
        half = U[self._row][:, :, None] * (L.T @ U)[self._column][:, None, :]
        change = half + half.swapaxes(1, 2)
        weights = 0.5 / np.add.outer(eigenvalues, eigenvalues)
        G[self.n :, self.n :] = np.einsum("kab,lab,ab->kl", change, change, weights)
        chart = self._chart(L)
        return G * np.outer(chart, chart)

    def _unpack(self, theta: Doubles) -> tuple[Doubles, Doubles]:
        L = np.zeros((self.n, self.n))
        L[self._row, self._column] = theta[self.n :]
        if self._log:
            with np.errstate(over="ignore"):
                np.fill_diagonal(L, np.exp(L.diagonal()))
        return theta[: self.n], L

    def _chart(self, L: Doubles) -> Doubles:
        """Derivative of (mu, L) in theta: (P,), 1 except for logarithms."""
        chart = np.ones(self.size)
        if self._log:
            chart[self.n :][self._on_diagonal] = L.diagonal()
        return chart

    def _standardized(self, mu: Doubles, L: Doubles, x: ArrayLike) -> Doubles:
        samples = np.asarray(x, np.float64)
        if samples.ndim == 1 and self.n == 1:
            samples = samples[:, None]
        if samples.ndim != 2 or samples.shape[1] != self.n:
            raise ValueError(f"x has the shape {samples.shape}; wanted (N, {self.n})")
        return np.asarray(np.linalg.solve(L, (samples - mu).T).T)

    def _wanted(self) -> str:
        entries = "logarithms of its diagonal" if self._log else "a positive diagonal"
        return (
            f"{self.size} finite numbers: mu ({self.n}) and the rows of a lower triangle with "
            f"{entries}"
        )

    def __repr__(self) -> str:
        return f"GaussianFamily({self.n}, log_diagonal={self._log})"


class BetaFamily(Family):
    """Beta distributions on (0, 1); theta is (alpha, beta), both positive. Needs SciPy.

    Samples are (N,), strictly between 0 and 1.
    """

    def __init__(self) -> None:
        super().__init__(2)
        self._special = _special_functions()

    def contains(self, theta: ArrayLike) -> bool:
        """Whether theta is a pair of finite positive numbers."""
        return super().contains(theta) and bool(np.all(np.asarray(theta) > 0))

    def log_prob(self, theta: ArrayLike, x: ArrayLike) -> Doubles:
        """Log density of each sample: (N,)."""
        theta = self._coordinates(theta)
        return np.asarray(self._statistics(x) @ (theta - 1) - self._special.betaln(*theta))

    def score(self, theta: ArrayLike, x: ArrayLike) -> Doubles:
        """(N, 2): the statistics (log x, log(1 - x)) less their expectation."""
        return self._statistics(x) - self._expected_statistics(self._coordinates(theta))

    def fisher(self, theta: ArrayLike) -> Doubles:
        """(2, 2), docs/math.md, eq. 11.6."""
        theta = self._coordinates(theta)
        trigamma = self._special.polygamma(1, theta)
        return np.asarray(np.diag(trigamma) - self._special.polygamma(1, theta.sum()))

    def kl(self, theta: ArrayLike, other: ArrayLike) -> float:
        """KL(p_theta || p_other) in nats; about 1e-16 of rounding where they are close."""
        old, new = self._coordinates(theta), self._coordinates(other, "other")
        normalizers = self._special.betaln(*new) - self._special.betaln(*old)
        return max(0.0, float(normalizers + (old - new) @ self._expected_statistics(old)))

    def sample(self, theta: ArrayLike, n: int, rng: _core.Rng) -> Doubles:
        """n samples (n,), by inverting the distribution function."""
        theta = self._coordinates(theta)
        x = self._special.betaincinv(*theta, rng.uniform(n))
        return np.asarray(np.clip(x, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg))

    def _expected_statistics(self, theta: Doubles) -> Doubles:
        return np.asarray(self._special.digamma(theta) - self._special.digamma(theta.sum()))

    def _statistics(self, x: ArrayLike) -> Doubles:
        samples = np.asarray(x, np.float64)
        if samples.ndim != 1 or not np.all((samples > 0) & (samples < 1)):
            raise ValueError(f"x is {x!r}; wanted (N,) with numbers between 0 and 1")
        return np.stack([np.log(samples), np.log1p(-samples)], axis=1)

    def _wanted(self) -> str:
        return "two finite numbers above 0, alpha and beta"


def _special_functions() -> "ModuleType":
    try:
        from scipy import special
    except ImportError as error:
        raise ImportError("the Beta family needs SciPy: pip install 'natgrad[optimize]'") from error
    module: ModuleType = special
    return module


class NegativeLogLikelihood:
    """-log p_theta(x) of data as a function of theta, which maximum likelihood minimises.

    It is infinite where theta belongs to no distribution of the family, so that a minimiser that
    leaves the family notices.

    Args:
        family: of distributions.
        x: data, as `family.log_prob` takes it.
        reduction: 'mean' or 'sum' over the data. The Fisher matrix of a family is that of one
            sample, the curvature of the mean.

    Raises:
        ValueError: an unknown reduction, or no data.
    """

    def __init__(
        self, family: Family, x: ArrayLike, reduction: Literal["mean", "sum"] = "mean"
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; wanted 'mean' or 'sum'")
        self.family = family
        self._x = np.array(x)
        if not self._x.size:
            raise ValueError("x holds no data")
        self._scale = 1.0 if reduction == "sum" else 1.0 / len(self._x)

    def __call__(self, theta: ArrayLike) -> float:
        """The loss in nats."""
        if not self.family.contains(theta):
            return np.inf
        return -self._scale * float(self.family.log_prob(theta, self._x).sum())

    def jac(self, theta: ArrayLike) -> Doubles:
        """Its gradient in theta: (P,)."""
        return np.asarray(-self._scale * self.family.score(theta, self._x).sum(axis=0))
