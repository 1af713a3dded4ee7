"""Agents: one training loop, three update rules."""

import math
import numbers
import os
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np
from numpy.typing import NDArray

from natgrad import _core
from natgrad.agents import loading, logger, presets, runs
from natgrad.agents.callbacks import CallbackLike, Callbacks, LogTable, ProgressBar
from natgrad.agents.config import AgentConfig, NPGConfig, REINFORCEConfig, TRPOConfig
from natgrad.agents.logger import Scalar
from natgrad.agents.signals import Signals
from natgrad.agents.state import State
from natgrad.agents.stopwatch import Stopwatch
from natgrad.batch import Batch
from natgrad.policy import Policy, ValueFunction
from natgrad.rollouts.environments import (
    EnvironmentFault,
    EnvironmentLike,
    Environments,
    Purpose,
    derive_seed,
)
from natgrad.rollouts.normalization import RunningMoments
from natgrad.rollouts.rollout import Episode, Rollout, RolloutInterrupted, collect

__all__ = [
    "ALGORITHMS",
    "NPG",
    "REINFORCE",
    "TRPO",
    "Agent",
    "TrainingInterrupted",
    "TrainingStalled",
]

# A line search that finds no step is ordinary; these mean that the numerics have failed.
_NUMERICAL_FAILURES = (_core.UpdateStatus.NON_FINITE, _core.UpdateStatus.NOT_POSITIVE_DEFINITE)
_FAILURES_BEFORE_STALL = 5


class TrainingStalled(RuntimeError):  # noqa: N818
    """Several updates in a row failed numerically; the agent is as the last good one left it."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was interrupted by SIGINT or SIGTERM; the agent stands after its last update."""


class Agent(ABC):
    """Collects rollouts, updates a policy and fits a critic; subclasses choose the update.

    Two agents with the same environment, options and seed go through the same numbers, bit for
    bit, whether or not they were saved and loaded on the way.

    Args:
        env: id of a registered environment, a function that makes one, or a gymnasium `VectorEnv`.
        config: all options at once, instead of `options`; presets do not count.
        **options: fields of `config_class`. What is not given comes from the preset of the
            environment's id (`natgrad presets`), if there is one, then from the class.

    Attributes:
        config: the options.
        policy: chooses actions.
        critic: predicts returns.
        num_timesteps: environment steps so far.
        num_updates: updates so far.
        num_episodes: finished training episodes.
        last_episodes: those that finished in the last update.
        recent_episodes: the last 100.
        training_seconds: wall time spent in updates, including rollouts.

    Raises:
        ValueError: an unknown option or bad value, an unsupported space, an unknown environment.
        TypeError: an option or `env` of the wrong type.
    """

    algorithm: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]

    def __init__(
        self, env: EnvironmentLike, config: AgentConfig | None = None, **options: Any
    ) -> None:
        if config is None:
            preset = presets.options(env, self.config_class) if isinstance(env, str) else {}
            config = self.config_class.from_options({**preset, **options})
        elif options or type(config) is not self.config_class:
            raise TypeError(
                f"config is a {type(config).__name__} with {len(options)} options besides; wanted "
                f"either a {self.config_class.__name__} or options"
            )
        self.config = config
        self._environments = Environments(
            env,
            config.n_envs,
            config.seed,
            dtype=config.dtype,
            vectorization=config.vectorization,
            stepper=config.stepper,
            options=config.env_options,
            distribution=config.distribution,
        )
        size, decoder = self._environments.encoder.size, self._environments.decoder
        network = config.group("networks")
        # Different seeds, or policy and critic would start from the same first layer.
        self.policy = Policy(
            size,
            decoder.distribution,
            config.hidden,
            seed=derive_seed(config.seed, Purpose.POLICY),
            log_std_init=config.log_std_init,
            **network,
        )
        self.critic = ValueFunction(
            size, config.critic_hidden, seed=derive_seed(config.seed, Purpose.CRITIC), **network
        )
        self._update = config.build_update()
        self._critic_fit = config.build_critic_fit(derive_seed(config.seed, Purpose.CRITIC_FIT))
        self._moments = RunningMoments(size)
        self._rng = _core.Rng(derive_seed(config.seed, Purpose.ACTIONS))
        self._prediction_rng = _core.Rng(derive_seed(config.seed, Purpose.PREDICTION))
        self._no_actions = self.policy.mode(np.zeros((1, size), config.dtype))[:0]
        self.num_timesteps = 0
        self.num_updates = 0
        self.num_episodes = 0
        self.last_episodes: list[Episode] = []
        self.recent_episodes: deque[Episode] = deque(maxlen=100)
        self.training_seconds = 0.0
        self._failures = 0  # consecutive updates that failed numerically
        self._run: Path | None = None  # folder of the run that this agent belongs to
        self._goal = 1  # num_timesteps at which `learn` ends

    @property
    def env_id(self) -> str | None:
        """Name under which the environment is registered, or None."""
        return self._environments.id

    def make_env(self, **options: Any) -> gymnasium.Env[Any, Any]:
        """A new environment of the kind the agent trains on.

        Args:
            **options: keyword arguments for `gymnasium.make`, such as render_mode.

        Raises:
            ValueError: the agent was given a `VectorEnv`.
        """
        if self._environments.make is None:
            raise ValueError(
                "the agent was given a VectorEnv and cannot make another environment; pass `env`"
            )
        return self._environments.make(**options)

    def learn(
        self,
        total_timesteps: int,
        callback: CallbackLike | Iterable[CallbackLike] | None = None,
        progress_bar: bool = False,
        *,
        log: bool = False,
        run_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 10,
    ) -> Self:
        """Trains for a number of environment steps, rounded up to whole updates.

        A second call goes on where the first one stopped; with max_kl_end, the bound falls until
        the end of this call. On SIGINT or SIGTERM the rollout in progress is given up, or the
        update is finished, and the agent is saved; a second signal interrupts at once.

        Args:
            total_timesteps: steps of this call, over all copies of the environment.
            callback: a `Callback`, a function (agent, log) -> bool | None, or several of them.
            progress_bar: show steps per second and mean return on stderr.
            log: print a table per update.
            run_dir: folder for config.json, progress.csv, monitor.csv, TensorBoard events and
                checkpoints; without it nothing is written.
            checkpoint_every: updates between the checkpoints in `run_dir`.

        Returns:
            The agent.

        Raises:
            EnvironmentFault: the environment failed; the agent stands after its last update.
            TrainingStalled: five updates in a row failed numerically.
            TrainingInterrupted: after a signal; a KeyboardInterrupt.
            ValueError: bad arguments; `run_dir` holds another run or cannot be written.
        """
        goal = self._goal = self.num_timesteps + _checked_steps(total_timesteps, checkpoint_every)
        hooks = Callbacks(callback)
        if progress_bar:
            hooks.append(ProgressBar(goal))
        if log:
            hooks.append(LogTable())
        run: runs.RunFolder | None = None
        with Signals() as signals:
            if run_dir is not None:
                run = self._recorded(run_dir, goal, checkpoint_every)
                hooks.append(run)
            try:
                hooks.on_training_start(self)
                go_on = True
                while go_on and self.num_timesteps < goal and signals.received is None:
                    values = self._iterate(lambda: signals.received is not None)
                    go_on = hooks.on_update_end(self, values)
                    self._check_for_a_stall(values)
            except (RolloutInterrupted, EnvironmentFault):
                # A signal to the whole process group ends the workers of environments as well.
                if signals.received is None:
                    raise
            finally:
                hooks.on_training_end(self)
        if signals.received is not None:
            where = "no run_dir was given, so nothing was saved"
            if run is not None:
                where = f"saved to {run.checkpoints.path(self)}"
            raise TrainingInterrupted(
                f"interrupted by {signals.received.name} after {self.num_timesteps} steps; {where}"
            )
        return self

    def predict(
        self, obs: Any, deterministic: bool = True, *, rng: _core.Rng | None = None
    ) -> NDArray[Any]:
        """Actions for one observation or a batch of them, valid in the environment.

        Args:
            obs: an observation of the original space, or a batch (every array with a leading axis).
            deterministic: the mode of the policy; otherwise a sample.
            rng: for samples; a stream of the agent's own when None. Training is not affected.

        Returns:
            One action (a NumPy scalar for Discrete), or a batch (n, ...).

        Raises:
            ValueError: an observation that does not fit the space, or is not finite.
        """
        rows = self._environments.encoder.encode(obs)
        batch = rows.reshape(-1, rows.shape[-1])
        if deterministic:
            samples = self.policy.mode(batch)
        else:
            samples, _ = self.policy.sample(batch, self._prediction_rng if rng is None else rng)
        actions = self._environments.decoder.decode(samples)
        return actions if rows.ndim > 1 else actions[0]

    def close(self) -> None:
        """Closes the environments; they are made again when they are needed."""
        self._environments.close()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint, from which `load` continues as if nothing had happened.

        Raises:
            CheckpointError: the file cannot be written; one that was there before is unchanged.
        """
        State.of(self).write(path, self._identity())

    @classmethod
    def load(cls, path: str | os.PathLike[str], env: EnvironmentLike | None = None) -> Self:
        """Reads an agent from a checkpoint, or from the newest sound one in a run's folder.

        A run that died before it wrote the first one begins again, as config.json says.

        Args:
            path: a file written by `save`, or the folder of a run.
            env: like that of the constructor; None makes it by the id in the checkpoint.

        Raises:
            CheckpointError: the file is damaged, foreign, of another algorithm, or does not fit
                the environment.
            ValueError: gymnasium cannot make the environment.
        """
        return loading.load(cls, ALGORITHMS, Path(path), env)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles through a checkpoint; the environment is made again by its id."""
        name = self._identity()["env_id"]
        if not isinstance(name, str) or ":" in name:
            raise TypeError(
                f"{type(self).__name__}: to copy or pickle an agent, want an environment that "
                f"gymnasium makes by its id alone, got {name!r}; use save(path) and load(path, env)"
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "agent.npz")
            self.save(path)
            return _from_checkpoint, (type(self), path.read_bytes())

    # One update ----------------------------------------------------------------------------------

    def _iterate(self, interrupted: Callable[[], bool]) -> dict[str, Scalar]:
        """Collects and learns; on any exception the agent is as it was before."""
        before = State.of(self)
        try:
            return self._collect_and_learn(interrupted)
        except BaseException:
            before.restore(self)
            raise

    def _collect_and_learn(self, interrupted: Callable[[], bool]) -> dict[str, Scalar]:
        watch = Stopwatch()
        with watch.part("rollout"):
            steps = -(-self.config.batch_size // self._environments.num_envs)
            rollout = collect(self.policy, self._environments, steps, self._rng, interrupted)
        with watch.part("critic"):
            observations, actions = rollout.decisions()
            advantages, returns = map(rollout.of_decisions, self._advantages(rollout))
        with watch.part("update"):
            report = self._improve(Batch(observations, actions, advantages))
        with watch.part("critic"):
            fit = self._critic_fit(self.critic, observations, returns)
        # Only now: what was sampled, updated and fitted has to have seen the same inputs.
        self._normalize(observations)
        self._count(rollout, report, len(observations), watch)
        return self._log(report, fit, watch)

    @abstractmethod
    def _improve(self, batch: Batch) -> _core.UpdateReport:
        """One update of the policy."""

    def _advantages(self, rollout: Rollout) -> tuple[NDArray[Any], NDArray[Any]]:
        """Advantages and returns, (T, n) each."""
        n_rows, n_envs, size = rollout.observations.shape
        values = np.asarray(self.critic.predict(rollout.observations.reshape(-1, size)))
        values = values.reshape(n_rows, n_envs)
        following = values[1:].copy()
        if len(rollout.final_observations):
            # The next row belongs to a new episode: a cut-off one goes on from where it stood.
            following[rollout.final_index] = self.critic.predict(rollout.final_observations)
        return _core.gae(
            rollout.rewards,
            values[:-1],
            following,
            rollout.terminated,
            rollout.truncated,
            self.config.gamma,
            self.config.gae_lambda,
            rollout.valid,
        )

    def _normalize(self, observations: NDArray[Any]) -> None:
        """Lets the networks scale what they see by the moments of all observations so far."""
        if self.config.normalize_observations:
            self._moments.update(observations)
            self._set_normalizers()

    def _set_normalizers(self) -> None:
        clip = self.config.clip_observations if self._moments.count else math.inf
        for network in (self.policy, self.critic):
            network.set_normalizer(self._moments.mean, self._moments.std, clip)

    def _count(
        self, rollout: Rollout, report: _core.UpdateReport, steps: int, watch: Stopwatch
    ) -> None:
        self.num_timesteps += steps
        self.num_updates += 1
        self.num_episodes += len(rollout.episodes)
        self.last_episodes = rollout.episodes
        self.recent_episodes.extend(rollout.episodes)
        self._failures = self._failures + 1 if report.status in _NUMERICAL_FAILURES else 0
        self.training_seconds += watch.total

    def _log(
        self, report: _core.UpdateReport, fit: _core.FitReport, watch: Stopwatch
    ) -> dict[str, Scalar]:
        values = logger.episode_values(self.recent_episodes)
        values |= {
            "time/iterations": self.num_updates,
            "time/total_timesteps": self.num_timesteps,
            "time/time_elapsed": self.training_seconds,
            "time/fps": int(self.num_timesteps / self.training_seconds),
            "time/rollout": watch.seconds["rollout"],
            "time/update": watch.seconds["update"],
            "time/critic": watch.seconds["critic"],
            "train/n_updates": self.num_updates,
            **logger.update_values(report, fit),
        }
        for block in self.policy.layout:
            if block.name == "log_std":
                log_std = self.policy.parameters[block.offset : block.offset + block.size]
                values["train/std"] = float(np.exp(log_std).mean())
        return values

    def _check_for_a_stall(self, values: dict[str, Scalar]) -> None:
        if self._failures >= _FAILURES_BEFORE_STALL:
            raise TrainingStalled(
                f"{self._failures} updates in a row failed, the last one with "
                f"{values['train/status']}: {values['train/message']}. Rewards of a sensible "
                "scale, a larger damping or dtype='float64' may help."
            )

    def _recorded(
        self, folder: str | os.PathLike[str], goal: int, checkpoint_every: int
    ) -> runs.RunFolder:
        run = runs.RunFolder(
            folder,
            {**self._identity(), "total_timesteps": goal},
            continues=self._run == Path(folder).resolve(),
            num_timesteps=self.num_timesteps,
            num_episodes=self.num_episodes,
            checkpoint_every=checkpoint_every,
        )
        self._run = run.path.resolve()
        return run

    def _identity(self) -> dict[str, Any]:
        """What tells this agent from others, as JSON types."""
        return {
            "algorithm": self.algorithm,
            "env_id": self.env_id,
            "config": self.config.to_json(),
            "policy": self.policy.config,
            "critic": self.critic.config,
        }


class _TrustRegionAgent(Agent):
    """What agents share whose steps are bounded by a divergence."""

    config: NPGConfig
    _update: _core.TrustRegionUpdate

    def _improve(self, batch: Batch) -> _core.UpdateReport:
        done = self.num_timesteps / self._goal
        self._update.max_kl = self.config.max_kl * (1 - done * (1 - self.config.max_kl_end))
        return self._update(self.policy, batch)


class NPG(_TrustRegionAgent):
    """Natural policy gradient: the closed-form step to the boundary of the trust region."""

    algorithm = "npg"
    config_class = NPGConfig


class TRPO(_TrustRegionAgent):
    """Trust region policy optimisation: the natural gradient under a line search."""

    algorithm = "trpo"
    config_class = TRPOConfig
    config: TRPOConfig


class REINFORCE(Agent):
    """The plain policy gradient with the same critic: one step per batch."""

    algorithm = "reinforce"
    config_class = REINFORCEConfig
    config: REINFORCEConfig

    def _improve(self, batch: Batch) -> _core.UpdateReport:
        return self._update(self.policy, batch)


ALGORITHMS = {cls.algorithm: cls for cls in (TRPO, NPG, REINFORCE)}


def _checked_steps(total_timesteps: int, checkpoint_every: int) -> int:
    if (
        isinstance(total_timesteps, bool)
        or not isinstance(total_timesteps, numbers.Real)
        or not float(total_timesteps).is_integer()
    ):
        raise ValueError(f"total_timesteps is {total_timesteps!r}; wanted an integer")
    if total_timesteps < 1 or checkpoint_every < 1:
        raise ValueError(
            f"total_timesteps is {total_timesteps} and checkpoint_every {checkpoint_every}; "
            "wanted at least 1"
        )
    return int(total_timesteps)


def _from_checkpoint(cls: type[Agent], data: bytes) -> Agent:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "agent.npz")
        path.write_bytes(data)
        return cls.load(path)
