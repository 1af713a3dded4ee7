"""Kronecker factors (K-FAC): their matrices against NumPy, and what conjugate gradients gain."""

import itertools

import numpy as np
import oracle
import pytest
from conftest import (
    ACTIVATIONS,
    DISTRIBUTIONS,
    degenerate_problem,
    dense_matrix,
    hard_problem,
    make_problem,
    relative_error,
)
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
    """A and S of every layer (eq. 7.1), S from the Jacobian's bias columns."""
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
    """M^-1 (eq. 7.2) as a dense matrix, free outputs left zero."""
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


@pytest.mark.parametrize("damping", [0.1, 1e-3])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_kfac_is_the_inverse_of_the_kronecker_products(name, damping):
    problem = make_problem(name, hidden=(7, 5), count=40)
    fisher = core.Fisher(problem.core, problem.observations)
    M = core.KroneckerFactors(fisher, damping, every=1, all_columns=True)
    assert M.positive_definite
    assert M.shape == fisher.shape
    want = inverse(problem, *kronecker_factors(problem), damping)
    got = dense_matrix(M)
    own = problem.oracle.distribution.own_parameters
    if own:  # free outputs have their own block, exact
        np.testing.assert_allclose(got[-own:, -own:], np.eye(own) / (2 + damping), rtol=1e-12)
        got[-own:, -own:] = 0
    assert relative_error(got, want) < 1e-11


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kfac_knows_every_activation(activation):
    problem = make_problem("gaussian", hidden=(9, 20), activation=activation, count=60)
    M = core.KroneckerFactors(
        core.Fisher(problem.core, problem.observations), 0.05, every=1, all_columns=True
    )
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
        assert (
            relative_error(dense_matrix(core.KroneckerFactors(fisher, 0.1, 1, True)), want) < 1e-11
        )
    # One column has only one sign.
    same = core.KroneckerFactors(fisher, 0.1, every=1, all_columns=False)
    assert np.array_equal(
        dense_matrix(same),
        dense_matrix(core.KroneckerFactors(fisher, 0.1, every=1, all_columns=True)),
    )


def test_random_signs_have_the_exact_factors_as_their_mean():
    # The error of an average over N observations falls as 1 / sqrt(N).
    errors = []
    for count in (256, 16_384):
        problem = make_problem("gaussian", hidden=(8,), count=count)
        fisher = core.Fisher(problem.core, problem.observations)
        signs, exact = (
            dense_matrix(core.KroneckerFactors(fisher, 0.1, 1, columns))
            for columns in (False, True)
        )
        errors.append(relative_error(signs, exact))
    assert 1e-4 < errors[1] < errors[0] / 4
    assert errors[1] < 0.05


@pytest.mark.parametrize("every", [2, 3, 4])
def test_a_part_of_the_batch_stands_for_all_of_it(every):
    # Every observation comes `every` times in a row, so that one of each is all there is.
    problem = make_problem("gaussian", hidden=(7, 5), count=240)
    repeated = np.repeat(problem.observations, every, axis=0)
    whole = core.KroneckerFactors(core.Fisher(problem.core, problem.observations), 0.1, 1, True)
    part = core.KroneckerFactors(core.Fisher(problem.core, repeated), 0.1, every, True)
    assert relative_error(dense_matrix(part), dense_matrix(whole)) < 1e-10


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [(), (3,), (64, 64), (33, 130)])
def test_kfac_is_symmetric_and_positive_definite(hidden, dtype):
    problem = make_problem("gaussian", hidden=hidden, dtype=dtype, count=500)
    M = core.KroneckerFactors(core.Fisher(problem.core, problem.observations), 1e-3)
    rng = np.random.default_rng(0)
    v, w = rng.normal(size=(2, M.shape[0]))
    scale = abs(v @ (M @ v))
    assert scale > 0
    assert abs(v @ (M @ w) - w @ (M @ v)) < 1e3 * EPSILON[dtype] * scale
    if M.shape[0] < 3000:
        matrix = dense_matrix(M)
        assert np.linalg.eigvalsh((matrix + matrix.T) / 2).min() > 0


def test_float32_factors_agree_with_float64():
    problems = [make_problem("gaussian", hidden=(64, 64), dtype=d, count=500) for d in EPSILON]
    problems[1].core.parameters = problems[0].core.parameters.astype(np.float64)
    v = np.random.default_rng(0).normal(size=problems[0].core.parameters.size)
    single, double = (
        core.KroneckerFactors(core.Fisher(p.core, p.observations.astype(p.core.dtype)), 0.01) @ v
        for p in problems
    )
    # Rounding is floored at sqrt(epsilon) of the mean eigenvalue, which differs between the types.
    assert relative_error(single, double) < 0.05


def test_kfac_solves_a_linear_gaussian_policy_at_once():
    # There F is the product of its factors; what is left is how the damping is shared out.
    problem = make_problem("gaussian", hidden=(), count=200)
    fisher = core.Fisher(problem.core, problem.observations, method="passes")
    b = np.random.default_rng(0).normal(size=fisher.shape[0])
    M = core.KroneckerFactors(fisher, 1e-6, every=1, all_columns=True)
    r = core.conjugate_gradient(fisher, b, damping=1e-6, max_iterations=8, preconditioner=M)
    plain = core.conjugate_gradient(fisher, b, damping=1e-6, max_iterations=8)
    assert r.residual_norm < 1e-4 * plain.residual_norm


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

    M = core.KroneckerFactors(fisher, damping)
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
    M = core.KroneckerFactors(fisher)  # the damping is the operator's
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
            results.append(core.KroneckerFactors(fisher, 0.1) @ v)
    finally:
        core.set_num_threads(before)
    for other in results[1:]:
        assert np.array_equal(results[0], other)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("damping", [0.0, 1e-12, 0.1])
@pytest.mark.parametrize("case", ["one observation", "duplicates", "dead layer", "smallest"])
def test_degenerate_batches_give_finite_preconditioners(case, damping, dtype):
    problem, observations = degenerate_problem(case, dtype)
    fisher = core.Fisher(problem.core, observations)
    M = core.KroneckerFactors(fisher, damping)
    v = np.random.default_rng(0).normal(size=M.shape[0])
    assert np.isfinite(M @ v).all()
    assert v @ (M @ v) > 0
    b = fisher @ v
    r = core.conjugate_gradient(fisher, b, damping=damping, preconditioner=M)
    assert np.isfinite(r.x).all()
    assert np.isfinite([r.residual_norm, r.quadratic_form]).all()


def test_parameters_that_are_not_finite_leave_the_identity():
    problem = make_problem("categorical")
    problem.core.parameters[0] = np.nan
    M = core.KroneckerFactors(core.Fisher(problem.core, problem.observations), 0.1)
    assert not M.positive_definite
    v = np.arange(M.shape[0], dtype=float)
    assert np.array_equal(M @ v, v)
