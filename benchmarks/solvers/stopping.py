"""Where do stopping rules end a solve, and how large is its error there?

    python -m benchmarks.solvers.stopping [--task HalfCheetah-v5 ...] [--damping 0.1 0.01]

Trains TRPO for some steps and takes the system of its next update, F and g. Prints the error
against a dense solve in the (F + damping I)-norm and the relative residual after several numbers of
products. Then prints, for tolerances and windows of the relative-progress test, after how many
products it ends and the error there.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import natgrad
from benchmarks import harness
from benchmarks.solvers.snapshots import next_batch
from natgrad.agents.config import TRPOConfig

PRODUCTS = (1, 2, 3, 5, 7, 10, 15, 20, 30)
TOLERANCES = (5e-4, 2e-3, 5e-3, 1e-2, 2e-2)
WINDOWS = (1, 2, 3, 5, 10)


def system(task: str, steps: int) -> tuple[natgrad.Fisher, NDArray[Any]]:
    """F and g of the update after so many steps."""
    agent = natgrad.TRPO(task, TRPOConfig(seed=0, preconditioner="none", cg_iterations=10))
    if steps:
        agent.learn(steps)
    batch = next_batch(agent)
    agent.close()
    score = agent.policy.score(batch.observations, batch.actions, batch.advantages)
    return natgrad.Fisher(agent.policy, batch.observations), np.asarray(score, float)


def distance(x: NDArray[Any], exact: NDArray[Any], matrix: NDArray[Any]) -> float:
    """Relative error of x in the norm of the matrix."""
    e = x - exact
    return float(np.sqrt((e @ matrix @ e) / (exact @ matrix @ exact)))


def main() -> None:
    """Prints both tables for every task and damping."""
    parser = harness.parser(__doc__)
    tasks = ["CartPole-v1", "Pendulum-v1", "Hopper-v5", "HalfCheetah-v5"]
    parser.add_argument("--task", nargs="+", default=tasks, help="environments")
    parser.add_argument("--steps", type=int, default=60_000, help="of training")
    parser.add_argument("--damping", type=float, nargs="+", default=[0.1, 0.01], help="values")
    quick = {"task": ["CartPole-v1"], "steps": 2048, "damping": [0.1]}
    options = harness.parse(parser, quick)
    harness.announce()
    for task in options.task:
        fisher, gradient = system(task, options.steps)
        dense = fisher.to_dense()
        size, trace = len(dense), float(np.trace(dense))
        print(f"{task} after {options.steps} steps: P = {size}, tr(F)/P = {trace / size:.4f}")
        print(f"  estimate of tr(F): {100 * (fisher.trace() / trace - 1):+.2f} %")
        for damping in options.damping:
            matrix = dense + damping * np.eye(size)
            exact = np.linalg.solve(matrix, gradient)

            print(f"  damping {damping}: products, error, relative residual")
            for products in PRODUCTS:
                r = natgrad.conjugate_gradient(
                    fisher, gradient, damping=damping, max_iterations=products
                )
                residual = r.residual_norm / np.linalg.norm(gradient)
                print(f"    {products:4}{distance(r.x, exact, matrix):9.3f}{residual:9.3f}")
            print("    window, then for tolerances", *TOLERANCES, ": products (error)")
            for window in WINDOWS:
                print(f"    {window:4}", end="")
                for tolerance in TOLERANCES:
                    r = natgrad.conjugate_gradient(
                        fisher,
                        gradient,
                        damping=damping,
                        max_iterations=300,
                        progress_tolerance=tolerance,
                        progress_window=window,
                    )
                    print(f"{r.iterations:6} ({distance(r.x, exact, matrix):.2f})", end="")
                print()


if __name__ == "__main__":
    main()
