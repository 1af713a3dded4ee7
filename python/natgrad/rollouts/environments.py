"""Environments for rollouts: flat observations, derived seeds, errors that name their origin.

Environments cannot be serialised, but their state can be reconstructed. Every episode of
environment i starts with `reset(seed=...)`, where the seed is derived from (run seed, i, number of
the episode). Its state is then a function of that seed and of the actions since, so that a few
integers and the actions of the episode in progress restore it exactly. A `VectorEnv` that the
caller made resets itself, unseen from here: its episodes start again after loading.
"""

import enum
import os
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from numpy.typing import NDArray

from natgrad.rollouts.pool import EnvPoolStepper
from natgrad.spaces import ActionDecoder, ObservationEncoder

__all__ = [
    "EnvironmentFault",
    "EnvironmentLike",
    "EnvironmentState",
    "Environments",
    "Purpose",
    "derive_seed",
    "environment_maker",
]

Env: TypeAlias = gymnasium.Env[Any, Any]
EnvironmentLike: TypeAlias = str | Callable[[], Env] | VectorEnv[Any, Any, Any]

_FAULT = "natgrad_fault"  # key of the info dictionary under which a guard reports

# Modules that register the environments of a namespace; gymnasium imports them by these names when
# one of their environments is made.
_NAMESPACES = {"natgrad": "natgrad.theory.worlds"}


class EnvironmentFault(RuntimeError):  # noqa: N818
    """An environment raised, died, or returned something that its spaces do not allow."""


class Purpose(enum.IntEnum):
    """What a derived seed is for. Changing a number changes what every run's seed means."""

    ENVIRONMENT = 0
    POLICY = 1
    CRITIC = 2
    CRITIC_FIT = 3
    ACTIONS = 4
    PREDICTION = 5
    EVALUATION = 6


def derive_seed(seed: int, purpose: Purpose, *key: int) -> int:
    """A 32-bit seed; streams of different seeds, purposes or keys are independent."""
    return int(np.random.SeedSequence(seed, spawn_key=(purpose, *key)).generate_state(1)[0])


def environment_maker(
    env: EnvironmentLike, options: Mapping[str, Any] | None = None
) -> Callable[..., Env]:
    """A function that makes one environment; of an id, it passes keywords to `gymnasium.make`.

    Raises:
        TypeError: `env` is neither an id nor a function.
        ValueError: `options` without an id.
    """
    if isinstance(env, str):
        return _Registered(env, dict(options or {}))
    if not callable(env):
        raise TypeError(
            "env must be the id of a registered environment, a function without arguments that "
            f"makes one, or a gymnasium VectorEnv; got {type(env).__name__}"
        )
    if options:
        raise ValueError("env_options go to gymnasium.make: they need an environment given by id")
    return env


@dataclass(frozen=True)
class _Registered:
    id: str
    options: dict[str, Any]

    def __call__(self, **more: Any) -> Env:
        module = _NAMESPACES.get(self.id.rpartition("/")[0])
        name = self.id if module is None else f"{module}:{self.id}"
        try:
            # The guard below checks more than gymnasium's passive checker does, in less time.
            return gymnasium.make(name, disable_env_checker=True, **{**self.options, **more})
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            raise ValueError(f"env: gymnasium cannot make {self.id!r}: {error}") from error


@dataclass(slots=True)
class EnvironmentState:
    """Where n environments stand between two rollouts.

    Attributes:
        observations: (n, size), what the policy sees next.
        episodes: (n,) int64, number of the episode in progress.
        returns: (n,) float64, the sum of its rewards so far.
        lengths: (n,) int64, its steps so far.
        waiting: (n,) bool, the next step will only reset (NEXT_STEP mode).
        actions: for each environment what the policy sampled since the episode began, an array
            (length, ...); None where that has become too long to be kept.
    """

    observations: NDArray[Any]
    episodes: NDArray[np.int64]
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    waiting: NDArray[np.bool_]
    actions: list[NDArray[Any] | None]

    def copy(self) -> "EnvironmentState":
        """One that shares no array that a rollout writes to."""
        return EnvironmentState(**{f.name: copy(getattr(self, f.name)) for f in fields(self)})

    def pack(self, no_actions: NDArray[Any]) -> tuple[list[int | None], dict[str, NDArray[Any]]]:
        """Everything as arrays by the names of the attributes; actions one after the other.

        Args:
            no_actions: (0, ...), with the type and shape of what the policy samples.

        Returns:
            For each environment the number of its actions, None where they are not kept; arrays.
        """
        lengths = [None if actions is None else len(actions) for actions in self.actions]
        arrays: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = [actions for actions in self.actions if actions is not None and len(actions)]
        return lengths, {**arrays, "actions": np.concatenate([no_actions, *kept])}

    @staticmethod
    def unpack(
        lengths: Sequence[int | None], arrays: Mapping[str, NDArray[Any]]
    ) -> "EnvironmentState":
        """What `pack` made arrays of.

        Raises:
            ValueError: a negative number where something is counted.
        """
        for name in ("episodes", "lengths"):
            if (arrays[name] < 0).any():
                raise ValueError(f"{name} of environments has negative elements")
        ends = np.cumsum([length or 0 for length in lengths]).tolist()
        actions = [
            None if length is None else arrays["actions"][end - length : end]
            for length, end in zip(lengths, ends, strict=True)
        ]
        others: dict[str, Any] = {name: a for name, a in arrays.items() if name != "actions"}
        return EnvironmentState(**others, actions=actions)

    def restart(self, i: int) -> None:
        """Lets environment i go on to its next episode."""
        self.episodes[i] += 1
        self.returns[i] = 0.0
        self.lengths[i] = 0
        self.waiting[i] = False
        self.actions[i] = _NO_ACTIONS


_NO_ACTIONS: NDArray[Any] = np.empty(0)


class Environments:
    """Several copies of an environment behind one interface, whoever built them.

    The copies are built when they are first stepped.

    Args:
        env: id of a registered environment, a function that makes one, or a `VectorEnv` with
            autoreset mode SAME_STEP or NEXT_STEP.
        n_envs: copies to run; a `VectorEnv` brings its own number.
        seed: root of all seeds.
        dtype: type of the flat observations, "float32" or "float64".
        vectorization: "sync" steps the copies in turn, "async" each in a process of its own.
        stepper: "gymnasium", or "envpool" for the task of EnvPool with the id `env`.
        options: keyword arguments for `gymnasium.make`, or for EnvPool.
        distribution: of actions in a Box, see `natgrad.spaces.ActionDecoder`.

    Attributes:
        state: where the environments stood after the last completed rollout.
        make: makes one environment; None for a `VectorEnv`.
        id: name under which the environment is registered, or None.

    Raises:
        TypeError: `env` is none of these.
        ValueError: unsupported spaces or autoreset mode, or the environment cannot be made.
        ImportError: EnvPool is not installed.
    """

    def __init__(
        self,
        env: EnvironmentLike,
        n_envs: int = 1,
        seed: int = 0,
        *,
        dtype: str = "float32",
        vectorization: Literal["sync", "async"] = "sync",
        stepper: Literal["gymnasium", "envpool"] = "gymnasium",
        options: Mapping[str, Any] | None = None,
        distribution: Literal["gaussian", "beta", "squashed"] = "gaussian",
    ) -> None:
        self.seed = seed
        self._async = vectorization == "async"
        self._vector: Any = None  # a VectorEnv, whose annotations lack `call`, _InTurn or the pool
        self._pool: EnvPoolStepper | None = None
        self._current = False  # do the live environments stand where `state` says?
        self.make: Callable[..., Env] | None = None
        self.next_step_reset = False
        self.id: str | None
        if stepper == "envpool":
            if not isinstance(env, str):
                raise TypeError(f"env: EnvPool wants the id of a task; got {type(env).__name__}")
            self.make = environment_maker(env, options)  # for evaluation
            self.num_envs = n_envs
            self._pool = EnvPoolStepper(env, n_envs, options or {})
            self.observation_space = self._pool.observation_space
            self.action_space = self._pool.action_space
            self.id = env
        elif isinstance(env, VectorEnv):
            self._vector = env
            self.num_envs = env.num_envs
            self.next_step_reset = _autoreset_mode(env) is AutoresetMode.NEXT_STEP
            self.observation_space = env.single_observation_space
            self.action_space = env.single_action_space
            self.id = env.spec.id if env.spec is not None else None
        else:
            self.make = environment_maker(env, options)
            self.num_envs = n_envs
            prototype = self.make()
            self.observation_space = prototype.observation_space
            self.action_space = prototype.action_space
            self.id = prototype.spec.id if prototype.spec is not None else None
            if isinstance(env, str):
                self.id = env  # with its module, where it names one
            prototype.close()
        self.encoder = ObservationEncoder(self.observation_space, dtype)
        self.decoder = ActionDecoder(self.action_space, distribution)
        self.state = EnvironmentState(
            observations=np.zeros((self.num_envs, self.encoder.size), self.encoder.dtype),
            episodes=np.zeros(self.num_envs, np.int64),
            returns=np.zeros(self.num_envs),
            lengths=np.zeros(self.num_envs, np.int64),
            waiting=np.zeros(self.num_envs, np.bool_),
            actions=[_NO_ACTIONS] * self.num_envs,
        )

    def begin(self) -> EnvironmentState:
        """Brings the live environments to `state`, and returns it.

        Raises:
            EnvironmentFault: an environment failed.
        """
        if not self._current:
            if self.make is None:
                self._reset_foreign()
            else:
                self._replay(self.make)
            self._current = True
        return self.state

    def commit(self, state: EnvironmentState) -> None:
        """Records the state of the live environments after a completed rollout."""
        self.state = state

    def abandon(self) -> None:
        """Abandons a rollout: the next `begin` goes back to `state`."""
        self._current = False

    def restore(self, state: EnvironmentState) -> None:
        """Sets the state that the next `begin` goes back to.

        If the number of copies differs, no episode can go on: new ones begin, with numbers that the
        state has not used.
        """
        self.abandon()
        if len(state.episodes) == self.num_envs:
            self.state = state
        else:
            self.state.episodes[:] = state.episodes.max() + 1

    def step(
        self,
        actions: NDArray[Any],
        observations: NDArray[Any],
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> Mapping[str, Any] | None:
        """Takes n actions of the space and writes what follows into rows of the caller.

        Args:
            actions: (n, ...), not kept, but an environment may.
            observations: (n, size), flat.
            rewards: (n,).
            terminated: (n,), False on entry.
            truncated: (n,), False on entry.

        Returns:
            What `final_observation` wants; None if no episode ended.

        Raises:
            EnvironmentFault: an environment failed.
        """
        try:
            if not isinstance(self._vector, VectorEnv):
                ends: Mapping[str, Any] | None = self._vector.step(
                    actions, observations, rewards, terminated, truncated
                )
                return ends
            following, rewards[:], terminated[:], truncated[:], infos = self._vector.step(actions)
            if _FAULT in infos:
                raise EnvironmentFault(next(fault for fault in infos[_FAULT] if fault is not None))
            observations[:] = (
                following
                if self.make is not None
                else self.encoder.encode(following, (self.num_envs,))
            )
        except EnvironmentFault:
            raise
        except Exception as error:
            raise self._lost(error) from error
        return dict(infos) if terminated.any() or truncated.any() else None

    def final_observation(self, infos: Mapping[str, Any], i: int) -> NDArray[Any]:
        """What environment i showed last, (size,), where the step has reset it already."""
        final = infos["final_obs"][i]
        return np.array(final) if self.make is not None else self.encoder.encode(final, ()).copy()

    def close(self) -> None:
        """Closes the environments that were built here; `begin` would build them again."""
        if self.make is not None and self._vector is not None:
            vector, self._vector = self._vector, None
            vector.close()
        self._current = False

    def _replay(self, make: Callable[[], Env]) -> None:
        """Starts each episode in progress with its seed and repeats its actions."""
        state = self.state
        for i, actions in enumerate(state.actions):
            if actions is None:
                warnings.warn(
                    f"the episode of environment {i} is too long to be replayed; it starts again",
                    stacklevel=4,
                )
                state.restart(i)
        if self._pool is not None:
            self._vector = self._pool
            if not self._pool.replays and state.episodes.any() | state.lengths.any():
                warnings.warn(
                    "the episodes in progress start again: EnvPool's episodes of this task cannot "
                    "be brought back to where they stood",
                    stacklevel=4,
                )
                for i in range(self.num_envs):
                    state.restart(i)
        elif self._vector is None:
            guards = [_GuardMaker(make, i, self.seed, self.encoder) for i in range(self.num_envs)]
            try:
                if self._async:
                    self._vector = AsyncVectorEnv(
                        guards, copy=False, autoreset_mode=AutoresetMode.SAME_STEP
                    )
                else:
                    self._vector = _InTurn([make_guard() for make_guard in guards])
            except Exception as error:
                raise self._lost(error) from error
        rows = self._restore()
        strayed = [
            i
            for i in range(self.num_envs)
            if state.lengths[i] and not np.array_equal(rows[i], state.observations[i])
        ]
        if strayed:
            warnings.warn(
                f"environments {strayed} did not come back to their last observation when the "
                "episode was replayed (does reset(seed=...) determine it?); it starts again",
                stacklevel=4,
            )
            for i in strayed:
                state.restart(i)
            rows = self._restore()
        state.observations = rows

    def _restore(self) -> NDArray[Any]:
        plans = [
            (int(episode), self.decoder.decode(actions) if len(actions) else ())
            for episode, actions in zip(self.state.episodes, self.state.actions, strict=True)
            if actions is not None
        ]
        try:
            if self._pool is not None:
                return self._restore_pool(self._pool, plans)
            results = self._vector.call("restore", plans)
        except Exception as error:
            raise self._lost(error) from error
        for _, fault in results:
            if fault is not None:
                raise EnvironmentFault(fault)
        return np.stack([row for row, _ in results])

    def _restore_pool(self, pool: EnvPoolStepper, plans: list[tuple[int, Any]]) -> NDArray[Any]:
        # One stream for all episodes of a copy; where they cannot be replayed, one from here on.
        first = [0 if pool.replays else episode for episode, _ in plans]
        seeds = [
            derive_seed(self.seed, Purpose.ENVIRONMENT, i, episode) >> 1  # below 2**31
            for i, episode in enumerate(first)
        ]
        resets = [episode - k for (episode, _), k in zip(plans, first, strict=True)]
        return pool.restore(seeds, resets, [actions for _, actions in plans], self.encoder)

    def _reset_foreign(self) -> None:
        state = self.state
        if state.lengths.any() or state.episodes.any():
            warnings.warn(
                "the episodes in progress start again: only environments that are given as an id "
                "or as a function can be brought back to where they stood",
                stacklevel=4,
            )
            for i in range(self.num_envs):
                state.restart(i)
        seeds = [
            derive_seed(self.seed, Purpose.ENVIRONMENT, i, int(episode))
            for i, episode in enumerate(state.episodes)
        ]
        try:
            observations, _ = self._vector.reset(seed=seeds)
            # A copy, because a vector environment may write the next observations there.
            state.observations = self.encoder.encode(observations, (self.num_envs,)).copy()
        except Exception as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> EnvironmentFault:
        """The fault for an error that no guard reported; discards the environments built here."""
        processes = getattr(self._vector, "processes", [])
        for process in processes:
            process.join(timeout=0.1)  # a killed worker takes a moment to be seen as dead
        dead = [i for i, process in enumerate(processes) if process.exitcode is not None]
        what = f"{type(error).__name__}: {error}"
        if dead:
            what = f"the worker process of environment {dead[0]} died"
        if self.make is not None and self._vector is not None:
            # close() would wait for the dead. Nothing is lost: begin() rebuilds and replays.
            vector, self._vector = self._vector, None
            for process in processes:
                process.kill()
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                vector.close(terminate=True)
            vector.closed = True  # or it would be closed again when it is deleted
        self._current = False
        return EnvironmentFault(f"the environments failed: {what}")


def _autoreset_mode(vector: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    mode = (vector.metadata or {}).get("autoreset_mode")
    try:
        mode = AutoresetMode(mode)
    except ValueError:
        raise ValueError(
            f"env: the VectorEnv's metadata['autoreset_mode'] is {mode!r}; wanted "
            "AutoresetMode.SAME_STEP or AutoresetMode.NEXT_STEP, so that the ends of episodes can "
            "be read"
        ) from None
    if mode is AutoresetMode.DISABLED:
        raise ValueError(
            "env: the VectorEnv has autoreset mode DISABLED; wanted SAME_STEP or NEXT_STEP"
        )
    return mode


@dataclass(frozen=True)
class _GuardMaker:
    make: Callable[[], Env]
    index: int
    seed: int
    encoder: ObservationEncoder
    creator: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "creator", os.getpid())

    def __call__(self) -> "_Guard":
        if os.getpid() != self.creator:
            # In a worker: Ctrl-C reaches the whole process group, and it is for the learner to
            # decide; a SIGTERM handler inherited from it would make the worker immortal.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return _Guard(self.make(), self.index, self.seed, self.encoder)


class _Guard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One environment: flattens, seeds every episode, and reports failures as data.

    An exception in a worker process would tear down the vector environment and lose the index of
    the one that failed. Info dictionaries are dropped: nothing reads them, and gathering them in
    arrays costs more than a step of a small environment.
    """

    def __init__(self, env: Env, index: int, seed: int, encoder: ObservationEncoder) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (encoder.size,), encoder.dtype.type
        )
        self.blank = np.zeros(encoder.size, encoder.dtype)  # in place of what cannot be had
        self._encoder = encoder
        self._seed = seed
        self._index = index
        self._episode = -1
        self._steps = 0
        self._fault: str | None = None

    def restore(self, plans: list[tuple[int, NDArray[Any]]]) -> tuple[NDArray[Any], str | None]:
        """Starts the episode of this environment's plan and takes its actions."""
        episode, actions = plans[self._index]
        self._episode = episode - 1
        self._fault = None
        row, info = self.reset()
        for action in actions:
            row, _, ended, cut, info = self.step(action)
            if ended or cut:
                break
        return row, info.get(_FAULT)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        if self._fault is not None:  # autoreset after a step that failed
            return self.blank, {_FAULT: self._fault}
        self._episode += 1
        self._steps = 0
        try:
            derived = derive_seed(self._seed, Purpose.ENVIRONMENT, self._index, self._episode)
            observation, _ = self.env.reset(seed=derived)
            return self._encoder.encode(observation, ()), {}
        except Exception as error:
            return self.blank, {_FAULT: self._report("reset", error)}

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        try:
            observation, reward, terminated, truncated, _ = self.env.step(action)
            row = self._encoder.encode(observation, ())
            if terminated or truncated:
                # The reset that follows may overwrite an array that the environment reuses.
                return row.copy(), float(reward), bool(terminated), bool(truncated), {}
            return row, float(reward), False, False, {}
        except Exception as error:
            return self.blank, 0.0, True, False, {_FAULT: self._report("step", error)}

    def _report(self, call: str, error: Exception) -> str:
        self._fault = (
            f"environment {self._index} failed in {call}() of episode {self._episode}, "
            f"step {self._steps}: {type(error).__name__}: {error}"
        )
        return self._fault


class _InTurn:
    """Guards that are stepped one after the other, resetting within the step.

    This does what `SyncVectorEnv` does in SAME_STEP mode without its overhead, which is twice the
    cost of a small environment.
    """

    def __init__(self, guards: list[_Guard]) -> None:
        self._guards = guards

    def step(
        self,
        actions: NDArray[Any],
        observations: NDArray[Any],
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> Mapping[str, Any] | None:
        """As `Environments.step`."""
        finals: dict[int, NDArray[Any]] = {}
        for i, guard in enumerate(self._guards):
            row, rewards[i], ended, cut, info = guard.step(actions[i])
            if ended or cut:
                terminated[i], truncated[i] = ended, cut
                finals[i] = row
                row, reset_info = guard.reset()
                info |= reset_info
            if info:
                raise EnvironmentFault(info[_FAULT])
            observations[i] = row
        return {"final_obs": finals} if finals else None

    def call(self, name: str, *arguments: Any) -> list[Any]:
        return [getattr(guard, name)(*arguments) for guard in self._guards]

    def close(self, **options: Any) -> None:
        for guard in self._guards:
            guard.close()
