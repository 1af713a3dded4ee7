"""Learning curves of runs, as a picture."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from natgrad.agents import runs
from natgrad.agents.statistics import bootstrap_interval, interquartile_mean

__all__ = ["learning_curve", "plot"]

POINTS = 200  # of a curve: more than a picture shows
BOOTSTRAP_SAMPLES = 1000
PANEL = 6.4, 4.2  # inches
COLUMNS = 3  # of panels


def learning_curve(
    folder: str | os.PathLike[str], window: int = 100
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Environment steps and the mean return of the last episodes, after each episode of a run.

    Args:
        folder: of a run; its monitor.csv is read.
        window: episodes that the mean goes over, fewer at the beginning.

    Returns:
        steps, returns: (episodes,) each.

    Raises:
        ValueError: the folder holds no run, or no episode has finished.
    """
    path = Path(folder) / "monitor.csv"
    try:
        rows = path.read_text().splitlines()[2:]
        table = np.array([row.split(",") for row in rows], np.float64).reshape(len(rows), 3)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read episodes from {str(path)!r}: {error}") from error
    if not len(table):
        raise ValueError(f"no episode has finished in {str(folder)!r}")
    sums = np.concatenate([[0.0], np.cumsum(table[:, 0])])
    last = np.arange(1, len(table) + 1)
    first = np.maximum(last - window, 0)
    return np.cumsum(table[:, 1]), (sums[last] - sums[first]) / (last - first)


def plot(
    folders: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    window: int = 100,
    title: str | None = None,
) -> None:
    """Draws the learning curves of runs.

    Runs of one environment and algorithm share a colour: their interquartile mean with its 95 %
    bootstrap interval, and each run as a thin line. Every environment has a panel of its own.

    Args:
        folders: of runs.
        output: picture; its ending chooses the format.
        window: episodes that a point averages.
        title: above the panels.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a folder that holds no run or no episode; a picture that cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'natgrad[plot]'") from error

    panels: dict[str, dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]]] = {}
    for folder in folders:
        config = runs.read_config(folder)
        groups = panels.setdefault(config["env_id"] or "custom environment", {})
        groups.setdefault(config["algorithm"], []).append(learning_curve(folder, window))

    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (env_id, groups) in zip(axes, panels.items(), strict=False):
        for color, (algorithm, curves) in enumerate(groups.items()):
            style = {"color": f"C{color}"}
            label = algorithm.upper() + (f" ({len(curves)} runs)" if len(curves) > 1 else "")
            if len(curves) == 1:
                axis.plot(*curves[0], label=label, **style)
                continue
            # Only where every run has data: outside, the mean would jump as runs begin and end.
            grid = np.linspace(
                max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves), POINTS
            )
            on_grid = np.stack([np.interp(grid, steps, values) for steps, values in curves])
            low, high = bootstrap_interval([on_grid.T], samples=BOOTSTRAP_SAMPLES)
            axis.fill_between(grid, low, high, alpha=0.2, linewidth=0, **style)
            for steps, values in curves:
                axis.plot(steps, values, linewidth=0.6, alpha=0.5, **style)
            axis.plot(grid, interquartile_mean(on_grid.T), linewidth=2, label=label, **style)
        axis.set_title(env_id)
        axis.set_xlabel("environment steps")
        axis.set_ylabel(f"return, mean of {window} episodes")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    if title is not None:
        figure.suptitle(title)
    try:
        figure.savefig(output, dpi=150)
    except OSError as error:
        raise ValueError(f"cannot write {str(output)!r}: {error.strerror or error}") from error
