"""Fits the core's cost model to this machine, and says how well the present constants fit.

    python -m benchmarks.solvers.fit_cost_model
    python -m benchmarks.solvers.fit_cost_model --dtype float64 --output double.csv

Times every way to use a Fisher matrix on a grid of shapes, with all that the way makes first. Each
time is a row of a linear system: the core says how often its model counts each constant
(`_core.cost_model`), and least squares of relative errors find the constants. Times go to a CSV
file as they are measured, and a second run continues there. The constants themselves are in
cpp/natgrad/fisher/cost_model.hpp. The whole grid takes about half an hour.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np

import natgrad
from benchmarks import harness
from natgrad import _core

Way = Literal["passes", "adjoints", "closed_form", "linear_gaussian", "dense", "sample", "factors"]
Case = tuple[str, str, int, int, bool]  # network, distribution, rows, products, damped
Terms = dict[str, tuple[float, float]]

# The constants that a way's times are fitted to, by the beginnings of their names. The first way
# also finds how long the unit takes, the multiply-add of a matrix product.
FITTED: dict[Way, tuple[str, ...]] = {
    "passes": ("product_", "pass_"),
    "adjoints": ("sweep_", "kept_"),
    "closed_form": ("closed_",),
    "linear_gaussian": ("linear_gaussian_",),
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
PULL = 1e-3  # of constants towards the present ones, for each time
MOST_COST = 2e9  # of one call; more expensive ones are left out
KEYS = ("dtype", "threads", "way", "network", "distribution", "rows", "products", "damped")


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
        if way == "linear_gaussian" or way == "dense" or way == "sample":  # which mypy understands
            fisher = self.fisher()
            return lambda: fisher.solve(self.b, damping, way)
        if way == "factors":
            fisher = self.fisher("passes")
            fisher @ self.b  # evaluates activations and curvatures, which are not the factors'

            def factors() -> None:  # applied within a compiled loop, as the operator of a system
                inverse = _core.KroneckerFactors(fisher, damping)
                natgrad.conjugate_gradient(inverse, self.b, rtol=0.0, max_iterations=self.products)

            return factors
        method = "auto" if way == "closed_form" else way
        fisher = self.fisher(method)
        return lambda: natgrad.conjugate_gradient(
            fisher, self.b, damping=damping, rtol=0.0, max_iterations=self.products
        )


def timed(problem: Problem, way: Way, seconds: float) -> float:
    """Median seconds of the way; what it needs is made anew for each repetition."""
    turns = {way: lambda: harness.timed(problem.call(way))}
    return statistics.median(harness.take_turns(turns, rounds=3, seconds=seconds, warm=1)[way])


def cases(way: Way, most_rows: int) -> Iterator[Case]:
    """The grid of a way."""
    for network, distribution, rows in itertools.product(NETWORKS, DISTRIBUTIONS, ROWS):
        linear_gaussian = not NETWORKS[network][1] and distribution.startswith("gaussian")
        if rows > most_rows or (way in {"closed_form", "linear_gaussian"} and not linear_gaussian):
            continue
        products = PRODUCTS if way in {"passes", "adjoints", "closed_form", "factors"} else (1,)
        damped = (True, False) if way in {"linear_gaussian", "dense"} else (True,)
        for count, damping in itertools.product(products, damped):
            yield network, distribution, rows, count, damping


def measure(study: harness.Study, dtype: _core.DTypeName, threads: int, most_rows: int,
            seconds: float) -> None:  # fmt: skip
    """Times what the study does not have yet."""
    for way in get_args(Way):
        for *first, network, distribution, rows, products, damped in study.missing(
            [(dtype, threads, way, *case) for case in cases(way, most_rows)]
        ):
            case: Case = (network, distribution, rows, products, damped)
            problem = Problem(case, dtype)
            try:
                cost, _ = problem.model(way)
            except ValueError:  # a form that this shape does not have
                continue
            if cost <= MOST_COST:
                key = dict(zip(KEYS, (*first, *case), strict=True))
                study.add({**key, "seconds": timed(problem, way, seconds)})


def non_negative_fit(matrix: np.ndarray, want: np.ndarray) -> np.ndarray:
    """x >= 0 with matrix @ x near want, and x near 1 in what the rows leave open."""
    n = matrix.shape[1]
    pull = np.sqrt(PULL * len(want))
    free = np.ones(n, dtype=bool)
    while True:
        x = np.zeros(n)
        x[free] = np.linalg.lstsq(
            np.vstack([matrix, pull * np.eye(n)])[:, free],
            np.concatenate([want, np.full(n, pull)]),
        )[0]
        if (x >= 0).all():
            return x
        free &= x > 0


def fit(rows: list[harness.Row], dtype: _core.DTypeName, way: Way, unit: float | None) -> float:
    """Fits the constants of one way and prints them; returns the seconds of a multiply-add.

    A time is t = unit (rest + sum_i count_i constant_i) with the seconds of a multiply-add as the
    unit. Rows are divided by t, so that errors are relative, and columns are for multiples of the
    present constants. Where the unit is not given it is one more unknown.
    """
    times, costs = [], []
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(rows)))
    present: dict[str, float] = {}
    for i, row in enumerate(rows):
        case = (row["network"], row["distribution"], int(row["rows"]), int(row["products"]),
                str(row["damped"]) == "True")  # fmt: skip
        cost, terms = Problem(case, dtype).model(way)
        for name, (value, count) in terms.items():
            if name.startswith(FITTED[way]):
                counts[name][i] = count
                present[name] = value
        times.append(float(row["seconds"]))
        costs.append(cost)
    t, model, names = np.array(times), np.array(costs), list(counts)
    values = np.array([present[name] for name in names])
    matrix = np.array([counts[name] for name in names]).T
    rest = model - matrix @ values

    def best_unit(cost: np.ndarray) -> float:
        return float((cost / t).sum() / ((cost / t) @ (cost / t)))

    def error(cost: np.ndarray) -> float:
        """Root mean square of the relative errors, with the unit that is best for this cost."""
        return float(np.sqrt(np.mean((best_unit(cost) * cost / t - 1) ** 2)))

    first = unit or best_unit(model)
    columns = first * matrix * values / t[:, None]
    if unit is None:
        solved = non_negative_fit(np.column_stack([first * rest / t, columns]), np.ones(len(t)))
        unit = float(first * solved[0])
        fitted = values * solved[1:] / solved[0]
    else:
        fitted = values * non_negative_fit(columns, 1 - first * rest / t)
    print(f"\n{way}, {dtype}: {len(t)} times, a multiply-add in {unit * 1e12:.1f} ps;",
          f"relative error {error(model):.0%} with the present constants,",
          f"{error(rest + matrix @ fitted):.0%} with those fitted")  # fmt: skip
    print(f"  {'constant':<20}{'present':>12}{'fitted':>12}{'error with it alone fitted':>30}")
    for i, name in enumerate(names):
        alone = model + matrix[:, i] * (fitted[i] - values[i])
        print(f"  {name:<20}{values[i]:>12.4g}{fitted[i]:>12.4g}{error(alone):>30.0%}")
    return unit


def main() -> int:
    """Measures and fits."""
    parser = harness.parser(
        __doc__, dtype="float32", threads=1, seconds=0.05, output=Path("cost_model.csv")
    )
    parser.add_argument("--rows", type=int, default=max(ROWS), help="observations at most")
    options = harness.parse(parser, {"rows": 128, "seconds": 0.0, "output": None})
    harness.announce(options.dtype)
    study = harness.Study(options.output, KEYS, ("seconds",))
    measure(study, options.dtype, options.threads, options.rows, options.seconds)
    unit = None
    for way in get_args(Way):  # passes first
        like = (options.dtype, str(options.threads), way)
        rows = [r for r in study.rows if (r["dtype"], str(r["threads"]), r["way"]) == like]
        if rows:
            unit = fit(rows, options.dtype, way, unit)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
