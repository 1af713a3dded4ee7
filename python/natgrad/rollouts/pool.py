"""EnvPool as a stepper: copies of a task that a pool of C++ threads steps together.

EnvPool seeds a copy once, when it is made; every reset then draws on. In the tasks of `REPLAYED`
only resets draw, and what they draw depends on nothing else. So episode k starts as it did the
first time after k + 1 resets in a row, and the actions since bring it to where it stood.
"""

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natgrad import _core
from natgrad.spaces import ObservationEncoder

__all__ = ["REPLAYED", "EnvPoolStepper"]

# Tasks whose episodes can be replayed; tests/test_pool.py tries each.
_CLASSIC = ("Acrobot", "CartPole", "MountainCar", "MountainCarContinuous", "Pendulum")
_LEGGED = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "Swimmer", "Walker2d")
_JOINTED = ("InvertedDoublePendulum", "InvertedPendulum", "Pusher", "Reacher")
REPLAYED = frozenset([*_CLASSIC, *_LEGGED, *_JOINTED])

_UNLIMITED = 2**31 - 1  # as EnvPool says it; 0 means that the task has an end of its own


class EnvPoolStepper:
    """A task of EnvPool in n copies; ended episodes are reset within the step.

    A pool by itself would spend a step of its own on a reset, and reports an episode that
    terminates in the last step of its time limit as merely cut off. So it gets a limit that is one
    step longer than the task's, and both the limit and the resets are kept here.

    Args:
        task: name in `envpool.list_all_envs()`.
        num_envs: n.
        options: further arguments of `envpool.make_gymnasium`, such as num_threads.

    Attributes:
        observation_space: of one copy.
        action_space: of one copy.
        replays: whether `restore` brings episodes in progress back.

    Raises:
        ImportError: EnvPool is not installed.
        ValueError: EnvPool has no such task, or refuses the options.
    """

    def __init__(self, task: str, num_envs: int, options: Mapping[str, Any]) -> None:
        try:
            with _quiet():
                import envpool
        except ImportError as error:
            raise ImportError(
                "stepper='envpool' needs the package envpool: pip install 'natgrad[envpool]'"
            ) from error
        taken = {"num_envs", "batch_size", "seed", "env_seed"} & options.keys()
        if taken:
            raise ValueError(f"env_options has {min(taken)!r}, which follows from other options")
        try:
            with _quiet():
                spec = envpool.make_spec(task, **options)
                self.observation_space = spec.gymnasium_observation_space
                self.action_space = spec.gymnasium_action_space
        except Exception as error:  # a KeyError of an unknown task as well as a TypeError
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"env: envpool cannot make {task!r}: {reason}") from error
        limit = int(spec.config.max_episode_steps)
        self._limit = limit if limit > 0 else _UNLIMITED
        if self._limit < _UNLIMITED:
            options = {**options, "max_episode_steps": self._limit + 1}
        options = {"num_threads": min(num_envs, _core.get_num_threads()), **options}
        self._make = functools.partial(envpool.make_gymnasium, task, num_envs=num_envs, **options)
        self._num_envs = num_envs
        self.replays = task.rpartition("-v")[0] in REPLAYED
        self._encoder: ObservationEncoder
        self._pool: Any = None

    def restore(
        self,
        seeds: Sequence[int],
        episodes: Sequence[int],
        actions: Sequence[NDArray[Any]],
        encoder: ObservationEncoder,
    ) -> NDArray[Any]:
        """Makes the pool anew and brings every copy to where it stood.

        Args:
            seeds: one for each copy, below 2**31.
            episodes: resets that each copy has had before the one that began its episode.
            actions: what each copy has done since, in the form of the space.
            encoder: flattens observations.

        Returns:
            The observations, (n, size).
        """
        self._encoder = encoder
        with _quiet():
            self._pool = self._make(env_seed=list(seeds))
            _ = self._pool.observation_space  # built here, once, rather than in the first step
        rows = np.empty((self._num_envs, encoder.size), encoder.dtype)
        resets, lengths = np.asarray(episodes) + 1, np.array([len(a) for a in actions])
        for k in range(int(resets.max())):
            self._reset(np.flatnonzero(resets > k), rows)
        for t in range(int(lengths.max())):
            going = np.flatnonzero(lengths > t).astype(np.int32)
            now = np.stack([actions[i][t] for i in going.tolist()])
            observations, *_, infos = self._pool.step(now, going)
            self._write(observations, infos["env_id"], rows)
        return rows

    def step(
        self,
        actions: NDArray[Any],
        observations: NDArray[Any],
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> Mapping[str, Any] | None:
        """As `Environments.step`."""
        following, reward, ended, cut, infos = self._pool.step(actions)
        where = infos["env_id"]
        rewards[where] = reward
        terminated[where] = ended
        truncated[where] = cut | (infos["elapsed_step"] >= self._limit)
        self._write(following, where, observations)
        done = terminated | truncated
        if not done.any():
            return None
        over = np.flatnonzero(done)
        finals = dict(zip(over.tolist(), observations[over], strict=True))
        self._reset(over, observations)
        return {"final_obs": finals}

    def close(self, **options: Any) -> None:
        """Ends the pool's threads."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _reset(self, which: NDArray[Any], rows: NDArray[Any]) -> None:
        observations, infos = self._pool.reset(which.astype(np.int32))
        self._write(observations, infos["env_id"], rows)

    def _write(self, observations: Any, where: NDArray[Any], rows: NDArray[Any]) -> None:
        rows[where] = self._encoder.encode(observations, where.shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of EnvPool's imports, and of its spaces about the type of bounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
