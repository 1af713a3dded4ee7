"""Draws docs/images/kernels.png, the way of a tile through the layers.

python tools/figures/kernels.py
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

mpl.use("agg")

IMAGES = Path(__file__).parents[2] / "docs" / "images"

STREAMED, PACKED, TILE, SHARD = "#cfe2f3", "#fce5cd", "#d9ead3", "#ead1dc"
EDGE, DARK = "#444444", "#222222"


def box(ax: Axes, x: float, y: float, text: str, colour: str, w: float = 1.7,
        h: float = 0.8) -> None:  # fmt: skip
    """A labelled box around (x, y)."""
    shape = FancyBboxPatch(
        (x - w / 2, y - h / 2), w, h, boxstyle="round,pad=0.02,rounding_size=0.08",
        facecolor=colour, edgecolor=EDGE, linewidth=1.2,
    )  # fmt: skip
    ax.add_patch(shape)
    ax.text(x, y, text, ha="center", va="center", fontsize=10.5, color=DARK, linespacing=1.35)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], strong: bool = False,
          behind: bool = False) -> None:  # fmt: skip
    """An arrow: thick for what the tile becomes, thin for what it is combined with."""
    style: dict[str, Any] = (
        {"lw": 2.6, "color": "#222222"} if strong else {"lw": 1.1, "color": "#666666"}
    )
    style["zorder"] = 0 if behind else 2
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, **style))


def draw() -> Figure:
    """The picture for a network of three layers."""
    figure, ax = plt.subplots(figsize=(9, 8))
    ax.set(xlim=(0, 11.2), ylim=(-0.85, 9.65))
    ax.axis("off")

    # The batch on the left: shards, and the tiles of one of them.
    ax.text(0.9, 9.3, "batch", ha="center", fontsize=11.5, weight="bold")
    for shard in range(4):
        for tile in range(3):
            y = 8.55 - 1.92 * shard - 0.57 * tile
            mine = shard == 1 and tile == 1
            colour = TILE if mine else STREAMED
            ax.add_patch(Rectangle((0.4, y - 0.5), 1, 0.5, facecolor=colour, edgecolor=EDGE,
                                   linewidth=2.2 if mine else 0.8))  # fmt: skip
            if mine:
                ax.text(0.9, y - 0.25, "a tile", ha="center", va="center", fontsize=10.5)
        ax.text(0.16, 7.75 - 1.92 * shard, f"shard {shard}", rotation=90, va="center",
                ha="center", fontsize=10.5)  # fmt: skip

    # Forward mode goes to the right, reverse mode below it to the left.
    x, forward, backward, cached, gradients = (3.6, 6.3, 9.0), 7.2, 2.95, 5.1, 1.15
    ax.text(6.3, 9.3, "forward mode:  $u_l = h_{l-1}\\,dW_l^T + dh_{l-1}W_l^T + db_l$",
            ha="center", fontsize=11.5, weight="bold")  # fmt: skip
    above = ("$dW_1, db_1$", "$W_2, dW_2, db_2$", "$W_3, dW_3, db_3$")
    result = ("$dh_1 = u_1\\,a'(z_1)$", "$dh_2 = u_2\\,a'(z_2)$", "$u_3 = J v$")
    for at, weights, text in zip(x, above, result, strict=True):
        box(ax, at, 8.55, weights, PACKED, w=1.9, h=0.6)
        box(ax, at, forward, text, TILE, w=1.9)
        arrow(ax, (at, 8.22), (at, forward + 0.44))
    for at, name in zip(x, ("$h_0$", "$h_1$", "$h_2$"), strict=True):
        box(ax, at - 0.55, cached, name, STREAMED, w=0.8, h=0.6)
        arrow(ax, (at - 0.55, cached + 0.33), (at - 0.45, forward - 0.44))
    for i in (0, 1):  # the derivative of layer i + 1 comes from its cached value
        arrow(ax, (x[i + 1] - 0.8, cached + 0.33), (x[i] + 0.55, forward - 0.44))
        arrow(ax, (x[i + 1] - 0.8, cached - 0.33), (x[i] + 0.6, backward + 0.44))
        arrow(ax, (x[i] + 0.97, forward), (x[i + 1] - 0.97, forward), strong=True)
        arrow(ax, (x[i + 1] - 0.97, backward), (x[i] + 0.97, backward), strong=True)
    arrow(ax, (1.4, 5.81), (x[0] - 1.0, cached))

    box(ax, 10.2, cached, "times $M_n/N$,\nrow by row", "white", w=1.6, h=0.95)
    arrow(ax, (x[2] + 0.6, forward - 0.42), (10.1, cached + 0.52), strong=True)
    arrow(ax, (10.1, cached - 0.52), (x[2] + 0.6, backward + 0.44), strong=True)

    steps = ("$d_1$", "$d_2$", "$d_3$")
    sums = ("$g_{W_1}$ += $d_1^T h_0$", "$g_{W_2}$ += $d_2^T h_1$", "$g_{W_3}$ += $d_3^T h_2$")
    for at, text, total in zip(x, steps, sums, strict=True):
        box(ax, at, backward, text, TILE, w=1.9)
        box(ax, at, gradients, total, SHARD, w=1.9, h=0.7)
        arrow(ax, (at, backward - 0.44), (at, gradients + 0.39), strong=True)
        arrow(ax, (at - 0.66, cached - 0.33), (at - 0.66, gradients + 0.39), behind=True)
    for i in (0, 1):
        at = (x[i] + x[i + 1]) / 2
        box(ax, at, 2.1, f"$W_{i + 2}$", PACKED, w=0.62, h=0.46)
        arrow(ax, (at, 2.35), (at, backward - 0.08))
    ax.text(6.3, 0.32, "reverse mode:  $d_{l-1} = (d_l W_l)\\,a'(z_{l-1})$", ha="center",
            va="center", fontsize=11.5, weight="bold")  # fmt: skip

    legend = (
        (STREAMED, "cached activations:\nstreamed from memory"),
        (TILE, "of this tile:\nsecond-level cache"),
        (PACKED, "packed in panels:\nfirst- and second-level"),
        (SHARD, "one for each shard:\nsummed at the end"),
    )
    for i, (colour, text) in enumerate(legend):
        at = 0.15 + 2.8 * i
        ax.add_patch(Rectangle((at, -0.63), 0.3, 0.36, facecolor=colour, edgecolor=EDGE))
        ax.text(at + 0.42, -0.45, text, va="center", fontsize=9.5)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99)
    return figure


if __name__ == "__main__":
    draw().savefig(IMAGES / "kernels.png", dpi=100)
