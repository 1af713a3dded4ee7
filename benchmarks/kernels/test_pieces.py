"""Microbenchmarks of every public piece: `pytest benchmarks/ --benchmark-only`.

Each checks its answer before it is timed. Names are stable, so that pytest-benchmark's own
comparison and JSON export work from one commit to the next. Problems: S1 is a CartPole policy, S2 a
HalfCheetah policy, both float32 with 2048 observations; see `natgrad.bench.SHAPES`.
"""

from typing import Any

import numpy as np
import pytest

import natgrad
from natgrad import _core
from natgrad.bench import PIECES, SHAPES, Problem

Benchmark = Any


@pytest.fixture(params=["S1", "S2"], scope="module")
def problem(request: pytest.FixtureRequest) -> Problem:
    """A policy, a batch drawn from it, and a direction."""
    return Problem(SHAPES[request.param])


def run_piece(benchmark: Benchmark, problem: Problem, name: str) -> None:
    """Checks and times a piece of `natgrad bench`; extra_info has GFLOP/s and fraction of peak."""
    run, operations = PIECES[name](problem)
    peaks = [_core.fma_peak(problem.dtype) for _ in range(10)]
    benchmark(run)
    problem.restore()
    if benchmark.stats is not None and operations is not None:
        peaks += [_core.fma_peak(problem.dtype) for _ in range(10)]
        rate = operations / benchmark.stats["median"] * 1e-9
        benchmark.extra_info["GFLOP/s"] = round(rate, 1)
        benchmark.extra_info["of peak"] = round(rate / float(np.median(peaks)), 3)


def test_forward(benchmark: Benchmark, problem: Problem) -> None:
    """Outputs of the network for the whole batch."""
    run_piece(benchmark, problem, "forward")


def test_gradient(benchmark: Benchmark, problem: Problem) -> None:
    """The gradient of the surrogate: scores weighted with advantages."""
    run_piece(benchmark, problem, "gradient")


def test_fisher_product(benchmark: Benchmark, problem: Problem) -> None:
    """F v."""
    run_piece(benchmark, problem, "product")


def test_fisher_dense(benchmark: Benchmark, problem: Problem) -> None:
    """The whole matrix, from 64 observations."""
    fisher = natgrad.Fisher(problem.policy, problem.observations[:64])
    dense = fisher.to_dense()
    want = fisher @ problem.direction
    assert np.linalg.norm(dense @ problem.direction - want) < 1e-5 * np.linalg.norm(want)
    benchmark.pedantic(fisher.to_dense, rounds=3)


def test_fisher_diagonal(benchmark: Benchmark, problem: Problem) -> None:
    """The diagonal alone."""
    fisher = natgrad.Fisher(problem.policy, problem.observations)
    unit = np.zeros_like(problem.direction)
    unit[-1] = 1
    assert np.isclose(fisher.diagonal()[-1], (fisher @ unit)[-1], rtol=5e-6)
    benchmark(fisher.diagonal)


def test_kl(benchmark: Benchmark, problem: Problem) -> None:
    """The divergence from other parameters, for each observation."""
    run_piece(benchmark, problem, "kl")


def test_conjugate_gradient(benchmark: Benchmark, problem: Problem) -> None:
    """Ten iterations on the Fisher matrix with damping 0.1."""
    run_piece(benchmark, problem, "cg")


def test_line_search(benchmark: Benchmark) -> None:
    """The search alone, with a function that accepts the fifth candidate."""

    def evaluate(fraction: float) -> tuple[float, float]:
        return fraction, 0.02 * fraction**2

    arguments = (evaluate, 1.0, 0.01 * 0.8**6)
    result = _core.backtracking_line_search(*arguments)
    assert result.status is _core.LineSearchStatus.ACCEPTED
    benchmark(_core.backtracking_line_search, *arguments)


def test_update(benchmark: Benchmark, problem: Problem) -> None:
    """A whole trust region update, from the same parameters each time."""
    run_piece(benchmark, problem, "update")


@pytest.mark.parametrize("rows", [1, 8])
def test_sample(benchmark: Benchmark, problem: Problem, rows: int) -> None:
    """Actions and log probabilities for a step of one or eight environments."""
    run_piece(benchmark, problem, f"sample-{rows}")


def test_gae(benchmark: Benchmark) -> None:
    """2048 steps of one environment."""
    run_piece(benchmark, Problem(SHAPES["S1"]), "gae")


@pytest.mark.parametrize("fit", ["gauss_newton", "adam"])
def test_critic_fit(benchmark: Benchmark, problem: Problem, fit: str) -> None:
    """One fit of the critic on a batch, from the same start each time."""
    if fit == "gauss_newton":
        run_piece(benchmark, problem, "critic")
        return
    observations = problem.observations
    targets = np.sin(observations[:, 0]) + observations[:, 1]

    def run() -> natgrad.FitReport:
        critic = natgrad.ValueFunction(observations.shape[1])
        return natgrad.AdamFit()(critic, observations, targets)

    assert run().explained_variance > 0.3
    benchmark(run)
