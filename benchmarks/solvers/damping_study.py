"""Damping, and how accurately to solve: what do they do to learning?

    python -m benchmarks.solvers.damping_study [--seeds 5] [--length 1.0] [--output FILE]
    python -m benchmarks.solvers.damping_study --damping fixed-0.1 adaptive-0.1 --stopping ten three

Trains TRPO with every damping and every stopping rule, task by task and seed by seed, so that a
study that is ended early treats all of them alike. The return of a run is the mean over the
episodes that finished in its last fifth; the CSV also has the mean return in each tenth. The table
has interquartile means over the seeds (Agarwal et al. 2021) with the 95 % interval of 2000
bootstrap samples, the Fisher products of an update and the median damping. Over all tasks, the
return is measured from that of the first update, in units of what the first damping with the first
stopping rule gained; samples are drawn within tasks.

Runs that have a row in the output are not made again.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import natgrad
from benchmarks import harness, pictures
from benchmarks.harness import Row
from benchmarks.training import train
from natgrad.agents.statistics import bootstrap_interval, interquartile_mean

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
    # The mean of F's diagonal is 0.02 to 0.04 on the MuJoCo tasks, so 3 times that is about 0.1.
    "trace-3": {"damping": natgrad.TraceDamping(3.0)},
    "trace-0.3": {"damping": natgrad.TraceDamping(0.3)},
    "adaptive-0.1": {"damping": natgrad.AdaptiveDamping(0.1)},
    "adaptive-0.1-floor-0.02": {"damping": natgrad.AdaptiveDamping(0.1, low=0.02)},
}
STOPPING: dict[str, dict[str, Any]] = {
    "ten": {"cg_iterations": 10},
    "one": {"cg_iterations": 1},
    "three": {"cg_iterations": 3},
    "residual-0.1": {"solver": natgrad.ConjugateGradient(30, rtol=0.1)},
    "progress-0.01": {"solver": natgrad.ConjugateGradient(30, stop=natgrad.Progress(0.01))},
    "ten-warm": {"solver": natgrad.ConjugateGradient(10, warm_start=True)},
    "five-warm": {"solver": natgrad.ConjugateGradient(5, warm_start=True)},
    "auto": {"preconditioner": "auto", "cg_iterations": 10},
    "kfac-one": {"preconditioner": "kfac", "cg_iterations": 1},
    "kfac-two": {"preconditioner": "kfac", "cg_iterations": 2},
    "kfac-three": {"preconditioner": "kfac", "cg_iterations": 3},
    "kfac-ten": {"preconditioner": "kfac", "cg_iterations": 10},
}
# All runs share these; bound and discount are those of the first rows of the CSV, not the defaults.
FIXED = {"solver": "cg", "preconditioner": "none", "max_kl": 0.01, "gamma": 0.99}
KEYS = ("task", "damping", "stopping", "seed", "steps")
COLUMNS = ("initial", "final", "products", "damping_used", "accepted", "seconds", "curve")


def summarise(rows: list[Row], settings: list[tuple[str, str]]) -> None:
    """Prints a table for each task, then one over all tasks."""

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
    """Draws return against environment steps: a column for each task, a row for each damping."""
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    dampings = list(dict.fromkeys(damping for damping, _ in settings))
    stoppings = list(dict.fromkeys(stopping for _, stopping in settings))
    figure = pictures.figure(3.4 * len(tasks), 2.7 * len(dampings))
    axes = figure.subplots(len(dampings), len(tasks), squeeze=False, sharex="col", sharey="col")
    for (i, damping), (j, task) in itertools.product(enumerate(dampings), enumerate(tasks)):
        axis = axes[i][j]
        for k, stopping in enumerate(stoppings):
            setting = (task, damping, stopping)
            mine = [r for r in rows if (r["task"], r["damping"], r["stopping"]) == setting]
            curves = [pictures.numbers(row, "curve") for row in mine if row["curve"]]
            if curves:
                pictures.learning_curve(axis, float(mine[0]["steps"]), curves, f"C{k}", stopping)
        pictures.finish_curves(axis, f"{task}, {damping}")
        if i == len(dampings) - 1:
            axis.set_xlabel("environment steps")
        if j == 0:
            axis.set_ylabel("return")
    axes[0][0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def run(job: tuple[str, str, str, int, int]) -> list[Row]:
    """The row of one run."""
    task, damping, stopping, seed, steps = job
    row = train(task, steps, {**FIXED, **DAMPING[damping], **STOPPING[stopping]}, seed)
    return [dict(zip(KEYS, job, strict=True)) | row]


def main() -> None:
    """Runs what is not in the output yet, then prints the tables."""
    parser = harness.parser(
        __doc__,
        seeds=5,
        length=1.0,
        output=harness.RESULTS / "damping_study.csv",
        picture=None,
    )
    parser.add_argument(
        "--task", nargs="+", choices=TASKS, default=list(TASKS), help="environments"
    )
    parser.add_argument(
        "--damping", nargs="+", choices=DAMPING, default=list(DAMPING), metavar="NAME",
        help=f"of {', '.join(DAMPING)}",
    )  # fmt: skip
    parser.add_argument(
        "--stopping", nargs="+", choices=STOPPING, default=list(STOPPING), metavar="NAME",
        help=f"of {', '.join(STOPPING)}",
    )  # fmt: skip
    quick = {"seeds": 1, "length": 0.1, "output": None, "task": ["CartPole-v1"],
             "damping": ["fixed-0.1", "adaptive-0.1"], "stopping": ["ten", "auto"]}  # fmt: skip
    options = harness.parse(parser, quick)
    lengths = {task: int(TASKS[task] * options.length) for task in options.task}
    settings = list(itertools.product(options.damping, options.stopping))
    study = harness.Study(options.output, KEYS, COLUMNS)
    jobs = itertools.product(range(options.seeds), options.task, settings)
    study.run(study.missing((task, *s, seed, lengths[task]) for seed, task, s in jobs), run)
    rows = [r for r in study.rows if str(r["steps"]) == str(lengths.get(r["task"]))]
    summarise(rows, settings)
    if options.picture is not None:
        draw(rows, settings, options.picture)


if __name__ == "__main__":
    main()
