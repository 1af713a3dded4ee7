"""Draws docs/images/error-products.png and error-time.png from benchmarks/results/curves.csv.

    python -m benchmarks.solvers.time_to_accuracy --threads 1 --stage 60000 --task HalfCheetah-v5 \
        Hopper-v5 --method kfac subsample diagonal "nystrom 10" \
        --curves benchmarks/results/curves.csv
    python tools/figures/solvers.py
"""

import csv
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
DATA, IMAGES = ROOT / "benchmarks" / "results" / "curves.csv", ROOT / "docs" / "images"
NAMES = {
    "plain": "plain",
    "kfac": "K-FAC",
    "subsample": "a part of the batch",
    "diagonal": "diagonal",
    "nystrom 10": "Nystrom, rank 10",
}
IN_TIME = ("plain", "kfac", "subsample")  # computing the others takes longer than ten products
MOST = 10  # products shown


def main() -> None:
    """Writes both pictures."""
    with DATA.open() as file:
        rows = list(csv.DictReader(file))
    cases = sorted({(r["task"], r["stage"], -float(r["damping"])) for r in rows})
    for column, label, name in (
        ("products", "products", "error-products.png"),
        ("ms", "time of the solve (ms)", "error-time.png"),
    ):
        figure, axes = plt.subplots(1, len(cases), figsize=(3.1 * len(cases), 2.9), sharey=True)
        for axis, (task, stage, damping) in zip(axes, cases, strict=True):
            target = 0.0
            shown = [m for m in NAMES if column == "products" or m in IN_TIME]
            for method, text in ((m, NAMES[m]) for m in shown):
                line = [
                    (float(r[column]), float(r["error"]))
                    for r in rows
                    if (r["task"], r["stage"], -float(r["damping"]), r["method"])
                    == (task, stage, damping, method) and int(r["products"]) <= MOST
                ]  # fmt: skip
                axis.plot(*zip(*line, strict=True), marker=".", markersize=4, label=text)
                target = line[9][1] if method == "plain" else target
            axis.axhline(target, color="0.6", linewidth=0.8, linestyle="--")
            axis.set_yscale("log")
            axis.set_xlim(left=0)
            axis.set_title(f"{task}, {int(stage) // 1000} k\ndamping {-damping:g}", fontsize=9)
            axis.set_xlabel(label, fontsize=9)
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axes[0].set_ylabel("relative error in the\n(F + damping I)-norm", fontsize=9)
        axes[-1].legend(fontsize=7)
        figure.tight_layout()
        figure.savefig(IMAGES / name, dpi=110)
        print(f"wrote {IMAGES / name}")


if __name__ == "__main__":
    main()
