"""What each device of the kernels is worth: the Fisher product with it and without it.

    python benchmarks/ablation.py [--rounds 3] [--shape S2 S2-25k S3 S4 odd]

Builds the core once as it is and once without each device (ten minutes on two cores; needs what
CONTRIBUTING.md lists for an editable install). Then `natgrad bench --piece product` runs on one
thread with each build in turn, which compares the product with NumPy's before it is timed.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from determinism import build

KERNELS, NETWORK = "cpp/natgrad/kernels/dense_layer.cpp", "cpp/natgrad/model/network.cpp"
WITHOUT = {
    "": (KERNELS, "", ""),
    "prefetch": (KERNELS, r"__builtin_prefetch\(", "(void)("),
    "unrolled blocks": (KERNELS, r"#pragma GCC unroll \d+", ""),
    "passes of limited depth": (KERNELS, r"(constexpr Index kDepth =) \d+;", r"\1 1 << 20;"),
    "tiles: whole shards": (NETWORK, r"(constexpr Index kTileRows =) \d+;", r"\1 1 << 20;"),
    "narrow products": (NETWORK, r"return rest <= [^;]*;", "return 0;"),
}


def run(site: Path, shapes: list[str]) -> list[float]:
    """The fraction of the measured peak that the product reaches on each problem."""
    # An editable install's finder would come before the path.
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__]\n"
        "import natgrad; from natgrad import cli\n"
        f"assert natgrad.__file__.startswith({str(site)!r}), natgrad.__file__\n"
        "sys.exit(cli.main(['bench', '--piece', 'product', '--threads', '1', *sys.argv[1:]]))\n"
    )
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        arguments = ["--json", file.name, "--shape", *shapes]
        command = [sys.executable, "-c", program, *arguments]
        subprocess.run(command, check=True, capture_output=True)
        rows = json.loads(Path(file.name).read_text())["rows"]
    return [float(row["of_peak"]) for row in rows]


def main() -> int:
    """Prints a line for each device."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", nargs="+", default=["S2", "S2-25k", "S3", "S4", "odd"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sites = {}
        for number, (name, (file, pattern, replacement)) in enumerate(WITHOUT.items()):
            print(f"building {'without ' + name if name else 'as it is'}", file=sys.stderr)
            edit = None if not name else (file, re.compile(pattern), replacement)
            sites[name] = build(Path(folder) / str(number), edit)
        found: dict[str, list[list[float]]] = {name: [] for name in sites}
        for _ in range(arguments.rounds):
            for name, site in sites.items():
                found[name].append(run(site, arguments.shape))
    print("Fisher product, float32, one thread: fraction of the measured peak")
    print(f"{'without':24}" + "".join(f"{shape:>9}" for shape in arguments.shape))
    for name, rounds in found.items():
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        print(f"{name or '(as it is)':24}" + "".join(f"{value:9.3f}" for value in medians))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
