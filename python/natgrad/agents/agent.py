"""Agents: one training loop, three update rules."""

import itertools
import math
import numbers
import os
import signal
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np
from numpy.typing import NDArray

from natgrad import _core
from natgrad.agents import checkpoint, presets, runs
from natgrad.agents.callbacks import CallbackLike, Callbacks, LogTable, ProgressBar
from natgrad.agents.checkpoint import CheckpointError
from natgrad.agents.config import AgentConfig, NPGConfig, REINFORCEConfig, TRPOConfig
from natgrad.agents.logger import Scalar
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

Update = _core.TrustRegionUpdate | _core.PolicyGradientUpdate

# A line search that finds nothing is ordinary; these say that the numbers themselves have failed.
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
        policy: acts.
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
        network: dict[str, Any] = {
            "activation": config.activation,
            "dtype": config.dtype,
            "init": config.init,
            "fourier_features": config.fourier_features,
            "fourier_bandwidth": config.fourier_bandwidth,
        }
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
        self._update = self._build_update()
        self._critic_fit: _core.GaussNewtonFit | _core.AdamFit
        if config.critic == "gauss_newton":
            self._critic_fit = _core.GaussNewtonFit(
                config.critic_steps,
                config.critic_cg_iterations,
                config.critic_damping,
                config.critic_max_change,
            )
        else:
            self._critic_fit = _core.AdamFit(
                config.critic_epochs,
                config.critic_minibatch_size,
                config.critic_learning_rate,
                derive_seed(config.seed, Purpose.CRITIC_FIT),
            )
        self._moments = RunningMoments(size)
        self._rng = _core.Rng(derive_seed(config.seed, Purpose.ACTIONS))
        self._prediction_rng = _core.Rng(derive_seed(config.seed, Purpose.PREDICTION))
        example = self.policy.mode(np.zeros((1, size), config.dtype))
        self._no_actions = example[:0]
        self.num_timesteps = 0
        self.num_updates = 0
        self.num_episodes = 0
        self.last_episodes: list[Episode] = []
        self.recent_episodes: deque[Episode] = deque(maxlen=100)
        self._run: Path | None = None  # folder of the run that this agent belongs to
        self._goal = 1  # num_timesteps at which `learn` ends
        self._failures = 0  # consecutive updates that failed numerically
        self.training_seconds = 0.0

    @abstractmethod
    def _build_update(self) -> Update:
        """The update rule, from `self.config`."""

    def _improve(self, batch: Batch) -> _core.UpdateReport:
        """One update of the policy."""
        return self._update(self.policy, batch)

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

        A second call goes on where the first one stopped; a bound that falls (max_kl_end) falls
        until the end of this call. SIGINT and SIGTERM give up the rollout in progress, or finish
        the update, then save; a second signal interrupts at once.

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
        goal = self._goal = self.num_timesteps + int(total_timesteps)
        hooks = Callbacks(callback)
        if progress_bar:
            hooks.append(ProgressBar(goal))
        if log:
            hooks.append(LogTable())
        run: runs.RunFolder | None = None
        with _Signals() as signals:
            if run_dir is not None:
                run = runs.RunFolder(
                    run_dir,
                    {**self._identity(), "total_timesteps": goal},
                    continues=self._run == Path(run_dir).resolve(),
                    num_timesteps=self.num_timesteps,
                    num_episodes=self.num_episodes,
                    checkpoint_every=checkpoint_every,
                )
                hooks.append(run)
                self._run = run.path.resolve()
            try:
                hooks.on_training_start(self)
                go_on = True
                while go_on and self.num_timesteps < goal and signals.received is None:
                    values = self._iterate(lambda: signals.received is not None)
                    go_on = hooks.on_update_end(self, values)
                    if self._failures >= _FAILURES_BEFORE_STALL:
                        raise TrainingStalled(
                            f"{self._failures} updates in a row failed, the last one with "
                            f"{values['train/status']}: {values['train/message']}. Rewards of a "
                            "sensible scale, a larger damping or dtype='float64' may help."
                        )
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

    # One update ----------------------------------------------------------------------------------

    def _iterate(self, interrupted: Callable[[], bool]) -> dict[str, Scalar]:
        """Collects and learns; on any exception the agent is as it was before."""
        before = self._progress(), self._arrays()
        try:
            return self._collect_and_learn(interrupted)
        except BaseException:
            self._restore(*before)
            raise

    def _collect_and_learn(self, interrupted: Callable[[], bool]) -> dict[str, Scalar]:
        config, clock = self.config, [time.perf_counter()]
        steps = -(-config.batch_size // self._environments.num_envs)
        rollout = collect(self.policy, self._environments, steps, self._rng, interrupted)
        clock.append(time.perf_counter())

        valid = rollout.valid.ravel()
        select = slice(None) if valid.all() else valid
        observations = rollout.observations[:-1].reshape(valid.size, -1)[select]
        actions = rollout.actions.reshape(valid.size, *rollout.actions.shape[2:])[select]
        advantages, returns = (x.ravel()[select] for x in self._advantages(rollout))
        clock.append(time.perf_counter())

        report = self._improve(Batch(observations, actions, advantages))
        clock.append(time.perf_counter())
        fit = self._critic_fit(self.critic, observations, returns)
        clock.append(time.perf_counter())
        if config.normalize_observations:
            # Only now: what was sampled, updated and fitted has to have seen the same inputs.
            self._moments.update(observations)
            self._set_normalizers()

        self.num_timesteps += len(observations)
        self.num_updates += 1
        self.num_episodes += len(rollout.episodes)
        self.last_episodes = rollout.episodes
        self.recent_episodes.extend(rollout.episodes)
        self._failures = self._failures + 1 if report.status in _NUMERICAL_FAILURES else 0
        self.training_seconds += time.perf_counter() - clock[0]
        return self._log(report, fit, clock)

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

    def _set_normalizers(self) -> None:
        clip = self.config.clip_observations if self._moments.count else math.inf
        for network in (self.policy, self.critic):
            network.set_normalizer(self._moments.mean, self._moments.std, clip)

    def _log(
        self, report: _core.UpdateReport, fit: _core.FitReport, clock: list[float]
    ) -> dict[str, Scalar]:
        values: dict[str, Scalar] = {}
        taken = int(report.accepted)  # a candidate that was rejected changed nothing
        if self.recent_episodes:
            rewards, lengths, _ = zip(*self.recent_episodes, strict=True)
            values["rollout/ep_rew_mean"] = sum(rewards) / len(rewards)
            values["rollout/ep_len_mean"] = sum(lengths) / len(lengths)
        values |= {
            "time/iterations": self.num_updates,
            "time/total_timesteps": self.num_timesteps,
            "time/time_elapsed": self.training_seconds,
            "time/fps": int(self.num_timesteps / self.training_seconds),
            "time/rollout": clock[1] - clock[0],
            "time/update": clock[3] - clock[2],
            "time/critic": clock[2] - clock[1] + clock[4] - clock[3],
            "train/n_updates": self.num_updates,
            "train/status": report.status.name,
            "train/is_line_search_success": taken,
            "train/policy_objective": report.surrogate + taken * report.improvement,
            "train/policy_improvement": taken * report.improvement,
            "train/expected_improvement": report.expected_improvement,
            "train/kl_divergence_loss": taken * report.kl,
            "train/step_fraction": report.step_fraction,
            "train/gradient_norm": report.gradient_norm,
            "train/entropy": report.entropy,
            "train/cg_iterations": report.cg.iterations,
            "train/cg_products": report.cg.products,
            "train/cg_residual": report.cg.relative_residual,
            "train/cg_status": report.cg.status.name,
            "train/damping": report.damping,
            "train/reduction_ratio": report.reduction_ratio,
            "train/value_loss": fit.loss,
            "train/explained_variance": fit.explained_variance_before,
        }
        if not report.accepted:
            values["train/message"] = report.message
        for block in self.policy.layout:
            if block.name == "log_std":
                log_std = self.policy.parameters[block.offset : block.offset + block.size]
                values["train/std"] = float(np.exp(log_std).mean())
        return values

    # State ---------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint, from which `load` continues as if nothing had happened.

        Raises:
            CheckpointError: the file cannot be written; one that was there before is unchanged.
        """
        checkpoint.write(path, {**self._identity(), "progress": self._progress()}, self._arrays())

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
        path = Path(path)
        if not path.is_dir():
            return cls._load_file(path, env)
        candidates = runs.checkpoints(path)
        if not candidates and runs.has_config(path):
            agent = cls._begin_again(path, env)
            agent._run = path.resolve()
            return agent
        for candidate in reversed(candidates):
            try:
                agent = cls._load_file(candidate, env)
                agent._run = path.resolve()
                return agent
            except CheckpointError as error:
                warnings.warn(f"{error}; trying the one before", stacklevel=2)
        raise CheckpointError(f"{str(path)!r} has no sound checkpoint in its folder checkpoints/")

    @classmethod
    def _begin_again(cls, folder: Path, env: EnvironmentLike | None) -> Self:
        identity = runs.read_config(folder)
        with _refusing_misfits(folder):
            actual, config = cls._described(identity)
            return actual(_environment(identity, env), config)

    @classmethod
    def _described(cls, identity: Mapping[str, Any]) -> tuple[type[Self], AgentConfig]:
        """Class and options of the agent that `_identity` speaks of."""
        actual = ALGORITHMS[identity["algorithm"]]
        if not issubclass(actual, cls):
            raise ValueError(f"it is an agent of {actual.__name__}, not of {cls.__name__}")
        config = actual.config_class.from_options(identity["config"])
        return actual, config  # type: ignore[return-value]

    @classmethod
    def _load_file(cls, path: Path, env: EnvironmentLike | None) -> Self:
        metadata = checkpoint.read_metadata(path)
        with _refusing_misfits(path):
            actual, config = cls._described(metadata)
            # Before anything is built: what is not in the file shall not be allocated on its word.
            weights = [config.n_envs]
            for layers in (config.hidden, config.critic_hidden):
                sizes = (max(config.fourier_features, 1), *layers, 1)
                weights += [rows * columns for rows, columns in itertools.pairwise(sizes)]
            if max(weights) > path.stat().st_size:
                raise ValueError("its options need more parameters than the file has bytes")
            env = _environment(metadata, env)
        agent = actual(env, config)
        with _refusing_misfits(path):
            for name, ours in agent._architecture().items():
                theirs = {key: metadata[name].get(key) for key in ours}
                if ours != theirs:
                    raise ValueError(f"the environment wants the {name} {ours}, not {theirs}")
            progress = metadata["progress"]
            _check_progress(progress)
            arrays = checkpoint.read_arrays(path, metadata, agent._spec(progress))
            for name in ("observations/squares", "environments/episodes", "environments/lengths"):
                if (arrays[name] < 0).any():
                    raise ValueError(f"its array {name!r} has negative elements")
            agent._restore(progress, arrays)
        return agent

    def _architecture(self) -> dict[str, dict[str, Any]]:
        """What has to agree for parameters to mean the same; the seed is that of fixed features."""
        initial = ("init", "output_scale", "log_std_init")
        return {
            name: {key: value for key, value in network.config.items() if key not in initial}
            for name, network in (("policy", self.policy), ("critic", self.critic))
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "algorithm": self.algorithm,
            "env_id": self.env_id,
            "config": self.config.to_json(),
            "policy": self.policy.config,
            "critic": self.critic.config,
        }

    def _progress(self) -> dict[str, Any]:
        """All state that is not an array, as JSON types."""
        return {
            "num_timesteps": self.num_timesteps,
            "num_updates": self.num_updates,
            "num_episodes": self.num_episodes,
            "recent_episodes": [list(episode) for episode in self.recent_episodes],
            "failures": self._failures,
            "seconds": self.training_seconds,
            "rng_counter": self._rng.counter,
            "moments_count": self._moments.count,
            "moments_rejected": self._moments.rejected,
            "target_scale": list(self.critic.target_scale),
            "n_envs": self._environments.num_envs,
            "replay_lengths": [
                None if actions is None else len(actions)
                for actions in self._environments.state.actions
            ],
            "optimizer_sizes": {name: len(o.state) for name, o in self._optimizers().items()},
        }

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Copies of all arrays that are state."""
        state = self._environments.state
        return {
            "policy/parameters": np.array(self.policy.parameters),
            "critic/parameters": np.array(self.critic.parameters),
            "observations/mean": self._moments.mean.copy(),
            "observations/squares": self._moments.squares.copy(),
            "environments/observations": state.observations.copy(),
            "environments/episodes": state.episodes.copy(),
            "environments/returns": state.returns.copy(),
            "environments/lengths": state.lengths.copy(),
            "environments/waiting": state.waiting.copy(),
            "environments/actions": np.concatenate(
                [self._no_actions, *(a for a in state.actions if a is not None and len(a))]
            ),
            **{name: np.array(o.state) for name, o in self._optimizers().items()},
        }

    def _spec(self, progress: Mapping[str, Any]) -> checkpoint.Spec:
        """Types and shapes that the arrays of a checkpoint with this progress must have."""
        spec = {name: (array.dtype, array.shape) for name, array in self._arrays().items()}
        for name, (dtype, shape) in spec.items():
            if name.startswith("environments/"):
                spec[name] = dtype, (int(progress["n_envs"]), *shape[1:])
        dtype, shape = spec["environments/actions"]
        replay = sum(length or 0 for length in progress["replay_lengths"])
        spec["environments/actions"] = dtype, (int(replay), *shape[1:])
        for name in self._optimizers():
            spec[name] = spec[name][0], (int(progress["optimizer_sizes"][name]),)
        return spec

    def _restore(self, progress: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.num_timesteps = int(progress["num_timesteps"])
        self.num_updates = int(progress["num_updates"])
        self.num_episodes = int(progress["num_episodes"])
        self.recent_episodes = deque(
            (Episode(float(r), int(n), float(t)) for r, n, t in progress["recent_episodes"]), 100
        )
        self._failures = int(progress["failures"])
        self.training_seconds = float(progress["seconds"])
        self._rng.counter = int(progress["rng_counter"])
        self.policy.parameters = arrays["policy/parameters"]
        self.critic.parameters = arrays["critic/parameters"]
        mean, std = progress["target_scale"]
        self.critic.target_scale = float(mean), float(std)
        for name, optimizer in self._optimizers().items():
            optimizer.state = arrays[name]
        self._moments.count = int(progress["moments_count"])
        self._moments.rejected = int(progress["moments_rejected"])
        self._moments.mean = arrays["observations/mean"].copy()
        self._moments.squares = arrays["observations/squares"].copy()
        self._set_normalizers()
        self._restore_environments(progress, arrays)

    def _restore_environments(
        self, progress: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        self._environments.abandon()
        state = self._environments.state
        episodes = arrays["environments/episodes"]
        if progress["n_envs"] != self._environments.num_envs:
            state.episodes[:] = episodes.max() + 1  # other copies: no episode can go on
            return
        state.episodes = episodes.copy()
        state.observations = arrays["environments/observations"].copy()
        state.returns = arrays["environments/returns"].copy()
        state.lengths = arrays["environments/lengths"].copy()
        state.waiting = arrays["environments/waiting"].copy()
        state.actions, start = [], 0
        for length in progress["replay_lengths"]:
            if length is None:
                state.actions.append(None)
            else:
                state.actions.append(arrays["environments/actions"][start : start + length])
                start += length

    def _optimizers(self) -> dict[str, Any]:
        """What has a state vector of its own, by the name of its array."""
        optimizers: dict[str, Any] = {"critic/optimizer": self._critic_fit}
        if isinstance(self._update, _core.PolicyGradientUpdate) or len(self._update.state):
            optimizers["policy/optimizer"] = self._update
        return optimizers


class _TrustRegionAgent(Agent):
    """What agents share whose steps are bounded by a divergence."""

    config: NPGConfig
    _update: _core.TrustRegionUpdate

    def _build_update(self) -> Update:
        return _trust_region_update(self.config, self._line_search())

    @abstractmethod
    def _line_search(self) -> _core.LineSearch | None:
        """How a step is shortened, from `self.config`."""

    def _improve(self, batch: Batch) -> _core.UpdateReport:
        done = self.num_timesteps / self._goal
        self._update.max_kl = self.config.max_kl * (1 - done * (1 - self.config.max_kl_end))
        return super()._improve(batch)


class NPG(_TrustRegionAgent):
    """Natural policy gradient: the closed-form step to the boundary of the trust region."""

    algorithm = "npg"
    config_class = NPGConfig

    def _line_search(self) -> None:
        return None


class TRPO(_TrustRegionAgent):
    """Trust region policy optimisation: the natural gradient under a line search."""

    algorithm = "trpo"
    config_class = TRPOConfig
    config: TRPOConfig

    def _line_search(self) -> _core.LineSearch:
        config = self.config
        return _core.LineSearch(
            config.line_search_shrink,
            config.line_search_max_backtracks,
            config.line_search_accept_ratio,
        )


class REINFORCE(Agent):
    """The plain policy gradient with the same critic: one step per batch."""

    algorithm = "reinforce"
    config_class = REINFORCEConfig
    config: REINFORCEConfig

    def _build_update(self) -> Update:
        return _core.PolicyGradientUpdate(
            self.config.learning_rate, self.config.optimizer, normalize_advantages=True
        )


ALGORITHMS = {cls.algorithm: cls for cls in (TRPO, NPG, REINFORCE)}


def _trust_region_update(config: NPGConfig, line_search: _core.LineSearch | None) -> Update:
    damping: Any = config.damping
    if config.damping_mode == "trace":
        damping = _core.TraceDamping(config.damping)
    elif config.damping_mode == "adaptive":
        damping = _core.AdaptiveDamping(config.damping, config.damping_min, config.damping_max)
    solver: Any = config.solver
    if config.solver != "direct":
        tolerance = config.cg_progress_tolerance
        solver = _core.ConjugateGradient(
            config.cg_iterations,
            config.cg_rtol,
            stop=_core.Progress(tolerance, config.cg_progress_window) if tolerance else None,
            warm_start=config.warm_start,
            last_residual=config.cg_last_residual,
            or_direct=config.solver == "auto",
        )
    preconditioner: Any = config.preconditioner
    if preconditioner == "kfac":
        preconditioner = _core.KFac(config.kfac_every)
    elif preconditioner == "subsample":
        preconditioner = _core.Subsample(config.subsample_every, config.subsample_iterations)
    return _core.TrustRegionUpdate(
        max_kl=config.max_kl,
        damping=damping,
        cg_iterations=config.cg_iterations,
        solver=solver,
        preconditioner=preconditioner,
        line_search=line_search,
        normalize_advantages=True,
        fisher=config.fisher,
        curvature_fraction=config.curvature_fraction,
        log_std_min=config.log_std_min,
    )


class _Signals(AbstractContextManager["_Signals"]):
    """Notes SIGINT and SIGTERM for as long as it is entered; a second one interrupts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


def _environment(identity: Mapping[str, Any], env: EnvironmentLike | None) -> EnvironmentLike:
    """`env`, or what `Agent._identity` says of it."""
    if env is not None:
        return env
    name = identity["env_id"]
    if not isinstance(name, str) or ":" in name:
        # gymnasium imports what is before a colon, which a file shall not make it do.
        raise ValueError(f"its environment {name!r} has to be passed as `env`")
    return name


def _check_progress(progress: Mapping[str, Any]) -> None:
    """Refuses what `Agent._progress` cannot have written."""

    def check(name: str, value: Any, kinds: tuple[type, ...], low: float = -math.inf) -> None:
        # JSON's true would pass for 1, and Python reads NaN and Infinity too.
        if type(value) not in kinds or not low <= value < 2**63:
            raise ValueError(f"its {name} is {value!r}")

    for name in _COUNTS:
        check(name, progress[name], (int,), 0)
    check("seconds", progress["seconds"], (int, float), 0)
    for episode in progress["recent_episodes"]:
        total, length, end = episode
        check("recent_episodes", total, (int, float))
        check("recent_episodes", length, (int,), 1)
        check("recent_episodes", end, (int, float))
    if len(progress["replay_lengths"]) != progress["n_envs"]:
        raise ValueError(f"its replay_lengths are {progress['replay_lengths']!r}")
    for length in progress["replay_lengths"]:
        if length is not None:
            check("replay_lengths", length, (int,), 0)


_COUNTS = (
    "num_timesteps",
    "num_updates",
    "num_episodes",
    "failures",
    "rng_counter",
    "moments_count",
    "moments_rejected",
    "n_envs",
)


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
