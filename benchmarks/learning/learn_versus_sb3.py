"""Training end to end, in environment steps per second, against sb3-contrib's TRPO.

    pip install sb3-contrib 'gymnasium[mujoco]' && python benchmarks/learn_versus_sb3.py

One environment, the settings of sb3-contrib's defaults on both sides: two networks of 64-64 tanh,
2048 steps per update, 15 conjugate gradient iterations, discount 0.99, lambda 0.95, observations as
they are. Bound and damping are converted to sb3-contrib's convention, which averages the divergence
over action dimensions. sb3-contrib fits its critic by ten epochs of Adam in minibatches of 128;
natgrad runs once with its own default fit and once with the same epochs of Adam.

First the two policies are given the same parameters and have to agree on log probabilities; torch
gets the number of threads it is faster with. Then each learns for some updates in turn, with the
same environment stepped by random actions in between: that cost is a floor which both share.
"""

import argparse
import statistics
import time
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import torch

import natgrad

STEPS = 2048  # per update
PAUSE = 0.05  # seconds before each timing, for idle OpenMP threads of torch to stop spinning
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
            natgrad.TRPOConfig(
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
    """Same parameters, same log probabilities; or an end to everything."""
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
    time.sleep(PAUSE)
    began = time.perf_counter()
    model.learn(STEPS * updates, reset_num_timesteps=False)
    return (time.perf_counter() - began) / (STEPS * updates)


def learn_ours(agent: natgrad.TRPO, updates: int) -> dict[str, float]:
    """Seconds per step, as a whole and in parts."""
    logs: list[dict[str, Any]] = []
    time.sleep(PAUSE)
    began = time.perf_counter()
    agent.learn(STEPS * updates, callback=lambda _, log: logs.append(dict(log)))
    seconds = {"all": time.perf_counter() - began}
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
    bare, sb3, natgrad_s = [], [], {name: [] for name in ours}  # type: ignore[var-annotated]
    for _ in range(rounds):
        sb3.append(learn_theirs(theirs, updates))
        bare.append(environment_alone(task, STEPS))
        for name, agent in ours.items():
            natgrad_s[name].append(learn_ours(agent, updates))

    def micro(values: list[float]) -> float:
        return 1e6 * statistics.median(values)

    print(f"  {'microseconds per step':24} {'all':>7} {'rollout':>8} {'update':>7} {'critic':>7}")
    print(f"  {'environment alone':24} {micro(bare):7.1f}")
    print(f"  {f'sb3-contrib, {best} thread(s)':24} {micro(sb3):7.1f}")
    for name, runs in natgrad_s.items():
        parts = [
            micro([run[part] for run in runs]) for part in ("all", "rollout", "update", "critic")
        ]
        print(f"  {name:24} {parts[0]:7.1f} {parts[1]:8.1f} {parts[2]:7.1f} {parts[3]:7.1f}")
    for name, runs in natgrad_s.items():
        ratios = [a / b["all"] for a, b in zip(sb3, runs, strict=True)]
        tenths = statistics.quantiles(ratios, n=10)
        print(
            f"  {name}: {1e6 / micro([run['all'] for run in runs]):.0f} steps/s, "
            f"{statistics.median(ratios):.1f} times sb3-contrib's {1e6 / micro(sb3):.0f} "
            f"(10 to 90 %: {tenths[0]:.1f} to {tenths[-1]:.1f}; wanted {WANTED.get(task, 1)})"
        )
    floor = [a / b for a, b in zip(sb3, bare, strict=True)]
    print(f"  the environment alone: {statistics.median(floor):.1f} times; no learner can do more")


def main() -> None:
    """Measures each task."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tasks", nargs="+", default=list(WANTED))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--updates", type=int, default=1, help="of each side in a round")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    natgrad.set_num_threads(options.threads)
    print(f"natgrad {natgrad.show_config()['isa']}, {options.threads} threads, float32; ", end="")
    print(f"sb3-contrib {sb3_contrib.__version__}, torch {torch.__version__}")
    for task in options.tasks:
        measure(task, options.rounds, options.updates, options.threads)


if __name__ == "__main__":
    main()
