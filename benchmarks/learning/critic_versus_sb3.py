"""The critic's fit against ten epochs of minibatch Adam, as sb3-contrib's TRPO fits its own.

    pip install 'natgrad[sb3,mujoco]' && python -m benchmarks.learning.critic_versus_sb3

A policy learns HalfCheetah-v5 with natgrad's defaults, in rollouts of two whole episodes. Two
critics of 64-64 tanh follow on the same normalised observations: natgrad's, fitted by its default,
and sb3-contrib's network with its optimiser, minibatches of 128 and epochs. Each fits targets by
its own values (lambda returns), as in training. Fits and policy updates are timed in turn.

Each critic predicts a rollout before it fits it. The prediction is compared with its targets, as
both libraries log it, and with the discounted sum of the rewards to the end of the episode, for the
steps with at least 300 more to come. These sums hold the noise of all actions to come and leave
less to explain, but they are the same for both critics.
"""

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import natgrad
from benchmarks import harness
from natgrad import bench
from natgrad.rollouts.environments import Environments
from natgrad.rollouts.normalization import RunningMoments
from natgrad.rollouts.rollout import collect

with harness.needs("natgrad[sb3,mujoco]"):
    import sb3_contrib
    import torch

TASK = "HalfCheetah-v5"
EPISODE, EPISODES = 1000, 2
AHEAD = 300  # steps; 0.99^300 is 5 %
GAMMA, LAMBDA = 0.99, 0.95


class Theirs:
    """The value network, optimiser and epochs of sb3-contrib's TRPO with its defaults."""

    def __init__(self, seed: int) -> None:
        steps = EPISODE * EPISODES
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        self.model: Any = sb3_contrib.TRPO(
            "MlpPolicy", TASK, seed=seed, n_steps=steps, device="cpu"
        )

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        """(N,) values."""
        with torch.no_grad():
            values = self.model.policy.predict_values(torch.as_tensor(rows, dtype=torch.float32))
        return np.asarray(values.numpy().ravel())

    def fit(self, rows: NDArray[Any], targets: NDArray[Any]) -> None:
        """Its epochs over a rollout buffer with these contents."""
        model, buffer = self.model, self.model.rollout_buffer
        buffer.reset()
        buffer.observations[:, 0], buffer.returns[:, 0], buffer.full = rows, targets, True
        for _ in range(model.n_critic_updates):
            for data in buffer.get(model.batch_size):
                values = model.policy.predict_values(data.observations).flatten()
                loss = torch.nn.functional.mse_loss(data.returns, values)
                model.policy.optimizer.zero_grad()
                torch.autograd.backward(loss)
                model.policy.optimizer.step()

    def check(self, rows: NDArray[Any]) -> None:
        """Compares its values with those of a natgrad.ValueFunction with the same parameters."""
        net = self.model.policy.mlp_extractor.value_net
        tensors = [
            tensor
            for layer in (net[0], net[2], self.model.policy.value_net)
            for tensor in layer.parameters()
        ]
        ours = natgrad.ValueFunction(rows.shape[1])
        ours.parameters = np.concatenate([t.detach().numpy().ravel() for t in tensors])
        worst = float(np.abs(ours.predict(rows) - self.predict(rows)).max())
        print(f"largest difference of the same network's values {worst:.1e}")
        if worst > 1e-4:
            raise SystemExit("the two do not compute the same thing; no times are shown")


FAR = np.tile(np.arange(EPISODE) < EPISODE - AHEAD, EPISODES)  # from the end


def explained(values: NDArray[Any], truth: NDArray[Any]) -> float:
    """1 - Var(truth - values) / Var(truth)."""
    return float(1 - np.var(truth - values) / np.var(truth))


def discounted(rewards: NDArray[Any]) -> NDArray[Any]:
    """Discounted sums of rewards to the end of each episode."""
    sums = rewards.reshape(EPISODES, EPISODE).copy()
    for t in range(EPISODE - 2, -1, -1):
        sums[:, t] += GAMMA * sums[:, t + 1]
    return np.asarray(sums.ravel())


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds and result of a call, after a pause."""
    results: list[Any] = []
    return harness.timed(lambda: results.append(call(*arguments)), harness.PAUSE), results[0]


def follow(seed: int, rollouts: int) -> list[dict[str, float]]:
    """One run: seconds and explained variances for each rollout."""
    environments = Environments(TASK, seed=seed)
    policy = natgrad.Policy.for_spaces(
        environments.observation_space, environments.action_space, seed=seed
    )
    critic = natgrad.ValueFunction(policy.observation_size, seed=seed + 1)
    update, fit = natgrad.TrustRegionUpdate(), natgrad.GaussNewtonFit()
    moments, rng, theirs = RunningMoments(policy.observation_size), natgrad.Rng(seed), Theirs(seed)
    found = []
    for k in range(rollouts):
        rollout = collect(policy, environments, EPISODE * EPISODES, rng)
        mean, std, clip = policy.normalizer
        rows = np.clip((rollout.observations[:, 0] - mean) / std, -clip, clip).astype(np.float32)
        finals = np.clip((rollout.final_observations - mean) / std, -clip, clip)
        if k == seed == 0:
            theirs.check(rows[:-1])

        def targets(
            predict: Any, rows: Any = rows, finals: Any = finals, rollout: Any = rollout
        ) -> Any:
            values = np.asarray(predict(rows), dtype=np.float64)[:, None]
            following = values[1:].copy()
            following[rollout.final_index] = predict(finals)
            advantages, returns = natgrad.gae(
                rollout.rewards, values[:-1], following,
                rollout.terminated, rollout.truncated, GAMMA, LAMBDA,
            )  # fmt: skip
            return advantages.ravel(), returns.ravel(), values[:-1].ravel()

        own = natgrad.ValueFunction(policy.observation_size)
        own.parameters, own.target_scale = critic.parameters, critic.target_scale
        advantages, returns, values = targets(own.predict)
        _, their_returns, their_values = targets(theirs.predict)
        truth = discounted(rollout.rewards[:, 0])
        observations = rollout.observations[:-1, 0]
        batch = natgrad.Batch(
            observations, rollout.actions[:, 0], (advantages - advantages.mean()) / advantages.std()
        )
        update_s, report = timed(update, policy, batch)
        ours_s, fitted = timed(fit, critic, observations, returns)
        theirs_s, _ = timed(theirs.fit, rows[:-1], their_returns)
        if not fitted.accepted or not np.isfinite(report.kl):
            raise SystemExit(f"a fit or an update failed: {fitted.message}; {report.message}")
        found.append(
            {
                "update": update_s,
                "ours": ours_s,
                "theirs": theirs_s,
                "ours targets": explained(values, returns),
                "theirs targets": explained(their_values, their_returns),
                "ours rewards": explained(values[FAR], truth[FAR]),
                "theirs rewards": explained(their_values[FAR], truth[FAR]),
            }
        )
        moments.update(observations)
        for network in (policy, critic):
            network.set_normalizer(moments.mean, moments.std, 10.0)
    environments.close()
    return found


def main() -> None:
    """Follows some runs and prints medians, spread and verdicts."""
    parser = harness.parser(__doc__, threads=2, seeds=5)
    parser.add_argument("--torch-threads", type=int, default=1, help="number of torch's threads")
    parser.add_argument("--rollouts", type=int, default=25, help="of a run")
    options = harness.parse(parser, {"seeds": 2, "rollouts": 3, "threads": 1})
    torch.set_num_threads(options.torch_threads)
    harness.announce(libraries=("sb3-contrib", "torch"))
    print(f"{options.torch_threads} thread(s) of torch; {EPISODE * EPISODES} steps")
    runs = [follow(seed, options.rollouts) for seed in range(options.seeds)]
    rows = [row for run in runs for row in run[1:]]  # the first call allocates

    def line(name: str, values: list[float], unit: str, wanted: str) -> None:
        median, *_ = bench.quantiles(values)
        print(f"{name:42} {median:8.2f} {unit:3} ({harness.spread(values)}){wanted}")

    for name, key in (
        ("policy update", "update"),
        ("natgrad's fit", "ours"),
        ("ten epochs of Adam", "theirs"),
    ):
        line(name, [1e3 * row[key] for row in rows], "ms", "")
    line("fit / policy update", [row["ours"] / row["update"] for row in rows], "", "; wanted <= 2")
    line("ten epochs / fit", [row["theirs"] / row["ours"] for row in rows], "", "; wanted >= 10")
    print("explained variance of rollouts not yet seen, median of a run, mean over seeds:")
    for what, meaning in (("targets", "own lambda returns"), ("rewards", "discounted rewards")):
        ours, theirs = (
            [statistics.median(row[f"{who} {what}"] for row in run[1:]) for run in runs]
            for who in ("ours", "theirs")
        )
        apart = [a - b for a, b in zip(ours, theirs, strict=True)]
        error = statistics.stdev(apart) / len(apart) ** 0.5
        print(
            f"  {meaning:20} natgrad {statistics.mean(ours):.3f}, "
            f"Adam {statistics.mean(theirs):.3f}; "
            f"difference {statistics.mean(apart):+.3f} (standard error {error:.3f})"
        )


if __name__ == "__main__":
    main()
