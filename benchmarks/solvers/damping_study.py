"""Damping, and how accurately to solve: what do they do to learning?

    python benchmarks/damping_study.py [--seeds 5] [--steps 1.0] [--output FILE]
    python benchmarks/damping_study.py --damping fixed-0.1 adaptive-0.1 --stopping ten three

Trains TRPO with every damping times every stopping rule, task by task and seed by seed, so that a
study that is ended early is an even one. The return of a run is the mean over the episodes that
finished in its last fifth; the CSV also has the mean return in each tenth. The table has
interquartile means over the seeds (Agarwal et al. 2021) and the 95 % interval of 2000 bootstrap
samples, the Fisher products of an update and the median damping. Over all tasks, the return is
counted from that of the first update, in units of what the first damping and stopping rule given
gained; samples are drawn within tasks.

The output is a CSV with a row for each run; rows that it holds already are not run again.
"""

import argparse
import csv
import itertools
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import natgrad
from natgrad.agents.statistics import bootstrap_interval, interquartile_mean
from natgrad.rollouts.environments import EnvironmentLike

TASKS = {
    "CartPole-v1": 60_000,
    "Pendulum-v1": 100_000,
    "Hopper-v5": 300_000,
    "HalfCheetah-v5": 300_000,
    "Walker2d-v5": 300_000,
    "Swimmer-v5": 300_000,
}
DAMPING: dict[str, dict[str, Any]] = {
    "fixed-0.1": {"damping": 0.1},
    "fixed-0.01": {"damping": 0.01},
    # The mean of F's diagonal is 0.02 to 0.04 on the MuJoCo tasks: 3 of it are 0.1.
    "trace-3": {"damping_mode": "trace", "damping": 3.0},
    "trace-0.3": {"damping_mode": "trace", "damping": 0.3},
    "adaptive-0.1": {"damping_mode": "adaptive", "damping": 0.1},
    "adaptive-0.1-floor-0.02": {
        "damping_mode": "adaptive",
        "damping": 0.1,
        "damping_min": 0.02,
    },
}
STOPPING: dict[str, dict[str, Any]] = {
    "ten": {"cg_iterations": 10},
    "one": {"cg_iterations": 1},
    "three": {"cg_iterations": 3},
    "residual-0.1": {"cg_iterations": 30, "cg_rtol": 0.1},
    "progress-0.01": {"cg_iterations": 30, "cg_progress_tolerance": 0.01},
    "ten-warm": {"cg_iterations": 10, "warm_start": True},
    "five-warm": {"cg_iterations": 5, "warm_start": True},
    "auto": {"preconditioner": "auto", "cg_iterations": 10},
    "kfac-one": {"preconditioner": "kfac", "cg_iterations": 1},
    "kfac-two": {"preconditioner": "kfac", "cg_iterations": 2},
    "kfac-three": {"preconditioner": "kfac", "cg_iterations": 3},
    "kfac-ten": {"preconditioner": "kfac", "cg_iterations": 10},
}
# What all runs share; bound and discount are those of the first rows of the CSV, not the defaults.
FIXED = {"solver": "cg", "preconditioner": "none", "max_kl": 0.01, "gamma": 0.99}
COLUMNS = [
    "task", "damping", "stopping", "seed", "steps", "initial", "final", "products", "damping_used",
    "accepted", "seconds", "curve",
]  # fmt: skip
Row = dict[str, Any]


def train(env: EnvironmentLike, steps: int, options: dict[str, Any], seed: int) -> Row:
    """One run: where it began, where it ended, and what its solves were like."""
    returns: list[tuple[int, float]] = []  # steps so far, return of an episode
    logs: list[dict[str, Any]] = []

    def note(agent: natgrad.Agent, log: Any) -> None:
        returns.extend((agent.num_timesteps, e.total_reward) for e in agent.last_episodes)
        logs.append(dict(log))

    agent = natgrad.TRPO(env, natgrad.TRPOConfig(seed=seed, **options))
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


def summarise(rows: list[Row], settings: list[tuple[str, str]]) -> None:
    """A table for each task, then one over all."""

    def of(task: str, setting: tuple[str, str], column: str) -> NDArray[Any]:
        mine = [row for row in rows if (row["task"], row["damping"], row["stopping"])
                == (task, *setting)]  # fmt: skip
        return np.array([float(row[column]) for row in mine])

    def line(setting: tuple[str, str], returns: list[NDArray[Any]], *columns: float) -> None:
        middle = interquartile_mean(np.concatenate(returns))
        low, high = bootstrap_interval(returns)
        name = f"{setting[0]}, {setting[1]}"
        print(f"  {name:40}{middle:10.4g}  {low:9.4g} to {high:9.4g}", end="")
        print("".join(f"{value:10.3g}" for value in columns))

    tasks = [task for task in TASKS if len(of(task, settings[0], "final"))]
    for task in tasks:
        print(f"{task}, {len(of(task, settings[0], 'final'))} seeds")
        print(f"  {'':40}{'return':>10}  {'95 %':>22}{'products':>10}{'damping':>10}")
        for setting in settings:
            if len(final := of(task, setting, "final")):
                columns = (of(task, setting, c).mean() for c in ("products", "damping_used"))
                line(setting, [final], *columns)
    print(f"all tasks, in units of what {', '.join(settings[0])} gained")
    for setting in settings:
        if all(len(of(task, setting, "final")) for task in tasks):
            scores = []
            for task in tasks:
                start = of(task, settings[0], "initial").mean()
                unit = interquartile_mean(of(task, settings[0], "final")) - start
                scores.append((of(task, setting, "final") - start) / unit)
            line(setting, scores)


def draw(rows: list[Row], settings: list[tuple[str, str]], path: Path) -> None:
    """Return against environment steps: a column for each task, a row for each damping."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    dampings = list(dict.fromkeys(damping for damping, _ in settings))
    figure = Figure(figsize=(3.4 * len(tasks), 2.7 * len(dampings)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(dampings), len(tasks), squeeze=False, sharex="col", sharey="col")
    stoppings = list(dict.fromkeys(stopping for _, stopping in settings))
    for (i, damping), (j, task) in itertools.product(enumerate(dampings), enumerate(tasks)):
        axis = axes[i][j]
        for k, stopping in enumerate(stoppings):
            mine = [row for row in rows if (row["task"], row["damping"], row["stopping"])
                    == (task, damping, stopping) and row["curve"]]  # fmt: skip
            if not mine:
                continue
            curves = np.array([[float(x) for x in row["curve"].split()] for row in mine]).T
            steps = (np.arange(len(curves)) + 0.5) / len(curves) * float(mine[0]["steps"])
            low, high = bootstrap_interval([curves])
            axis.fill_between(steps, low, high, alpha=0.12, linewidth=0, color=f"C{k}")
            axis.plot(steps, interquartile_mean(curves), color=f"C{k}", label=stopping)
        axis.set_title(f"{task}, {damping}", fontsize="medium")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
        if i == len(dampings) - 1:
            axis.set_xlabel("environment steps")
        if j == 0:
            axis.set_ylabel("return")
    axes[0][0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs what is not in the output yet, then prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=float, default=1.0, help="part of the full length of a run")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--damping", nargs="+", choices=DAMPING, default=list(DAMPING))
    parser.add_argument("--stopping", nargs="+", choices=STOPPING, default=list(STOPPING))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/damping_study.csv"))
    parser.add_argument("--picture", type=Path, help="draw the learning curves")
    options = parser.parse_args()
    rows: list[Row] = []
    if options.output.exists():
        with options.output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(r["task"], r["damping"], r["stopping"], int(r["seed"]), int(r["steps"])) for r in rows}
    settings = list(itertools.product(options.damping, options.stopping))
    todo = [
        run
        for seed in range(options.seeds)
        for task in options.task
        for setting in settings
        if (run := (task, *setting, seed, int(TASKS[task] * options.steps))) not in done
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for run in tqdm(todo, unit="run", disable=None):
        task, damping, stopping, seed, steps = run
        row = train(task, steps, {**FIXED, **DAMPING[damping], **STOPPING[stopping]}, seed)
        rows.append({**dict(zip(COLUMNS, run, strict=False)), **row})
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    lengths = {task: str(int(TASKS[task] * options.steps)) for task in options.task}
    rows = [row for row in rows if str(row["steps"]) == lengths.get(row["task"])]
    summarise(rows, settings)
    if options.picture is not None:
        draw(rows, settings, options.picture)


if __name__ == "__main__":
    main()
