"""Pictures of the studies, drawn without a display."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import harness
from natgrad.agents.statistics import bootstrap_interval, interquartile_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Doubles = NDArray[np.float64]


def figure(width: float, height: float) -> "Figure":
    """An empty figure of that many inches."""
    with harness.needs("natgrad[plot]"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    found = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(found)
    return found


def learning_curve(
    axis: "Axes", steps: float, curves: Sequence[Doubles], color: str, label: str
) -> None:
    """Draws the interquartile mean over seeds with its 95 % bootstrap interval.

    Args:
        axis: to draw on.
        steps: environment steps of the whole run.
        curves: (parts,) returns in equal parts of the run, one array for each seed.
        color: of line and band.
        label: for the legend.
    """
    values = np.array(curves).T
    x = (np.arange(len(values)) + 0.5) / len(values) * steps
    low, high = bootstrap_interval([values])
    axis.fill_between(x, low, high, alpha=0.2, linewidth=0, color=color)
    axis.plot(x, interquartile_mean(values), color=color, label=label)


def finish_curves(axis: "Axes", title: str) -> None:
    """Gives a panel of learning curves its title, its grid and readable numbers of steps."""
    from matplotlib.ticker import EngFormatter

    axis.set_title(title, fontsize="medium")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)


def numbers(row: dict[str, Any], column: str) -> Doubles:
    """A curve as it is written in a row: numbers with spaces between."""
    return np.array([float(value) for value in row[column].split()])
