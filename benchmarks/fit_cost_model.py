"""Fits the core's cost model to this machine, and says how well the present constants fit.

    python benchmarks/fit_cost_model.py --threads 1
    python benchmarks/fit_cost_model.py --dtypes float64 --ways passes adjoints --seconds 0.5

Times every way to use a Fisher matrix on a grid of shapes, with all that the way makes first. Each
time is a row of a linear system: the core says how often its model counts each constant
(`_core.cost_model`), and least squares of relative errors find the constants. Times go to a CSV
file as they are measured, and a second run continues there. The constants themselves are in
cpp/natgrad/fisher/cost_model.hpp. The whole grid takes about an hour.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np

import natgrad
from natgrad import _core

Way = Literal["passes", "adjoints", "closed_form", "kronecker", "dense", "sample", "factors"]
Case = tuple[str, str, int, int, bool]  # network, distribution, rows, products, damped
Terms = dict[str, tuple[float, float]]

# The constants that a way's times are fitted to, by the beginnings of their names. The first way
# also finds how long the unit takes, the multiply-add of a matrix product.
FITTED: dict[Way, tuple[str, ...]] = {
    "passes": ("product_", "pass_"),
    "adjoints": ("sweep_", "kept_"),
    "closed_form": ("closed_",),
    "kronecker": ("kronecker_",),
    "dense": ("dense_", "cholesky", "softmax_root"),
    "sample": ("sample_",),
    "factors": ("factor_", "apply_"),
}
NETWORKS: dict[str, tuple[int, tuple[int, ...]]] = {
    "4": (4, ()), "17": (17, ()), "60": (60, ()), "4-8": (4, (8,)), "4-16-16": (4, (16, 16)),
    "17-16-16": (17, (16, 16)), "4-32-32": (4, (32, 32)), "17-64-64": (17, (64, 64)),
    "27-64-64-64": (27, (64, 64, 64)), "17-128-128": (17, (128, 128)),
    "17-256-256": (17, (256, 256)),
}  # fmt: skip
DISTRIBUTIONS: dict[str, _core.Distribution] = {
    "categorical-2": _core.Categorical(2), "categorical-4": _core.Categorical(4),
    "gaussian-1": _core.DiagonalGaussian(1), "gaussian-6": _core.DiagonalGaussian(6),
}  # fmt: skip
ROWS = (32, 128, 512, 2048, 8192, 32768)
PRODUCTS = (3, 10)
DAMPING = 0.1
MOST_COST = 2e9  # of one call; more expensive ones are left out
FIELDS = ("dtype", "way", "network", "distribution", "rows", "products", "damped", "seconds")


class Problem:
    """A policy on a batch, and the calls that are timed."""

    def __init__(self, case: Case, dtype: _core.DTypeName) -> None:
        network, distribution, rows, self.products, damped = case
        inputs, hidden = NETWORKS[network]
        rng = np.random.default_rng(0)
        self.policy = natgrad.Policy(inputs, DISTRIBUTIONS[distribution], hidden=hidden,
                                     dtype=dtype, output_scale=1.0)  # fmt: skip
        self.observations = rng.normal(size=(rows, inputs)).astype(dtype)
        self.b = rng.normal(size=self.policy.parameters.size)
        self.damped = damped

    def fisher(self, method: Literal["auto", "passes", "adjoints"] = "auto") -> _core.Fisher:
        """One that has made nothing yet beside activations."""
        return _core.Fisher(self.policy, self.observations, method=method)

    def model(self, way: Way) -> tuple[float, Terms]:
        """The present model's cost and its constants."""
        return _core.cost_model(self.fisher(), way, self.products, self.damped)

    def call(self, way: Way) -> Callable[[], object]:
        """What is timed, with all that it makes and with a matrix of its own."""
        damping = DAMPING if self.damped else 0.0
        if way in {"kronecker", "dense", "sample"}:
            fisher = self.fisher()
            return lambda: fisher.solve(self.b, damping, way)
        if way == "factors":
            fisher = self.fisher("passes")
            fisher @ self.b  # evaluates activations and curvatures, which are not the factors'

            def factors() -> None:
                inverse = natgrad.solvers.KroneckerFactors(fisher, damping)
                for _ in range(self.products):
                    inverse @ self.b

            return factors
        fisher = self.fisher("auto" if way == "closed_form" else way)
        return lambda: natgrad.conjugate_gradient(
            fisher, self.b, damping=damping, rtol=0.0, max_iterations=self.products
        )


def timed(problem: Problem, way: Way, seconds: float) -> float:
    """Median seconds of the way; what it needs is made anew for each repetition."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken) < 3:
        call = problem.call(way)
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])  # the first grows buffers


def cases(way: Way) -> Iterator[Case]:
    """The grid of a way."""
    for network, distribution, rows in itertools.product(NETWORKS, DISTRIBUTIONS, ROWS):
        linear_gaussian = not NETWORKS[network][1] and distribution.startswith("gaussian")
        if way in {"closed_form", "kronecker"} and not linear_gaussian:
            continue
        products = PRODUCTS if way in {"passes", "adjoints", "closed_form", "factors"} else (1,)
        damped = (True, False) if way in {"kronecker", "dense"} else (True,)
        for count, damping in itertools.product(products, damped):
            yield network, distribution, rows, count, damping


def measure(options: argparse.Namespace) -> None:
    """Times what is not in the file yet, and appends it."""
    path = Path(options.output)
    done = {tuple(row[name] for name in FIELDS[:-1]) for row in read(path)}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(FIELDS)
        for dtype, way in itertools.product(options.dtypes, options.ways):
            for case in cases(way):
                key = (dtype, way, *map(str, case))
                if key in done:
                    continue
                problem = Problem(case, dtype)
                try:
                    cost, _ = problem.model(way)
                except ValueError:  # a form that this shape does not have
                    continue
                if cost <= MOST_COST:
                    writer.writerow([*key, timed(problem, way, options.seconds)])
                    file.flush()


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the file, if it exists."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fit(rows: list[dict[str, str]], dtype: _core.DTypeName, way: Way, unit: float | None) -> float:
    """Fits the constants of one way and prints them; returns the seconds of a multiply-add.

    With x for constants times the unit's seconds, t = unit * rest + sum_i count_i x_i, each row
    divided by t so that errors are relative. Where the unit is not given it is one more unknown.
    """
    times, rests, models = [], [], []
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(rows))
    present: dict[str, float] = {}
    for i, row in enumerate(rows):
        case = (row["network"], row["distribution"], int(row["rows"]), int(row["products"]),
                row["damped"] == "True")  # fmt: skip
        cost, terms = Problem(case, dtype).model(way)
        own = {name: term for name, term in terms.items() if name.startswith(FITTED[way])}
        for name, (value, count) in own.items():
            counts[name][i] = count
            present[name] = value
        times.append(float(row["seconds"]))
        models.append(cost)
        rests.append(cost - sum(value * count for value, count in own.values()))
    t, rest, model = np.array(times), np.array(rests), np.array(models)
    names = list(counts)
    matrix = np.array([counts[name] for name in names]).T
    if unit is None:
        solved = np.linalg.lstsq(np.column_stack([rest, matrix]) / t[:, None], np.ones(len(t)))[0]
        scale, fitted = solved[0], solved[1:] / solved[0]
    else:
        scale = unit
        solved = np.linalg.lstsq(scale * matrix / t[:, None], 1 - scale * rest / t)[0]
        fitted = solved

    def residual(cost: np.ndarray) -> float:
        """Root mean square relative error, the unit's seconds at their best."""
        ratio = cost / t
        ratio = ratio * (ratio.sum() / (ratio @ ratio))
        return float(np.sqrt(np.mean((ratio - 1) ** 2)))

    print(f"\n{way}, {dtype}: {len(t)} times, a multiply-add in {scale * 1e12:.1f} ps;",
          f"relative error {residual(model):.0%} with the present constants,",
          f"{residual(rest + matrix @ fitted):.0%} with those fitted")  # fmt: skip
    print(f"  {'constant':<20}{'present':>12}{'fitted':>12}{'error with it alone fitted':>30}")
    for i, name in enumerate(names):
        alone = model + matrix[:, i] * (fitted[i] - present[name])
        print(f"  {name:<20}{present[name]:>12.4g}{fitted[i]:>12.4g}{residual(alone):>30.0%}")
    return float(scale)


def main() -> int:
    """Measures and fits."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--ways", nargs="+", default=get_args(Way), choices=get_args(Way))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.05, help="on each time")
    parser.add_argument("--output", default="cost_model.csv")
    options = parser.parse_args()
    natgrad.set_num_threads(options.threads)
    about = natgrad.show_config()
    print(f"natgrad {about['version']}, ISA level {about['isa']}, {options.threads} threads")
    measure(options)
    everything = read(Path(options.output))
    for dtype in options.dtypes:
        unit = None
        for way in get_args(Way):  # passes first, if they are there
            rows = [row for row in everything if (row["dtype"], row["way"]) == (dtype, way)]
            if rows:
                unit = fit(rows, dtype, way, unit)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
