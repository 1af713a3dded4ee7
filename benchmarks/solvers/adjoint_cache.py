"""Where cached adjoints pay, and whether the core's cost model knows: Fisher products both ways.

    python -m benchmarks.solvers.adjoint_cache --threads 1
    python -m benchmarks.solvers.adjoint_cache --dtype float64 --products 5

Each row times conjugate gradients by passes (eq. 4.1, 4.2) and by cached adjoints (eq. 4.4, 4.5),
in turn; the adjoints' computation is part of the time. `chosen` is what method="auto" does,
recognised by the bits of its answer; `loss` is how much longer that takes than the faster way.
Exits with 1 if a loss exceeds --tolerance."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Literal

import numpy as np

import natgrad
from benchmarks import harness
from natgrad import _core, bench

Method = Literal["auto", "passes", "adjoints"]
NETWORKS: tuple[tuple[int, tuple[int, ...]], ...] = (
    (4, (16, 16)), (4, (32, 32)), (4, (64, 64)), (17, (64, 64)), (17, (128, 128)),
    (11, (100, 50, 25)), (17, (256, 256)), (348, (256, 256)), (8, (64,)), (27, (64, 64, 64)),
    (64, (512, 512)),
)  # fmt: skip
DISTRIBUTIONS: tuple[_core.Distribution, ...] = (
    _core.Categorical(2), _core.Categorical(4), _core.DiagonalGaussian(1),
    _core.DiagonalGaussian(3), _core.DiagonalGaussian(6), _core.DiagonalGaussian(17),
)  # fmt: skip
ROWS = (512, 2048, 8192, 32768)
MOST_WORK = 3e9  # operations of one series of products; larger problems are left out

Solve = Callable[[Method], tuple[float, bench.Doubles]]


def timed_solve(
    policy: natgrad.Policy,
    observations: np.ndarray,
    g: np.ndarray,
    products: int,
    method: Method,
) -> tuple[float, bench.Doubles]:
    """Seconds of a solve with a new operator, and the solution."""
    fisher = _core.Fisher(policy, observations, method=method)
    begin = time.perf_counter()
    result = natgrad.conjugate_gradient(fisher, g, damping=0.1, rtol=0.0, max_iterations=products)
    return time.perf_counter() - begin, result.x


def seconds_of(solve: Solve, seconds: float) -> dict[Method, float]:
    """Median seconds of both ways, which take turns."""
    ways: tuple[Method, ...] = ("passes", "adjoints")
    turns = {way: (lambda way=way: solve(way)[0]) for way in ways}
    taken = harness.take_turns(turns, rounds=5, seconds=seconds)
    return {way: statistics.median(values) for way, values in taken.items()}


def main() -> int:
    """Prints the table."""
    parser = harness.parser(__doc__, dtype="float32", threads=None, seconds=0.15)
    parser.add_argument("--products", type=int, default=10, help="of a solve")
    parser.add_argument("--tolerance", type=float, default=0.1, help="greatest loss allowed")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="observations")
    options = harness.parse(parser, {"rows": [512], "seconds": 0.0, "tolerance": np.inf})
    harness.announce(options.dtype)
    print(f"series of {options.products} products")
    print(f"{'network':<22}{'distribution':<22}{'N':>6}{'passes':>11}{'adjoints':>11}"
          f"{'ratio':>7}  {'chosen':<9}{'loss':>6}")  # fmt: skip
    worst = 0.0
    for (inputs, hidden), distribution, rows in itertools.product(
        NETWORKS, DISTRIBUTIONS, options.rows
    ):
        shape = bench.Shape("", inputs, hidden, distribution, rows)
        if options.products * shape.operations(2, 4) > MOST_WORK:
            continue
        generator = np.random.default_rng(0)
        policy = natgrad.Policy(inputs, distribution, hidden=hidden, dtype=options.dtype,
                                output_scale=1.0)  # fmt: skip
        observations = generator.normal(size=(rows, inputs)).astype(options.dtype)
        actions, _ = policy.sample(observations, natgrad.Rng(0))
        g = policy.score(observations, actions, generator.normal(size=rows))

        solve = functools.partial(timed_solve, policy, observations, g, options.products)
        same = np.array_equal(solve("auto")[1], solve("adjoints")[1])
        chosen: Method = "adjoints" if same else "passes"
        bench.require_close(
            f"{shape}: F @ v by adjoints",
            _core.Fisher(policy, observations, method="adjoints") @ g,
            _core.Fisher(policy, observations, method="passes") @ g,
            bench.TOLERANCE[options.dtype],
        )
        seconds = seconds_of(solve, options.seconds)
        loss = seconds[chosen] / min(seconds.values()) - 1
        worst = max(worst, loss)
        name = "-".join(map(str, (inputs, *hidden)))
        print(f"{name:<22}{distribution!r:<22}{rows:>6}{seconds['passes'] * 1e3:>8.2f} ms"
              f"{seconds['adjoints'] * 1e3:>8.2f} ms"
              f"{seconds['passes'] / seconds['adjoints']:>7.2f}  {chosen:<9}{loss:>6.1%}",
              flush=True)  # fmt: skip
    print(f"greatest loss {worst:.1%}")
    return int(worst > options.tolerance)


if __name__ == "__main__":
    raise SystemExit(main())
