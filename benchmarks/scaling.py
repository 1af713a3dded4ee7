"""Time of a whole update against the number of observations and against the width of the network.

    python benchmarks/scaling.py [--threads 2] [--sweep rows width]

Natgrad, the fastest of several JAX programs and sb3-contrib, as far as they are installed, in turn
and checked against each other as `natgrad bench peers` does. Policies are Gaussian with 6 actions,
17-w-w-6; w = 64 while N grows, and N = 1024 while w grows. Writes results/scaling.csv and
docs/images/scaling.png, and prints the slopes of the logarithms: 1 means proportional to N, 2 to
the square of the width. With one sweep only, the other one's rows of the CSV file are kept.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import natgrad
from natgrad import bench, peers

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scaling.csv"
PICTURE = ROOT / "docs" / "images" / "scaling.png"
SWEEPS = {
    "rows": [(n, 64) for n in (256, 512, 1000, 2000, 4000, 10_000, 25_000, 50_000, 100_000)],
    "width": [(1024, width) for width in (16, 32, 64, 128, 256, 512, 1024, 2048)],
}
LABELS = {"rows": "observations N", "width": "width of the two hidden layers"}
FIT_FROM = {"rows": 4000, "width": 256}  # where the work outweighs the overhead of calls
LIBRARIES = ("jax", "sb3-contrib")
COLORS = {"natgrad": "#0072b2", "jax": "#e69f00", "sb3-contrib": "#cc3311"}


def measure(sweep: str, threads: int, seconds: float, bar: Any) -> list[dict[str, Any]]:
    """One row for each size and library."""
    rows = []
    about = natgrad.show_config()
    for n, width in SWEEPS[sweep]:
        bar.set_postfix_str(f"N = {n}, width {width}")
        shape = bench.Shape("", 17, (width, width), natgrad.DiagonalGaussian(6), n)
        problem = bench.Problem(shape)

        def quick(peer: peers.Peer) -> bool:  # those that were ever best
            if peer.name != "jax":
                return True
            shared = threads == 1 or "devices" in peer.detail
            return shared and "hand-written passes, (features, N)" in peer.detail

        def ignore(note: str) -> None:
            pass

        found = peers.contenders(problem, threads, LIBRARIES, note=ignore, wanted=quick)
        turns = peers.take_turns([peer for peer, _ in found], seconds, min_rounds=2)
        for peer, _ in found:
            median, low, high = bench.quantiles(turns.seconds[peer.name])
            rows.append(
                {
                    "sweep": sweep, "rows": n, "width": width, "library": peer.name,
                    "seconds": f"{median:.4g}", "seconds_10": f"{low:.4g}",
                    "seconds_90": f"{high:.4g}",
                    "gflops": f"{problem.update_operations / median * 1e-9:.4g}",
                    "threads": threads, "isa": about["isa"], "natgrad": about["version"],
                }
            )  # fmt: skip
        bar.update()
    return rows


def slope(x: list[float], y: list[float]) -> float:
    """Of log y against log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def draw(rows: list[dict[str, Any]], machine: str) -> None:
    """The picture, and the slopes on the terminal."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    sweeps = [sweep for sweep in SWEEPS if any(row["sweep"] == sweep for row in rows)]
    axes = figure.subplots(1, len(sweeps), squeeze=False)[0]
    for axis, sweep in zip(axes, sweeps, strict=True):
        power = 1 if sweep == "rows" else 2
        for library, color in COLORS.items():
            chosen = [r for r in rows if r["sweep"] == sweep and r["library"] == library]
            if not chosen:
                continue
            x = [float(r[sweep]) for r in chosen]
            median, low, high = (
                [1e3 * float(r[k]) for r in chosen] for k in ("seconds", "seconds_10", "seconds_90")
            )
            large = [i for i, size in enumerate(x) if size >= FIT_FROM[sweep]]
            fitted = slope([x[i] for i in large], [median[i] for i in large])
            print(f"{sweep:6} {library:12} slope {fitted:.2f} from {x[large[0]]:.0f} on")
            ours = library == "natgrad"
            axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
            axis.plot(
                x, median, "o-", color=color, markersize=4.5, linewidth=2.4 if ours else 1.5,
                label=f"{library}, slope {fitted:.2f}", zorder=3 if ours else 2,
            )  # fmt: skip
            if ours:
                guide = np.array([x[large[0]], x[-1]])
                below = 0.55 * median[-1] * (guide / x[-1]) ** power
        axis.plot(guide, below, "--", color="0.45", linewidth=1, label=f"slope {power}")
        axis.set_xscale("log", base=10 if sweep == "rows" else 2)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(
            FuncFormatter(lambda ms, _: f"{ms / 1e3:g} s" if ms >= 1e3 else f"{ms:g} ms")
        )
        widths = [width for _, width in SWEEPS["width"]]
        axis.set_xticks(widths if sweep == "width" else [300, 1000, 3000, 10_000, 30_000, 100_000])
        axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
        axis.xaxis.set_minor_locator(NullLocator())
        fixed = "17-64-64-6" if sweep == "rows" else "17-w-w-6, N = 1024"
        axis.set_title(fixed, fontsize=11)
        axis.set_xlabel(LABELS[sweep])
        axis.set_ylabel("time of one update")
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.legend(frameon=False, loc="upper left")
    threads = rows[0]["threads"]
    plural = "s" if int(threads) > 1 else ""
    figure.suptitle(
        f"Gradient, ten Fisher products, two candidates: float32, {threads} thread{plural}, "
        f"{machine}",
        fontsize=11,
    )
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=130)


def main() -> None:
    """Measures, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=natgrad.get_num_threads())
    parser.add_argument("--sweep", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--seconds", type=float, default=1.5, help="for each size")
    parser.add_argument("--draw", action="store_true", help="draw what was measured before")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if RESULTS.exists():
        with RESULTS.open() as file:
            kept = [r for r in csv.DictReader(file) if r["sweep"] not in options.sweep]
            file.seek(0)
            rows = list(csv.DictReader(file)) if options.draw else kept
    if not options.draw:
        peers.limit_threads(options.threads)
        natgrad.set_num_threads(options.threads)
        for name, command in peers.missing(LIBRARIES).items():
            print(f"not installed: {name} ({command})")
        with tqdm(total=sum(len(SWEEPS[s]) for s in options.sweep), unit="size") as bar:
            for sweep in options.sweep:
                rows += measure(sweep, options.threads, options.seconds, bar)
        rows.sort(key=lambda r: list(SWEEPS).index(r["sweep"]))
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    draw(rows, bench.machine()["cpu"])


if __name__ == "__main__":
    main()
