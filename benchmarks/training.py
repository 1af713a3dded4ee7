"""One training run, summarised in a row."""

import statistics
from typing import Any

import natgrad
from benchmarks.harness import Row
from natgrad.agents.agent import Agent
from natgrad.agents.config import TRPOConfig
from natgrad.rollouts.environments import EnvironmentLike


def train(env: EnvironmentLike, steps: int, options: dict[str, Any], seed: int) -> Row:
    """Trains TRPO once and summarises how it began, how it ended and how its systems were solved.

    Args:
        env: as for `natgrad.TRPO`.
        steps: environment steps.
        options: of `natgrad.agents.TRPOConfig`.
        seed: of everything.

    Returns:
        initial: mean return of the episodes in the first update; final: of those that finished in
        the last fifth; products: Fisher products of an update; damping_used: its median; accepted:
        the fraction of updates; seconds; curve: mean return in each tenth, as text.
    """
    returns: list[tuple[int, float]] = []  # steps so far, return of an episode
    logs: list[dict[str, Any]] = []

    def note(agent: Agent, log: Any) -> None:
        returns.extend((agent.num_timesteps, e.total_reward) for e in agent.last_episodes)
        logs.append(dict(log))

    agent = natgrad.TRPO(env, TRPOConfig(seed=seed, **options))
    agent.learn(steps, callback=note)
    seconds = agent.training_seconds
    agent.close()
    first = returns[0][0]
    late = agent.num_timesteps * 4 // 5
    tenths = [
        [r for t, r in returns if (10 * t - 1) // agent.num_timesteps == i] for i in range(10)
    ]
    return {
        "initial": round(statistics.mean(r for t, r in returns if t == first), 2),
        "final": round(statistics.mean(r for t, r in returns if t > late), 2),
        "products": round(statistics.mean(log["train/cg_products"] for log in logs), 2),
        "damping_used": float(f"{statistics.median(log['train/damping'] for log in logs):.3g}"),
        "accepted": round(statistics.mean(log["train/is_line_search_success"] for log in logs), 3),
        "seconds": round(seconds, 1),
        "curve": " ".join(f"{statistics.mean(tenth):.1f}" if tenth else "nan" for tenth in tenths),
    }
