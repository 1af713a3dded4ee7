"""Where cached adjoints pay, and whether the core's cost model knows: Fisher products both ways.

    python benchmarks/adjoint_cache.py --threads 1
    python benchmarks/adjoint_cache.py --dtype float64 --products 5

Each row times conjugate gradients by passes (eq. 12, 13) and by cached adjoints (eq. 18, 19),
their making included, in turns. `chosen` is what method="auto" does, told by the bits of its
answer; `loss` is how much longer that takes than the faster way. Exits with 1 if a loss exceeds --tolerance.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

import natgrad
from natgrad import _core, bench

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


def turns(calls: dict[str, Callable[[], float]], seconds: float) -> dict[str, float]:
    """Median seconds of each call, one after the other in rounds; a call times itself."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken[next(iter(calls))]) < 5:
        for name, call in calls.items():
            taken[name].append(call())
    return {name: statistics.median(values) for name, values in taken.items()}


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

                def solve(method: str) -> tuple[float, np.ndarray]:
                    fisher = _core.Fisher(policy, observations, method=method)  # noqa: B023
                    begin = time.perf_counter()
                    result = natgrad.conjugate_gradient(
                        fisher, g, damping=0.1, rtol=0.0, max_iterations=options.products  # noqa: B023
                    )  # fmt: skip
                    return time.perf_counter() - begin, result.x

                x = {method: solve(method)[1] for method in ("auto", "passes", "adjoints")}
                bench.require_close(
                    f"{shape}: F @ v by adjoints",
                    _core.Fisher(policy, observations, method="adjoints") @ g,
                    _core.Fisher(policy, observations, method="passes") @ g,
                    bench.TOLERANCE[options.dtype],
                )
                chosen = "adjoints" if np.array_equal(x["auto"], x["adjoints"]) else "passes"
                seconds = turns(
                    {method: lambda m=method: solve(m)[0] for method in ("passes", "adjoints")},
                    options.seconds,
                )
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
