"""Collecting against stepping alone: what does the policy cost on top of the environment?

    pip install 'natgrad[mujoco,envpool]' && python -m benchmarks.learning.rollouts

On HalfCheetah-v5 and CartPole-v1, for each stepper and number of copies, in turn: the environments
are stepped with random actions that were drawn before, straight through the stepper; then a policy
of 64-64 tanh collects as many steps. Collecting includes everything that happens to a rollout
before an update: actions, log probabilities, values of all observations in one batch, advantages,
and the statistics of the normaliser. Before anything is timed, a rollout's shapes, log
probabilities, values and episodes are compared with what the policy and the rewards say. EnvPool's
rows need natgrad[envpool].

The last table has the time of `Policy.sample` for 1 and 8 observations (17-64-64-6, action and log
probability), called from Python.
"""

import functools
import importlib.util
import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray

import natgrad
from benchmarks import harness
from natgrad.rollouts.environments import Environments
from natgrad.rollouts.normalization import RunningMoments
from natgrad.rollouts.rollout import Rollout, collect

WANTED = {"HalfCheetah-v5": 0.80, "CartPole-v1": 0.45}
STEPS = {"HalfCheetah-v5": 2048, "CartPole-v1": 8192}  # a round of one stepper, over all copies
STEPPERS = {"gymnasium": (1, 8, 32), "envpool": (8, 32)}


class Collector:
    """Collects as an agent does, from the library's public pieces."""

    def __init__(self, task: str, stepper: Any, n_envs: int) -> None:
        self.environments = Environments(task, n_envs, stepper=stepper)
        spaces = self.environments.observation_space, self.environments.action_space
        self.policy = natgrad.Policy.for_spaces(*spaces)
        self.critic = natgrad.ValueFunction(self.policy.observation_size)
        self.moments = RunningMoments(self.policy.observation_size)
        self.rng = natgrad.Rng(0)
        self.steps = STEPS[task] // n_envs
        self.environments.action_space.seed(0)
        sample = self.environments.action_space.sample
        shape = (self.steps, n_envs)
        self._random = np.array([[sample() for _ in range(n_envs)] for _ in range(self.steps)])
        self._random = self._random.reshape(*shape, *self.environments.action_space.shape)
        size = self.policy.observation_size
        self._rows = np.empty((self.steps + 1, n_envs, size), np.float32)
        self._rewards = np.empty(shape)

    def act_randomly(self) -> None:
        """Steps the environments and does nothing else."""
        ends = np.zeros((2, *self._rewards.shape), np.bool_)
        for t, actions in enumerate(self._random):
            self.environments.step(
                actions, self._rows[t + 1], self._rewards[t], ends[0, t], ends[1, t]
            )

    def collect(self) -> tuple[Rollout, NDArray[Any]]:
        """A rollout with its values; advantages and the normaliser as well."""
        rollout = collect(self.policy, self.environments, self.steps, self.rng)
        rows = rollout.observations.reshape(-1, self.policy.observation_size)
        values = np.asarray(self.critic.predict(rows)).reshape(rollout.observations.shape[:2])
        following = values[1:].copy()
        if len(rollout.final_observations):
            following[rollout.final_index] = self.critic.predict(rollout.final_observations)
        natgrad.gae(rollout.rewards, values[:-1], following, rollout.terminated, rollout.truncated)
        self.moments.update(rows[: rollout.rewards.size])
        for network in (self.policy, self.critic):
            network.set_normalizer(self.moments.mean, self.moments.std, 10.0)
        return rollout, values

    def check(self) -> None:
        """Compares a rollout with what it has to be."""
        self.environments.begin()
        self.collect()  # so that the normaliser is no identity
        policy, critic = self.policy.copy(), self.critic.copy()
        rollout, values = self.collect()
        n, size = self.environments.num_envs, policy.observation_size
        wrong = []
        if rollout.observations.shape != (self.steps + 1, n, size):
            wrong.append(f"observations of shape {rollout.observations.shape}")
        for name in ("observations", "rewards", "log_probs"):
            if not np.isfinite(getattr(rollout, name)).all():
                wrong.append(f"{name} that are not finite")
        for i in range(n):
            rows, actions = rollout.observations[:-1, i], rollout.actions[:, i]
            expected = np.asarray(policy.log_prob(rows, actions))
            if np.abs(expected - rollout.log_probs[:, i]).max() > 1e-4:
                wrong.append("log probabilities that are not the policy's")
            expected = np.asarray(critic.predict(rollout.observations[:, i]))
            if np.abs(expected - values[:, i]).max() > 1e-4:
                wrong.append("values that are not the critic's")
        ended = int((rollout.terminated | rollout.truncated).sum())
        if len(rollout.episodes) != ended or not rollout.valid.all():
            wrong.append("episodes that do not end where they end")
        if wrong:
            raise SystemExit(f"the rollout has {wrong[0]}; no times are shown")


def rates(collector: Collector, steps: int) -> tuple[float, float]:
    """Steps per second with random actions, and of collecting."""
    random = steps / harness.timed(collector.act_randomly)
    collector.environments.abandon()
    collector.environments.begin()  # random actions are in nobody's history
    return random, steps / harness.timed(collector.collect)


def time_samples(rounds: int) -> None:
    """Microseconds of `Policy.sample` per call."""
    policy, rng = natgrad.Policy(17, natgrad.DiagonalGaussian(6)), natgrad.Rng(0)
    print(f"{'Policy.sample, 17-64-64-6':30} {'us per call':>12}")
    for n, wanted in ((1, 3), (8, 5)):
        rows = np.random.default_rng(0).normal(size=(n, 17)).astype(np.float32)
        actions, log_probs = policy.sample(rows, rng)
        if np.abs(np.subtract(policy.log_prob(rows, actions), log_probs)).max() > 1e-4:
            raise SystemExit("samples have the wrong log probabilities; no times are shown")
        calls = 5000

        def sample(rows: NDArray[Any] = rows, calls: int = calls) -> None:
            for _ in range(calls):
                policy.sample(rows, rng)

        runs = [1e6 * harness.timed(sample) / calls for _ in range(rounds)]
        print(
            f"{n:3} observations {statistics.median(runs):27.2f}  ({harness.spread(runs)}; ", end=""
        )
        print(f"wanted at most {wanted})")


def main() -> None:
    """Checks, measures in turn, prints medians and ratios."""
    parser = harness.parser(__doc__, rounds=15)
    parser.add_argument(
        "--task", nargs="+", choices=STEPS, default=list(STEPS), help="environments"
    )
    options = harness.parse(parser, {"rounds": 1, "task": ["CartPole-v1"]})
    harness.announce(libraries=("gymnasium", "mujoco", "envpool"))
    steppers = dict(STEPPERS)
    if importlib.util.find_spec("envpool") is None:
        print("envpool is not installed: pip install 'natgrad[envpool]' adds its rows")
        del steppers["envpool"]
    print(
        f"{'task':15} {'stepper':10} {'copies':>6} {'random steps/s':>15} "
        f"{'collecting steps/s':>19} {'ratio':>6}"
    )
    for task in options.task:
        collectors = {
            (stepper, n): Collector(task, stepper, n)
            for stepper, ns in steppers.items()
            for n in ns
        }
        for collector in collectors.values():
            collector.check()
        turns = {
            key: functools.partial(rates, collector, STEPS[task])
            for key, collector in collectors.items()
        }
        found = harness.take_turns(turns, rounds=options.rounds)
        random = {key: [pair[0] for pair in pairs] for key, pairs in found.items()}
        collecting = {key: [pair[1] for pair in pairs] for key, pairs in found.items()}
        for key in collectors:
            ratios = harness.ratios(collecting[key], random[key])
            print(
                f"{task:15} {key[0]:10} {key[1]:6} {statistics.median(random[key]):15.0f} "
                f"{statistics.median(collecting[key]):19.0f} {statistics.median(ratios):6.2f}  "
                f"({harness.spread(ratios)}; wanted {WANTED[task]:.2f})"
            )
        if "envpool" in steppers:
            for n in STEPPERS["envpool"]:
                gains = harness.ratios(collecting["envpool", n], collecting["gymnasium", n])
                print(
                    f"{task:15} {n} copies in EnvPool collect {statistics.median(gains):.2f} times "
                    f"what Gymnasium's do in turn ({harness.spread(gains)})"
                )
        for collector in collectors.values():
            collector.environments.close()
    time_samples(options.rounds)


if __name__ == "__main__":
    main()
