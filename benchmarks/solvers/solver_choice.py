"""Where direct solves win, and whether the core's cost model knows.

    python benchmarks/solver_choice.py --threads 1
    python benchmarks/solver_choice.py --dtype float64 --products 3

Each row times the solve of a whole update in every way that there is, in turns, with all that it
makes first: adjoints, matrices, factors. `chosen` is what solver="auto" takes; `ratio` is its time
divided by that of the best. Every direct solution is checked before. Exits with 1 if a ratio
exceeds --tolerance.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import time
from pathlib import Path
from typing import Literal

import numpy as np

import natgrad
from natgrad import _core, bench

SOLVERS: tuple[_core.SolverName, ...] = ("cg", "kronecker", "dense", "sample")
INPUTS = (4, 17)
HIDDEN: tuple[tuple[int, ...], ...] = ((), (8,), (16, 16), (32, 32), (64, 64))
DISTRIBUTIONS: tuple[_core.Distribution, ...] = (
    _core.Categorical(2), _core.Categorical(4), _core.DiagonalGaussian(1),
    _core.DiagonalGaussian(6),
)  # fmt: skip
ROWS = (32, 64, 128, 256, 512, 1024, 2048, 5000, 20000)
DAMPING = 0.1
MOST_PARAMETERS = 450  # of a dense matrix: larger ones never win
MOST_SAMPLES = 600  # nor do larger ones of the sample form


class Problem:
    """A policy, a batch, and updates that take steps too short to change what they are given."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], distribution: _core.Distribution,
                 rows: int, dtype: _core.DTypeName, products: int) -> None:  # fmt: skip
        rng = np.random.default_rng(0)
        self.policy = natgrad.Policy(inputs, distribution, hidden=hidden, dtype=dtype,
                                     output_scale=1.0)  # fmt: skip
        self.observations = rng.normal(size=(rows, inputs)).astype(dtype)
        actions, _ = self.policy.sample(self.observations, natgrad.Rng(0))
        self.batch = natgrad.Batch(self.observations, actions, rng.normal(size=rows))
        names: tuple[Literal["auto"] | _core.SolverName, ...] = ("auto", *SOLVERS)
        self.updates: dict[str, natgrad.TrustRegionUpdate] = {
            name: natgrad.TrustRegionUpdate(max_kl=1e-12, damping=DAMPING, cg_iterations=products,
                                            cg_rtol=0.0, line_search=None, solver=name)
            for name in names
        }  # fmt: skip

    def solvers(self) -> list[_core.SolverName]:
        """Those that this problem has, and that are not hopeless."""
        samples = len(self.observations) * self.policy.distribution.action_size
        hopeless = {"dense": self.policy.parameters.size > MOST_PARAMETERS,
                    "sample": samples > MOST_SAMPLES}  # fmt: skip
        return [s for s in SOLVERS if not hopeless.get(s, False) and self.solve(s)[1] == s]

    def solve(self, name: str) -> tuple[float, _core.SolverName]:
        """Seconds of the solve within an update, and what solved."""
        report = self.updates[name](self.policy, self.batch)
        return report.timings["solve"], report.solver

    def check(self, solvers: list[_core.SolverName], tolerance: float) -> None:
        """Compares with the dense solution, or of large matrices with b by a product."""
        fisher = _core.Fisher(self.policy, self.observations, damping=DAMPING)
        b = self.policy.score(self.observations, self.batch.actions, self.batch.advantages)
        small = b.size <= MOST_PARAMETERS
        want = np.linalg.solve(fisher.to_dense(), b) if small else b
        for name in solvers:
            if name != "cg":
                x = fisher.solve(b, solver=name).x
                bench.require_close(name, x if small else fisher @ x, want, tolerance)


def timed(
    problem: Problem, solvers: list[_core.SolverName], seconds: float
) -> dict[_core.SolverName, float]:
    """Median seconds of each, one after the other in rounds."""
    taken: dict[_core.SolverName, list[float]] = {name: [] for name in solvers}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken["cg"]) < 5:
        for name in solvers:
            taken[name].append(problem.solve(name)[0])
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--products", type=int, default=10)
    parser.add_argument("--threads", type=int, default=natgrad.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.1, help="on each row")
    parser.add_argument("--tolerance", type=float, default=1.2, help="greatest ratio allowed")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--output", help="a CSV file for the times")
    options = parser.parse_args()
    natgrad.set_num_threads(options.threads)
    about = natgrad.show_config()
    print(f"natgrad {about['version']}, ISA level {about['isa']}, {options.threads} threads,",
          f"{options.dtype}, {options.products} products of conjugate gradients")  # fmt: skip
    names = "".join(f"{name:>12}" for name in SOLVERS)
    print(f"{'network':<13}{'distribution':<20}{'N':>6}{names}  {'chosen':<10}{'ratio':>6}")
    worst, table = 1.0, []
    for hidden, inputs, distribution, rows in itertools.product(
        HIDDEN, INPUTS, DISTRIBUTIONS, options.rows
    ):
        problem = Problem(inputs, hidden, distribution, rows, options.dtype, options.products)
        solvers = problem.solvers()
        problem.check(solvers, 1e-9 if options.dtype == "float64" else 1e-4)
        chosen = problem.solve("auto")[1]
        solvers += [chosen] if chosen not in solvers else []
        seconds = timed(problem, solvers, options.seconds)
        ratio = seconds[chosen] / min(seconds.values())
        worst = max(worst, ratio)
        row = ["-".join(map(str, (inputs, *hidden))), repr(distribution), rows]
        times = [seconds.get(name) for name in SOLVERS]
        table.append([*row, *times, chosen])
        cells = "".join(f"{t * 1e6:>9.0f} us" if t else f"{'-':>12}" for t in times)
        print(f"{row[0]:<13}{row[1]:<20}{rows:>6}{cells}  {chosen:<10}{ratio:>6.2f}", flush=True)
    print(f"greatest ratio {worst:.2f}")
    if options.output:
        with Path(options.output).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["network", "distribution", "N", *SOLVERS, "chosen"])
            writer.writerows(table)
    return int(worst > options.tolerance)


if __name__ == "__main__":
    raise SystemExit(main())
