"""Returns on the tasks of docs/results.md: presets, defaults, sb3-contrib with RL Zoo's settings.

    python benchmarks/returns.py [--task ...] [--side preset default zoo envpool] [--seeds 5]
    python benchmarks/returns.py --report [--picture FILE]

Trains every task with every side and seed, each run in a process of its own with one thread, seed
by seed, so that a study that is ended early is an even one. A row has the mean return of the last
100 training episodes, which are stochastic, that of 100 deterministic episodes in environments of
their own (seeds that no training has seen), and the learning curve: at each of 50 equal parts of
the training its mean return and the seconds so far. Seconds are the process's own: with its one
thread they are those of the clock on an idle machine, and other work does not count. The output is
a CSV; rows that it holds already are not run again.

--report prints the tables: interquartile means over seeds with 95 % bootstrap intervals, and the
time to a return: seconds until the mean training return of a fiftieth of the run, averaged over
seeds, first reaches what sb3-contrib's was in the last tenth of its budget.

sb3-contrib's side needs natgrad[sb3]; its settings are those of RL Zoo's trpo.yml, observations and
rewards normalised where it says so. EnvPool's side needs natgrad[envpool]; the seconds of its
threads count as well.
"""

import argparse
import csv
import os
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import natgrad
from natgrad.agents.statistics import bootstrap_interval, interquartile_mean

# Environment steps, and the best published return of TRPO or NPG after as many.
TASKS: dict[str, tuple[int, float]] = {
    "CartPole-v1": (100_000, 500),
    "Pendulum-v1": (100_000, -174),
    "Acrobot-v1": (100_000, -83),
    "MountainCar-v0": (100_000, -107),
    "MountainCarContinuous-v0": (50_000, 92),
    "LunarLanderContinuous-v3": (200_000, 262),
    "InvertedDoublePendulum-v5": (1_000_000, 9243),
    "HalfCheetah-v5": (1_000_000, 4470),
    "Hopper-v5": (1_000_000, 3600),
    "Walker2d-v5": (1_000_000, 4900),
    "Ant-v5": (1_000_000, 4900),
    "Swimmer-v5": (1_000_000, 365),
    "Humanoid-v5": (1_000_000, 810),
    "Reacher-v5": (1_000_000, -4.5),
}
# RL Zoo's settings for sb3-contrib's TRPO, hyperparams/trpo.yml of 2026-04-23: what differs from
# sb3-contrib's defaults. Every task has two environments in turn.
MUJOCO = {"normalize": True, "n_steps": 1024, "batch_size": 128, "cg_max_steps": 25,
          "n_critic_updates": 20}  # fmt: skip
ZOO: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"n_steps": 512, "batch_size": 512, "cg_damping": 1e-3, "gae_lambda": 0.98,
                    "n_critic_updates": 20},
    "Pendulum-v1": {"n_steps": 1024, "gamma": 0.9, "n_critic_updates": 15, "use_sde": True,
                    "sde_sample_freq": 4},
    "Acrobot-v1": {"normalize": True, "n_steps": 1024},
    "MountainCar-v0": {"normalize": True, "n_steps": 1024, "n_critic_updates": 20},
    "MountainCarContinuous-v0": {"normalize": True, "use_sde": True, "sde_sample_freq": 4},
    "LunarLanderContinuous-v3": {"normalize": True, "n_steps": 1024, "n_critic_updates": 20},
    "HalfCheetah-v5": {**MUJOCO, "target_kl": 0.04},
    "Swimmer-v5": {**MUJOCO, "gamma": 0.9999},
}  # fmt: skip
LABELS = {"preset": "natgrad", "default": "natgrad, defaults", "zoo": "sb3-contrib, RL Zoo",
          "envpool": "natgrad on EnvPool"}  # fmt: skip
PARTS = 50
LAST = 5  # parts that are the end of a run
COLUMNS = ["task", "side", "seed", "steps", "training", "evaluation", "evaluation_std", "seconds",
           "curve", "clock"]  # fmt: skip
Row = dict[str, Any]
Run = tuple[str, str, int]
Episodes = list[tuple[int, float, float]]  # steps so far, seconds so far, return


def ours(task: str, steps: int, seed: int, agent: natgrad.TRPO) -> Row:
    """One run of natgrad."""
    episodes: Episodes = []
    began = time.process_time()

    def note(agent: natgrad.Agent, log: Any) -> None:
        now = time.process_time() - began
        episodes.extend((agent.num_timesteps, now, e.total_reward) for e in agent.last_episodes)

    agent.learn(steps, callback=note)
    evaluation = natgrad.evaluate(agent, episodes=100, seed=10_000 + seed)
    agent.close()
    return summary(agent.num_timesteps, episodes, evaluation.returns)


def with_preset(task: str, steps: int, seed: int) -> Row:
    """One run of natgrad as it comes."""
    return ours(task, steps, seed, natgrad.TRPO(task, seed=seed))


def with_envpool(task: str, steps: int, seed: int) -> Row:
    """One run of natgrad as it comes, but for who steps the environments."""
    return ours(task, steps, seed, natgrad.TRPO(task, seed=seed, stepper="envpool"))


def with_defaults(task: str, steps: int, seed: int) -> Row:
    """One run of natgrad with the defaults for everything that has no preset."""
    return ours(task, steps, seed, natgrad.TRPO(task, natgrad.TRPOConfig(seed=seed)))


def zoo(task: str, steps: int, seed: int) -> Row:
    """One run of sb3-contrib with RL Zoo's settings."""
    import torch
    from sb3_contrib import TRPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    class Note(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            now = time.process_time() - began
            for info in self.locals["infos"]:
                if "episode" in info:
                    episodes.append((self.num_timesteps, now, float(info["episode"]["r"])))
            return True

    torch.set_num_threads(1)
    options = dict(ZOO.get(task, MUJOCO))
    normalize = options.pop("normalize", False)
    environments, unseen = (
        make_vec_env(task, 2, seed=seed),
        make_vec_env(task, 1, seed=10_000 + seed),
    )
    if normalize:
        gamma = options.get("gamma", 0.99)
        environments = VecNormalize(environments, gamma=gamma)
        unseen = VecNormalize(unseen, gamma=gamma, training=False, norm_reward=False)
        unseen.obs_rms = environments.obs_rms
    episodes: Episodes = []
    model = TRPO("MlpPolicy", environments, seed=seed, device="cpu", **options)
    began = time.process_time()
    model.learn(steps, callback=Note())
    returns, _ = evaluate_policy(model, unseen, 100, return_episode_rewards=True)
    environments.close()
    unseen.close()
    return summary(model.num_timesteps, episodes, np.array(returns))


SIDES: dict[str, Callable[[str, int, int], Row]] = {
    "preset": with_preset,
    "default": with_defaults,
    "zoo": zoo,
    "envpool": with_envpool,
}


def summary(steps: int, episodes: Episodes, evaluation: NDArray[np.float64]) -> Row:
    """The numbers of one run."""
    at, seconds, returns = np.array(episodes).T
    part = np.minimum((at - 1) * PARTS // steps, PARTS - 1)
    parts = [part == k for k in range(PARTS)]
    curve = [returns[here].mean() if here.any() else np.nan for here in parts]
    clock = [seconds[here].max() if here.any() else np.nan for here in parts]
    return {
        "steps": steps,
        "training": round(float(returns[-100:].mean()), 2),
        "evaluation": round(float(evaluation.mean()), 2),
        "evaluation_std": round(float(evaluation.std()), 2),
        "seconds": round(float(seconds[-1]), 2),
        "curve": " ".join(f"{value:.4g}" for value in curve),
        "clock": " ".join(f"{value:.4g}" for value in clock),
    }


def run(job: Run, length: float) -> Row:
    """One row, in a process of its own."""
    warnings.simplefilter("ignore")
    natgrad.set_num_threads(1)
    task, side, seed = job
    return {
        **dict(zip(COLUMNS, job, strict=False)),
        **SIDES[side](task, int(TASKS[task][0] * length), seed),
    }


def read(path: Path) -> list[Row]:
    """The rows of a CSV file, none if it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_all(
    run: Callable[[Run], Row],
    todo: list[Run],
    jobs: int,
    rows: list[Row],
    columns: list[str],
    output: Path,
) -> None:
    """Runs so many jobs at a time, each in a process of its own; the CSV grows row by row."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool,
        tqdm(total=len(todo), unit="run", disable=None) as bar,
    ):
        for future in as_completed([pool.submit(run, job) for job in todo]):
            rows.append(future.result())
            bar.update()
            with output.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)


def numbers(text: str) -> NDArray[np.float64]:
    """A curve as it is written in a row."""
    return np.array([float(value) for value in text.split()])


def smooth(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve without its gaps: parts in which no episode ended go by those around them."""
    known = np.flatnonzero(np.isfinite(curve))
    return np.interp(np.arange(len(curve)), known, curve[known])


def seconds_to(rows: list[Row], target: float) -> float | None:
    """Seconds until the curve, averaged over seeds, reaches a return; None if it never does."""
    curve = np.mean([smooth(numbers(row["curve"])) for row in rows], axis=0)
    clock = np.mean([smooth(numbers(row["clock"])) for row in rows], axis=0)
    reached = np.flatnonzero(curve >= target)
    return float(clock[reached[0]]) if len(reached) else None


def report(rows: list[Row]) -> str:
    """The tables of docs/results.md, in Markdown."""

    def of(task: str, side: str) -> list[Row]:
        return [row for row in rows if (row["task"], row["side"]) == (task, side)]

    def cell(task: str, side: str, column: str) -> str:
        mine = of(task, side)
        if not mine:
            return "–"
        values = np.array([float(row[column]) for row in mine])
        low, high = bootstrap_interval([values])
        digits = 1 if abs(values.mean()) < 1000 else 0
        middle = interquartile_mean(values)
        return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    lines = ["| task | steps | wanted | training | evaluation | s | evaluation, defaults "
             "| evaluation, sb3-contrib | s |", "|---|" + "---:|" * 8]  # fmt: skip
    for task, (steps, wanted) in TASKS.items():
        seconds = [
            f"{statistics.median(float(row['seconds']) for row in of(task, side)):.1f}"
            if of(task, side) else "–"
            for side in ("preset", "zoo")
        ]  # fmt: skip
        lines.append(
            f"| {task} | {steps // 1000} k | {wanted:g} | {cell(task, 'preset', 'training')} "
            f"| {cell(task, 'preset', 'evaluation')} | {seconds[0]} "
            f"| {cell(task, 'default', 'evaluation')} | {cell(task, 'zoo', 'evaluation')} "
            f"| {seconds[1]} |"
        )
    lines += ["", "| task | return that sb3-contrib ends with | its seconds | natgrad's | ratio "
              "| on EnvPool | ratio |", "|---|" + "---:|" * 6]  # fmt: skip
    for task in TASKS:
        theirs = of(task, "zoo")
        if not theirs:
            continue
        target = float(np.mean([smooth(numbers(row["curve"]))[-LAST:] for row in theirs]))
        first = seconds_to(theirs, target)
        assert first is not None  # no mean exceeds all that it is of
        cells = [f"{target:.4g}", f"{first:.1f}"]
        for side in ("preset", "envpool"):
            mine = of(task, side)
            ours = seconds_to(mine, target) if mine else None
            if ours is not None:
                cells += [f"{ours:.2f}", f"{first / ours:.1f}"]
            else:
                cells += ["not reached" if mine else "–", ""]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Training return against environment steps, a panel for each task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    figure = Figure(figsize=(13, 2.6 * -(-len(tasks) // 4) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-len(tasks) // 4), 4, squeeze=False).ravel()
    for axis in panels[len(tasks) :]:
        axis.set_axis_off()
    for axis, task in zip(panels, tasks, strict=False):
        for k, side in enumerate(SIDES):
            mine = [row for row in rows if (row["task"], row["side"]) == (task, side)]
            if not mine:
                continue
            curves = np.array([smooth(numbers(row["curve"])) for row in mine]).T
            steps = (np.arange(PARTS) + 0.5) / PARTS * float(mine[0]["steps"])
            low, high = bootstrap_interval([curves])
            axis.fill_between(steps, low, high, alpha=0.2, linewidth=0, color=f"C{k}")
            axis.plot(steps, interquartile_mean(curves), color=f"C{k}", label=LABELS[side])
        axis.axhline(TASKS[task][1], color="gray", linewidth=0.8, linestyle="--")
        axis.set_title(task, fontsize="medium")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    labels = {
        label: line
        for axis in panels
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels, loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel("environment steps")
    figure.supylabel("return of training episodes")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Runs what is not in the output yet, then prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--side", nargs="+", choices=SIDES, default=["preset", "default"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--length", type=float, default=1.0, help="part of the full length")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    parser.add_argument("--picture", type=Path, help="draw the learning curves")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/returns.csv"))
    options = parser.parse_args()
    rows = read(options.output)
    done = {(row["task"], row["side"], int(row["seed"])) for row in rows}
    todo = [
        job
        for seed in range(options.seeds)
        for task in options.task
        for side in options.side
        if (job := (task, side, seed)) not in done
    ]
    if not options.report:
        run_all(
            partial(run, length=options.length), todo, options.jobs, rows, COLUMNS, options.output
        )
    print(report(rows))
    if options.picture is not None:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
