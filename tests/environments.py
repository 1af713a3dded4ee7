"""Environments whose every number is known, and helpers that compare agents bit for bit."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces

import natgrad
from natgrad.agents import checkpoint
from natgrad.rollouts.environments import Purpose, derive_seed

TESTS = Path(__file__).parent
SMALL = {"hidden": (8,), "critic_hidden": (8,), "batch_size": 64}  # for what trains in no time


class Counting(gymnasium.Env):
    """Observes (episode, step), whatever one does; the k-th step is rewarded with k.

    Episode e takes lengths[e % len] steps and ends as ends[e % len] says. `reuse` returns the same
    array again and again, which the next step overwrites.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, lengths=(3, 2), ends=("terminated", "truncated"), reuse=False):
        self._lengths, self._ends, self._reuse = lengths, ends, reuse
        self._episode = -1
        self._buffer = np.zeros(2)

    def _observe(self):
        self._buffer[:] = self._episode, self._step
        return self._buffer if self._reuse else self._buffer.copy()

    def reset(self, *, seed=None, options=None):
        self._episode += 1
        self._step = 0
        return self._observe(), {}

    def step(self, action):
        self._step += 1
        k = self._episode % len(self._lengths)
        ends = self._ends[k] if self._step == self._lengths[k] else None
        reward = float(self._step)
        return self._observe(), reward, ends == "terminated", ends == "truncated", {}


class Random(gymnasium.Env):
    """Random observations and lengths from the seed; rewards small actions.

    In the episode that starts with a seed that the file `switch` names, it misbehaves: the file
    holds JSON with the `seed`, the `kind` of trouble and its `step` (0 means reset).
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, switch=None, discrete=False, reward="action"):
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (2,), np.float32)
        self._switch = switch
        self._reward = reward
        self._trouble = {}

    def _observe(self):
        return self.np_random.normal(1.0, 2.0, size=3).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._trouble = {}
        if self._switch is not None and Path(self._switch).exists():
            trouble = json.loads(Path(self._switch).read_text())
            if trouble["seed"] == seed:
                self._trouble = trouble
        self._step = 0
        self._length = int(self.np_random.integers(5, 15))
        observation, _, _, _, info = self._misbehave(self._observe(), 0.0, False, False, {})
        return observation, info

    def step(self, action):
        self._step += 1
        rewards = {"action": 1.0 - float(np.square(action).sum()), "constant": 1.0, "zero": 0.0}
        over = self._step == self._length
        odd = self._length % 2 == 1
        return self._misbehave(
            self._observe(), rewards[self._reward], over and odd, over and not odd, {}
        )

    def _misbehave(self, observation, reward, terminated, truncated, info):
        kind = self._trouble.get("kind") if self._trouble.get("step") == self._step else None
        if kind == "NaN observation":
            observation[1] = np.nan
        elif kind == "infinite observation":
            observation[1] = -np.inf
        elif kind == "NaN final observation":
            observation[1], truncated = np.nan, True
        elif kind == "wide observation":
            observation = np.zeros(4, np.float32)
        elif kind == "no observation":
            observation = None
        elif kind == "text observation":
            observation = np.array(["a", "b", "c"])
        elif kind == "NaN reward":
            reward = np.nan
        elif kind == "infinite reward":
            reward = np.inf
        elif kind == "no reward":
            reward = None
        elif kind == "vector reward":
            reward = np.zeros(2)
        elif kind == "exception":
            raise OSError("the simulator is on fire")
        elif kind == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind in ("SIGINT", "SIGTERM"):
            signal.raise_signal(signal.Signals[kind])
        elif kind == "two signals":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return observation, reward, terminated, truncated, info


class Trouble:
    """Makes `Random` environments, and switches their trouble on and off."""

    def __init__(self, folder):
        self._switch = Path(folder) / "trouble.json"
        self.make = functools.partial(Random, str(self._switch))

    def start(self, kind, *, environment=0, episode=0, step=3, seed=0):
        """From now on, this episode of this environment goes wrong at this step."""
        seed = derive_seed(seed, Purpose.ENVIRONMENT, environment, episode)
        self._switch.write_text(json.dumps({"kind": kind, "seed": seed, "step": step}))

    def stop(self):
        self._switch.unlink()


def contains(space, action):
    """Whether it is an action of the space; an element of a batch of scalars is no array."""
    return space.contains(np.asarray(action) if isinstance(space, spaces.Box) else action)


class Vetting(gymnasium.Env):
    """Observes samples of a space and refuses actions outside of another."""

    def __init__(self, observation_space, action_space):
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self._step = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        if not contains(self.action_space, action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        self._step += 1
        return self.observation_space.sample(), 1.0 / self._step, self._step == 9, False, {}


class Recording(gymnasium.Env):
    """Appends every action to a list."""

    observation_space = spaces.Box(-1, 1, (1,), np.float64)

    def __init__(self, actions, action_space):
        self._actions = actions
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        return np.zeros(1), {}

    def step(self, action):
        self._actions.append(action)
        return np.ones(1), 0.0, False, False, {}


class Painted(gymnasium.Env):
    """A square that moves where it is pushed, as pictures; needs no library for that."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None, length=20):
        self.render_mode = render_mode
        self._length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._position, self._step = 16, 0
        return self._observe(), {}

    def _observe(self):
        return np.array([self._position / 16 - 1], np.float32)

    def step(self, action):
        self._position = int(np.clip(self._position + 2 * action - 1, 0, 32))
        self._step += 1
        return self._observe(), float(action), self._step == self._length, False, {}

    def render(self):
        picture = np.full((40, 40, 3), 255, np.uint8)
        picture[16:24, self._position : self._position + 8] = 200, 30, 30
        return picture


class Textual(Counting):
    """Observes what no network understands."""

    observation_space = spaces.Text(5)


gymnasium.register("Painted-v0", Painted)
gymnasium.register("Textual-v0", Textual)


Discrete = functools.partial(Random, discrete=True)


# Comparing -------------------------------------------------------------------------------------


def read_checkpoint(path):
    """Metadata and arrays of a checkpoint, read without natgrad."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    return json.loads(arrays.pop("metadata").tobytes()), arrays


def write_checkpoint(path, metadata, arrays, extra=None):
    """Writes what `read_checkpoint` reads, however wrong it may be."""
    encoded = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    with Path(path).open("wb") as file:
        np.savez(file, metadata=encoded, **arrays, **(extra or {}))


def with_checksum(metadata, arrays):
    """Metadata as `checkpoint.write` would have written it, had somebody meant it."""
    return {**metadata, "sha256": checkpoint._digest(metadata, arrays)}


def contents(agent_or_path):
    """All that makes two agents equal, in comparable types: everything but the time of day."""
    if not isinstance(agent_or_path, natgrad.agents.Agent):
        metadata, arrays = read_checkpoint(agent_or_path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            agent_or_path.save(Path(folder) / "agent.npz")
            metadata, arrays = read_checkpoint(Path(folder) / "agent.npz")
    progress = metadata["progress"]
    del metadata["sha256"], progress["seconds"]
    progress["recent_episodes"] = [(r, n) for r, n, _ in progress["recent_episodes"]]
    bits = {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}
    return {**metadata, **bits}


def parameters(agent):
    """The bits of everything that has been learned."""
    return agent.policy.parameters.tobytes() + agent.critic.parameters.tobytes()


def history(agent, steps, **keywords):
    """Learns; returns the numbers of every update."""
    logs = []
    agent.learn(steps, callback=lambda _, log: logs.append(log.copy()), **keywords)
    return logs


def copy(agent, folder, env=None):
    """The same agent after a detour through a file."""
    agent.save(Path(folder) / "copy.npz")
    return type(agent).load(Path(folder) / "copy.npz", env)


# Processes -------------------------------------------------------------------------------------


def popen(*arguments, **keywords):
    """Starts Python in a process group of its own, with this folder to import from."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])),
        "PYTHONWARNINGS": "error",
        **keywords.pop("env", {}),
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=keywords.pop("stderr", subprocess.PIPE),
        text=True,
        start_new_session=True,
        env=environment,
        **keywords,
    )


def run(*arguments, timeout=60, **keywords):
    """Runs Python to its end; returns exit code, stdout and stderr."""
    process = popen(*arguments, **keywords)
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        kill(process)
    return process.returncode, output, errors


def kill(process, number=signal.SIGKILL):
    """Sends a signal to the process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
