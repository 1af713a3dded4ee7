"""Running mean and standard deviation of observations."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RunningMoments"]


class RunningMoments:
    """First and second moments of a stream of rows, merged batch by batch in float64.

    Chan, Golub and LeVeque (1979): merging centred sums loses no digits to cancellation, where the
    difference of a mean square and a squared mean would. A row with a NaN or an infinity is left
    out and counted; one such row would otherwise spoil the statistics for ever.

    Attributes:
        count: rows merged so far.
        rejected: rows left out because they were not finite.
        mean: (size,) float64.
        squares: (size,) float64, sum of squared deviations from the mean.
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.rejected = 0
        self.mean: NDArray[np.float64] = np.zeros(size)
        self.squares: NDArray[np.float64] = np.zeros(size)

    def update(self, rows: ArrayLike) -> None:
        """Merges rows of shape (n, size)."""
        batch = np.asarray(rows, dtype=np.float64)
        if batch.ndim != 2 or batch.shape[1] != len(self.mean):
            raise ValueError(f"rows has shape {batch.shape}; wanted (n, {len(self.mean)})")
        finite = np.isfinite(batch).all(axis=1)
        if not finite.all():
            self.rejected += int(np.count_nonzero(~finite))
            batch = batch[finite]
        n = len(batch)
        if n == 0:
            return
        mean = batch.mean(axis=0)
        delta = mean - self.mean
        total = self.count + n
        self.squares += ((batch - mean) ** 2).sum(axis=0) + delta**2 * (self.count * n / total)
        self.mean += delta * (n / total)
        self.count = total

    @property
    def std(self) -> NDArray[np.float64]:
        """(size,) standard deviations; 1 where a feature has not varied beyond rounding.

        Dividing a constant feature by its tiny spread would turn rounding noise into a signal.
        """
        variance = self.squares / max(self.count, 1)
        varies = variance > 1e-12 * (self.mean**2 + 1e-12)
        return np.sqrt(np.where(varies, variance, 1.0))
