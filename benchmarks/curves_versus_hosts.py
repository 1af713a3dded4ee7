"""Learning curves of sb3-contrib's TRPO and of the drop-in class: do they overlap?

    pip install 'natgrad[sb3,mujoco]' scipy
    python benchmarks/curves_versus_hosts.py --output curves.csv

Five seeds each of CartPole-v1, Pendulum-v1 and HalfCheetah-v5 with sb3-contrib's defaults, equal
seeds on both sides. A curve is the mean return of episodes in each tenth of the training. The test:
for each seed the area under the curve; Welch's two-sided t test on the areas of either side. Curves
count as overlapping if p > 0.05 and the means are within two standard errors of each other.
"""

import argparse
import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import sb3_contrib
import torch
from scipy import stats
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import natgrad.sb3

STEPS = {"CartPole-v1": 50_000, "Pendulum-v1": 100_000, "HalfCheetah-v5": 200_000}
SIDES = {"sb3-contrib": sb3_contrib.TRPO, "natgrad": natgrad.sb3.TRPO}


class Returns(BaseCallback):  # type: ignore[misc]
    """Steps and returns at the ends of episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.rows.append((self.num_timesteps, float(info["episode"]["r"])))
        return True


def curve(cls: Any, task: str, steps: int, seed: int) -> list[float]:
    """Mean returns of ten parts of a training."""
    record = Returns()
    model = cls("MlpPolicy", make_vec_env(task, seed=seed), seed=seed, device="cpu")
    model.learn(steps, callback=record)
    ends, returns = np.array(record.rows).T
    tenths = np.minimum((ends - 1) * 10 // steps, 9)
    found = np.unique(tenths)
    means = [float(returns[tenths == tenth].mean()) for tenth in found]
    return [float(mean) for mean in np.interp(range(10), found, means)]


def main() -> None:
    """Trains, prints the verdicts, writes the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="CSV file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[list[Any]] = []
    for task in options.tasks:
        areas: dict[str, list[float]] = {side: [] for side in SIDES}
        for seed in range(options.seeds):
            for side, cls in SIDES.items():
                means = curve(cls, task, STEPS[task], seed)
                areas[side].append(float(np.mean(means)))
                rows.append([task, side, seed, *(f"{mean:.2f}" for mean in means)])
        host, ours = areas["sb3-contrib"], areas["natgrad"]
        p = float(stats.ttest_ind(host, ours, equal_var=False).pvalue)
        error = float(np.hypot(stats.sem(host), stats.sem(ours)))
        apart = (np.mean(ours) - np.mean(host)) / error
        verdict = "overlap" if p > 0.05 and abs(apart) <= 2 else "differ"
        print(f"{task}: mean return, sb3-contrib {np.mean(host):.1f}, ", end="")
        print(f"natgrad {np.mean(ours):.1f}, ", end="")
        print(f"{apart:+.1f} standard errors, p = {p:.2f}: {verdict}", flush=True)
    if options.output:
        with options.output.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["task", "side", "seed", *(f"part_{i}" for i in range(10))])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
