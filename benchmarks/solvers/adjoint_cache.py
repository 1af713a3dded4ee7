"""Where cached adjoints pay, and whether the core's cost model knows: Fisher products both ways.

    python benchmarks/adjoint_cache.py --threads 1
    python benchmarks/adjoint_cache.py --dtype float64 --products 5

Each row times conjugate gradients by passes (eq. 12, 13) and by cached adjoints (eq. 18, 19),
their making included, in turns. `chosen` is what method="auto" does, told by the bits of its
answer; `loss` is how much longer that takes than the faster way. Exits with 1 if a loss exceeds
--tolerance.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Literal

import numpy as np

import natgrad
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
    """Seconds of the solve, with an operator that has done nothing yet, and the solution."""
    fisher = _core.Fisher(policy, observations, method=method)
    begin = time.perf_counter()
    result = natgrad.conjugate_gradient(fisher, g, damping=0.1, rtol=0.0, max_iterations=products)
    return time.perf_counter() - begin, result.x


def turns(solve: Solve, seconds: float) -> dict[Method, float]:
    """Median seconds of both ways, one after the other in rounds."""
    ways: tuple[Method, ...] = ("passes", "adjoints")
    taken: dict[Method, list[float]] = {way: [] for way in ways}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken["passes"]) < 5:
        for way in ways:
            taken[way].append(solve(way)[0])
    return {way: statistics.median(values) for way, values in taken.items()}


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--products", type=int, default=10)
    parser.add_argument("--threads", type=int, default=natgrad.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.15, help="on each row")
    parser.add_argument("--tolerance", type=float, default=0.1, help="greatest loss allowed")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    options = parser.parse_args()
    natgrad.set_num_threads(options.threads)
    about = natgrad.show_config()
    print(f"natgrad {about['version']}, ISA level {about['isa']}, {options.threads} threads,",
          f"{options.dtype}, series of {options.products} products")  # fmt: skip
    print(f"{'network':<22}{'distribution':<22}{'N':>6}{'passes':>11}{'adjoints':>11}"
          f"{'ratio':>7}  {'chosen':<9}{'loss':>6}")  # fmt: skip
    worst = 0.0
    for inputs, hidden in NETWORKS:
        for distribution in DISTRIBUTIONS:
            for rows in options.rows:
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
                seconds = turns(solve, options.seconds)
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
