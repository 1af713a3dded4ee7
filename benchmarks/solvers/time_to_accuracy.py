"""Time to the accuracy that plain conjugate gradients have after ten products, on real policies.

    python -m benchmarks.solvers.time_to_accuracy --threads 2
    python -m benchmarks.solvers.time_to_accuracy --task HalfCheetah-v5 --curves curves.csv
    python -m benchmarks.solvers.time_to_accuracy --task HalfCheetah-v5 --method kfac auto jax
    python -m benchmarks.solvers.time_to_accuracy --task HalfCheetah-v5 --consecutive 12

For each snapshot (benchmarks.solvers.snapshots) and damping the system (F + damping I) x = g is
solved in float64 to 1e-8. The error of an approximate x is |x - x*| / |x*| in the norm of
F + damping I. A preconditioner needs as many products as bring its error to that of plain conjugate
gradients after ten; the table shows that number, the time of the solve with everything in it
(factors, inversion, inner iterations), and the ratio of times, from updates in turn. "auto" is
timed over fifty updates, its trial among them. The residual of the last product is not computed,
unless --last-residual is given. JAX (the fastest of the ways in benchmarks.peers.jax_peer) makes
ten plain products; its passes over the batch count, so for that ratio ours do as well.

With --consecutive the systems are those of so many updates of a run, one after the other. The table
shows how many products each of them takes, and the time and gain on average.
"""

import argparse
import functools
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tqdm import tqdm

import natgrad
from benchmarks import harness
from benchmarks.solvers.snapshots import STAGES, TASKS, Snapshot, consecutive, load
from natgrad import _core, bench
from natgrad.bench import Doubles

PRODUCTS = 10  # of plain conjugate gradients, whose accuracy is to be reached
MOST = 12  # products tried
TRIALS_EVERY = 50  # updates from one trial of preconditioner="auto" to the next
METHODS: dict[str, dict[str, Any]] = {
    "kfac": {"preconditioner": "kfac"},
    "subsample": {"preconditioner": "subsample"},
    "subsample, 8, 2": {"preconditioner": natgrad.Subsample(every=8, iterations=2)},
    "auto": {"preconditioner": "auto"},
    "jax": {},
    "kfac, all": {"preconditioner": natgrad.KFac(every=1)},
    "kfac, every 2": {"preconditioner": natgrad.KFac(every=2)},
    "kfac, every 4": {"preconditioner": natgrad.KFac(every=4)},
    "kfac, every 8": {"preconditioner": natgrad.KFac(every=8)},
}
# Operators that updates do not have; conjugate gradients are called with them.
OPERATORS: dict[str, Callable[[natgrad.Fisher, float], _core.Preconditioner]] = {
    "diagonal": _core.DiagonalPreconditioner,
    "nystrom 10": lambda fisher, damping: _core.NystromPreconditioner(fisher, 10, damping),
    "nystrom 50": lambda fisher, damping: _core.NystromPreconditioner(fisher, 50, damping),
}
NAMED: dict[Any, Any] = {"kfac": natgrad.KFac(), "subsample": natgrad.Subsample()}
FASTEST_JAX: dict[str, str] = {}  # by task, once all ways have been tried


class System:
    """(F + damping I) x = g of a snapshot, and its solution."""

    def __init__(self, snapshot: Snapshot, damping: float) -> None:
        self.damping = damping
        batch = snapshot.batch
        self.snapshot = snapshot
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
            preconditioner=_core.KroneckerFactors(self.exact, damping, every=1, all_columns=True),
        )
        if best.status is not natgrad.CgStatus.CONVERGED:
            raise RuntimeError(f"{snapshot.name}, damping {damping}: {best.message}")
        self.x = best.x
        self.scale = self.norm(best.x)

    def norm(self, v: Doubles) -> float:
        """The norm of v in the metric F + damping I."""
        return float(np.sqrt(v @ (self.exact @ v) + self.damping * v @ v))

    def error_of(self, x: Doubles) -> float:
        """The relative error of x."""
        return self.norm(x - self.x) / self.scale

    def preconditioner(self, name: str) -> _core.Preconditioner | None:
        """What an update with this method uses; None if that is nothing."""
        if name in OPERATORS:
            return OPERATORS[name](self.fisher, self.damping)
        option = METHODS.get(name, {}).get("preconditioner")
        option = NAMED.get(option, option)
        if isinstance(option, natgrad.KFac):
            return _core.KroneckerFactors(self.fisher, self.damping, every=option.every)
        if isinstance(option, natgrad.Subsample):
            part = self.part(option.every)
            factors = _core.KroneckerFactors(part, 8 * self.damping)
            return _core.InnerSolver(part, 1.5 * self.damping, option.iterations, factors)
        return None

    def solve(self, products: int, name: str) -> Doubles:
        """The approximation of the solution after so many products."""
        return natgrad.conjugate_gradient(
            self.fisher,
            self.g,
            damping=self.damping,
            rtol=0.0,
            max_iterations=products,
            preconditioner=self.preconditioner(name),
        ).x

    def error(self, products: int, name: str) -> float:
        """The relative error after so many products."""
        return self.error_of(self.solve(products, name))

    def part(self, every: int) -> natgrad.Fisher:
        """The matrix of every `every`-th observation."""
        observations = self.snapshot.batch.observations
        return natgrad.Fisher(self.snapshot.policy, observations, fraction=1 / every)


def update_of(name: str, products: int, damping: float, last: bool) -> natgrad.TrustRegionUpdate:
    """An update with a method, and whether it computes the residual of the last product."""
    cg = natgrad.ConjugateGradient(products, rtol=0.0, last_residual=last, or_direct=True)
    return natgrad.TrustRegionUpdate(
        damping=damping, solver=cg, line_search=None, **METHODS.get(name, {})
    )


class Solver:
    """Makes an update of a snapshot, undoes it, and keeps its report."""

    def __init__(self, snapshot: Snapshot, update: natgrad.TrustRegionUpdate) -> None:
        self.update = update
        self.snapshot, self.before = snapshot, np.array(snapshot.policy.parameters)
        self.report = self.update(snapshot.policy, snapshot.batch)  # allocates memory
        snapshot.policy.parameters = self.before

    def __call__(self) -> float:
        """Seconds of one solve."""
        self.report = self.update(self.snapshot.policy, self.snapshot.batch)
        self.snapshot.policy.parameters = self.before
        return self.report.timings["solve"]


def jax_solver(system: System, threads: int) -> Callable[[], float]:
    """Ten plain products in JAX, in the fastest way: seconds of a call, after a check."""
    from benchmarks.peers import jax_peer

    snapshot = system.snapshot
    policy, batch = snapshot.policy, snapshot.batch
    mean, std, clip = policy.normalizer
    observations = np.asarray(batch.observations)
    shape = bench.Shape(
        snapshot.name, mean.size, policy.config["hidden"], policy.distribution,
        len(observations),
    )  # fmt: skip
    problem = SimpleNamespace(
        shape=shape,
        report=SimpleNamespace(backtracks=0),
        start=np.array(policy.parameters),
        observations=np.clip((observations - mean) / std, -clip, clip),
        actions=batch.actions,
        advantages=batch.advantages,
        log_probs=policy.log_prob(batch.observations, batch.actions),
    )
    want = system.error(PRODUCTS, "plain")
    g: Doubles = np.asarray(system.g, np.float64)
    best: tuple[float, str, Callable[[], Any]] = (np.inf, "", list)
    for name, solve in jax_peer.solvers(problem, threads):
        if FASTEST_JAX.get(snapshot.task, name) != name:
            continue
        got = system.error_of(solve(g, system.damping))
        if abs(got - want) > 0.02 * want + 1e-3:
            raise bench.WrongAnswerError(f"jax, {name}: error {got:.4f}, ours {want:.4f}")
        run = functools.partial(solve, g, system.damping)
        if (seconds := min(harness.timed(run) for _ in range(3))) < best[0]:
            best = seconds, name, run
    FASTEST_JAX[snapshot.task] = best[1]
    print(f"jax: {best[1]}")
    return functools.partial(harness.timed, best[2])


def compare(
    reference: Callable[[], float], candidate: Callable[[], float], calls: int, seconds: float
) -> tuple[float, float, float]:
    """Medians over rounds of the mean seconds of so many calls of each, and of their ratio."""

    def turn() -> tuple[float, float]:
        pairs = [(reference(), candidate()) for _ in range(calls)]
        first, second = zip(*pairs, strict=True)
        return statistics.mean(first), statistics.mean(second)

    rounds = 5 if calls == 1 else 2
    found = harness.take_turns({"both": turn}, rounds=rounds, seconds=seconds)["both"]
    theirs, ours = ([pair[i] for pair in found] for i in (0, 1))
    ratio = statistics.median(harness.ratios(theirs, ours))
    return statistics.median(theirs), statistics.median(ours), ratio


def solver_of(system: System, name: str, products: int, last: bool) -> Callable[[], float]:
    """Seconds of the solve with a method, its preconditioner included."""
    if name in OPERATORS:
        return functools.partial(harness.timed, functools.partial(system.solve, products, name))
    return Solver(system.snapshot, update_of(name, products, system.damping, last))


def row_of(
    system: System, name: str, options: argparse.Namespace
) -> tuple[harness.Row, list[float]]:
    """A row of the table, and the errors after each number of products."""
    solver = functools.partial(solver_of, system, last=options.last_residual)
    plain = solver("plain", PRODUCTS)
    assert isinstance(plain, Solver)
    target = system.error(PRODUCTS, "plain")
    row: harness.Row = {"plain_error": target, "method": name}
    errors: list[float] = []
    calls = 1
    reference: Callable[[], float] = plain
    if name == "jax":
        candidate = jax_solver(system, options.threads)
        row |= {"products": PRODUCTS, "error": target}

        def plain_with_passes() -> float:
            # The gradient's passes compute the activations, and more than JAX has to.
            return plain() + plain.report.timings["gradient"]

        reference = plain_with_passes
    elif name == "auto":
        candidate = automatic = solver(name, PRODUCTS)
        assert isinstance(automatic, Solver)
        automatic()  # the trial was the first call
        calls = TRIALS_EVERY
        products = automatic.report.cg.products
        row |= {
            "products": products,
            "error": system.error(products, automatic.report.preconditioner),
        }
    else:
        errors = [system.error(k, name) for k in range(1, MOST + 1)]
        if min(errors) > target:
            return row, errors
        products = next(k for k, e in enumerate(errors, 1) if e <= target)
        candidate = solver(name, products)
        row |= {"products": products, "error": errors[products - 1]}
    plain_s, s, gain = compare(reference, candidate, calls, options.seconds)
    return row | {"plain_ms": 1e3 * plain_s, "ms": 1e3 * s, "gain": gain}, errors


def curves_of(system: System, methods: dict[str, list[float]], last: bool) -> list[harness.Row]:
    """Error and time after each number of products, for each method."""
    rows = []
    for name, errors in methods.items():
        for k, error in enumerate(errors, 1):
            solver = solver_of(system, name, k, last)
            ms = 1e3 * min(solver() for _ in range(40))
            rows.append(
                {"method": name, "products": k, "error": round(error, 6), "ms": round(ms, 4)}
            )
    return rows


def show_consecutive(task: str, stage: int, damping: float, options: argparse.Namespace) -> None:
    """Prints for each method how many products consecutive updates of a run take."""
    count = options.consecutive
    steps = consecutive(task, stage, count)

    def solve(step: int, update: natgrad.TrustRegionUpdate) -> natgrad.UpdateReport:
        snapshot = steps[step]
        before = np.array(snapshot.policy.parameters)
        report = update(snapshot.policy, snapshot.batch)
        snapshot.policy.parameters = before
        return report

    def updates(products: int, name: str) -> Iterator[natgrad.UpdateReport]:
        """One after the other and again from the first."""
        update = update_of(name, products, damping, options.last_residual)
        return (solve(step, update) for step in itertools.cycle(range(count)))

    def first(products: int, name: str) -> list[float]:
        """The quadratic model's values at the solutions of the first round."""
        return [r.cg.model_value for r in itertools.islice(updates(products, name), count)]

    def timer(reports: Iterator[natgrad.UpdateReport]) -> Callable[[], float]:
        return lambda: next(reports).timings["solve"]

    goals = first(PRODUCTS, "plain")
    for name in options.method:
        needed = [MOST + 1] * count
        for k in range(MOST, 0, -1):
            reached = [v <= goal for v, goal in zip(first(k, name), goals, strict=True)]
            needed = [k if ok else n for ok, n in zip(reached, needed, strict=True)]
        usual = round(statistics.median(needed))
        plain, candidate = updates(PRODUCTS, "plain"), updates(usual, name)
        _, s, gain = compare(timer(plain), timer(candidate), count, options.seconds)
        print(f"{task} {stage // 1000}k".ljust(22), f"{damping:<6g}{name:<18}",
              f"{statistics.mean(needed):>5.1f} products {needed}, "
              f"{1e3 * s:.2f} ms with {usual}: gain {gain:.2f}", flush=True)  # fmt: skip


def main() -> None:
    """Prints the table, and writes it and the curves on request."""
    parser = harness.parser(__doc__, threads=None, seconds=1.0, output=None)
    methods = [*METHODS, *OPERATORS]
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="policies")
    parser.add_argument(
        "--stage", type=int, nargs="+", default=list(STAGES), help="steps of training"
    )
    parser.add_argument("--damping", type=float, nargs="+", default=[0.1, 0.01], help="values")
    parser.add_argument(
        "--method", nargs="+", choices=methods, default=["kfac", "auto"], metavar="NAME",
        help=f"of {'; '.join(methods)}",
    )  # fmt: skip
    parser.add_argument(
        "--last-residual", action="store_true", help="everybody computes the last residual"
    )
    parser.add_argument("--consecutive", type=int, metavar="N", help="solve N updates of a run")
    parser.add_argument("--curves", type=Path, help="CSV file for the error after each product")
    quick = {"task": ["CartPole-v1"], "stage": [0], "damping": [0.1], "seconds": 0.0}
    options = harness.parse(parser, quick)
    if "jax" in options.method:
        harness.limit_threads(options.threads)
    harness.announce(libraries=("jax",))
    cases = [(t, s, d) for t in options.task for s in options.stage for d in options.damping]
    if options.consecutive:
        if unsuited := {"jax", *OPERATORS}.intersection(options.method):
            parser.error(f"--consecutive has no method {', '.join(sorted(unsuited))}")
        for case in cases:
            show_consecutive(*case, options)
        return
    rows: list[harness.Row] = []
    curves: list[harness.Row] = []
    print(f"{'policy':<22}{'damping':>8}{'plain 10: error':>17}{'ms':>8}  {'method':<15}"
          f"{'products':>9}{'error':>8}{'ms':>8}{'gain':>6}")  # fmt: skip
    loaded = functools.lru_cache(maxsize=1)(load)
    for task, stage, damping in tqdm(cases, disable=None):
        snapshot = loaded(task, stage)
        system = System(snapshot, damping)
        about = {"task": task, "stage": stage, "damping": damping}
        all_errors = {"plain": [system.error(k, "plain") for k in range(1, MOST + 1)]}
        for name in options.method:
            row, errors = row_of(system, name, options)
            rows.append(about | row)
            if errors:
                all_errors[name] = errors
            text = f"{'> ' + str(MOST):>9}{errors[-1]:>8.3f}" if "ms" not in row else (
                f"{row['products']:>9}{row['error']:>8.3f}{row['ms']:>8.2f}{row['gain']:>6.2f}"
            )  # fmt: skip
            print(f"{snapshot.name:<22}{damping:>8g}{row['plain_error']:>17.4f}"
                  f"{row.get('plain_ms', np.nan):>8.2f}  {name:<15}{text}", flush=True)  # fmt: skip
        if options.curves:
            found = curves_of(system, all_errors, options.last_residual)
            curves += [about | row for row in found]
    harness.write_rows(options.output, rows)
    harness.write_rows(options.curves, curves)


if __name__ == "__main__":
    main()
