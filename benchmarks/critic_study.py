"""Which fit of the critic learns best, and what does it cost? Gauss-Newton against minibatch Adam.

    python benchmarks/critic_study.py [--seeds 3] [--output benchmarks/results/critic_study.csv]

Trains TRPO on CartPole-v1, Pendulum-v1 and HalfCheetah-v5 with each fit, in turn, and prints the
mean return of the last 20 training episodes, the mean return of 20 evaluation episodes, the seconds
that the critic took of a run, and the explained variance before each fit: on data that it has not
seen yet.
"""

import argparse
import csv
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

import natgrad

TASKS = {"CartPole-v1": 60_000, "Pendulum-v1": 100_000, "HalfCheetah-v5": 300_000}
FITS: dict[str, dict[str, Any]] = {
    "adam, 10 epochs of 64": {"critic": "adam"},
    "adam, 10 epochs of 256": {
        "critic": "adam",
        "critic_minibatch_size": 256,
        "critic_learning_rate": 2e-3,
    },
    "gauss-newton, 3 x 5": {"critic_steps": 3, "critic_cg_iterations": 5},
    "gauss-newton, 3 x 10": {"critic_steps": 3, "critic_cg_iterations": 10},
    "gauss-newton, 5 x 5": {"critic_steps": 5, "critic_cg_iterations": 5},
    "gauss-newton, 5 x 10": {"critic_steps": 5, "critic_cg_iterations": 10},
}
COLUMNS = ["task", "fit", "seed", "final", "evaluation", "critic_seconds", "explained_variance"]


def train(task: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run: what it reached and what its critic cost."""
    seconds, explained = [], []

    def note(_agent: natgrad.Agent, log: Any) -> None:
        seconds.append(float(log["time/critic"]))
        explained.append(float(log["train/explained_variance"]))

    agent = natgrad.TRPO(task, seed=seed, **options)
    agent.learn(TASKS[task], callback=note)
    last = [episode.total_reward for episode in list(agent.recent_episodes)[-20:]]
    evaluation = natgrad.evaluate(agent, task, episodes=20, seed=1000 + seed)
    agent.close()
    return {
        "task": task,
        "seed": seed,
        "final": round(statistics.mean(last), 2),
        "evaluation": round(evaluation.mean, 2),
        "critic_seconds": round(sum(seconds), 3),
        "explained_variance": round(statistics.median(explained), 4),
    }


def runs(seeds: int) -> Iterator[tuple[str, str, int]]:
    """All runs, with the fits in turn so that the machine's moods spread over them."""
    for seed in range(seeds):
        for task in TASKS:
            for fit in FITS:
                yield task, fit, seed


def summarise(rows: list[dict[str, Any]]) -> None:
    """Prints the means over seeds, a line for each task and fit."""
    print(
        f"{'task':15} {'fit':28} {'final':>9} {'evaluation':>11} {'critic s':>9} {'expl. var':>10}"
    )
    for task in TASKS:
        for fit in FITS:
            mine = [row for row in rows if (row["task"], row["fit"]) == (task, fit)]
            if mine:
                mean = {
                    key: statistics.mean(float(row[key]) for row in mine) for key in COLUMNS[3:]
                }
                print(
                    f"{task:15} {fit:28} {mean['final']:9.1f} {mean['evaluation']:11.1f} "
                    f"{mean['critic_seconds']:9.2f} {mean['explained_variance']:10.3f}"
                )


def main() -> None:
    """Runs the study; rows that the output holds already are not run again."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/critic_study.csv"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.output.exists():
        with options.output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(row["task"], row["fit"], int(row["seed"])) for row in rows}
    todo = [run for run in runs(options.seeds) if run not in done]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for task, fit, seed in tqdm(todo, unit="run", disable=None):
        rows.append({**train(task, FITS[fit], seed), "fit": fit})
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    summarise(rows)


if __name__ == "__main__":
    main()
