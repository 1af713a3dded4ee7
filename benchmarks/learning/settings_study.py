"""What each setting is worth: every option of the agent changed alone, on several tasks.

    python -m benchmarks.learning.settings_study [--seeds 5] [--jobs 2] [--picture FILE]
    python -m benchmarks.learning.settings_study --setting "batch_size 1024" "batch_size 8192"

Trains TRPO with the defaults and with one thing changed, task by task and seed by seed, so that a
study that is ended early treats all settings alike; presets are not used. The return of a run is
the mean over the episodes that finished in its last fifth, minus that of the first update, in units
of what the defaults gained on that task: 1 is as good as the defaults, 0 has learnt nothing. The
table has interquartile means over tasks and those seeds that have been run to the end, with 95 %
bootstrap intervals (samples drawn within tasks), then the same for each task.

Runs that have a row in the output are not made again.
"""

import itertools
import os
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

import natgrad
from benchmarks import harness, pictures
from benchmarks.harness import Row
from benchmarks.training import train
from natgrad.agents.statistics import bootstrap_interval, interquartile_mean

TASKS = {"Pendulum-v1": 100_000, "Hopper-v5": 300_000, "HalfCheetah-v5": 300_000,
         "Walker2d-v5": 300_000}  # fmt: skip
DEFAULTS = "defaults"
REWARDS = "rewards times 1000"
SETTINGS: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    "raw observations": {"normalize_observations": False},
    REWARDS: {},
    "critic by adam": {"critic": "adam"},
    **{f"critic_steps {n}": {"critic_steps": n} for n in (1, 10)},
    **{f"batch_size {n}": {"batch_size": n} for n in (1024, 4096, 8192)},
    **{f"n_envs {n}": {"n_envs": n} for n in (4, 16)},
    **{f"max_kl {x}": {"max_kl": x} for x in (0.01, 0.1)},
    "max_kl_end 0.1": {"max_kl_end": 0.1},
    **{f"damping {x}": {"damping": x} for x in (0.01, 1.0)},
    "one product, kfac": {"preconditioner": "kfac", "cg_iterations": 1},
    **{f"gamma {x}": {"gamma": x} for x in (0.98, 0.99)},
    **{f"gae_lambda {x}": {"gae_lambda": x} for x in (0.9, 0.98)},
    **{f"log_std_init {x}": {"log_std_init": x} for x in (-0.5, 0.5)},
    "log_std_min -0.7": {"log_std_min": -0.7},
    "squashed": {"distribution": "squashed"},
    "linear policy": {"hidden": ()},
    **{f"hidden {n}, {n}": {"hidden": (n, n)} for n in (16, 256)},
    "relu": {"activation": "relu"},
}
KEYS = ("task", "setting", "seed")
COLUMNS = ("steps", "initial", "final", "accepted", "seconds", "curve")


def with_large_rewards(task: str) -> gymnasium.Env[Any, Any]:
    """The task with rewards in other units."""
    return gymnasium.wrappers.TransformReward(gymnasium.make(task), lambda r: 1000 * float(r))


def run(job: tuple[str, str, int], length: float) -> list[Row]:
    """The row of one run, in a process of its own."""
    warnings.simplefilter("ignore")
    natgrad.set_num_threads(1)
    task, setting, seed = job
    env = (lambda: with_large_rewards(task)) if setting == REWARDS else task
    steps = int(TASKS[task] * length)
    row = {"steps": steps, **train(env, steps, SETTINGS[setting], seed)}
    if setting == REWARDS:
        row |= {name: row[name] / 1000 for name in ("initial", "final")}
    return [dict(zip(KEYS, job, strict=True)) | {name: row[name] for name in COLUMNS}]


def scores(rows: list[Row], setting: str) -> dict[str, NDArray[np.float64]]:
    """What was gained on each task, in units of what the defaults gained."""

    def of(task: str, setting: str, column: str) -> NDArray[np.float64]:
        mine = [row for row in rows if (row["task"], row["setting"]) == (task, setting)]
        return np.array([float(row[column]) for row in mine])

    found = {}
    for task in TASKS:
        start, final = of(task, DEFAULTS, "initial"), of(task, setting, "final")
        if len(start) and len(final):
            unit = interquartile_mean(of(task, DEFAULTS, "final")) - start.mean()
            found[task] = (final - start.mean()) / unit
    return found


def even(rows: list[Row]) -> list[Row]:
    """The rows of those seeds that have been run to the end, so that tasks have equal weights."""
    runs = {(row["task"], row["setting"]) for row in rows}
    finished = Counter(str(row["seed"]) for row in rows)
    return [row for row in rows if finished[str(row["seed"])] == len(runs)]


def report(rows: list[Row]) -> str:
    """The table of docs/results.md, in Markdown."""
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    lines = [f"| | all | 95 % | {' | '.join(tasks)} |", "|---|" + "---:|" * (2 + len(tasks))]
    for setting in SETTINGS:
        found = scores(rows, setting)
        if not found:
            continue
        low, high = bootstrap_interval(list(found.values()))
        middle = interquartile_mean(np.concatenate(list(found.values())))
        cells = [f"{interquartile_mean(found[t]):.2f}" if t in found else "–" for t in tasks]
        lines.append(
            f"| {setting} | {middle:.2f} | {low:.2f} to {high:.2f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Draws for each setting its interval over all tasks, and a mark for each task."""
    found = {setting: scores(rows, setting) for setting in SETTINGS}
    found = {setting: by_task for setting, by_task in found.items() if by_task}
    figure = pictures.figure(7, 0.27 * len(found) + 1.2)
    axis = figure.subplots()
    for y, by_task in enumerate(found.values()):
        low, high = bootstrap_interval(list(by_task.values()))
        axis.plot([low, high], [y, y], color="black", linewidth=5, alpha=0.25)
        middle = interquartile_mean(np.concatenate(list(by_task.values())))
        axis.plot(middle, y, "|", color="black", markersize=11, markeredgewidth=2)
        for k, task in enumerate(TASKS):
            if task in by_task:
                axis.plot(interquartile_mean(by_task[task]), y, "ov^sD"[k], color=f"C{k}",
                          markersize=5, label=task if y == 0 else None)  # fmt: skip
    axis.axvline(1, color="gray", linewidth=0.8)
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set_xlabel("return gained, in units of what the defaults gained")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Runs what is not in the output yet, then prints the table."""
    parser = harness.parser(
        __doc__,
        seeds=5,
        jobs=os.cpu_count(),
        length=1.0,
        output=harness.RESULTS / "settings_study.csv",
        picture=None,
    )
    parser.add_argument(
        "--task", nargs="+", choices=TASKS, default=list(TASKS), help="environments"
    )
    parser.add_argument(
        "--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME",
        help=f"of {', '.join(SETTINGS)}",
    )  # fmt: skip
    parser.add_argument("--report", action="store_true", help="only print the table")
    quick = {"seeds": 1, "length": 0.1, "output": None, "task": ["Pendulum-v1"],
             "setting": [DEFAULTS, "max_kl 0.01"]}  # fmt: skip
    options = harness.parse(parser, quick)
    study = harness.Study(options.output, KEYS, COLUMNS)
    jobs = itertools.product(range(options.seeds), options.task, options.setting)
    if not options.report:
        todo = study.missing((task, setting, seed) for seed, task, setting in jobs)
        study.run(todo, partial(run, length=options.length), options.jobs)
    rows = even(study.rows)
    print(report(rows))
    if options.picture is not None:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
