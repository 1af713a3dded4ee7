"""Collecting experience: a plain function that knows nothing of learning."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from natgrad import _core
from natgrad.rollouts.environments import EnvironmentFault, Environments, EnvironmentState

__all__ = ["Episode", "Rollout", "RolloutInterrupted", "collect"]

LONGEST_REPLAY = 200_000  # actions kept for one episode, so that endless ones stay affordable


class RolloutInterrupted(Exception):  # noqa: N818 (nothing went wrong)
    """The rollout was given up on request; nothing of it counts."""


class Episode(NamedTuple):
    """A finished episode: sum of rewards, number of steps, time of its end in Unix seconds."""

    total_reward: float
    length: int
    time: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """T steps of n environments; row t of an array is what happened at observation t.

    Attributes:
        observations: (T + 1, n, size) raw; the last row is where the rollout stopped.
        actions: (T, n) or (T, n, k) as sampled: not clipped, not between bounds yet.
        log_probs: (T, n).
        rewards: (T, n) float64.
        terminated: (T, n) bool, the episode reached its end.
        truncated: (T, n) bool, the episode was cut off.
        valid: (T, n) bool; False where a step did nothing but reset.
        final_observations: (F, size), where cut-off episodes stood if the next row is that of a new
            episode already.
        final_index: the F positions (t, i) they belong to, as two arrays of length F.
        episodes: those that finished, in order.
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    log_probs: NDArray[Any]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    final_observations: NDArray[Any]
    final_index: tuple[NDArray[np.intp], NDArray[np.intp]]
    episodes: list[Episode]

    def of_decisions(self, values: NDArray[Any]) -> NDArray[Any]:
        """Of values (T, n, ...) those of the N valid steps, in one axis: (N, ...)."""
        valid = self.valid.ravel()
        rows = values.reshape(valid.size, *values.shape[2:])
        return rows if valid.all() else rows[valid]

    def decisions(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Observations (N, size) and actions (N,) or (N, k) of the valid steps."""
        return self.of_decisions(self.observations[:-1]), self.of_decisions(self.actions)


def collect(
    policy: _core.Policy,
    environments: Environments,
    steps: int,
    rng: _core.Rng,
    interrupted: Callable[[], bool] = lambda: False,
) -> Rollout:
    """Lets a policy act for a number of steps in every environment.

    Either the rollout is completed, or nothing has happened: on any exception `rng` and
    `environments` are back where they were.

    Args:
        policy: acts; not changed.
        environments: go on from `environments.state`, which is replaced.
        steps: T, at least 1.
        rng: its counter advances by one per step.
        interrupted: asked before each step.

    Raises:
        EnvironmentFault: an environment failed, or produced a value that is not finite.
        RolloutInterrupted: `interrupted` said so.
    """
    counter = rng.counter
    try:
        return _collect(policy, environments, steps, rng, interrupted)
    except BaseException:
        rng.counter = counter
        environments.abandon()
        raise


def _collect(
    policy: _core.Policy,
    environments: Environments,
    steps: int,
    rng: _core.Rng,
    interrupted: Callable[[], bool],
) -> Rollout:
    start = environments.begin()
    n, size = start.observations.shape
    observations = np.empty((steps + 1, n, size), start.observations.dtype)
    observations[0] = start.observations
    same = observations.dtype == policy.dtype
    seen = observations if same else np.empty(observations.shape, policy.dtype)
    decoder = environments.decoder
    plain = decoder.plain(policy.dtype)
    actor = _core.Actor(policy, seen, rng, decoder.bounds if plain else None)
    actions, log_probs = actor.actions, actor.log_probs
    sent = actions if actor.sent is None else actor.sent
    rewards = np.empty((steps, n))
    terminated = np.zeros((steps, n), np.bool_)
    truncated = np.zeros((steps, n), np.bool_)
    valid = np.ones((steps, n), np.bool_)
    waiting = start.waiting
    some_wait = bool(waiting.any())
    begins = np.zeros(n, np.intp)  # first row of the episode in progress
    returns, lengths = start.returns.copy(), start.lengths.copy()  # of its part before row 0
    numbers = start.episodes.copy()
    finals: list[NDArray[Any]] = []
    final_t: list[int] = []
    final_i: list[int] = []
    episodes: list[Episode] = []

    for t in range(steps):
        if interrupted():
            raise RolloutInterrupted
        if not same:
            seen[t] = observations[t]
        try:
            actor(t)
        except ValueError as error:
            _refuse_non_finite("observation", observations[t : t + 1], t, actions[:t])
            raise EnvironmentFault(f"the policy refused an observation: {error}") from error
        infos = environments.step(
            # A copy, because an environment may write into what it is given.
            sent[t] if plain else decoder.decode(actions[t].copy()),
            observations[t + 1],
            rewards[t],
            terminated[t],
            truncated[t],
        )
        if some_wait:
            valid[t, waiting] = terminated[t, waiting] = truncated[t, waiting] = False
            begins[waiting] = t + 1
            some_wait = False
        if infos is not None:
            done = terminated[t] | truncated[t]
            for i in np.flatnonzero(done).tolist():
                total = returns[i] + rewards[begins[i] : t + 1, i].sum()
                length = lengths[i] + t + 1 - begins[i]
                episodes.append(Episode(float(total), int(length), time.time()))
                returns[i], lengths[i], begins[i] = 0.0, 0, t + 1
                numbers[i] += 1
                if not environments.next_step_reset and not terminated[t, i]:
                    finals.append(environments.final_observation(infos, i))
                    final_t.append(t)
                    final_i.append(i)
            if environments.next_step_reset:
                waiting, some_wait = done, bool(done.any())

    _refuse_non_finite("observation", observations[steps:], steps, actions)
    _refuse_non_finite("reward", rewards[:, :, None], 1, actions)
    final_observations = np.array(finals, observations.dtype).reshape(-1, size)
    for k, i, row in zip(final_t, final_i, final_observations, strict=True):
        if not np.isfinite(row).all():
            raise EnvironmentFault(
                f"environment {i} ended an episode with the observation {row.tolist()} at step "
                f"{k + 1} of the rollout; finite numbers are wanted"
            )

    environments.commit(
        EnvironmentState(
            observations=observations[steps].copy(),
            episodes=numbers,
            returns=returns + [rewards[begins[i] :, i].sum() for i in range(n)],
            lengths=lengths + steps - begins,
            waiting=waiting if some_wait else np.zeros(n, np.bool_),
            actions=[
                _history(
                    start.actions[i] if numbers[i] == start.episodes[i] else actions[:0, i],
                    actions[begins[i] :, i],
                )
                for i in range(n)
            ],
        )
    )
    return Rollout(
        observations,
        actions,
        log_probs,
        rewards,
        terminated,
        truncated,
        valid,
        final_observations,
        (np.array(final_t, np.intp), np.array(final_i, np.intp)),
        episodes,
    )


def _history(earlier: NDArray[Any] | None, recent: NDArray[Any]) -> NDArray[Any] | None:
    if earlier is None or len(earlier) + len(recent) > LONGEST_REPLAY:
        return None
    return np.concatenate([earlier, recent]) if len(earlier) else recent.copy()


def _refuse_non_finite(
    what: str, values: NDArray[Any], first_step: int, actions: NDArray[Any]
) -> None:
    """Names the first environment with a NaN or infinity in values of shape (steps, n, k)."""
    bad = np.argwhere(~np.isfinite(values).all(axis=2))
    if len(bad):
        if not np.isfinite(actions).all():  # then the environment is not to blame
            raise ValueError("policy: its actions are not finite; wanted finite parameters")
        t, i = bad[0]
        raise EnvironmentFault(
            f"environment {i} returned the {what} {values[t, i].tolist()} at step "
            f"{first_step + t} of the rollout; finite numbers are wanted"
        )
