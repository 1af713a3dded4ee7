"""One batch of experience, as an update rule wants it."""

from dataclasses import dataclass

from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Batch:
    """What an update learns from; the core checks shapes, types and finiteness.

    Attributes:
        observations: (N, observation_size), raw: the policy normalises them itself.
        actions: (N,) integers for `Categorical`, otherwise (N, action_size).
        advantages: (N,) in units of the return.
        log_probs: (N,) natural logarithms of the probabilities (densities) with which the actions
            were taken, or None when the policy to be updated took them.
    """

    observations: ArrayLike
    actions: ArrayLike
    advantages: ArrayLike
    log_probs: ArrayLike | None = None
