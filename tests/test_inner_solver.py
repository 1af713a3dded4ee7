"""The inner solver: conjugate gradient iterations as a preconditioner that is not linear."""

import gc
import weakref

import numpy as np
import pytest
from conftest import dense_matrix, hard_problem, make_problem, relative_error

from natgrad import _core as core


class InnerIterations:
    """Conjugate gradients without recurrences: the best z as a space grows by C^-1 (r - B z)."""

    def __init__(self, B, C_inverse, iterations):
        self.B, self.C_inverse, self.iterations = B, C_inverse, iterations

    def __matmul__(self, r):
        space, z = np.empty((len(r), 0)), np.zeros_like(r)
        for _ in range(self.iterations):
            y = self.C_inverse @ (r - self.B @ z)
            space = np.column_stack([space, y / np.linalg.norm(y)])
            z = space @ np.linalg.solve(space.T @ self.B @ space, space.T @ r)
        return z


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("iterations", [1, 3])
def test_the_inner_solver_is_the_best_in_a_space_that_grows(iterations, factors):
    problem = hard_problem()
    part = core.Fisher(problem.core, problem.observations, damping=0.02, fraction=1 / 3)
    n = part.shape[0]
    C = core.KroneckerFactors(part, 0.5) if factors else None
    M = core.InnerSolver(part, 0.03, iterations, C)
    assert M.positive_definite
    assert M.shape == (n, n)
    want = InnerIterations(
        part.to_dense() + 0.03 * np.eye(n), dense_matrix(C) if factors else np.eye(n), iterations
    )
    for r in np.random.default_rng(0).normal(size=(2, n)):
        assert relative_error(M @ r, want @ r) < 1e-14


def test_enough_inner_iterations_solve():
    problem = make_problem("bernoulli", hidden=(), observation_size=4, count=30)
    fisher = core.Fisher(problem.core, problem.observations, damping=0.1)
    r = np.random.default_rng(0).normal(size=fisher.shape[0])
    M = core.InnerSolver(fisher, iterations=40)
    assert relative_error(M @ r, np.linalg.solve(fisher.to_dense(), r)) < 5e-10
    assert not (M @ np.zeros_like(r)).any()
    once = core.conjugate_gradient(fisher, r, max_iterations=2, rtol=1e-9, preconditioner=M)
    assert once.status is core.CgStatus.CONVERGED
    assert once.iterations == 1


@pytest.mark.parametrize("replacement", [0, 3])
def test_conjugate_gradients_are_flexible_where_the_preconditioner_varies(replacement):
    """Against beta by differences of residuals (Notay 2000), which is the same number."""
    problem = hard_problem()
    fisher = core.Fisher(problem.core, problem.observations)
    part = core.Fisher(problem.core, problem.observations, fraction=1 / 5)
    b = problem.core.score(problem.observations, problem.actions, problem.advantages)
    A = fisher.to_dense() + 0.01 * np.eye(len(b))
    M = core.InnerSolver(part, 0.01, 2)
    x, r = np.zeros_like(b), b.copy()
    z = p = M @ r
    for _ in range(6):
        step = (r @ z) / (p @ A @ p)
        x, before, rho = x + step * p, r, r @ z
        r = r - step * (A @ p)
        z = M @ r
        p = z + z @ (r - before) / rho * p
    got = core.conjugate_gradient(
        fisher, b, damping=0.01, max_iterations=6, residual_replacement=replacement,
        preconditioner=core.InnerSolver(part, 0.01, 2),
    )  # fmt: skip
    assert relative_error(got.x, x) < 5e-14
    assert got.products == 6 + (2 if replacement else 0)


def test_inner_solvers_can_be_nested():
    problem = hard_problem()
    F, half, quarter = (
        core.Fisher(problem.core, problem.observations, fraction=f) for f in (1, 0.5, 0.25)
    )
    b = problem.core.score(problem.observations, problem.actions, problem.advantages)
    M = core.InnerSolver(
        half, 0.01, 2, core.InnerSolver(quarter, 0.01, 3, core.KroneckerFactors(quarter, 0.01))
    )
    r = core.conjugate_gradient(F, b, damping=0.01, rtol=1e-8, max_iterations=100, preconditioner=M)
    assert r.status is core.CgStatus.CONVERGED
    assert relative_error(r.x, np.linalg.solve(F.to_dense() + 0.01 * np.eye(len(b)), b)) < 5e-7


def test_a_part_of_the_batch_preconditions_better_than_factors_of_all_of_it():
    problem = hard_problem()
    fisher = core.Fisher(problem.core, problem.observations)
    part = core.Fisher(problem.core, problem.observations, fraction=1 / 4)
    b = problem.core.score(problem.observations, problem.actions, problem.advantages)
    A = fisher.to_dense() + 0.01 * np.eye(len(b))
    exact = np.linalg.solve(A, b)

    def error(preconditioner):
        x = core.conjugate_gradient(
            fisher, b, damping=0.01, max_iterations=2, preconditioner=preconditioner
        ).x
        return np.sqrt((x - exact) @ A @ (x - exact))

    factors = core.KroneckerFactors(fisher, 0.01, every=1, all_columns=True)
    assert error(core.InnerSolver(part, 0.01, 4, core.KroneckerFactors(part, 0.01))) < 0.7 * error(
        factors
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inner_iterations_have_the_same_bits_for_any_number_of_threads(dtype):
    problem = make_problem("gaussian", hidden=(64, 130), dtype=dtype, count=3000)
    rs = np.random.default_rng(0).normal(size=(2, problem.core.parameters.size))
    results, before = [], core.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            core.set_num_threads(threads)
            part = core.Fisher(problem.core, problem.observations, fraction=0.5)
            M = core.InnerSolver(part, 0.1, 2, core.KroneckerFactors(part, 0.1))
            results.append([M @ r for r in rs])
    finally:
        core.set_num_threads(before)
    for other in results[1:]:
        assert np.array_equal(results[0], other)


def test_the_inner_solver_keeps_what_it_is_made_of():
    problem = hard_problem()
    part = core.Fisher(problem.core, problem.observations, fraction=0.5)
    factors = core.KroneckerFactors(part, 0.1)
    M = core.InnerSolver(part, 0.1, 2, factors)
    alive = [weakref.ref(part), weakref.ref(factors)]
    del part, factors
    gc.collect()
    assert all(reference() is not None for reference in alive)
    del M
    gc.collect()
    assert all(reference() is None for reference in alive)
