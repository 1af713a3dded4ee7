"""Conjugate gradients on a zoo of matrices, every way to state the system, and every option."""

import itertools

import numpy as np
import oracle
import pytest
from conftest import make_problem, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse import linalg as sparse_linalg

from natgrad import _core as core

CONVERGED = core.CgStatus.CONVERGED
MAX_ITERATIONS = core.CgStatus.MAX_ITERATIONS
SLOW_PROGRESS = core.CgStatus.SLOW_PROGRESS
INDEFINITE = core.CgStatus.INDEFINITE
ZERO_RHS = core.CgStatus.ZERO_RHS


def poisson(n):
    return 2.0 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)


def random_spd(n, condition=100.0, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (q * np.geomspace(1.0, condition, n)) @ q.T


def right_hand_side(n, seed=1):
    return np.random.default_rng(seed).normal(size=n)


ZOO = {
    "one by one": np.array([[3.0]]),
    "identity": np.eye(6),
    "diagonal": np.diag([1.0, 2.0, 5.0, 10.0]),
    "Poisson 1-D": poisson(50),
    "Poisson 2-D": np.kron(poisson(8), np.eye(8)) + np.kron(np.eye(8), poisson(8)),
    "random, condition 100": random_spd(30),
    "random, condition 1e6": random_spd(20, 1e6),
    "dense and wide": random_spd(120, 1e3),
}


@pytest.mark.parametrize("name", ZOO)
def test_positive_definite_systems_are_solved(name):
    A = ZOO[name]
    b = right_hand_side(len(A))
    r = core.conjugate_gradient(A, b, rtol=1e-10, max_iterations=20 * len(A))
    assert r.status == CONVERGED, r.message
    assert np.linalg.norm(b - A @ r.x) <= 1.01e-10 * np.linalg.norm(b) + 1e-13
    np.testing.assert_allclose(r.x, np.linalg.solve(A, b), rtol=0, atol=1e-3 * np.linalg.norm(r.x))
    assert r.iterations >= 1
    assert np.isclose(r.quadratic_form, r.x @ A @ r.x, rtol=1e-9)
    assert r.x.dtype == np.float64


@pytest.mark.parametrize("name", [name for name in ZOO if "1e6" not in name])
def test_the_iterates_are_those_of_hestenes_and_stiefel(name):
    A = ZOO[name]
    b = right_hand_side(len(A))
    for iterations in (1, 2, 5, 9):
        want, done, _ = oracle.conjugate_gradient(A, b, iterations)
        r = core.conjugate_gradient(A, b, max_iterations=iterations)
        assert r.iterations == done
        np.testing.assert_allclose(r.x, want, rtol=0, atol=1e-11 * np.linalg.norm(want))
        np.testing.assert_allclose(r.quadratic_form, want @ A @ want, rtol=1e-10)
        if done == iterations < len(A):
            residual = np.linalg.norm(b - A @ want)
            assert np.isclose(r.residual_norm, residual, rtol=1e-6, atol=1e-12)


def test_an_ill_conditioned_hilbert_matrix_still_gives_a_small_residual():
    n = 10
    A = 1.0 / (1.0 + np.arange(n)[:, None] + np.arange(n))
    b = A @ np.ones(n)
    r = core.conjugate_gradient(A, b, rtol=1e-8, max_iterations=500)
    assert r.status == CONVERGED
    assert np.linalg.norm(b - A @ r.x) <= 1.1e-8 * np.linalg.norm(b)


def test_iterations_are_bounded_by_the_number_of_distinct_eigenvalues():
    rng = np.random.default_rng(3)
    q, _ = np.linalg.qr(rng.normal(size=(24, 24)))
    for distinct in (1, 2, 3, 5):
        eigenvalues = np.repeat(np.linspace(1.0, 4.0, distinct), 24)[::distinct][:24]
        assert len(np.unique(eigenvalues)) == distinct
        A = (q * eigenvalues) @ q.T
        r = core.conjugate_gradient(A, right_hand_side(24), rtol=1e-9, max_iterations=100)
        assert r.status == CONVERGED
        assert r.iterations == distinct


def test_a_singular_but_consistent_system_is_solved():
    rng = np.random.default_rng(4)
    B = rng.normal(size=(12, 5))
    A, b = B @ B.T, B @ rng.normal(size=5)
    r = core.conjugate_gradient(A, b, rtol=1e-9, max_iterations=50)
    assert r.status == CONVERGED
    assert np.linalg.norm(b - A @ r.x) <= 1e-8 * np.linalg.norm(b)
    np.testing.assert_allclose(r.x, np.linalg.pinv(A) @ b, rtol=1e-6, atol=1e-8)


def test_an_indefinite_matrix_is_reported_and_the_best_x_so_far_is_kept():
    A = np.diag([4.0, 3.0, 2.0, -1.0, 5.0])
    b = np.array([1.0, 1.0, 1.0, 0.7, 1.0])
    r = core.conjugate_gradient(A, b, max_iterations=50)
    assert r.status == INDEFINITE
    assert np.all(np.isfinite(r.x))
    assert 0.5 * r.x @ A @ r.x - b @ r.x < 0  # what every step before the guard has lowered
    assert np.isclose(r.quadratic_form, r.x @ A @ r.x)
    assert r.message


@pytest.mark.parametrize("A", [-np.eye(3), np.zeros((3, 3))], ids=["negative", "zero"])
def test_without_any_positive_curvature_x_stays_where_it_started(A):
    b = np.array([1.0, 2.0, 3.0])
    r = core.conjugate_gradient(A, b)
    assert r.status == INDEFINITE
    np.testing.assert_array_equal(r.x, 0)
    x0 = np.array([0.5, 0.0, 0.0])
    r = core.conjugate_gradient(A, b, x0=x0)
    assert r.status == INDEFINITE
    np.testing.assert_array_equal(r.x, x0)


def test_damping_makes_an_indefinite_matrix_definite():
    A = np.diag([4.0, 3.0, -1.0])
    b = np.ones(3)
    assert core.conjugate_gradient(A, b).status == INDEFINITE
    r = core.conjugate_gradient(A, b, damping=2.0)
    assert r.status == CONVERGED
    np.testing.assert_allclose(r.x, [1 / 6, 1 / 5, 1.0], rtol=1e-10)


def test_a_zero_right_hand_side_is_a_success_with_x_zero():
    for x0 in (None, np.ones(4)):
        r = core.conjugate_gradient(random_spd(4), np.zeros(4), x0=x0)
        assert r.status == ZERO_RHS
        np.testing.assert_array_equal(r.x, np.zeros(4))
        assert r.iterations == 0
        assert r.residual_norm == 0.0
        assert r.quadratic_form == 0.0


@pytest.mark.parametrize("exponent", [-30, -8, 8, 30])
@pytest.mark.parametrize("of_b", [False, True])
def test_the_relative_tolerance_does_not_depend_on_the_scale_of_the_system(exponent, of_b):
    A, b = random_spd(20), right_hand_side(20)
    plain = core.conjugate_gradient(A, b, max_iterations=100)
    scale = 10.0**exponent
    scaled = core.conjugate_gradient(
        A if of_b else scale * A, scale * b if of_b else b, max_iterations=100
    )
    assert scaled.status == CONVERGED
    assert abs(scaled.iterations - plain.iterations) <= 1
    np.testing.assert_allclose(scaled.x, plain.x * (scale if of_b else 1 / scale), rtol=1e-8)


def test_scaling_by_a_power_of_two_scales_the_answer_to_the_bit():
    A, b = random_spd(20), right_hand_side(20)
    plain = core.conjugate_gradient(A, b, damping=0.5, max_iterations=8)
    for k in (-90, -40, 40, 90):
        scale = 2.0**k
        r = core.conjugate_gradient(scale * A, b, damping=0.5 * scale, max_iterations=8)
        np.testing.assert_array_equal(r.x, plain.x / scale)
        r = core.conjugate_gradient(A, scale * b, damping=0.5, max_iterations=8)
        np.testing.assert_array_equal(r.x, plain.x * scale)
        assert r.residual_norm == plain.residual_norm * scale
        assert r.quadratic_form == plain.quadratic_form * scale**2


@settings(max_examples=60)
@given(
    n=st.integers(1, 25),
    log_condition=st.floats(0, 4),
    log_scale_a=st.floats(-30, 30),
    log_scale_b=st.floats(-30, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_well_posed_system_of_any_scale_is_solved(
    n, log_condition, log_scale_a, log_scale_b, seed
):
    A = 10.0**log_scale_a * random_spd(n, 10.0**log_condition, seed)
    b = 10.0**log_scale_b * right_hand_side(n, seed)
    r = core.conjugate_gradient(A, b, rtol=1e-8, max_iterations=50 * n)
    assert r.status == CONVERGED
    assert np.linalg.norm(b - A @ r.x) <= 1.1e-8 * np.linalg.norm(b)


# ------------------------------------------------------------------------------- ways to state A


class Operator:
    """The least that an operator needs."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.calls = 0

    def matvec(self, v):
        self.calls += 1
        return self.matrix @ v


@pytest.mark.parametrize(
    "kind",
    ["array", "list", "float32", "fortran", "matvec", "callable", "LinearOperator", "sparse"],
)
def test_matrices_operators_and_functions_give_the_same_answer(kind):
    A = np.round(random_spd(15, 50.0) * 64) / 64
    b = right_hand_side(15)
    want = core.conjugate_gradient(A, b, max_iterations=7)
    given = {
        "array": A,
        "list": A.tolist(),
        "float32": A.astype(np.float32),
        "fortran": np.asfortranarray(A),
        "matvec": Operator(A),
        "callable": lambda v: A @ v,
        "LinearOperator": sparse_linalg.aslinearoperator(A),
        "sparse": sparse_linalg.aslinearoperator(sparse.csr_array(A)),
    }[kind]
    r = core.conjugate_gradient(given, b, max_iterations=7)
    assert r.status == want.status == MAX_ITERATIONS
    np.testing.assert_allclose(r.x, want.x, rtol=1e-12)
    np.testing.assert_allclose(r.quadratic_form, want.quadratic_form, rtol=1e-12)


def test_a_function_may_return_a_list_or_its_own_buffer():
    A, b = random_spd(6), right_hand_side(6)
    buffer = np.empty(6)
    want = core.conjugate_gradient(A, b, max_iterations=4).x
    for f in (lambda v: (A @ v).tolist(), lambda v: np.matmul(A, v, out=buffer)):
        np.testing.assert_allclose(
            core.conjugate_gradient(f, b, max_iterations=4).x, want, rtol=1e-12
        )


def test_a_function_that_keeps_or_overwrites_its_argument_does_no_harm():
    A, b = random_spd(6), right_hand_side(6)
    kept = []

    def product(v):
        kept.append(v)
        result = A @ v
        if v.flags.writeable:
            v[:] = np.nan
        return result

    want = core.conjugate_gradient(A, b, max_iterations=4).x
    r = core.conjugate_gradient(product, b, max_iterations=4)
    np.testing.assert_allclose(r.x, want, rtol=1e-12)
    assert len(kept) >= 4
    assert all(v.shape == (6,) for v in kept)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_a_fisher_is_solved_without_leaving_the_core(kind, dtype):
    p = make_problem("gaussian", dtype=dtype, count=60)
    actions = p.actions if kind == "empirical" else None
    F = core.Fisher(p.core, p.observations, kind=kind, actions=actions)
    g = p.core.score(p.observations, p.actions, p.advantages).astype(float)
    damping = 0.05
    want, _, _ = oracle.conjugate_gradient(F.to_dense() + damping * np.eye(g.size), g, 4)
    r = core.conjugate_gradient(F, g, damping=damping, max_iterations=4)
    tolerance = {"float64": 1e-9, "float32": 1e-4}[dtype]
    assert relative_error(r.x, want) < tolerance
    assert np.isclose(r.quadratic_form, r.x @ F.to_dense() @ r.x, rtol=10 * tolerance)


def test_the_damping_of_a_fisher_and_of_the_solver_add_up():
    p = make_problem("gaussian", count=60)
    g = p.core.score(p.observations, p.actions, p.advantages)
    results = [
        core.conjugate_gradient(core.Fisher(p.core, p.observations, damping=a), g, damping=b)
        for a, b in ((0.0, 0.3), (0.1, 0.2), (0.3, 0.0))
    ]
    for r in results[1:]:
        np.testing.assert_allclose(r.x, results[0].x, rtol=1e-9)
    # ... but x'Ax is without the damping that was given to the solver, and with the operator's.
    xx = results[0].x @ results[0].x
    forms = [r.quadratic_form for r in results]
    np.testing.assert_allclose(np.diff(forms), [0.1 * xx, 0.2 * xx], rtol=1e-6)


# ------------------------------------------------------------------------------- options


def test_damping_adds_a_multiple_of_the_identity_but_not_to_the_quadratic_form():
    A, b = random_spd(12), right_hand_side(12)
    r = core.conjugate_gradient(A, b, damping=3.0, max_iterations=100)
    np.testing.assert_allclose(r.x, np.linalg.solve(A + 3.0 * np.eye(12), b), rtol=1e-8)
    assert np.isclose(r.quadratic_form, r.x @ A @ r.x, rtol=1e-9)
    assert not np.allclose(r.x, core.conjugate_gradient(A, b, max_iterations=100).x)


def test_rtol_is_relative_to_b_and_changes_the_work():
    A, b = random_spd(40, 1e4), right_hand_side(40)
    work = []
    for rtol in (1e-1, 1e-4, 1e-8):
        for scale in (1.0, 2.0**20):
            r = core.conjugate_gradient(A, scale * b, rtol=rtol, max_iterations=1000)
            assert r.status == CONVERGED
            assert np.linalg.norm(scale * b - A @ r.x) <= 1.01 * rtol * np.linalg.norm(scale * b)
            work.append(r.iterations)
    assert work[0] == work[1] < work[2] == work[3] < work[4]


def test_atol_is_absolute_and_the_larger_of_both_tolerances_counts():
    A, b = random_spd(40, 1e4), right_hand_side(40)
    loose = core.conjugate_gradient(A, b, rtol=1e-10, atol=1e-1, max_iterations=1000)
    tight = core.conjugate_gradient(A, b, rtol=1e-10, atol=1e-6, max_iterations=1000)
    assert loose.status == tight.status == CONVERGED
    assert loose.iterations < tight.iterations
    assert np.linalg.norm(b - A @ loose.x) <= 1.01e-1
    assert 1e-10 * np.linalg.norm(b) < np.linalg.norm(b - A @ tight.x) <= 1.01e-6
    only_rtol = core.conjugate_gradient(A, b, rtol=1e-1, atol=1e-12, max_iterations=1000)
    assert only_rtol.iterations < tight.iterations


def test_an_atol_above_the_norm_of_b_is_met_without_any_work():
    r = core.conjugate_gradient(random_spd(4), np.ones(4), atol=10.0)
    assert r.status == CONVERGED
    assert r.iterations == 0
    np.testing.assert_array_equal(r.x, 0)


def test_max_iterations_bounds_the_work_and_is_reported():
    A, b = poisson(60), right_hand_side(60)
    residuals = []
    for limit in (1, 5, 20):
        r = core.conjugate_gradient(A, b, max_iterations=limit)
        assert r.status == MAX_ITERATIONS
        assert r.iterations == limit
        residuals.append(np.linalg.norm(b - A @ r.x))
        assert np.isclose(r.residual_norm, residuals[-1], rtol=1e-8)


def test_the_default_of_ten_iterations_is_the_documented_one():
    assert core.conjugate_gradient(poisson(60), right_hand_side(60)).iterations == 10


def test_a_warm_start_saves_work_and_is_not_overwritten():
    A, b = random_spd(40, 1e4), right_hand_side(40)
    solution = np.linalg.solve(A, b)
    x0 = solution + 1e-6 * right_hand_side(40, 2)
    kept = x0.copy()
    cold = core.conjugate_gradient(A, b, rtol=1e-8, max_iterations=1000)
    warm = core.conjugate_gradient(A, b, x0=x0, rtol=1e-8, max_iterations=1000)
    np.testing.assert_array_equal(x0, kept)
    assert warm.status == CONVERGED
    assert warm.iterations < cold.iterations
    np.testing.assert_allclose(warm.x, solution, rtol=0, atol=1e-6 * np.linalg.norm(solution))
    assert np.isclose(warm.quadratic_form, warm.x @ A @ warm.x, rtol=1e-7)
    assert not np.shares_memory(warm.x, x0)


def test_a_warm_start_at_the_solution_needs_no_iteration():
    A = np.diag([1.0, 2.0, 4.0])
    x0 = np.array([1.0, 2.0, 3.0])
    r = core.conjugate_gradient(A, A @ x0, x0=x0)
    assert r.status == CONVERGED
    assert r.iterations == 0
    np.testing.assert_array_equal(r.x, x0)
    assert np.isclose(r.quadratic_form, x0 @ A @ x0)


def test_the_quadratic_form_of_a_damped_warm_start_is_undamped():
    A, b = random_spd(12), right_hand_side(12)
    for iterations in (1, 3, 100):
        r = core.conjugate_gradient(A, b, x0=b, damping=0.7, max_iterations=iterations)
        assert np.isclose(r.quadratic_form, r.x @ A @ r.x, rtol=1e-9)


@pytest.mark.parametrize("kind", ["array", "callable", "LinearOperator", "matvec"])
def test_a_diagonal_preconditioner_speeds_up_a_badly_scaled_system(kind):
    scales = np.geomspace(1e-3, 1e3, 50)
    A = scales[:, None] * random_spd(50, 10.0) * scales
    b = right_hand_side(50)
    inverse = 1.0 / np.diag(A)
    preconditioner = {
        "array": np.diag(inverse),
        "callable": lambda r: inverse * r,
        "LinearOperator": sparse_linalg.aslinearoperator(np.diag(inverse)),
        "matvec": Operator(np.diag(inverse)),
    }[kind]
    plain = core.conjugate_gradient(A, b, rtol=1e-8, max_iterations=200)
    r = core.conjugate_gradient(A, b, rtol=1e-8, max_iterations=200, preconditioner=preconditioner)
    assert plain.status == MAX_ITERATIONS
    assert r.status == CONVERGED
    assert r.iterations < 60
    assert np.linalg.norm(b - A @ r.x) <= 1.1e-8 * np.linalg.norm(b)
    assert np.isclose(r.quadratic_form, r.x @ A @ r.x, rtol=1e-7)


def test_the_inverse_as_preconditioner_solves_in_one_iteration():
    A, b = random_spd(20, 1e4), right_hand_side(20)
    r = core.conjugate_gradient(
        A + 0.0, b, damping=0.5, rtol=1e-9, preconditioner=np.linalg.inv(A + 0.5 * np.eye(20))
    )
    assert r.status == CONVERGED
    assert r.iterations == 1


def test_the_identity_as_preconditioner_changes_nothing():
    A, b = random_spd(20, 1e3), right_hand_side(20)
    want = core.conjugate_gradient(A, b)
    r = core.conjugate_gradient(A, b, preconditioner=np.eye(20))
    np.testing.assert_allclose(r.x, want.x, rtol=1e-12)


def test_an_indefinite_preconditioner_is_reported_and_does_no_harm():
    A, b = random_spd(5), right_hand_side(5)
    r = core.conjugate_gradient(A, b, preconditioner=-np.eye(5))
    assert r.status == INDEFINITE
    assert np.all(np.isfinite(r.x))


def test_residual_replacement_recomputes_the_residual_every_so_many_iterations():
    A, b = poisson(60), right_hand_side(60)
    calls = {}
    for every in (1, 5, 50):
        operator = Operator(A)
        r = core.conjugate_gradient(operator, b, max_iterations=30, residual_replacement=every)
        assert r.iterations == 30
        calls[every] = operator.calls
    assert calls[50] < calls[5] < calls[1]
    assert calls[50] <= 31  # one product per iteration, and no more than one to begin or to end


def test_residual_replacement_keeps_the_reported_residual_true_on_a_noisy_operator():
    """Products rounded to single precision: the recurrence drifts away from b - Ax."""
    A, b = random_spd(40, 1e5), right_hand_side(40)

    def single(v):
        return (A.astype(np.float32) @ v.astype(np.float32)).astype(float)

    drift = {}
    for every in (1, 10_000):
        r = core.conjugate_gradient(
            single, b, rtol=1e-14, max_iterations=150, residual_replacement=every
        )
        true = np.linalg.norm(b - single(r.x))
        drift[every] = abs(r.residual_norm - true) / true
    assert drift[1] < 0.1 * drift[10_000]


def test_one_product_an_iteration_and_none_for_the_quadratic_form():
    operator = Operator(poisson(60))
    core.conjugate_gradient(operator, right_hand_side(60), max_iterations=10)
    assert operator.calls == 10


# ------------------------------------------------------------------------------- trouble


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_product_that_turns_non_finite_stops_with_the_best_x_so_far(bad, at):
    A, b = poisson(30), right_hand_side(30)
    count = itertools.count()

    def product(v):
        result = A @ v
        if next(count) == at:
            result[7] = bad
        return result

    r = core.conjugate_gradient(product, b, max_iterations=10)
    assert r.status == INDEFINITE
    assert np.all(np.isfinite(r.x))
    assert r.iterations == at
    want = oracle.conjugate_gradient(A, b, at)[0]
    np.testing.assert_allclose(r.x, want, rtol=1e-10, atol=1e-12)


# -------------------------------------------------------------------- model, progress, scaled start


def model(A, b, x):
    return 0.5 * x @ A @ x - b @ x


@pytest.mark.parametrize("name", ["Poisson 2-D", "random, condition 1e6", "dense and wide"])
@pytest.mark.parametrize("start", ["zero", "warm", "scaled"])
def test_the_value_of_the_quadratic_model_is_reported_without_a_product(name, start):
    A, damping = ZOO[name], 0.3
    b, x0 = right_hand_side(len(A)), right_hand_side(len(A), seed=2)
    damped = A + damping * np.eye(len(A))
    options = {"zero": {}, "warm": {"x0": x0}, "scaled": {"x0": x0, "scale_x0": True}}[start]
    for iterations in (1, 2, 7, 12):
        calls = []
        r = core.conjugate_gradient(
            lambda v, calls=calls: calls.append(1) or A @ v,
            b,
            damping=damping,
            max_iterations=iterations,
            **options,
        )
        scale = 1 + np.abs(model(damped, b, x0))
        np.testing.assert_allclose(r.model_value, model(damped, b, r.x), atol=1e-12 * scale)
        assert len(calls) == r.products == r.iterations + (start != "zero")
        assert f"model {r.model_value:.4g}" in r.message


def slow_progress(A, b, tolerance, window, iterations):
    """Martens' test on the textbook's iterates: how many there are, and whether it ended them."""
    values = [0.0]
    for i in range(1, iterations + 1):
        x, done, _ = oracle.conjugate_gradient(A, b, i)
        if done < i:
            return done, False
        values.append(model(A, b, x))
        fallen = values[max(i - window, 0)] - values[i]
        if i >= window and values[i] < 0 and fallen / -values[i] < window * tolerance:
            return i, True
    return iterations, False


@pytest.mark.parametrize("window", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("name", ["Poisson 1-D", "Poisson 2-D", "dense and wide"])
def test_the_iteration_ends_where_the_model_hardly_falls(name, window):
    A = ZOO[name]
    b = right_hand_side(len(A))
    ends = set()
    for tolerance in (5e-4, 5e-3, 2e-2, 0.1):
        want, slow = slow_progress(A, b, tolerance, window, 40)
        r = core.conjugate_gradient(
            A, b, max_iterations=40, progress_tolerance=tolerance, progress_window=window
        )
        assert (r.iterations, r.status == SLOW_PROGRESS) == (want, slow), r.message
        ends.add(r.iterations)
    assert len(ends) > 1


def test_progress_is_averaged_over_the_window():
    # The eigenvectors are found one after another, and what they give the model is 1, 1e-3 and 1.
    eigenvalues = np.array([1e6, 1e3, 1.0])
    A, b = np.diag(eigenvalues), np.sqrt(eigenvalues * [1.0, 1e-3, 1.0])
    by_one = core.conjugate_gradient(A, b, progress_tolerance=0.01, progress_window=1)
    assert (by_one.status, by_one.iterations) == (SLOW_PROGRESS, 2)
    by_two = core.conjugate_gradient(A, b, progress_tolerance=0.01, progress_window=2)
    assert by_two.status == CONVERGED
    assert by_two.model_value < 1.9 * by_one.model_value < 0


def test_without_a_tolerance_or_with_a_window_beyond_the_budget_progress_is_not_looked_at():
    A = ZOO["random, condition 1e6"]
    b = right_hand_side(len(A))
    want = core.conjugate_gradient(A, b, max_iterations=15)
    assert want.status == MAX_ITERATIONS
    for options in (
        {"progress_tolerance": 0.0, "progress_window": 1},
        {"progress_tolerance": 10.0, "progress_window": 16},
        {"progress_tolerance": 10.0, "progress_window": 2**31 - 1},
    ):
        r = core.conjugate_gradient(A, b, max_iterations=15, **options)
        assert r.status == MAX_ITERATIONS
        assert r.x.tobytes() == want.x.tobytes()


def test_a_start_worse_than_zero_does_not_end_the_iteration():
    A = ZOO["Poisson 2-D"]
    b = right_hand_side(len(A))
    x0 = -1e3 * b
    assert model(A, b, x0) > 0
    # The model falls from far above 0, where Martens' ratio of two signs would always be small.
    r = core.conjugate_gradient(
        A, b, x0=x0, max_iterations=100, progress_tolerance=1e-4, progress_window=1
    )
    assert r.status == SLOW_PROGRESS
    assert np.isclose(r.model_value, model(A, b, np.linalg.solve(A, b)), rtol=1e-2)


@pytest.mark.parametrize("factor", [1.0, 0.1, 1e-8, 1e8, -3.0])
def test_a_scaled_start_is_the_best_multiple_of_the_one_given(factor):
    A, damping = ZOO["dense and wide"], 0.5
    b, x0 = right_hand_side(len(A)), right_hand_side(len(A), seed=2)
    best = x0 * (b @ x0) / (x0 @ A @ x0 + damping * x0 @ x0)
    options = {"damping": damping, "max_iterations": 4}
    want = core.conjugate_gradient(A, b, x0=best, **options)
    r = core.conjugate_gradient(A, b, x0=factor * x0, scale_x0=True, **options)
    np.testing.assert_allclose(r.x, want.x, rtol=0, atol=1e-12 * np.linalg.norm(want.x))
    unscaled = core.conjugate_gradient(A, b, x0=factor * x0, **options)
    assert relative_error(unscaled.x, r.x) > 1e-3


def test_a_multiple_of_the_solution_is_a_start_that_needs_no_iteration():
    A = ZOO["dense and wide"]
    b = right_hand_side(len(A))
    for factor in (0.5, -2.0):
        x0 = factor * np.linalg.solve(A, b)
        r = core.conjugate_gradient(A, b, x0=x0, scale_x0=True, rtol=1e-9)
        assert (r.status, r.iterations, r.products) == (CONVERGED, 0, 1)


@pytest.mark.parametrize(
    "A", [np.diag([0.0, 1.0, 2.0]), np.diag([-1.0, 1.0, 2.0])], ids=["flat", "negative"]
)
def test_a_start_without_curvature_is_replaced_by_zero(A):
    b = np.array([0.0, 1.0, 3.0])
    want = core.conjugate_gradient(A, b)
    r = core.conjugate_gradient(A, b, x0=[5.0, 0.0, 0.0], scale_x0=True)
    assert r.x.tobytes() == want.x.tobytes()
    assert r.products == want.products + 1


def test_a_start_is_never_worse_than_zero_once_it_is_scaled():
    rng = np.random.default_rng(5)
    for seed in range(20):
        A, b = random_spd(15, 1e4, seed), rng.normal(size=15)
        x0 = rng.normal(size=15) * 10.0 ** rng.integers(-6, 6)
        r = core.conjugate_gradient(A, b, x0=x0, scale_x0=True, max_iterations=1)
        assert r.model_value <= min(0.0, model(A, b, x0))


def test_an_exception_in_a_product_reaches_the_caller():
    def product(v):
        raise KeyError("from the operator")

    with pytest.raises(KeyError, match="from the operator"):
        core.conjugate_gradient(product, np.ones(3))
    with pytest.raises(KeyError, match="from the operator"):
        core.conjugate_gradient(np.eye(3), np.ones(3), preconditioner=product)


def test_statuses_and_messages_are_readable():
    r = core.conjugate_gradient(poisson(30), right_hand_side(30))
    assert r.status.name == "MAX_ITERATIONS"
    assert isinstance(r.message, str)
    assert len(r.message) > 10
    assert {s.name for s in core.CgStatus} == {
        "CONVERGED",
        "SLOW_PROGRESS",
        "MAX_ITERATIONS",
        "INDEFINITE",
        "ZERO_RHS",
    }
