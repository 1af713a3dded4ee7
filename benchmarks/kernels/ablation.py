"""What each technique of the kernels is worth: the Fisher product with it and without it.

    python -m benchmarks.kernels.ablation [--rounds 3] [--shape S2 S2-25k S3 S4 odd]

Builds the core once as it is and once without each technique (ten minutes on two cores; needs what
CONTRIBUTING.md lists for an editable install). Then `natgrad bench --piece product` runs on one
thread with each build in turn, which compares the product with NumPy's before it is timed.
"""

import functools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import harness
from benchmarks.kernels.builds import Edit, build, run
from natgrad import bench

KERNELS, MODEL = ("cpp/natgrad/kernels/*.?pp",), ("cpp/natgrad/model/*.?pp",)
PRODUCTS = tuple(  # without the peak, which has unrolled loops too
    f"cpp/natgrad/kernels/{name}.?pp"
    for name in ("block", "epilogue", "multiply", "narrow", "accumulate")
)
WITHOUT = {
    "(as it is)": None,
    "prefetch": Edit(KERNELS, r"__builtin_prefetch\(", "(void)("),
    "unrolled blocks": Edit(PRODUCTS, r"#pragma GCC unroll \d+", ""),
    "passes of limited depth": Edit(KERNELS, r"(constexpr Index kDepth =) \d+;", r"\1 1 << 20;"),
    "tiles: whole shards": Edit(MODEL, r"(constexpr Index kTileRows =) \d+;", r"\1 1 << 20;"),
    "narrow products": Edit(MODEL, r"return rest <= [^;]*;", "return 0;"),
}
PROGRAM = """
from natgrad import cli
sys.exit(cli.main(["bench", "--piece", "product", "--threads", "1", *sys.argv[1:]]))
"""


def fractions(site: Path, shapes: list[str], seconds: float) -> list[float]:
    """The fraction of the measured peak that the product reaches on each problem."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        options = ["--json", file.name, "--seconds", str(seconds), "--shape", *shapes]
        run(site, PROGRAM, options)
        rows = json.loads(Path(file.name).read_text())["rows"]
    return [float(row["of_peak"]) for row in rows]


def main() -> None:
    """Prints a line for each technique."""
    parser = harness.parser(__doc__, rounds=3, seconds=0.3)
    shapes = ["S2", "S2-25k", "S3", "S4", "odd"]
    parser.add_argument(
        "--shape", nargs="+", choices=bench.SHAPES, default=shapes, metavar="NAME",
        help="problems of `natgrad bench`",
    )  # fmt: skip
    parser.add_argument(
        "--without", nargs="+", choices=list(WITHOUT)[1:], default=list(WITHOUT)[1:],
        metavar="NAME", help=f"techniques to do without: {', '.join(list(WITHOUT)[1:])}",
    )  # fmt: skip
    quick = {"rounds": 1, "seconds": 0.0, "shape": ["S2"], "without": ["prefetch"]}
    options = harness.parse(parser, quick)
    harness.announce()
    with tempfile.TemporaryDirectory() as folder:
        turns: dict[str, Callable[[], list[float]]] = {}
        for name in ("(as it is)", *options.without):
            print(f"building without {name}" if turns else "building", file=sys.stderr)
            site = build(Path(folder) / str(len(turns)), WITHOUT[name])
            turns[name] = functools.partial(fractions, site, options.shape, options.seconds)
        found = harness.take_turns(turns, rounds=options.rounds)
    print("Fisher product, float32, one thread: fraction of the measured peak")
    print(f"{'without':24}" + "".join(f"{shape:>9}" for shape in options.shape))
    for name, rounds in found.items():
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        print(f"{name:24}" + "".join(f"{value:9.3f}" for value in medians))


if __name__ == "__main__":
    main()
