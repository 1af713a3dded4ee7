"""Preconditioners: diagonal, Nystrom, what all kinds have in common, and bad input."""

import itertools

import numpy as np
import pytest
from conftest import dense_matrix, make_problem, relative_error

from natgrad import _core as core


def test_the_diagonal_preconditioner_divides_by_the_diagonal():
    problem = make_problem("gaussian")
    fisher = core.Fisher(problem.core, problem.observations)
    v = np.random.default_rng(0).normal(size=fisher.shape[0])
    want = v / (np.diag(fisher.to_dense()) + 0.1)
    assert relative_error(core.DiagonalPreconditioner(fisher, 0.1) @ v, want) < 1e-12
    same = core.DiagonalPreconditioner(fisher.diagonal(), 0.1)
    assert relative_error(same @ v, want) < 1e-12


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_diagonal_that_is_not_positive_leaves_the_identity(bad):
    M = core.DiagonalPreconditioner(np.array([1.0, bad, 2.0]))
    assert not M.positive_definite
    assert np.array_equal(M @ np.ones(3), np.ones(3))


def low_rank(n=60, rank=5, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, rank)))
    return (q * np.geomspace(1.0, 1e4, rank)) @ q.T


def test_nystrom_solves_a_system_of_low_rank_at_once():
    A = low_rank(rank=25)
    b = np.random.default_rng(1).normal(size=len(A))
    M = core.NystromPreconditioner(A, rank=30, damping=0.1)
    r = core.conjugate_gradient(A, b, damping=0.1, rtol=1e-8, max_iterations=50, preconditioner=M)
    plain = core.conjugate_gradient(A, b, damping=0.1, rtol=1e-8, max_iterations=50)
    assert r.status is core.CgStatus.CONVERGED
    assert r.iterations <= 8 < 25 <= plain.iterations
    assert relative_error(r.x, np.linalg.solve(A + 0.1 * np.eye(len(A)), b)) < 1e-7


def test_nystrom_is_the_formula_of_its_paper():
    # On the range of a full sketch the approximation is A itself: (l_min + mu) (A + mu I)^-1.
    A = low_rank(12, 12)
    M = core.NystromPreconditioner(A, rank=12, damping=0.5)
    smallest = np.linalg.eigvalsh(A)[0]
    want = (smallest + 0.5) * np.linalg.inv(A + 0.5 * np.eye(12))
    assert relative_error(dense_matrix(M), want) < 1e-3


def test_nystrom_depends_on_its_seed_alone():
    problem = make_problem("gaussian", count=200)
    fisher = core.Fisher(problem.core, problem.observations)
    v = np.random.default_rng(0).normal(size=fisher.shape[0])
    one, same, other = (core.NystromPreconditioner(fisher, 10, 0.1, s) @ v for s in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("matrix", [np.zeros((6, 6)), -np.eye(6), np.diag([1.0, 1, 1, 1, 1, -9])])
def test_nystrom_of_zero_and_of_indefinite_operators_stays_finite(matrix):
    M = core.NystromPreconditioner(matrix, rank=6, damping=0.0)
    assert np.isfinite(M @ np.ones(6)).all()
    assert M.positive_definite == (not matrix.any())


# All kinds ---------------------------------------------------------------------------------------


def preconditioners_of(n):
    """One of each kind for systems of size n, each of another matrix."""
    problem = make_problem("bernoulli", hidden=(), observation_size=n // 3 - 1, count=30)
    fisher = core.Fisher(problem.core, problem.observations)
    assert fisher.shape == (n, n)
    return {
        "none": None,
        "kfac": core.KroneckerFactors(fisher, 0.1),
        "inner": core.InnerSolver(fisher, 0.1, 3),
        "diagonal": core.DiagonalPreconditioner(np.linspace(1, 2, n)),
        "nystrom": core.NystromPreconditioner(fisher, 4, 0.1),
        "array": np.eye(n),
    }


@pytest.mark.parametrize("kind", ["none", "kfac", "inner", "diagonal", "nystrom", "array"])
def test_indefinite_and_singular_operators_are_told_with_any_preconditioner(kind):
    n = 15
    M = preconditioners_of(n)[kind]
    rng = np.random.default_rng(0)
    b = rng.normal(size=n)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    signs = np.where(np.arange(n) % 2, 1.0, -1.0)
    singular = (q * np.linspace(1, 2, n) * (np.arange(n) < 8)) @ q.T
    for A, status in (
        ((q * signs) @ q.T, core.CgStatus.INDEFINITE),
        (np.zeros((n, n)), core.CgStatus.INDEFINITE),
        (-np.eye(n), core.CgStatus.INDEFINITE),
        (singular, None),
    ):
        r = core.conjugate_gradient(A, b, max_iterations=30, preconditioner=M)
        assert status is None or r.status is status
        assert np.isfinite(r.x).all()
        assert np.isfinite([r.residual_norm, r.quadratic_form]).all()
    # With b in its range a singular operator has solutions.
    r = core.conjugate_gradient(
        singular, singular @ b, rtol=1e-8, max_iterations=100, preconditioner=M
    )
    assert r.status is core.CgStatus.CONVERGED


@pytest.mark.parametrize("curvature", [2.0, 0.0, -1.0])
def test_systems_of_one_unknown(curvature):
    A, b = np.array([[curvature]]), np.array([3.0])
    made = (
        None, np.eye(1), core.DiagonalPreconditioner(np.abs(A[0]), 0.5),
        core.NystromPreconditioner(A, 1, 0.5),
    )  # fmt: skip
    for damping, M in itertools.product((0.0, 0.5), made):
        r = core.conjugate_gradient(A, b, damping=damping, preconditioner=M)
        assert np.isfinite([r.x[0], r.residual_norm, r.quadratic_form]).all()
        if curvature + damping > 0:
            assert r.status is core.CgStatus.CONVERGED
            np.testing.assert_allclose(r.x, b / (curvature + damping), rtol=1e-6)
        else:
            assert r.status is core.CgStatus.INDEFINITE


# Bad input ---------------------------------------------------------------------------------------


def test_bad_input_is_named():
    problem = make_problem("categorical")
    fisher = core.Fisher(problem.core, problem.observations)
    b = np.ones(fisher.shape[0])
    cases = [
        (lambda: core.KroneckerFactors(fisher, -1.0), "damping: want a finite number >= 0"),
        (lambda: core.KroneckerFactors(fisher, np.nan), "damping: want a finite number >= 0"),
        (lambda: core.KroneckerFactors(fisher, every=0), "every: want an integer from 1"),
        (lambda: core.DiagonalPreconditioner(np.eye(2)), "A: want shape"),
        (lambda: core.DiagonalPreconditioner([np.inf]), r"A\[0\]: want a finite number"),
        (lambda: core.NystromPreconditioner(np.eye(3), 4), "rank: want at most the size of A, 3"),
        (lambda: core.NystromPreconditioner(np.eye(3), 0), "rank: want an integer from 1"),
        (lambda: core.NystromPreconditioner(np.ones((2, 3)), 1), "A: want a square operator"),
        (
            lambda: core.NystromPreconditioner(lambda v: v, 1),
            "A: want an operator that has a shape",
        ),
        (lambda: core.KroneckerFactors(fisher) @ np.ones(3), "r: want shape"),
        (lambda: core.KroneckerFactors(fisher) @ (b * np.nan), r"r\[0\]: want a finite number"),
        (
            lambda: core.conjugate_gradient(
                np.eye(3), np.ones(3), preconditioner=core.KroneckerFactors(fisher)
            ),
            "preconditioner: want size 3 to match b, got a KroneckerFactors of size",
        ),
        (lambda: core.InnerSolver(fisher, -1.0), "damping: want a finite number >= 0"),
        (lambda: core.InnerSolver(fisher, iterations=0), "iterations: want an integer >= 1"),
        (
            lambda: core.InnerSolver(
                fisher, preconditioner=core.DiagonalPreconditioner(np.ones(3))
            ),
            f"preconditioner: want size {len(b)} to match b, got a DiagonalPreconditioner of size",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="preconditioner: want None or a Preconditioner, got 3"):
        core.InnerSolver(fisher, preconditioner=3)
