"""Hooks into training: show, stop, evaluate, save."""

import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from tqdm import tqdm

from natgrad.agents.checkpoint import CheckpointError
from natgrad.agents.evaluation import Evaluation, Predictor, evaluate
from natgrad.agents.logger import Scalar

__all__ = [
    "Callback",
    "CallbackLike",
    "Callbacks",
    "CheckpointCallback",
    "EvalCallback",
    "LogTable",
    "ProgressBar",
    "StopOnReturn",
]


class Learner(Predictor, Protocol):
    """What the callbacks below need of an agent."""

    @property
    def num_timesteps(self) -> int:
        """Environment steps so far."""

    @property
    def num_updates(self) -> int:
        """Updates so far."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint."""


class Callback:
    """Base class: override what you need."""

    def on_training_start(self, agent: Any) -> None:
        """Called once before the first update of `learn`."""

    def on_update_end(self, agent: Any, log: dict[str, Scalar]) -> bool | None:
        """Called after each update.

        Args:
            agent: the agent that learns.
            log: the numbers of this update; what is added here is logged as well.

        Returns:
            False to stop training.
        """

    def on_training_end(self, agent: Any) -> None:
        """Called once when `learn` ends, whatever ended it."""


CallbackLike: TypeAlias = Callback | Callable[[Any, dict[str, Scalar]], bool | None]


class Callbacks(Callback):
    """Several callbacks, or functions with the signature of `on_update_end`, as one."""

    def __init__(self, callback: CallbackLike | Iterable[CallbackLike] | None) -> None:
        if callback is None:
            callback = []
        elif callable(callback) or not isinstance(callback, Iterable):
            callback = [callback]
        self._callbacks = [c if isinstance(c, Callback) else _Function(c) for c in callback]

    def append(self, callback: Callback) -> None:
        """Adds one, to be called after the others."""
        self._callbacks.append(callback)

    def on_training_start(self, agent: Any) -> None:
        """Calls all."""
        for callback in self._callbacks:
            callback.on_training_start(agent)

    def on_update_end(self, agent: Any, log: dict[str, Scalar]) -> bool:
        """Calls all, even after one has asked to stop."""
        answers = [callback.on_update_end(agent, log) for callback in self._callbacks]
        return not any(isinstance(a, bool | np.bool_) and not a for a in answers)

    def on_training_end(self, agent: Any) -> None:
        """Calls all, even after one has failed, in reverse order."""
        with ExitStack() as stack:
            for callback in self._callbacks:
                stack.callback(callback.on_training_end, agent)


class _Function(Callback):
    def __init__(self, function: Callable[[Any, dict[str, Scalar]], bool | None]) -> None:
        if not callable(function):
            raise TypeError(
                f"callback is {function!r}; wanted a Callback or a function(agent, log)"
            )
        self._function = function

    def on_update_end(self, agent: Any, log: dict[str, Scalar]) -> bool | None:
        return self._function(agent, log)


class LogTable(Callback):
    """Prints the numbers of every update, grouped by the part of the key before the slash."""

    def on_update_end(self, agent: Any, log: dict[str, Scalar]) -> None:
        """Prints a table."""
        rows: list[tuple[str, str]] = []
        group = None
        for key, value in sorted(log.items()):
            if (prefix := key.rpartition("/")[0]) != group:
                group = prefix
                rows.append((f"{group}/", ""))
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            rows.append((f"   {key.rpartition('/')[2]}", text))
        left, right = (max(len(row[k]) for row in rows) for k in (0, 1))
        rule = "-" * (left + right + 7)
        lines = [f"| {name:<{left}} | {value:>{right}} |" for name, value in rows]
        print("\n".join([rule, *lines, rule]), flush=True)


class ProgressBar(Callback):
    """Shows on stderr, in one line of 80 columns, how far training is and how it goes.

    Part done, steps, steps per second, time left; then mean return, KL divergence of the update in
    nats, and the relative residual at which its solve stopped.

    Args:
        goal: environment steps at which the bar is full.
    """

    FORMAT = "{percentage:3.0f}%|{bar}|{n_fmt}/{total_fmt} {rate_fmt} {remaining} left{postfix}"

    def __init__(self, goal: int) -> None:
        self._goal = goal
        self._bar: Any = None

    def on_training_start(self, agent: Learner) -> None:
        """Shows the bar."""
        self._bar = tqdm(
            total=self._goal,
            initial=agent.num_timesteps,
            unit="",
            unit_scale=True,
            dynamic_ncols=True,
            bar_format=self.FORMAT,
        )

    def on_update_end(self, agent: Learner, log: dict[str, Scalar]) -> None:
        """Moves the bar on."""
        shown = f"kl {log['train/kl_divergence_loss']:.1e} cg {log['train/cg_residual']:.0e}"
        if "rollout/ep_rew_mean" in log:
            shown = f"return {log['rollout/ep_rew_mean']:.5g} {shown}"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(min(agent.num_timesteps, self._goal) - self._bar.n)

    def on_training_end(self, agent: Learner) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class EvalCallback(Callback):
    """Evaluates every few updates, in an environment and with seeds of its own.

    Logs eval/mean_reward, eval/std_reward and eval/mean_ep_length.

    Args:
        every: updates between evaluations.
        episodes: episodes per evaluation.
        env: id or function; the agent's own when None.
        seed: the same episodes every time.
        deterministic: act with the mode of the policy.
        best_path: where the agent is saved whenever its mean return is the highest so far. A
            training that goes on from a checkpoint first evaluates what is there.

    Attributes:
        best: the best evaluation so far, or None.
    """

    def __init__(
        self,
        every: int = 10,
        episodes: int = 10,
        *,
        env: str | Callable[[], Any] | None = None,
        seed: int = 0,
        deterministic: bool = True,
        best_path: str | os.PathLike[str] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; wanted at least 1 update")
        self._every = every
        self._episodes = episodes
        self._env = env
        self._seed = seed
        self._deterministic = deterministic
        self._best_path = best_path
        self.best: Evaluation | None = None

    def on_training_start(self, agent: Any) -> None:
        """Evaluates the best agent of the training that goes on, where it was saved."""
        path = self._best_path
        if self.best is not None or agent.num_updates == 0 or path is None:
            return
        if not Path(path).exists():
            return
        try:
            # By the id where there is one: options and EnvPool go with ids alone.
            best = type(agent).load(path, agent.env_id or agent.make_env)
        except (CheckpointError, ValueError) as error:
            warnings.warn(f"{error}; the search for the best agent starts over", stacklevel=2)
            return
        with closing(best):
            self.best = self._evaluate(best, self._env or agent.make_env)

    def on_update_end(self, agent: Learner, log: dict[str, Scalar]) -> None:
        """Evaluates if it is time to."""
        if agent.num_updates % self._every:
            return
        result = self._evaluate(agent, self._env)
        log["eval/mean_reward"] = result.mean
        log["eval/std_reward"] = result.std
        log["eval/mean_ep_length"] = float(result.lengths.mean())
        if self.best is None or result.mean > self.best.mean:
            self.best = result
            if self._best_path is not None:
                agent.save(self._best_path)

    def _evaluate(self, agent: Learner, env: str | Callable[[], Any] | None) -> Evaluation:
        return evaluate(
            agent, env, self._episodes, seed=self._seed, deterministic=self._deterministic
        )


class StopOnReturn(Callback):
    """Stops when the mean return of the last 100 training episodes reaches a threshold.

    Args:
        threshold: in units of the return.
        episodes: episodes that must have finished before the mean is trusted.
    """

    def __init__(self, threshold: float, episodes: int = 20) -> None:
        self._threshold = threshold
        self._episodes = episodes

    def on_update_end(self, agent: Any, log: dict[str, Scalar]) -> bool:
        """False once the threshold is reached."""
        mean = log.get("rollout/ep_rew_mean")
        return (
            mean is None
            or float(mean) < self._threshold
            or len(agent.recent_episodes) < self._episodes
        )


class CheckpointCallback(Callback):
    """Saves every few updates and at the end, and keeps the newest files.

    A file that cannot be written during training is a warning, since the disk may have room again
    the next time; at the end it is an error.

    Args:
        folder: is made if it does not exist.
        every: updates between checkpoints.
        keep: files that remain.
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = 10, keep: int = 3) -> None:
        if every < 1 or keep < 1:
            raise ValueError(f"every is {every} and keep is {keep}; wanted at least 1")
        self.folder = Path(folder)
        self._every = every
        self._keep = keep

    @staticmethod
    def files(folder: str | os.PathLike[str]) -> list[Path]:
        """The checkpoints in a folder, oldest first."""
        return sorted(Path(folder).glob("checkpoint-*.npz"))

    def path(self, agent: Learner) -> Path:
        """Where the agent's present state goes."""
        return self.folder / f"checkpoint-{agent.num_updates:09d}.npz"

    def on_training_start(self, agent: Learner) -> None:
        """Saves, which shows now rather than later if that is impossible."""
        for leftover in self.folder.glob(".checkpoint-*"):  # of a process killed while it saved
            leftover.unlink(missing_ok=True)
        self._save(agent)

    def on_update_end(self, agent: Learner, log: dict[str, Scalar]) -> None:
        """Saves if it is time to."""
        if agent.num_updates % self._every == 0:
            try:
                self._save(agent)
            except CheckpointError as error:
                warnings.warn(f"{error}; training goes on", stacklevel=2)

    def on_training_end(self, agent: Learner) -> None:
        """Saves the last state."""
        self._save(agent)

    def _save(self, agent: Learner) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"folder {str(self.folder)!r} cannot be made: {error.strerror}"
            ) from error
        agent.save(self.path(agent))
        for old in self.files(self.folder)[: -self._keep]:
            old.unlink(missing_ok=True)
