"""Do the agents learn? CartPole-v1 and HalfCheetah-v5, several seeds, with the presets.

    python benchmarks/learning.py [--output benchmarks/results/learning.csv]

CartPole-v1: five seeds of 100 000 steps, each evaluated over 100 episodes; wanted is a mean of at
least 475 from every one. HalfCheetah-v5: three seeds of 300 000 steps; wanted is a mean of at least
1000 over the seeds. Exits with 1 if either is missed.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

from tqdm import tqdm

import natgrad

TASKS = {"CartPole-v1": (100_000, 5), "HalfCheetah-v5": (300_000, 3)}


def main() -> int:
    """Trains, prints a line for each seed and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/learning.csv"))
    options = parser.parse_args()
    rows = []
    runs = [(task, seed) for task, (_, seeds) in TASKS.items() for seed in range(seeds)]
    for task, seed in tqdm(runs, unit="run", disable=None):
        agent = natgrad.TRPO(task, seed=seed)
        start = time.perf_counter()
        agent.learn(TASKS[task][0])
        seconds = time.perf_counter() - start
        training = statistics.mean(episode.total_reward for episode in agent.recent_episodes)
        evaluation = natgrad.evaluate(agent, task, episodes=100, seed=10_000 + seed)
        agent.close()
        rows.append((task, seed, training, evaluation.mean, evaluation.std, seconds))
        tqdm.write(
            f"{task} seed {seed}: last 100 training episodes {training:.1f}, evaluation "
            f"{evaluation.mean:.1f} +- {evaluation.std:.1f}, {seconds:.1f} s"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "seed", "training", "evaluation", "evaluation_std", "seconds"])
        writer.writerows((*row[:2], *(round(value, 2) for value in row[2:])) for row in rows)
    means = {task: [row[3] for row in rows if row[0] == task] for task in TASKS}
    solved = sum(mean >= 475 for mean in means["CartPole-v1"])
    cheetah = statistics.mean(means["HalfCheetah-v5"])
    print(f"CartPole-v1: {solved} of {len(means['CartPole-v1'])} seeds at 475 or more")
    print(f"HalfCheetah-v5: mean {cheetah:.0f} over the seeds; wanted 1000")
    return 0 if solved == len(means["CartPole-v1"]) and cheetah >= 1000 else 1


if __name__ == "__main__":
    raise SystemExit(main())
