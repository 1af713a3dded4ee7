"""Time of a whole update against the number of observations and against the width of the network.

    python -m benchmarks.peers.scaling [--threads 2] [--sweep rows width]

natgrad, the fastest of several JAX programs and sb3-contrib, as far as they are installed, take
turns and are checked against each other as in `natgrad bench peers`. Policies are Gaussian with 6
actions, 17-w-w-6; w = 64 while N grows, and N = 1024 while w grows. Writes the rows, draws them and
prints the slopes of the logarithms: 1 means proportional to N, 2 to the square of the width. With
one sweep only, the rows of the other one stay in the CSV file.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

import natgrad
from benchmarks import harness, pictures
from benchmarks.peers import comparison
from benchmarks.peers.peer import Peer
from natgrad import bench

SWEEPS = {
    "rows": [(n, 64) for n in (256, 512, 1000, 2000, 4000, 10_000, 25_000, 50_000, 100_000)],
    "width": [(1024, width) for width in (16, 32, 64, 128, 256, 512, 1024, 2048)],
}
LABELS = {"rows": "observations N", "width": "width of the two hidden layers"}
FIT_FROM = {"rows": 4000, "width": 256}  # where the work outweighs the overhead of calls
LIBRARIES = ("jax", "sb3-contrib")
COLORS = {"natgrad": "#0072b2", "jax": "#e69f00", "sb3-contrib": "#cc3311"}


def measure(sweep: str, rows: int, width: int, threads: int, seconds: float) -> list[harness.Row]:
    """One row for each library."""
    shape = bench.Shape("", 17, (width, width), natgrad.DiagonalGaussian(6), rows)
    problem = bench.Problem(shape)

    def wanted(peer: Peer) -> bool:
        """Leaves out those ways to write it in JAX that are never the fastest."""
        if peer.name != "jax":
            return True
        shared = threads == 1 or "devices" in peer.detail
        return shared and "hand-written passes, (features, N)" in peer.detail

    def ignore(note: str) -> None:
        pass

    checked = comparison.contenders(problem, threads, LIBRARIES, note=ignore, wanted=wanted)
    turns = comparison.take_turns([peer for peer, _ in checked], seconds, min_rounds=2)
    about = natgrad.show_config()
    found = []
    for library, taken in turns.items():
        median, low, high = bench.quantiles(taken)
        found.append(
            {
                "sweep": sweep, "rows": rows, "width": width, "library": library,
                "seconds": f"{median:.4g}", "seconds_10": f"{low:.4g}", "seconds_90": f"{high:.4g}",
                "gflops": f"{problem.update_operations / median * 1e-9:.4g}",
                "threads": threads, "isa": about["isa"], "natgrad": about["version"],
            }
        )  # fmt: skip
    return found


def slope(x: list[float], y: list[float]) -> float:
    """The slope of log y against log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def draw(rows: list[harness.Row], machine: str, path: Path | None) -> None:
    """Draws the picture, and prints the slopes."""
    figure = pictures.figure(10, 4.6)
    from matplotlib.ticker import FuncFormatter, NullLocator

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
            large = [i for i, size in enumerate(x) if size >= FIT_FROM[sweep]] or [0, len(x) - 1]
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
    if path is not None:
        figure.savefig(path, dpi=130)


def main() -> None:
    """Measures, writes and draws."""
    parser = harness.parser(
        __doc__,
        threads=None,
        seconds=1.5,
        output=harness.RESULTS / "scaling.csv",
        picture=harness.ROOT / "docs" / "images" / "scaling.png",
    )
    parser.add_argument(
        "--sweep", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="what grows"
    )
    parser.add_argument("--draw", action="store_true", help="only draw the rows that there are")
    quick = {"seconds": 0.0, "output": None, "picture": None}
    options = harness.parse(parser, quick)
    rows = harness.read_rows(options.output) if options.output else []
    if not options.draw:
        harness.limit_threads(options.threads)
        for name, command in comparison.missing(LIBRARIES).items():
            print(f"not installed: {name} ({command})")
        sizes = [(sweep, *size) for sweep in options.sweep for size in SWEEPS[sweep]]
        if options.quick:
            sizes = [(sweep, *SWEEPS[sweep][i]) for sweep in options.sweep for i in (0, 1)]
        rows = [row for row in rows if row["sweep"] not in options.sweep]
        for size in tqdm(sizes, unit="size", disable=None):
            rows += measure(*size, options.threads, options.seconds)
        rows.sort(key=lambda row: list(SWEEPS).index(row["sweep"]))
        harness.write_rows(options.output, rows)
    draw(rows, bench.machine()["cpu"], options.picture)


if __name__ == "__main__":
    main()
