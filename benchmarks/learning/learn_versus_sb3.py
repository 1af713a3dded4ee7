"""Training end to end, in environment steps per second, against sb3-contrib's TRPO.

    pip install 'natgrad[sb3,mujoco]' && python -m benchmarks.learning.learn_versus_sb3

Both sides have one environment and the settings of sb3-contrib's defaults: two networks of 64-64
tanh, 2048 steps per update, 15 conjugate gradient iterations, discount 0.99, lambda 0.95, and
observations as they are. Bound and damping are converted to sb3-contrib's convention, which
averages the divergence over action dimensions. sb3-contrib fits its critic by ten epochs of Adam in
minibatches of 128; natgrad runs once with its default fit and once with the same epochs of Adam.

First the two policies are given the same parameters and have to agree on log probabilities; torch
gets the number of threads with which it is faster. Then each learns for some updates in turn, and
the same environment is stepped with random actions in between: both share that cost.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

import natgrad
from benchmarks import harness
from natgrad.agents.config import TRPOConfig

with harness.needs("natgrad[sb3,mujoco]"):
    import sb3_contrib
    import torch

STEPS = 2048  # per update
WANTED = {"HalfCheetah-v5": 8, "CartPole-v1": 15}
CRITICS: dict[str, dict[str, Any]] = {
    "natgrad": {},
    "natgrad, Adam critic": {
        "critic": "adam",
        "critic_epochs": 10,
        "critic_minibatch_size": 128,
        "critic_learning_rate": 1e-3,
    },
}


def build(task: str, seed: int) -> tuple[Any, dict[str, natgrad.TRPO]]:
    """sb3-contrib's model and ours, one for each critic, with the same settings."""
    env = gymnasium.make(task)
    shape = env.action_space.shape
    dimensions = shape[0] if shape else 1
    env.close()
    theirs = sb3_contrib.TRPO(
        "MlpPolicy",
        task,
        seed=seed,
        n_steps=STEPS,
        target_kl=0.01 / dimensions,
        cg_damping=0.1 / dimensions,
        device="cpu",
    )
    ours = {
        name: natgrad.TRPO(
            task,
            TRPOConfig(
                seed=seed,
                batch_size=STEPS,
                gamma=0.99,
                max_kl=0.01,
                damping=0.1,
                cg_iterations=theirs.cg_max_steps,
                preconditioner="none",
                normalize_observations=False,
                **critic,
            ),
        )
        for name, critic in CRITICS.items()
    }
    return theirs, ours


def check(theirs: Any, agent: natgrad.TRPO) -> None:
    """Compares log probabilities at the same parameters; ends the program if they differ."""
    net = theirs.policy.mlp_extractor.policy_net
    tensors = [
        t for layer in (net[0], net[2], theirs.policy.action_net) for t in layer.parameters()
    ]
    if hasattr(theirs.policy, "log_std"):
        tensors.append(theirs.policy.log_std)
    policy = agent.policy.copy()
    policy.parameters = np.concatenate([t.detach().numpy().ravel() for t in tensors])
    observations = np.random.default_rng(0).normal(size=(256, policy.observation_size))
    actions, log_probs = policy.sample(observations, natgrad.Rng(0))
    with torch.no_grad():
        _, expected, _ = theirs.policy.evaluate_actions(
            torch.as_tensor(observations, dtype=torch.float32), torch.as_tensor(actions)
        )
    worst = float(np.abs(expected.numpy() - log_probs).max())
    print(f"  largest difference of log probabilities {worst:.1e}, of parameter counts ", end="")
    print(sum(t.numel() for t in tensors) - len(policy.parameters))
    if worst > 1e-4:
        raise SystemExit("the two policies do not compute the same thing; no times are shown")


def environment_alone(task: str, steps: int) -> float:
    """Seconds per step of the environment with random actions that were drawn before."""
    env = gymnasium.make(task, disable_env_checker=True)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(steps)]
    env.reset(seed=0)
    began = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    seconds = time.perf_counter() - began
    env.close()
    return seconds / steps


def learn_theirs(model: Any, updates: int) -> float:
    """Seconds per step."""
    steps = STEPS * updates
    learn = functools.partial(model.learn, steps, reset_num_timesteps=False)
    return harness.timed(learn, harness.PAUSE) / steps


def learn_ours(agent: natgrad.TRPO, updates: int) -> dict[str, float]:
    """Seconds per step, as a whole and in parts."""
    logs: list[dict[str, Any]] = []

    def learn() -> None:
        agent.learn(STEPS * updates, callback=lambda _, log: logs.append(dict(log)))

    seconds = {"all": harness.timed(learn, harness.PAUSE)}
    for part in ("rollout", "update", "critic"):
        seconds[part] = sum(float(log[f"time/{part}"]) for log in logs)
    if not np.isfinite(agent.policy.parameters).all():
        raise SystemExit("natgrad's parameters are not finite")
    return {part: value / (STEPS * updates) for part, value in seconds.items()}


def measure(task: str, rounds: int, updates: int, threads: int) -> None:
    """One task, its table and its verdict."""
    print(f"{task}:")
    theirs, ours = build(task, seed=0)
    check(theirs, ours["natgrad"])
    trial = {}
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        learn_theirs(theirs, 1)
        trial[count] = learn_theirs(theirs, 2)
    best = min(trial, key=lambda count: trial[count])
    torch.set_num_threads(best)
    for agent in ours.values():
        learn_ours(agent, 5)  # both have learnt for as long
    turns: dict[str, Callable[[], dict[str, float]]] = {
        "sb3-contrib": lambda: {"all": learn_theirs(theirs, updates)},
        "environment": lambda: {"all": environment_alone(task, STEPS)},
    }
    turns |= {name: functools.partial(learn_ours, agent, updates) for name, agent in ours.items()}
    found = harness.take_turns(turns, rounds=rounds)
    sb3, bare = ([run["all"] for run in found[name]] for name in ("sb3-contrib", "environment"))

    def micro(values: list[float]) -> float:
        return 1e6 * statistics.median(values)

    print(f"  {'microseconds per step':24} {'all':>7} {'rollout':>8} {'update':>7} {'critic':>7}")
    print(f"  {'environment alone':24} {micro(bare):7.1f}")
    print(f"  {f'sb3-contrib, {best} thread(s)':24} {micro(sb3):7.1f}")
    for name in ours:
        parts = [
            micro([run[part] for run in found[name]])
            for part in ("all", "rollout", "update", "critic")
        ]
        print(f"  {name:24} {parts[0]:7.1f} {parts[1]:8.1f} {parts[2]:7.1f} {parts[3]:7.1f}")
    for name in ours:
        whole = [run["all"] for run in found[name]]
        ratios = harness.ratios(sb3, whole)
        print(
            f"  {name}: {1e6 / micro(whole):.0f} steps/s, "
            f"{statistics.median(ratios):.1f} times sb3-contrib's {1e6 / micro(sb3):.0f} "
            f"({harness.spread(ratios, 1)}; wanted {WANTED.get(task, 1)})"
        )
    floor = harness.ratios(sb3, bare)
    print(f"  the environment alone: {statistics.median(floor):.1f} times; no learner can do more")


def main() -> None:
    """Measures each task."""
    parser = harness.parser(__doc__, rounds=9, threads=2)
    parser.add_argument("--task", nargs="+", default=list(WANTED), help="environments")
    parser.add_argument("--updates", type=int, default=1, help="of each side in a round")
    quick = {"rounds": 1, "threads": 1, "task": ["CartPole-v1"]}
    options = harness.parse(parser, quick)
    harness.announce(libraries=("sb3-contrib", "torch"))
    for task in options.task:
        measure(task, options.rounds, options.updates, options.threads)


if __name__ == "__main__":
    main()
