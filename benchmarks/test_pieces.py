"""Microbenchmarks of every public piece; `pytest benchmarks/test_pieces.py --benchmark-only`.

Each checks its answer before it is timed. Names are stable, so that pytest-benchmark's own
comparison and JSON export work from one commit to the next. Problems: S1 is a CartPole policy, S2 a
HalfCheetah policy (sizes in `PROBLEMS`), both float32 with 2048 observations.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import natgrad

PROBLEMS = {"S1": (4, natgrad.Categorical(2)), "S2": (17, natgrad.DiagonalGaussian(6))}
ROWS = 2048

Problem = Any
Benchmark = Any


@pytest.fixture(params=PROBLEMS, scope="module")
def problem(request: pytest.FixtureRequest) -> Problem:
    """A policy, a batch drawn from it, and a direction."""
    size, distribution = PROBLEMS[request.param]
    generator = np.random.default_rng(0)
    policy = natgrad.Policy(size, distribution, output_scale=1.0)
    observations = generator.normal(size=(ROWS, size)).astype(np.float32)
    actions, log_probs = policy.sample(observations, natgrad.Rng(0))
    advantages = generator.normal(size=ROWS)
    return SimpleNamespace(
        policy=policy,
        batch=natgrad.Batch(observations, actions, advantages, log_probs),
        fisher=natgrad.Fisher(policy, observations),
        gradient=np.asarray(policy.score(observations, actions, advantages), np.float64),
        direction=generator.normal(size=policy.parameters.size),
        operations=sum(
            (4 if i else 2) * 2 * ROWS * np.prod(block.shape)
            for i, block in enumerate(b for b in policy.layout if b.name.endswith("weight"))
        ),
    )


def test_fisher_product(benchmark: Benchmark, problem: Problem) -> None:
    """F v; extra_info has GFLOP/s by the model of four products a layer, two for the first."""
    small = natgrad.Fisher(problem.policy, problem.batch.observations[:64])
    want = small.to_dense() @ problem.direction
    got = small @ problem.direction
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)
    benchmark(problem.fisher.matvec, problem.direction)
    if benchmark.stats is not None:
        rate = problem.operations / benchmark.stats["median"] / 1e9
        benchmark.extra_info["GFLOP/s"] = round(float(rate), 1)


def test_fisher_dense(benchmark: Benchmark, problem: Problem) -> None:
    """The whole matrix, from 64 observations."""
    fisher = natgrad.Fisher(problem.policy, problem.batch.observations[:64])
    dense = fisher.to_dense()
    want = fisher @ problem.direction
    assert np.linalg.norm(dense @ problem.direction - want) < 1e-5 * np.linalg.norm(want)
    benchmark.pedantic(fisher.to_dense, rounds=3)


def test_fisher_diagonal(benchmark: Benchmark, problem: Problem) -> None:
    """The diagonal alone."""
    unit = np.zeros_like(problem.direction)
    unit[-1] = 1
    assert np.isclose(problem.fisher.diagonal()[-1], (problem.fisher @ unit)[-1], rtol=5e-6)
    benchmark(problem.fisher.diagonal)


def test_conjugate_gradient(benchmark: Benchmark, problem: Problem) -> None:
    """Ten iterations on the Fisher matrix with damping 0.1."""
    result = natgrad.conjugate_gradient(problem.fisher, problem.gradient, damping=0.1)
    residual = problem.gradient - (problem.fisher @ result.x + 0.1 * result.x)
    assert np.isclose(np.linalg.norm(residual), result.residual_norm, rtol=1e-4)
    benchmark(natgrad.conjugate_gradient, problem.fisher, problem.gradient, damping=0.1)


def test_line_search(benchmark: Benchmark) -> None:
    """The search alone, with a function that accepts the fifth candidate."""

    def evaluate(fraction: float) -> tuple[float, float]:
        return fraction, 0.02 * fraction**2

    arguments = (evaluate, 1.0, 0.01 * 0.8**6)
    result = natgrad.backtracking_line_search(*arguments)
    assert result.status is natgrad.LineSearchStatus.ACCEPTED
    benchmark(natgrad.backtracking_line_search, *arguments)


def test_update(benchmark: Benchmark, problem: Problem) -> None:
    """A whole trust region update, from the same parameters each time."""
    start = problem.policy.parameters.copy()
    update = natgrad.TrustRegionUpdate()

    def run() -> natgrad.UpdateReport:
        problem.policy.parameters = start
        return update(problem.policy, problem.batch)

    report = run()
    assert report.accepted
    assert report.kl <= 0.01
    divergence = problem.policy.kl(problem.batch.observations, start)
    assert np.isclose(np.mean(divergence, dtype=np.float64), report.kl, rtol=1e-5)
    benchmark(run)
    problem.policy.parameters = start


@pytest.mark.parametrize("rows", [1, 8])
def test_sample(benchmark: Benchmark, problem: Problem, rows: int) -> None:
    """Actions and log probabilities for a step of one or eight environments."""
    observations, rng = problem.batch.observations[:rows], natgrad.Rng(1)
    actions, log_probs = problem.policy.sample(observations, rng)
    assert np.allclose(log_probs, problem.policy.log_prob(observations, actions), rtol=1e-5)
    benchmark(problem.policy.sample, observations, rng)


def test_gae(benchmark: Benchmark) -> None:
    """2048 steps of one environment."""
    generator = np.random.default_rng(0)
    rewards, values, following = generator.normal(size=(3, ROWS))
    ends = np.zeros(ROWS, np.bool_)
    arguments = (rewards, values, following, ends, ends, 0.99, 0.0)
    assert np.allclose(natgrad.gae(*arguments)[0], rewards + 0.99 * following - values)
    benchmark(natgrad.gae, *arguments)


@pytest.mark.parametrize("fit", ["gauss_newton", "adam"])
def test_critic_fit(benchmark: Benchmark, problem: Problem, fit: str) -> None:
    """One fit of the critic on a batch, from the same start each time."""
    observations = problem.batch.observations
    targets = np.sin(observations[:, 0]) + observations[:, 1]
    size = observations.shape[1]

    def run() -> natgrad.FitReport:
        fitter = natgrad.GaussNewtonFit() if fit == "gauss_newton" else natgrad.AdamFit()
        return fitter(natgrad.ValueFunction(size), observations, targets)

    assert run().explained_variance > 0.3
    benchmark(run)
