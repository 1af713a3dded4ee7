"""Which fit of the critic predicts returns best? Gauss-Newton against minibatch Adam.

    python -m benchmarks.learning.critic_study [--seeds 8] [--output FILE]

A TRPO agent with the defaults learns each task for 30 rollouts, which are recorded. Every fit then
follows the same rollouts with a critic of its own, from the same initial parameters: it predicts a
rollout that it has not seen, takes its lambda returns as targets, and fits them. That pairs the
fits; returns of trained agents differ more between seeds than between fits.

The tables show which fraction of the variance of rollouts not yet seen a critic explains: of
discounted rewards, for steps whose episode terminates in the rollout or that have at least 600 more
to come, and of its own targets. They also show the standard deviation of its values in units of
that of discounted rewards, because own targets flatter a critic whose values hardly differ. Figures
are medians over a run and means over seeds; in brackets are the difference from the default and its
standard error. Runs that have a row in the output are not made again.
"""

import functools
import itertools
import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray

import natgrad
from benchmarks import harness
from natgrad.agents.agent import Agent
from natgrad.agents.config import TRPOConfig

TASKS = {"HalfCheetah-v5": 2000, "Hopper-v5": 2048, "CartPole-v1": 2048,
         "LunarLanderContinuous-v3": 2048}  # fmt: skip
ROLLOUTS = 30
GAMMA, LAMBDA = 0.995, 0.95
AHEAD = 600  # steps; 0.995^600 is 5 %
GAUSS_NEWTON, ADAM = natgrad.GaussNewtonFit, natgrad.AdamFit
FITS: dict[str, tuple[type, dict[str, Any]]] = {
    "default": (GAUSS_NEWTON, {}),
    "3 x 5": (GAUSS_NEWTON, {"steps": 3}),
    "10 x 5": (GAUSS_NEWTON, {"steps": 10}),
    "4 x 3": (GAUSS_NEWTON, {"cg_iterations": 3}),
    "4 x 10": (GAUSS_NEWTON, {"cg_iterations": 10}),
    "10 x 10": (GAUSS_NEWTON, {"steps": 10, "cg_iterations": 10}),
    "max change 0.1": (GAUSS_NEWTON, {"max_change": 0.1}),
    "damping 1": (GAUSS_NEWTON, {"damping": 1.0}),
    "adam, 10 epochs of 64": (ADAM, {}),
    "adam, 20 epochs of 128": (ADAM, {"epochs": 20, "minibatch_size": 128}),
}
KEYS, COLUMNS = ("task", "fit", "seed"), ("targets", "rewards", "spread")


class Recorder:
    """Keeps the rollouts of an agent in training, each with the normaliser it was seen through."""

    def __init__(self, agent: Agent) -> None:
        self.rollouts: list[tuple[Any, Any]] = []
        self._advantages = agent._advantages
        self._critic = agent.critic
        agent._advantages = self  # type: ignore[method-assign]

    def __call__(self, rollout: Any) -> Any:
        """As `Agent._advantages`."""
        self.rollouts.append((rollout, self._critic.normalizer))
        return self._advantages(rollout)


@functools.lru_cache(maxsize=1)  # every fit of a task and seed follows the same rollouts
def record(
    task: str, seed: int, rollouts: int
) -> tuple[natgrad.ValueFunction, list[tuple[Any, Any]]]:
    """A critic that has seen nothing, and the rollouts of a run with their normalisers."""
    agent = natgrad.TRPO(task, TRPOConfig(seed=seed, batch_size=TASKS[task]))
    critic, recorder = agent.critic.copy(), Recorder(agent)
    agent.learn(rollouts * TASKS[task])
    agent.close()
    return critic, recorder.rollouts


def explained(values: NDArray[Any], truth: NDArray[Any]) -> float:
    """1 - Var(truth - values) / Var(truth); NaN if there is too little to explain."""
    if len(truth) < 50 or np.var(truth) < 1e-12:
        return float("nan")
    return float(1 - np.var(truth - values) / np.var(truth))


def discounted(rollout: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Discounted sums of rewards to the end of each episode, and where they are complete."""
    rewards = rollout.rewards[:, 0]
    sums, complete = np.zeros(len(rewards)), np.zeros(len(rewards), np.bool_)
    total, ahead, terminates = 0.0, 0, False
    for t in range(len(rewards) - 1, -1, -1):
        if rollout.terminated[t, 0] or rollout.truncated[t, 0]:
            total, ahead, terminates = 0.0, 0, bool(rollout.terminated[t, 0])
        total, ahead = rewards[t] + GAMMA * total, ahead + 1
        sums[t], complete[t] = total, terminates or ahead >= AHEAD
    return sums, complete


def follow(critic: natgrad.ValueFunction, fit: Any, rollouts: list[tuple[Any, Any]]) -> list[float]:
    """Medians over a run of the explained variance of targets and rewards before they are fitted,
    and of the spread of values in units of that of the rewards."""
    found = []
    for rollout, normalizer in rollouts:
        critic.set_normalizer(*normalizer)
        observations = rollout.observations[:, 0]
        values = np.asarray(critic.predict(observations), np.float64)[:, None]
        following = values[1:].copy()
        if len(rollout.final_observations):
            following[rollout.final_index] = critic.predict(rollout.final_observations)
        _, targets = natgrad.gae(
            rollout.rewards,
            values[:-1],
            following,
            rollout.terminated,
            rollout.truncated,
            GAMMA,
            LAMBDA,
        )
        truth, complete = discounted(rollout)
        before = values[:-1, 0]
        known = explained(before[complete], truth[complete])
        spread = np.nan
        if np.isfinite(known):
            spread = float(np.std(before[complete]) / np.std(truth[complete]))
        found.append([explained(before, targets[:, 0]), known, spread])
        fit(critic, observations[:-1], targets[:, 0])
    columns = np.array(found[1:]).T  # the first critic has fitted nothing
    return [
        float(np.nanmedian(column)) if np.isfinite(column).any() else float("nan")
        for column in columns
    ]


def summarise(rows: list[harness.Row]) -> None:
    """Prints a table for each column: means over seeds, and differences from the default."""

    def of(task: str, fit: str, column: str) -> dict[int, float]:
        mine = [row for row in rows if (row["task"], row["fit"]) == (task, fit)]
        return {int(row["seed"]): float(row[column]) for row in mine}

    def cell(task: str, fit: str, column: str) -> str:
        values, default = of(task, fit, column), of(task, "default", column)
        if not values or not np.isfinite(list(values.values())).all():
            return "–"  # no step's rewards ahead are known
        text = f"{statistics.mean(values.values()):.3f}"
        apart = [values[seed] - default[seed] for seed in values if seed in default]
        if fit == "default" or len(apart) < 2:
            return text
        error = statistics.stdev(apart) / len(apart) ** 0.5
        return f"{text} ({statistics.mean(apart):+.3f}, {error:.3f})"

    for column in ("rewards", "spread", "targets"):
        print(f"\n| {column} | {' | '.join(TASKS)} |\n|---|{'---|' * len(TASKS)}")
        for fit in FITS:
            print(f"| {fit} | {' | '.join(cell(task, fit, column) for task in TASKS)} |")


def run(job: tuple[str, str, int], rollouts: int) -> list[harness.Row]:
    """The row of one fit."""
    task, fit, seed = job
    critic, recorded = record(task, seed, rollouts)
    kind, chosen = FITS[fit]
    found = follow(critic.copy(), kind(**chosen), recorded)
    values = (round(value, 4) for value in found)
    return [dict(zip(KEYS, job, strict=True)) | dict(zip(COLUMNS, values, strict=True))]


def main() -> None:
    """Runs what is not in the output yet, then prints the tables."""
    parser = harness.parser(__doc__, seeds=8, output=harness.RESULTS / "critic_study.csv")
    parser.add_argument(
        "--task", nargs="+", choices=TASKS, default=list(TASKS), help="environments"
    )
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS, help="of a run")
    quick = {"seeds": 1, "task": ["CartPole-v1"], "rollouts": 3, "output": None}
    options = harness.parse(parser, quick)
    study = harness.Study(options.output, KEYS, COLUMNS)
    jobs = itertools.product(range(options.seeds), options.task, FITS)
    todo = study.missing((task, fit, seed) for seed, task, fit in jobs)
    study.run(todo, functools.partial(run, rollouts=options.rollouts))
    summarise(study.rows)


if __name__ == "__main__":
    main()
