"""Time to the accuracy that plain conjugate gradients have after ten products, on real policies.

    python benchmarks/time_to_accuracy.py --threads 2
    python benchmarks/time_to_accuracy.py --task HalfCheetah-v5 --damping 0.1 --curves curves.csv

For each snapshot (benchmarks/snapshots.py) and damping the system (F + damping I) x = g is solved
in float64 to 1e-8. The error of an approximate x is |x - x*| / |x*| in the norm of F + damping I.
A preconditioner needs as many products as bring its error to no more than plain conjugate gradients
have after ten; the table shows that number, the time of the solve with everything in it (factors,
inversion, sketch), and the ratio of times, from updates in turns.
"""

import argparse
import csv
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from snapshots import STAGES, TASKS, Snapshot, load
from tqdm import tqdm

import natgrad

Doubles = NDArray[np.float64]
PRODUCTS = 10  # of plain conjugate gradients, whose accuracy is to be reached
MOST = 20  # products tried
METHODS: dict[str, dict[str, Any]] = {
    "kfac, all": {"preconditioner": "kfac", "kfac_every": 1},
    "kfac, every 2": {"preconditioner": "kfac", "kfac_every": 2},
    "kfac, every 4": {"preconditioner": "kfac", "kfac_every": 4},
    "kfac, every 8": {"preconditioner": "kfac", "kfac_every": 8},
    "diagonal": {"preconditioner": "diagonal"},
    "nystrom 10": {"preconditioner": "nystrom", "nystrom_rank": 10},
    "nystrom 50": {"preconditioner": "nystrom", "nystrom_rank": 50},
}


def preconditioner_of(
    fisher: natgrad.Fisher, damping: float, method: dict[str, Any]
) -> natgrad.Preconditioner | None:
    """What an update with these options uses."""
    if method.get("preconditioner") == "kfac":
        return natgrad.KFac(fisher, damping, every=method["kfac_every"])
    if method.get("preconditioner") == "diagonal":
        return natgrad.DiagonalPreconditioner(fisher, damping)
    if method.get("preconditioner") == "nystrom":
        return natgrad.NystromPreconditioner(fisher, method["nystrom_rank"], damping)
    return None


class System:
    """(F + damping I) x = g of a snapshot, and its solution."""

    def __init__(self, snapshot: Snapshot, damping: float) -> None:
        self.damping = damping
        batch = snapshot.batch
        self.fisher = natgrad.Fisher(snapshot.policy, batch.observations)
        self.g = snapshot.policy.score(batch.observations, batch.actions, batch.advantages)
        config = {**snapshot.policy.config, "distribution": snapshot.policy.distribution}
        double = natgrad.Policy(**{**config, "dtype": "float64"})
        double.parameters[:] = snapshot.policy.parameters
        double.set_normalizer(*snapshot.policy.normalizer)
        self.exact = natgrad.Fisher(double, np.asarray(batch.observations, np.float64))
        best = natgrad.conjugate_gradient(
            self.exact,
            self.g,
            damping=damping,
            rtol=1e-8,
            max_iterations=3000,
            preconditioner=natgrad.KFac(self.exact, damping, every=1, all_columns=True),
        )
        if best.status is not natgrad.CgStatus.CONVERGED:
            raise RuntimeError(f"{snapshot.name}, damping {damping}: {best.message}")
        self.x = best.x
        self.scale = self.norm(best.x)

    def norm(self, v: Doubles) -> float:
        """Of v, in the metric F + damping I."""
        return float(np.sqrt(v @ (self.exact @ v) + self.damping * v @ v))

    def error(self, products: int, method: dict[str, Any]) -> float:
        """After so many products, relative."""
        result = natgrad.conjugate_gradient(
            self.fisher,
            self.g,
            damping=self.damping,
            rtol=0.0,
            max_iterations=products,
            preconditioner=self._preconditioner(tuple(method.items())),
        )
        return self.norm(result.x - self.x) / self.scale

    @functools.lru_cache(maxsize=1)  # noqa: B019 (the system goes with its preconditioner)
    def _preconditioner(self, method: tuple[tuple[str, Any], ...]) -> Any:
        return preconditioner_of(self.fisher, self.damping, dict(method))


def solve_seconds(
    snapshot: Snapshot, damping: float, products: int, method: dict[str, Any]
) -> Callable[[], float]:
    """A function that makes one update, undoes it, and tells how long its solve took."""
    update = natgrad.TrustRegionUpdate(
        damping=damping, cg_iterations=products, cg_rtol=0.0, line_search=None, **method
    )
    before = np.array(snapshot.policy.parameters)

    def run() -> float:
        report = update(snapshot.policy, snapshot.batch)
        snapshot.policy.parameters = before
        return report.timings["solve"]

    run()
    return run


def main() -> None:
    """Prints the table, and a row for each error on request."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--stage", type=int, nargs="+", default=list(STAGES))
    parser.add_argument("--damping", type=float, nargs="+", default=[0.1, 0.01])
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--threads", type=int, default=natgrad.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each row")
    parser.add_argument("--output", help="write the table as CSV")
    parser.add_argument("--curves", help="write the error after each product as CSV")
    options = parser.parse_args()
    natgrad.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    cases = [(t, s, d) for t in options.task for s in options.stage for d in options.damping]
    print(f"{'policy':<22}{'damping':>8}{'plain 10: error':>17}{'ms':>8}  {'method':<15}"
          f"{'products':>9}{'error':>8}{'ms':>8}{'gain':>6}")  # fmt: skip
    loaded = functools.lru_cache(maxsize=1)(load)
    for task, stage, damping in tqdm(cases, disable=not sys.stderr.isatty()):
        snapshot = loaded(task, stage)
        system = System(snapshot, damping)
        plain = [system.error(k, {}) for k in range(1, MOST + 1)]
        target = plain[PRODUCTS - 1]
        reference = solve_seconds(snapshot, damping, PRODUCTS, {})
        about = {"task": task, "stage": stage, "damping": damping}
        curves += [about | {"method": "plain", "products": k + 1, "error": e}
                   for k, e in enumerate(plain)]  # fmt: skip
        for name in options.method:
            method = METHODS[name]
            errors = [system.error(k, method) for k in range(1, MOST + 1)]
            curves += [about | {"method": name, "products": k + 1, "error": e}
                       for k, e in enumerate(errors)]  # fmt: skip
            products = next((k + 1 for k, e in enumerate(errors) if e <= target), None)
            row = about | {"plain_error": target, "method": name, "products": products}
            times: list[tuple[float, float]] = []
            if products is not None:
                candidate = solve_seconds(snapshot, damping, products, method)
                until = time.perf_counter() + options.seconds
                while time.perf_counter() < until or len(times) < 5:
                    times.append((reference(), candidate()))
                plain_ms, ms = (1e3 * statistics.median(t) for t in zip(*times, strict=True))
                gain = statistics.median(a / b for a, b in times)
                row |= {"error": errors[products - 1], "plain_ms": plain_ms, "ms": ms, "gain": gain}
                text = f"{products:>9}{errors[products - 1]:>8.3f}{ms:>8.2f}{gain:>6.2f}"
            else:
                plain_ms, text = float("nan"), f"{'> ' + str(MOST):>9}{errors[-1]:>8.3f}"
            rows.append(row)
            print(f"{snapshot.name:<22}{damping:>8g}{target:>17.3f}{plain_ms:>8.2f}  "
                  f"{name:<15}{text}", flush=True)  # fmt: skip
    for path, table in ((options.output, rows), (options.curves, curves)):
        if path:
            with Path(path).open("w", newline="") as file:
                writer = csv.DictWriter(file, sorted({key for row in table for key in row}))
                writer.writeheader()
                writer.writerows(table)


if __name__ == "__main__":
    main()
