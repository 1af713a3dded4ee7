"""Where direct solves win, and whether the core's cost model knows.

    python -m benchmarks.solvers.solver_choice --threads 1
    python -m benchmarks.solvers.solver_choice --dtype float64 --products 3

Each row times the solve in a whole update by every solver, in turn, with everything that it
computes first: adjoints, matrices, factors. `chosen` is what solver="auto" takes; `ratio` is its
time divided by that of the best. Every direct solution is checked before. Exits with 1 if a ratio
exceeds --tolerance.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Literal

import numpy as np

import natgrad
from benchmarks import harness
from natgrad import _core, bench

SOLVERS: tuple[_core.SolverName, ...] = ("cg", "linear_gaussian", "dense", "sample")
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
    """A policy, a batch, and updates whose steps are too short to change the policy."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], distribution: _core.Distribution,
                 rows: int, dtype: _core.DTypeName, products: int) -> None:  # fmt: skip
        rng = np.random.default_rng(0)
        self.policy = natgrad.Policy(inputs, distribution, hidden=hidden, dtype=dtype,
                                     output_scale=1.0)  # fmt: skip
        self.observations = rng.normal(size=(rows, inputs)).astype(dtype)
        actions, _ = self.policy.sample(self.observations, natgrad.Rng(0))
        self.batch = natgrad.Batch(self.observations, actions, rng.normal(size=rows))
        cg = natgrad.ConjugateGradient(products, rtol=0.0)
        values = {"auto": cg.replace(or_direct=True), "cg": cg}
        names: tuple[Literal["auto"] | _core.SolverName, ...] = ("auto", *SOLVERS)
        self.updates: dict[str, natgrad.TrustRegionUpdate] = {
            name: natgrad.TrustRegionUpdate(
                max_kl=1e-12, damping=DAMPING, line_search=None, solver=values.get(name, name)
            )
            for name in names
        }

    def solvers(self) -> list[_core.SolverName]:
        """Those that can solve this problem, and are not hopelessly slow."""
        samples = len(self.observations) * self.policy.distribution.action_size
        hopeless = {"dense": self.policy.parameters.size > MOST_PARAMETERS,
                    "sample": samples > MOST_SAMPLES}  # fmt: skip
        return [s for s in SOLVERS if not hopeless.get(s, False) and self.solve(s)[1] == s]

    def solve(self, name: str) -> tuple[float, _core.SolverName]:
        """Seconds of the solve within an update, and the solver."""
        report = self.updates[name](self.policy, self.batch)
        return report.timings["solve"], report.solver

    def check(self, solvers: list[_core.SolverName], tolerance: float) -> None:
        """Compares with a dense solve; for large matrices, compares a product with b."""
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
    """Median seconds of each, in turn."""
    turns = {name: (lambda name=name: problem.solve(name)[0]) for name in solvers}
    taken = harness.take_turns(turns, rounds=5, seconds=seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> int:
    """Prints the table."""
    parser = harness.parser(__doc__, dtype="float32", threads=None, seconds=0.1, output=None)
    parser.add_argument("--products", type=int, default=10, help="of conjugate gradients")
    parser.add_argument("--tolerance", type=float, default=1.2, help="greatest ratio allowed")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="observations")
    options = harness.parse(parser, {"rows": [32], "seconds": 0.0, "tolerance": np.inf})
    harness.announce(options.dtype)
    print(f"{options.products} products of conjugate gradients")
    names = "".join(f"{name:>12}" for name in SOLVERS)
    print(f"{'network':<13}{'distribution':<20}{'N':>6}{names}  {'chosen':<10}{'ratio':>6}")
    worst = 1.0
    table: list[harness.Row] = []
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
        network = "-".join(map(str, (inputs, *hidden)))
        row = {"network": network, "distribution": repr(distribution), "N": rows}
        times = {name: seconds.get(name) for name in SOLVERS}
        table.append(row | times | {"chosen": chosen})
        cells = "".join(f"{t * 1e6:>9.0f} us" if t else f"{'-':>12}" for t in times.values())
        print(f"{network:<13}{distribution!r:<20}{rows:>6}{cells}  {chosen:<10}{ratio:>6.2f}",
              flush=True)  # fmt: skip
    print(f"greatest ratio {worst:.2f}")
    harness.write_rows(options.output, table)
    return int(worst > options.tolerance)


if __name__ == "__main__":
    raise SystemExit(main())
