"""Preconditioners: their matrices against NumPy, what they do to conjugate gradients, bad input."""

import dataclasses
import gc
import itertools
import weakref

import numpy as np
import oracle
import pytest
from conftest import ACTIVATIONS, DISTRIBUTIONS, make_problem, relative_error
from scipy.sparse import linalg as sparse_linalg

from natgrad import _core as core

EPSILON = {"float32": np.finfo(np.float32).eps, "float64": np.finfo(np.float64).eps}


def layer_inputs(problem):
    """phi = (h, 1) of every layer, by a forward pass in NumPy: a list of (N, in + 1)."""
    network = problem.oracle.network
    f, _ = oracle.ACTIVATIONS[network.activation]
    h = [np.array([network.normalize(x) for x in problem.observations.astype(float)])]
    for weight, bias in network.layers(problem.theta)[:-1]:
        h.append(f(h[-1] @ weight.T + bias))
    return [np.column_stack([x, np.ones(len(x))]) for x in h]


def kronecker_factors(problem, weights=None, empirical=False):
    """A and S of every layer (eq. 21), S from the Jacobian's bias columns."""
    twin, theta = problem.oracle, problem.theta
    inputs = layer_inputs(problem)
    A = [phi.T @ phi / len(phi) for phi in inputs]
    S = [np.zeros((n, n)) for n in twin.network.sizes[1:]]
    for i, (x, action) in enumerate(zip(problem.observations, problem.actions, strict=True)):
        y, jacobian = twin.output(theta, x), twin.jacobian(theta, x)
        if empirical:
            score = twin.distribution.score(y, action)
            m = np.outer(score, score)
        else:
            m = twin.distribution.fisher(y)
        w = 1.0 if weights is None else weights[i]
        end = 0
        for layer, (n_in, n_out) in enumerate(itertools.pairwise(twin.network.sizes)):
            end += (n_in + 1) * n_out
            d = jacobian[:, end - n_out : end]
            S[layer] += w * d.T @ m @ d / len(problem.observations)
    return A, S


def inverse(problem, A, S, damping, dtype="float64"):
    """M^-1 (eq. 22) as a dense matrix, free outputs left zero."""
    P = problem.core.parameters.size
    dense, end = np.zeros((P, P)), 0
    for a, s in zip(A, S, strict=True):
        mean_a, mean_s = np.trace(a) / len(a), np.trace(s) / len(s)
        pi, gamma, rounding = (
            np.sqrt(mean_a / mean_s),
            np.sqrt(0.3 * damping),
            np.sqrt(EPSILON[dtype]),
        )
        a_inverse = np.linalg.inv(a + (gamma * pi + rounding * mean_a) * np.eye(len(a)))
        s_inverse = np.linalg.inv(s + (gamma / pi + rounding * mean_s) * np.eye(len(s)))
        n, m = len(s), len(a) - 1
        # Position in theta of entry (o, i) of V (out, in + 1).
        position = np.column_stack(
            [end + np.arange(n * m).reshape(n, m), end + n * m + np.arange(n)]
        ).ravel()
        dense[np.ix_(position, position)] = np.kron(s_inverse, a_inverse)
        end += n * (m + 1)
    return dense


def dense(preconditioner):
    n = preconditioner.shape[0]
    return np.column_stack([preconditioner @ e for e in np.eye(n)])


@pytest.mark.parametrize("damping", [0.1, 1e-3])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_kfac_is_the_inverse_of_the_kronecker_products(name, damping):
    problem = make_problem(name, hidden=(7, 5), count=40)
    fisher = core.Fisher(problem.core, problem.observations)
    M = core.KFac(fisher, damping, every=1, all_columns=True)
    assert M.positive_definite
    assert M.shape == fisher.shape
    want = inverse(problem, *kronecker_factors(problem), damping)
    got = dense(M)
    own = problem.oracle.distribution.own_parameters
    if own:  # free outputs have their own block, exact
        np.testing.assert_allclose(got[-own:, -own:], np.eye(own) / (2 + damping), rtol=1e-12)
        got[-own:, -own:] = 0
    assert relative_error(got, want) < 1e-11


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kfac_knows_every_activation(activation):
    problem = make_problem("gaussian", hidden=(9, 20), activation=activation, count=60)
    M = core.KFac(core.Fisher(problem.core, problem.observations), 0.05, every=1, all_columns=True)
    v = np.random.default_rng(0).normal(size=M.shape[0])
    own = problem.oracle.distribution.own_parameters
    v[-own:] = 0
    want = inverse(problem, *kronecker_factors(problem), 0.05) @ v
    assert relative_error(M @ v, want) < 1e-10


def test_kfac_of_weights_and_of_the_empirical_fisher():
    problem = make_problem("categorical", count=40)
    for kind in ("exact", "empirical"):
        fisher = core.Fisher(
            problem.core,
            problem.observations,
            kind=kind,
            actions=problem.actions,
            weights=problem.weights,
        )
        A, S = kronecker_factors(problem, problem.weights, kind == "empirical")
        want = inverse(problem, A, S, 0.1)
        assert relative_error(dense(core.KFac(fisher, 0.1, 1, True)), want) < 1e-11
    # One column has only one sign.
    same = core.KFac(fisher, 0.1, every=1, all_columns=False)
    assert np.array_equal(dense(same), dense(core.KFac(fisher, 0.1, every=1, all_columns=True)))


def test_random_signs_have_the_exact_factors_as_their_mean():
    # The error of an average over N observations falls as 1 / sqrt(N).
    errors = []
    for count in (256, 16_384):
        problem = make_problem("gaussian", hidden=(8,), count=count)
        fisher = core.Fisher(problem.core, problem.observations)
        signs, exact = (dense(core.KFac(fisher, 0.1, 1, columns)) for columns in (False, True))
        errors.append(relative_error(signs, exact))
    assert 1e-4 < errors[1] < errors[0] / 4
    assert errors[1] < 0.05


@pytest.mark.parametrize("every", [2, 3, 4])
def test_a_part_of_the_batch_stands_for_all_of_it(every):
    # Every observation comes `every` times in a row, so that one of each is all there is.
    problem = make_problem("gaussian", hidden=(7, 5), count=240)
    repeated = np.repeat(problem.observations, every, axis=0)
    whole = core.KFac(core.Fisher(problem.core, problem.observations), 0.1, 1, True)
    part = core.KFac(core.Fisher(problem.core, repeated), 0.1, every, True)
    assert relative_error(dense(part), dense(whole)) < 1e-10


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [(), (3,), (64, 64), (33, 130)])
def test_kfac_is_symmetric_and_positive_definite(hidden, dtype):
    problem = make_problem("gaussian", hidden=hidden, dtype=dtype, count=500)
    M = core.KFac(core.Fisher(problem.core, problem.observations), 1e-3)
    rng = np.random.default_rng(0)
    v, w = rng.normal(size=(2, M.shape[0]))
    scale = abs(v @ (M @ v))
    assert scale > 0
    assert abs(v @ (M @ w) - w @ (M @ v)) < 1e3 * EPSILON[dtype] * scale
    if M.shape[0] < 3000:
        matrix = dense(M)
        assert np.linalg.eigvalsh((matrix + matrix.T) / 2).min() > 0


def test_float32_factors_agree_with_float64():
    problems = [make_problem("gaussian", hidden=(64, 64), dtype=d, count=500) for d in EPSILON]
    problems[1].core.parameters = problems[0].core.parameters.astype(np.float64)
    v = np.random.default_rng(0).normal(size=problems[0].core.parameters.size)
    single, double = (
        core.KFac(core.Fisher(p.core, p.observations.astype(p.core.dtype)), 0.01) @ v
        for p in problems
    )
    # Rounding is floored at sqrt(epsilon) of the mean eigenvalue, which differs between the types.
    assert relative_error(single, double) < 0.05


def test_kfac_solves_a_linear_gaussian_policy_at_once():
    # There F is the product of its factors; what is left is how the damping is shared out.
    problem = make_problem("gaussian", hidden=(), count=200)
    fisher = core.Fisher(problem.core, problem.observations, method="passes")
    b = np.random.default_rng(0).normal(size=fisher.shape[0])
    M = core.KFac(fisher, 1e-6, every=1, all_columns=True)
    r = core.conjugate_gradient(fisher, b, damping=1e-6, max_iterations=8, preconditioner=M)
    plain = core.conjugate_gradient(fisher, b, damping=1e-6, max_iterations=8)
    assert r.residual_norm < 1e-4 * plain.residual_norm


def hard_problem(dtype="float64"):
    """Inputs of very different scales, as unnormalised observations have them."""
    problem = make_problem("gaussian", hidden=(16, 16), count=400, dtype=dtype)
    scales = np.array([0.05, 0.5, 2.0, 10.0], dtype)
    return dataclasses.replace(problem, observations=problem.observations * scales)


@pytest.mark.parametrize("damping", [0.1, 1e-3])
def test_kfac_is_more_accurate_after_as_many_products(damping):
    problem = hard_problem()
    fisher = core.Fisher(problem.core, problem.observations)
    b = problem.core.score(problem.observations, problem.actions, problem.advantages)
    A = fisher.to_dense() + damping * np.eye(len(b))
    x = np.linalg.solve(A, b)

    def error(preconditioner, iterations):
        r = core.conjugate_gradient(
            fisher, b, damping=damping, max_iterations=iterations, preconditioner=preconditioner
        )
        return np.sqrt((r.x - x) @ A @ (r.x - x))

    M = core.KFac(fisher, damping)
    for iterations in (1, 2, 4):
        assert error(M, iterations) < 0.85 * error(None, iterations)
    converged = core.conjugate_gradient(
        fisher, b, damping=damping, max_iterations=2000, preconditioner=M
    )
    assert converged.status is core.CgStatus.CONVERGED
    assert relative_error(converged.x, x) < 1e-6


def test_scipy_takes_the_same_preconditioner():
    problem = hard_problem()
    fisher = core.Fisher(problem.core, problem.observations, damping=0.01)
    b = np.random.default_rng(0).normal(size=fisher.shape[0])
    M = core.KFac(fisher)  # the damping is the operator's
    x, info = sparse_linalg.cg(fisher, b, rtol=1e-10, maxiter=2000, M=M)
    assert info == 0
    r = core.conjugate_gradient(fisher, b, max_iterations=2000, preconditioner=M)
    assert relative_error(r.x, x) < 1e-7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kfac_has_the_same_bits_for_any_number_of_threads(dtype):
    problem = make_problem("gaussian", hidden=(64, 130), dtype=dtype, count=3000)
    v = np.random.default_rng(0).normal(size=problem.core.parameters.size)
    results, before = [], core.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            core.set_num_threads(threads)
            fisher = core.Fisher(problem.core, problem.observations)
            results.append(core.KFac(fisher, 0.1) @ v)
    finally:
        core.set_num_threads(before)
    for other in results[1:]:
        assert np.array_equal(results[0], other)


# What is degenerate ------------------------------------------------------------------------------


def degenerate(case, dtype):
    """A problem, and its observations."""
    count = 1 if case == "one observation" else 64
    hidden = () if case == "smallest" else (7, 5)
    activation = "relu" if case == "dead layer" else "tanh"
    name = "categorical" if case != "smallest" else "bernoulli"
    problem = make_problem(
        name, hidden=hidden, observation_size=1 if case == "smallest" else 4, dtype=dtype,
        activation=activation, count=count,
    )  # fmt: skip
    observations = problem.observations
    if case == "duplicates":
        observations = np.repeat(observations[:1], count, axis=0)
    if case == "dead layer":  # the first layer's activations are all zero: nothing is learned below
        for block in problem.core.layout[:2]:
            values = np.zeros(block.size) if "weight" in block.name else np.full(block.size, -1.0)
            problem.core.parameters[block.offset : block.offset + block.size] = values
    return problem, observations


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("damping", [0.0, 1e-12, 0.1])
@pytest.mark.parametrize("case", ["one observation", "duplicates", "dead layer", "smallest"])
def test_degenerate_batches_give_finite_preconditioners(case, damping, dtype):
    problem, observations = degenerate(case, dtype)
    fisher = core.Fisher(problem.core, observations)
    M = core.KFac(fisher, damping)
    v = np.random.default_rng(0).normal(size=M.shape[0])
    assert np.isfinite(M @ v).all()
    assert v @ (M @ v) > 0
    b = fisher @ v
    r = core.conjugate_gradient(fisher, b, damping=damping, preconditioner=M)
    assert np.isfinite(r.x).all()
    assert np.isfinite([r.residual_norm, r.quadratic_form]).all()


KINDS = ("none", "auto", "kfac", "subsample", "diagonal", "nystrom")


@pytest.mark.parametrize("solver", ["auto", "cg", "direct"])
@pytest.mark.parametrize("preconditioner", KINDS)
@pytest.mark.parametrize("case", ["one observation", "duplicates", "dead layer", "smallest"])
def test_degenerate_batches_end_in_a_status_with_its_numbers(case, preconditioner, solver):
    for dtype, damping, last in itertools.product(EPSILON, (0.0, 1e-12, 0.1), (True, False)):
        problem, observations = degenerate(case, dtype)
        batch = dataclasses.replace(problem, observations=observations).batch
        update = core.TrustRegionUpdate(
            damping=damping, preconditioner=preconditioner, solver=solver, nystrom_rank=5,
            cg_last_residual=last, kfac_refresh=2, subsample_every=3,
        )  # fmt: skip
        for _ in range(3):
            before = problem.core.parameters.tobytes()
            report = update(problem.core, batch)
            if not report.accepted:
                assert problem.core.parameters.tobytes() == before
                assert report.message
            numbers = [v for v in report.as_dict().values() if isinstance(v, float)]
            assert np.isfinite(numbers).all()
            assert np.isfinite(problem.core.parameters).all()


def preconditioners_of(n):
    """One of each kind for systems of size n, each of another matrix."""
    problem = make_problem("bernoulli", hidden=(), observation_size=n // 3 - 1, count=30)
    fisher = core.Fisher(problem.core, problem.observations)
    assert fisher.shape == (n, n)
    return {
        "none": None,
        "kfac": core.KFac(fisher, 0.1),
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


def test_parameters_that_are_not_finite_leave_the_identity():
    problem = make_problem("categorical")
    problem.core.parameters[0] = np.nan
    M = core.KFac(core.Fisher(problem.core, problem.observations), 0.1)
    assert not M.positive_definite
    v = np.arange(M.shape[0], dtype=float)
    assert np.array_equal(M @ v, v)


# Inner iterations --------------------------------------------------------------------------------


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
    C = core.KFac(part, 0.5) if factors else None
    M = core.InnerSolver(part, 0.03, iterations, C)
    assert M.positive_definite
    assert M.shape == (n, n)
    want = InnerIterations(
        part.to_dense() + 0.03 * np.eye(n), dense(C) if factors else np.eye(n), iterations
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
        half, 0.01, 2, core.InnerSolver(quarter, 0.01, 3, core.KFac(quarter, 0.01))
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

    factors = core.KFac(fisher, 0.01, every=1, all_columns=True)
    assert error(core.InnerSolver(part, 0.01, 4, core.KFac(part, 0.01))) < 0.7 * error(factors)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inner_iterations_have_the_same_bits_for_any_number_of_threads(dtype):
    problem = make_problem("gaussian", hidden=(64, 130), dtype=dtype, count=3000)
    rs = np.random.default_rng(0).normal(size=(2, problem.core.parameters.size))
    results, before = [], core.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            core.set_num_threads(threads)
            part = core.Fisher(problem.core, problem.observations, fraction=0.5)
            M = core.InnerSolver(part, 0.1, 2, core.KFac(part, 0.1))
            results.append([M @ r for r in rs])
    finally:
        core.set_num_threads(before)
    for other in results[1:]:
        assert np.array_equal(results[0], other)


def test_the_inner_solver_keeps_what_it_is_made_of():
    problem = hard_problem()
    part = core.Fisher(problem.core, problem.observations, fraction=0.5)
    factors = core.KFac(part, 0.1)
    M = core.InnerSolver(part, 0.1, 2, factors)
    alive = [weakref.ref(part), weakref.ref(factors)]
    del part, factors
    gc.collect()
    assert all(reference() is not None for reference in alive)
    del M
    gc.collect()
    assert all(reference() is None for reference in alive)


# Diagonal and Nystrom ----------------------------------------------------------------------------


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
    assert relative_error(dense(M), want) < 1e-3


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


# Bad input ---------------------------------------------------------------------------------------


def test_bad_input_is_named():
    problem = make_problem("categorical")
    fisher = core.Fisher(problem.core, problem.observations)
    b = np.ones(fisher.shape[0])
    cases = [
        (lambda: core.KFac(fisher, -1.0), "damping: want a finite number >= 0"),
        (lambda: core.KFac(fisher, np.nan), "damping: want a finite number >= 0"),
        (lambda: core.KFac(fisher, every=0), "every: want an integer from 1"),
        (lambda: core.DiagonalPreconditioner(np.eye(2)), "A: want shape"),
        (lambda: core.DiagonalPreconditioner([np.inf]), r"A\[0\]: want a finite number"),
        (lambda: core.NystromPreconditioner(np.eye(3), 4), "rank: want at most the size of A, 3"),
        (lambda: core.NystromPreconditioner(np.eye(3), 0), "rank: want an integer from 1"),
        (lambda: core.NystromPreconditioner(np.ones((2, 3)), 1), "A: want a square operator"),
        (
            lambda: core.NystromPreconditioner(lambda v: v, 1),
            "A: want an operator that has a shape",
        ),
        (lambda: core.KFac(fisher) @ np.ones(3), "r: want shape"),
        (lambda: core.KFac(fisher) @ (b * np.nan), r"r\[0\]: want a finite number"),
        (
            lambda: core.conjugate_gradient(
                np.eye(3), np.ones(3), preconditioner=core.KFac(fisher)
            ),
            "preconditioner: want size 3 to match b, got a KFac of size",
        ),
        (
            lambda: core.TrustRegionUpdate(preconditioner="jacobi"),
            "want none, auto, kfac, subsample, diagonal or nystrom, got 'jacobi'",
        ),
        (lambda: core.TrustRegionUpdate(kfac_refresh=0), "kfac_refresh: want an integer >= 1"),
        (lambda: core.TrustRegionUpdate(kfac_decay=1.0), "kfac_decay: want a number from 0"),
        (lambda: core.TrustRegionUpdate(kfac_decay=-0.1), "kfac_decay: want a number from 0"),
        (lambda: core.TrustRegionUpdate(kfac_every=0), "kfac_every: want an integer from 1"),
        (lambda: core.TrustRegionUpdate(nystrom_rank=0), "nystrom_rank: want an integer from 1"),
        (lambda: core.TrustRegionUpdate(subsample_every=0), "subsample_every: want an integer"),
        (
            lambda: core.TrustRegionUpdate(subsample_iterations=0),
            "subsample_iterations: want an integer >= 1",
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


# In an update ------------------------------------------------------------------------------------


def test_an_update_solves_with_the_preconditioner_it_is_told():
    solutions = {}
    for name in ("none", "kfac", "subsample", "diagonal", "nystrom"):
        problem = hard_problem()
        update = core.TrustRegionUpdate(
            damping=0.01, cg_iterations=4, line_search=None, preconditioner=name, nystrom_rank=30
        )
        report = update(problem.core, problem.batch)
        assert report.status is core.UpdateStatus.ACCEPTED
        assert report.preconditioner == name
        assert report.as_dict()["preconditioner"] == name
        assert report.cg.iterations == 4
        assert (report.timings["precondition"] > 1e-6) == (name != "none")
        assert report.timings["precondition"] <= report.timings["solve"]
        solutions[name] = problem.core.parameters - problem.theta

    # The step is along the solution that the operators give.
    problem = hard_problem()
    fisher = core.Fisher(problem.core, problem.observations)
    part = core.Fisher(problem.core, problem.observations, fraction=1 / 6)
    g = problem.core.score(problem.observations, problem.actions, problem.advantages)
    for name, M in {
        "none": None,
        "kfac": core.KFac(fisher, 0.01),
        "subsample": core.InnerSolver(part, 1.5 * 0.01, 4, core.KFac(part, 8 * 0.01)),
        "diagonal": core.DiagonalPreconditioner(fisher, 0.01),
        "nystrom": core.NystromPreconditioner(fisher, 30, 0.01),
    }.items():
        r = core.conjugate_gradient(fisher, g, damping=0.01, max_iterations=4, preconditioner=M)
        cosine = r.x @ solutions[name] / np.linalg.norm(r.x) / np.linalg.norm(solutions[name])
        assert 1 - cosine < 1e-14, name


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_a_part_of_the_batch_preconditions_networks_of_all_kinds_in_turn(fisher):
    options = {
        "damping": 0.05, "cg_iterations": 2, "line_search": None, "preconditioner": "subsample",
        "subsample_every": 3, "subsample_iterations": 2, "solver": "cg", "fisher": fisher,
        "curvature_fraction": 0.8, "kfac_every": 1,
    }  # fmt: skip
    same = core.TrustRegionUpdate(**options)  # whose memory serves all of them
    for activation, hidden in (
        ("silu", (16, 16)),
        ("tanh", (16, 16)),
        ("gelu", (9,)),
        ("relu", ()),
    ):
        steps = []
        for update in (same, core.TrustRegionUpdate(**options)):
            problem = make_problem("gaussian", hidden=hidden, activation=activation, count=300)
            assert update(problem.core, problem.batch).accepted
            steps.append(problem.core.parameters - problem.theta)
        assert np.array_equal(*steps)

        problem = make_problem("gaussian", hidden=hidden, activation=activation, count=300)
        chosen = np.arange(240) * 300 // 240
        inner = chosen[np.arange(80) * 240 // 80]
        F, part = (
            core.Fisher(
                problem.core, problem.observations[rows], kind=fisher, actions=problem.actions[rows]
            )
            for rows in (chosen, inner)
        )
        g = problem.core.score(problem.observations, problem.actions, problem.advantages)
        M = core.InnerSolver(part, 1.5 * 0.05, 2, core.KFac(part, 8 * 0.05, every=1))
        x = core.conjugate_gradient(F, g, damping=0.05, max_iterations=2, preconditioner=M).x
        assert 1 - x @ steps[0] / np.linalg.norm(x) / np.linalg.norm(steps[0]) < 1e-14


def test_every_of_an_update_reaches_the_factors():
    steps = []
    for every in (1, 8):
        problem = hard_problem()
        update = core.TrustRegionUpdate(
            cg_iterations=2, line_search=None, preconditioner="kfac", kfac_every=every
        )
        update(problem.core, problem.batch)
        steps.append(problem.core.parameters - problem.theta)
    assert not np.array_equal(*steps)


# Factors that are kept ---------------------------------------------------------------------------


def two_batches(seed=5):
    """A hard problem, and another batch of its policy; one column, whose sign does not matter."""
    first, other = hard_problem(), make_problem("gaussian", hidden=(16, 16), count=400, seed=seed)
    second = dataclasses.replace(
        first, observations=3 * other.observations, actions=other.actions,
        advantages=other.advantages,
    )  # fmt: skip
    return first, second


def second_step(options):
    """Of an update that has seen the first batch before, from the same parameters."""
    first, second = two_batches()
    update = core.TrustRegionUpdate(
        damping=0.05, cg_iterations=3, line_search=None, preconditioner="kfac", solver="cg",
        fisher="empirical", kfac_every=1, max_kl=1e-6, **options,
    )  # fmt: skip
    assert update(first.core, first.batch).accepted
    first.core.parameters = first.theta
    report = update(second.core, second.batch)
    assert report.accepted
    assert report.preconditioner == "kfac"
    return second.core.parameters - second.theta


def step_with(factors):
    """The direction that conjugate gradients on the second system take with these factors."""
    _, second = two_batches()
    fisher = core.Fisher(second.core, second.observations, kind="empirical", actions=second.actions)
    b = second.core.score(second.observations, second.actions, second.advantages)
    M = inverse(second, *factors[:2], 0.05)
    own = second.oracle.distribution.own_parameters
    M[-own:, -own:] = np.diag(1 / (np.array(factors[2]) + 0.05))
    return core.conjugate_gradient(fisher, b, damping=0.05, max_iterations=3, preconditioner=M).x


def factors_of(problem):
    fisher = core.Fisher(
        problem.core, problem.observations, kind="empirical", actions=problem.actions
    )
    own = problem.oracle.distribution.own_parameters
    return *kronecker_factors(problem, empirical=True), fisher.diagonal()[-own:]


def mixed(old, new, decay):
    return [
        [decay * a + (1 - decay) * b for a, b in zip(x, y, strict=True)]
        for x, y in zip(old, new, strict=True)
    ]


@pytest.mark.parametrize(
    ("options", "decay"),
    [
        ({}, 0.0),
        ({"kfac_refresh": 2}, 1.0),
        ({"kfac_refresh": 2, "kfac_decay": 0.3}, 1.0),
        ({"kfac_decay": 0.3}, 0.3),
        ({"kfac_decay": 0.9}, 0.9),
    ],
    ids=str,
)
def test_factors_are_kept_and_averaged_as_told(options, decay):
    first, second = (factors_of(p) for p in two_batches())
    want = step_with(mixed(first, second, decay))
    got = second_step(options)
    cosine = got @ want / np.linalg.norm(got) / np.linalg.norm(want)
    assert 1 - cosine < 1e-9
    fresh = step_with(second)
    away = fresh @ want / np.linalg.norm(fresh) / np.linalg.norm(want)
    assert (1 - away > 1e-4) == (decay > 0)  # it matters


def test_kept_factors_are_averaged_anew_after_so_many_updates():
    problem = hard_problem()
    update = core.TrustRegionUpdate(preconditioner="kfac", kfac_refresh=3, solver="cg")
    ages, averages = [], []
    for _ in range(7):
        update(problem.core, problem.batch)
        _, size, age, *rest = update.state
        assert size == len(rest) + 1
        ages.append(age)
        averages.append(tuple(rest))
    assert ages == [0, 1, 2, 0, 1, 2, 0]
    assert len(set(averages)) == 3


def test_factors_of_another_network_are_not_used():
    problem, other = hard_problem(), make_problem("gaussian", hidden=(5,), count=100)
    twin = make_problem("gaussian", hidden=(5,), count=100)
    options = {"preconditioner": "kfac", "solver": "cg", "cg_iterations": 3}
    update = core.TrustRegionUpdate(kfac_refresh=10, kfac_decay=0.5, **options)
    update(problem.core, problem.batch)
    assert update(other.core, other.batch).preconditioner == "kfac"
    core.TrustRegionUpdate(**options)(twin.core, twin.batch)
    assert other.core.parameters.tobytes() == twin.core.parameters.tobytes()


def test_a_new_damping_reaches_kept_factors():
    steps = []
    for refresh in (1, 100):
        problem = hard_problem()
        update = core.TrustRegionUpdate(
            preconditioner="kfac", kfac_refresh=refresh, damping_mode="adaptive", solver="cg",
            cg_iterations=2, max_kl=1e-9, line_search=None,
        )  # fmt: skip
        dampings = []
        for _ in range(3):  # the same system but for the damping
            problem.core.parameters = problem.theta
            dampings.append(update(problem.core, problem.batch).damping)
        assert dampings[2] < dampings[1] < dampings[0]
        steps.append(problem.core.parameters - problem.theta)
    assert np.array_equal(*steps)


@pytest.mark.parametrize(
    "bad",
    [
        [0.1],
        [0.2, 0.0],
        [0.1, 1.0],
        [0.1, 0.5],
        [0.1, 2.0, 0.0],
        [0.1, 2.0, 0.0, 1.0],
        [0.1, 5.0, 0.0, 0.0, 1.0, 1.0, 2.0],
        [0.1, 4.0, 0.0, 0.0, 1e300, 1.0],
        [0.1, 4.0, 0.0, 0.0, 1.5, 1.0],
        [0.1, 4.0, 0.0, 0.0, 1.0, 0.0],
        [0.1, np.inf],
        [0.1, 0.0, 1.0],
    ],
    ids=str,
)
def test_a_state_that_holds_no_factors_is_refused(bad):
    update = core.TrustRegionUpdate(preconditioner="kfac", kfac_refresh=2)
    with pytest.raises(ValueError, match="state"):
        update.state = bad
    np.testing.assert_array_equal(update.state, [0.1, 0.0])


# The automatic choice ----------------------------------------------------------------------------


def large_problem(name="gaussian", spread=10.0, dtype="float64"):
    """Enough observations for factors to be cheap; scales so different that plain ones are slow."""
    problem = make_problem(name, hidden=(32, 32), count=4000, dtype=dtype)
    scales = np.geomspace(1 / spread, spread, 4).astype(dtype)
    return dataclasses.replace(problem, observations=problem.observations * scales)


def automatic(**options):
    fixed = {"line_search": None, "solver": "cg", "max_kl": 1e-8, "cg_rtol": 0.0}
    return core.TrustRegionUpdate(**{"preconditioner": "auto", **fixed, **options})


def test_auto_takes_factors_where_they_are_as_accurate_sooner():
    problem = large_problem()
    plain = core.TrustRegionUpdate(
        damping=0.01, line_search=None, solver="cg", max_kl=1e-8, cg_rtol=0.0
    )
    goal = plain(problem.core, problem.batch).cg.model_value
    update = automatic(damping=0.01)
    for call in range(101):
        problem.core.parameters = problem.theta
        report = update(problem.core, problem.batch)
        assert report.preconditioner == "kfac"
        assert report.cg.model_value <= goal
        trial = call % 50 == 0
        products = report.cg.products - (10 if trial else 0)
        assert products <= 5
        if call == 0:
            first = products
        assert products == first
        np.testing.assert_array_equal(update.state, [0.01, first, 49 - call % 50])
    # One product less would not do.
    shorter = core.TrustRegionUpdate(
        damping=0.01, line_search=None, solver="cg", max_kl=1e-8, cg_rtol=0.0,
        preconditioner="kfac", cg_iterations=max(first - 1, 1),
    )  # fmt: skip
    problem.core.parameters = problem.theta
    assert first == 1 or shorter(problem.core, problem.batch).cg.model_value > goal


@pytest.mark.parametrize("case", ["solved", "small"])
def test_auto_goes_plain_where_factors_do_not_pay(case):
    # Damping that drowns F is solved by a few plain products; a few observations, by cheap ones.
    problem = large_problem() if case == "solved" else make_problem("gaussian", count=20)
    damping = 1e3 if case == "solved" else 0.1
    update, plain = automatic(damping=damping), core.TrustRegionUpdate(
        damping=damping, line_search=None, solver="cg", max_kl=1e-8, cg_rtol=0.0
    )  # fmt: skip
    for _ in range(3):
        problem.core.parameters = problem.theta
        report = update(problem.core, problem.batch)
        got = np.array(problem.core.parameters)
        assert report.preconditioner == "none"
        problem.core.parameters = problem.theta
        want = plain(problem.core, problem.batch)
        assert np.array_equal(got, problem.core.parameters)
        assert report.cg.model_value == want.cg.model_value
    assert report.cg.products == want.cg.products  # the first, a trial, may have made more


def test_auto_notices_that_the_system_has_changed():
    hard, easy = large_problem(spread=30.0), large_problem(spread=1.0)
    update = automatic(damping=0.003)
    chosen = []
    for call in range(110):
        problem = hard if call < 60 else easy
        problem.core.parameters = problem.theta
        chosen.append(update(problem.core, problem.batch).cg.products)
    assert len(set(chosen[1:50])) == 1
    assert chosen[101] != chosen[61] == chosen[51]


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("name", ["auto", "subsample"])
def test_updates_have_the_same_bits_for_any_number_of_threads(name, warm_start):
    results, before = [], core.get_num_threads()
    try:
        for threads in (1, 2, 5):
            core.set_num_threads(threads)
            problem = large_problem(dtype="float32")
            update = automatic(damping=0.01, warm_start=warm_start, preconditioner=name)
            for _ in range(3):
                update(problem.core, problem.batch)
            results.append((np.array(problem.core.parameters), np.array(update.state)))
    finally:
        core.set_num_threads(before)
    for parameters, state in results[1:]:
        assert np.array_equal(parameters, results[0][0])
        assert np.array_equal(state, results[0][1])


@pytest.mark.parametrize("bad", [[0.1], [0.1, 0.0], [0.1, 11.0, 0.0], [0.1, 2.5, 0.0],
                                 [0.1, -1.0, 0.0], [0.1, 2.0, 51.0], [0.1, 2.0, 3.0, 1.0]],
                         ids=str)  # fmt: skip
def test_a_state_of_no_automatic_update_is_refused(bad):
    update = core.TrustRegionUpdate(preconditioner="auto")
    with pytest.raises(ValueError, match="state"):
        update.state = bad
    np.testing.assert_array_equal(update.state, [0.1, 0.0, 0.0])


# Half of the last product ------------------------------------------------------------------------

HALVES = {
    "passes": {},
    "empirical": {"fisher": "empirical"},
    "adjoints": {"fisher": "empirical", "cg_iterations": 10},
    "part": {"curvature_fraction": 0.4},
    "metric": {"damping_metric": np.linspace(0.5, 2.0, 406)},
    "one": {"cg_iterations": 1},
    "kfac": {"preconditioner": "kfac"},
    "warm": {"warm_start": True},
    "auto": {"preconditioner": "auto"},
}


@pytest.mark.parametrize(
    ("case", "hidden"),
    [
        *itertools.product(HALVES, [(16, 16)]),
        *itertools.product([c for c in HALVES if c != "metric"], [()]),
    ],
)
def test_the_last_step_does_without_the_last_residual(case, hidden):
    options = {"cg_iterations": 4, "line_search": None, "solver": "cg", "max_kl": 1e-4}
    options |= HALVES[case]
    made = []
    for last in (True, False):
        problem = dataclasses.replace(hard_problem()) if hidden else make_problem(
            "gaussian", hidden=(), count=900)  # fmt: skip
        update = core.TrustRegionUpdate(cg_last_residual=last, cg_rtol=0.0, **options)
        update(problem.core, problem.batch)
        before = np.array(problem.core.parameters)
        report = update(problem.core, problem.batch)
        made.append((problem.core.parameters - before, report))
    (step, whole), (same, half) = made
    # Ten iterations solve a linear policy to rounding, of which the last ones make directions.
    tolerance = 1e-9 if hidden else 2e-7
    assert relative_error(same, step) < tolerance
    np.testing.assert_allclose(half.step_scale, whole.step_scale, rtol=tolerance)
    np.testing.assert_allclose(half.cg.quadratic_form, whole.cg.quadratic_form, rtol=tolerance)
    np.testing.assert_allclose(half.cg.model_value, whole.cg.model_value, rtol=tolerance)
    assert half.cg.products == whole.cg.products
    assert half.cg.status == core.CgStatus.MAX_ITERATIONS
    assert half.cg.residual_norm != whole.cg.residual_norm  # the one before
    if options["cg_iterations"] == 1:
        assert half.cg.relative_residual == 1.0
