"""What an agent remembers from one update to the next, as one value."""

# ruff: noqa: RUF009 (`_kept` is `dataclasses.field`)

import copy
import dataclasses
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from natgrad.agents import checkpoint
from natgrad.rollouts.environments import EnvironmentState
from natgrad.rollouts.rollout import Episode

__all__ = ["State"]


@dataclass(frozen=True)
class _Number:
    """What goes into the metadata of a checkpoint, as JSON.

    Attributes:
        to_json: writes it.
        from_json: reads it, or raises TypeError or ValueError.
    """

    to_json: Callable[[Any], Any]
    from_json: Callable[[Any], Any]


@dataclass(frozen=True)
class _Array:
    """What goes into an array of a checkpoint; the first underscore of its name becomes a slash.

    Attributes:
        low: least value that makes sense.
        grows: the length is not known beforehand, the checkpoint says it; the array may be empty,
            and then it is left out.
    """

    low: float = -math.inf
    grows: bool = False


def _finite(value: Any, kinds: tuple[type, ...] = (int, float), low: float = -math.inf) -> Any:
    # JSON's true would pass for 1, and Python reads NaN and Infinity too.
    if type(value) not in kinds or not low <= value < 2**63:
        raise ValueError
    return value


def _episode(value: Any) -> Episode:
    total, length, end = value
    return Episode(float(_finite(total)), _finite(length, (int,), 1), float(_finite(end)))


def _pair(value: Any) -> tuple[float, float]:
    first, second = value
    return float(_finite(first)), float(_finite(second))


_COUNT = _Number(int, lambda value: _finite(value, (int,), 0))
_SECONDS = _Number(float, lambda value: float(_finite(value, low=0)))
_PAIR = _Number(list, _pair)
_EPISODES = _Number(
    lambda episodes: [list(episode) for episode in episodes],
    lambda value: deque(map(_episode, value), maxlen=100),
)


def _kept(attribute: str, kind: _Number | _Array) -> Any:
    return field(metadata={"attribute": attribute, "kind": kind})


@dataclass(kw_only=True)
class State:
    """The state of an agent, detached from it: what an update that fails goes back to, or a file.

    A field says which attribute of the agent it copies and how a checkpoint holds it; no other line
    has to know of it. Numbers are in the metadata of a checkpoint under their own names. Where the
    environments stand is an object of theirs.
    """

    num_timesteps: int = _kept("num_timesteps", _COUNT)
    num_updates: int = _kept("num_updates", _COUNT)
    num_episodes: int = _kept("num_episodes", _COUNT)
    recent_episodes: deque[Episode] = _kept("recent_episodes", _EPISODES)
    failures: int = _kept("_failures", _COUNT)
    seconds: float = _kept("training_seconds", _SECONDS)
    rng_counter: int = _kept("_rng.counter", _COUNT)
    moments_count: int = _kept("_moments.count", _COUNT)
    moments_rejected: int = _kept("_moments.rejected", _COUNT)
    target_scale: tuple[float, float] = _kept("critic.target_scale", _PAIR)
    policy_parameters: NDArray[Any] = _kept("policy.parameters", _Array())
    policy_optimizer: NDArray[Any] = _kept("_update.state", _Array(grows=True))
    critic_parameters: NDArray[Any] = _kept("critic.parameters", _Array())
    critic_optimizer: NDArray[Any] = _kept("_critic_fit.state", _Array(grows=True))
    observations_mean: NDArray[Any] = _kept("_moments.mean", _Array())
    observations_squares: NDArray[Any] = _kept("_moments.squares", _Array(low=0))
    environments: EnvironmentState
    no_actions: NDArray[Any]  # (0, ...), the type and shape of samples

    @classmethod
    def of(cls, agent: Any) -> Self:
        """A copy of the state of an agent."""
        values = {f.name: copy.copy(attrgetter(f.metadata["attribute"])(agent)) for f in _fields()}
        environments = agent._environments.state.copy()
        return cls(**values, environments=environments, no_actions=agent._no_actions)

    def restore(self, agent: Any) -> None:
        """Brings an agent to this state, which is part of the agent afterwards."""
        for f in _fields():
            owner, _, name = f.metadata["attribute"].rpartition(".")
            setattr(attrgetter(owner)(agent) if owner else agent, name, getattr(self, f.name))
        agent._environments.restore(self.environments)
        agent._set_normalizers()

    def write(self, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        """Writes a checkpoint.

        Args:
            path: destination; its folder must exist.
            identity: what else the metadata says.

        Raises:
            CheckpointError: the file cannot be written.
        """
        progress = {f.name: f.metadata["kind"].to_json(getattr(self, f.name)) for f in _numbers()}
        arrays: dict[str, NDArray[Any]] = {}
        sizes: dict[str, int] = {}
        for f in _arrays():
            array, name = getattr(self, f.name), _stored(f.name)
            if not f.metadata["kind"].grows:
                arrays[name] = array
            elif len(array):
                arrays[name], sizes[name] = array, len(array)
        lengths, rows = self.environments.pack(self.no_actions)
        arrays |= {f"environments/{name}": array for name, array in rows.items()}
        progress |= {
            "n_envs": len(lengths),
            "replay_lengths": lengths,
            "optimizer_sizes": sizes,
        }
        checkpoint.write(path, {**identity, "progress": progress}, arrays)

    def read(self, path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> "State":
        """The state in a checkpoint, for an agent that has this one so far.

        Args:
            path: the checkpoint.
            metadata: from `checkpoint.read_metadata`.

        Raises:
            CheckpointError: the arrays are damaged, or are not those of such an agent.
            KeyError, TypeError, ValueError: the metadata is not what `write` writes.
        """
        progress = metadata["progress"]
        values: dict[str, Any] = {}
        for f in _numbers():
            given = progress[f.name]
            values[f.name] = _checked(f.name, given, f.metadata["kind"].from_json)
        n_envs = _checked("n_envs", progress["n_envs"], _COUNT.from_json)
        lengths = _checked("replay_lengths", progress["replay_lengths"], _lengths)
        if len(lengths) != n_envs:
            raise ValueError(f"its replay_lengths are {lengths!r}")

        spec = self._spec(progress["optimizer_sizes"], lengths)
        arrays = checkpoint.read_arrays(path, metadata, spec)
        for f in _arrays():
            values[f.name] = arrays.get(_stored(f.name), getattr(self, f.name))
            if (values[f.name] < f.metadata["kind"].low).any():
                raise ValueError(f"its array {_stored(f.name)!r} has negative elements")
        prefix = "environments/"
        rows = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        environments = EnvironmentState.unpack(lengths, rows)
        return State(**values, environments=environments, no_actions=self.no_actions)

    def _spec(self, sizes: Mapping[str, Any], lengths: list[int | None]) -> checkpoint.Spec:
        """What the arrays of a checkpoint have to be if its metadata says these lengths."""
        spec: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for f in _arrays():
            array, name = getattr(self, f.name), _stored(f.name)
            if not f.metadata["kind"].grows:
                spec[name] = array.dtype, array.shape
            elif name in sizes or len(array):
                spec[name] = array.dtype, (int(sizes[name]),)
        for name, array in self.environments.pack(self.no_actions)[1].items():
            count = sum(n or 0 for n in lengths) if name == "actions" else len(lengths)
            spec[f"environments/{name}"] = array.dtype, (count, *array.shape[1:])
        return spec


def _fields() -> Iterator[dataclasses.Field[Any]]:
    return (f for f in dataclasses.fields(State) if "kind" in f.metadata)


def _numbers() -> Iterator[dataclasses.Field[Any]]:
    return (f for f in _fields() if isinstance(f.metadata["kind"], _Number))


def _arrays() -> Iterator[dataclasses.Field[Any]]:
    return (f for f in _fields() if isinstance(f.metadata["kind"], _Array))


def _stored(name: str) -> str:
    return name.replace("_", "/", 1)


def _lengths(value: Any) -> list[int | None]:
    return [None if length is None else _finite(length, (int,), 0) for length in value]


def _checked(name: str, value: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(value)
    except (TypeError, ValueError):
        raise ValueError(f"its {name} is {value!r}") from None
