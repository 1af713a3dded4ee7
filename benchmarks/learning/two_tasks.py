"""Do the agents learn? CartPole-v1 and HalfCheetah-v5, several seeds, with the presets.

    python -m benchmarks.learning.two_tasks [--output FILE]

CartPole-v1 is trained for 100 000 steps with five seeds, each evaluated over 100 episodes, and the
mean of every one has to be at least 475. HalfCheetah-v5 is trained for 300 000 steps with three
seeds, and the mean over the seeds has to be at least 1000. Exits with 1 if one of them is not.
"""

import statistics

from tqdm import tqdm

import natgrad
from benchmarks import harness

TASKS = {"CartPole-v1": (100_000, 5), "HalfCheetah-v5": (300_000, 3)}


def train(task: str, steps: int, seed: int) -> harness.Row:
    """The row of one run."""
    agent = natgrad.TRPO(task, seed=seed)
    seconds = harness.timed(lambda: agent.learn(steps))
    training = statistics.mean(episode.total_reward for episode in agent.recent_episodes)
    evaluation = natgrad.evaluate(agent, task, episodes=100, seed=10_000 + seed)
    agent.close()
    numbers = {
        "training": training, "evaluation": evaluation.mean, "evaluation_std": evaluation.std,
        "seconds": seconds,
    }  # fmt: skip
    return {"task": task, "seed": seed} | {name: round(x, 2) for name, x in numbers.items()}


def main() -> int:
    """Trains, prints a line for each seed and the verdicts."""
    parser = harness.parser(__doc__, length=1.0, output=harness.RESULTS / "learning.csv")
    options = harness.parse(parser, {"length": 0.05, "output": None})
    harness.announce()
    rows = []
    runs = [(task, seed) for task, (_, seeds) in TASKS.items() for seed in range(seeds)]
    for task, seed in tqdm(runs, unit="run", disable=None):
        row = train(task, int(options.length * TASKS[task][0]), seed)
        rows.append(row)
        tqdm.write(
            f"{task} seed {seed}: last 100 training episodes {row['training']:.1f}, evaluation "
            f"{row['evaluation']:.1f} +- {row['evaluation_std']:.1f}, {row['seconds']:.1f} s"
        )
    harness.write_rows(options.output, rows)
    means = {task: [row["evaluation"] for row in rows if row["task"] == task] for task in TASKS}
    solved = sum(mean >= 475 for mean in means["CartPole-v1"])
    cheetah = statistics.mean(means["HalfCheetah-v5"])
    print(f"CartPole-v1: {solved} of {len(means['CartPole-v1'])} seeds at 475 or more")
    print(f"HalfCheetah-v5: mean {cheetah:.0f} over the seeds; wanted 1000")
    return 0 if solved == len(means["CartPole-v1"]) and cheetah >= 1000 else 1


if __name__ == "__main__":
    raise SystemExit(main())
