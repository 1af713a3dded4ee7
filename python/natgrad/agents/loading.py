"""Agents from checkpoints and from the folders of runs; what does not fit is refused."""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from natgrad.agents import checkpoint, flat_options, runs
from natgrad.agents.checkpoint import CheckpointError
from natgrad.agents.config import AgentConfig
from natgrad.agents.state import State
from natgrad.rollouts.environments import EnvironmentLike

__all__ = ["load"]

A = TypeVar("A")
Algorithms = Mapping[str, Any]  # the classes of agents by their names


def load(cls: type[A], algorithms: Algorithms, path: Path, env: EnvironmentLike | None) -> A:
    """An agent of `cls` from a file, or from the folder of a run; see `Agent.load`."""
    if not path.is_dir():
        return _from_file(cls, algorithms, path, env)
    candidates = runs.checkpoints(path)
    if not candidates and runs.has_config(path):
        return _of_run(_begin_again(cls, algorithms, path, env), path)
    for candidate in reversed(candidates):
        try:
            return _of_run(_from_file(cls, algorithms, candidate, env), path)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=3)
    raise CheckpointError(f"{str(path)!r} has no sound checkpoint in its folder checkpoints/")


def _of_run(agent: A, folder: Path) -> A:
    agent._run = folder.resolve()  # type: ignore[attr-defined]
    return agent


def _begin_again(
    cls: type[A], algorithms: Algorithms, folder: Path, env: EnvironmentLike | None
) -> A:
    identity = runs.read_config(folder)
    with _refusing_misfits(folder):
        actual, config = _described(cls, algorithms, identity)
        return actual(_environment(identity, env), config)  # type: ignore[call-arg]


def _from_file(cls: type[A], algorithms: Algorithms, path: Path, env: EnvironmentLike | None) -> A:
    metadata = checkpoint.read_metadata(path)
    with _refusing_misfits(path):
        actual, config = _described(cls, algorithms, metadata)
        # Before anything is built: what is not in the file shall not be allocated on its word.
        weights = [config.n_envs]
        for layers in (config.hidden, config.critic_hidden):
            sizes = (max(config.fourier_features, 1), *layers, 1)
            weights += [rows * columns for rows, columns in itertools.pairwise(sizes)]
        if max(weights) > path.stat().st_size:
            raise ValueError("its options need more parameters than the file has bytes")
        env = _environment(metadata, env)
    agent: Any = actual(env, config)  # type: ignore[call-arg]
    with _refusing_misfits(path):
        for name, network in (("policy", agent.policy), ("critic", agent.critic)):
            ours = _architecture(network)
            theirs = {key: metadata[name].get(key) for key in ours}
            if ours != theirs:
                raise ValueError(f"the environment wants the {name} {ours}, not {theirs}")
        State.of(agent).read(path, metadata).restore(agent)
    return agent  # type: ignore[no-any-return]


def _described(
    cls: type[A], algorithms: Algorithms, identity: Mapping[str, Any]
) -> tuple[type[A], AgentConfig]:
    """Class and options of an agent that was saved."""
    actual = algorithms[identity["algorithm"]]
    if not issubclass(actual, cls):
        raise ValueError(f"it is an agent of {actual.__name__}, not of {cls.__name__}")
    return actual, actual.config_class.from_options(flat_options.as_values(identity["config"]))


def _architecture(network: Any) -> dict[str, Any]:
    """What has to agree for parameters to mean the same; the seed is that of fixed features."""
    initial = ("init", "output_scale", "log_std_init")
    return {key: value for key, value in network.config.items() if key not in initial}


def _environment(identity: Mapping[str, Any], env: EnvironmentLike | None) -> EnvironmentLike:
    """`env`, or the environment whose id was saved."""
    if env is not None:
        return env
    name = identity["env_id"]
    if not isinstance(name, str) or ":" in name:
        # gymnasium imports what is before a colon, which a file shall not make it do.
        raise ValueError(f"its environment {name!r} has to be passed as `env`")
    return name


@contextmanager
def _refusing_misfits(path: Path) -> Iterator[None]:
    """Whatever does not fit in a checkpoint that is sound as a file becomes a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"its metadata lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"cannot use checkpoint {str(path)!r}: {what}") from error
