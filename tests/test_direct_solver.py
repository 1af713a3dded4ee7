"""Direct solves of (F + damping I) x = b: exact, the same on any machine load, and never NaN."""

import itertools

import numpy as np
import pytest
from conftest import DISTRIBUTIONS, Problem, id_of, make_problem, relative_error
from test_policy import every_distribution, every_dtype

from natgrad import Batch
from natgrad import _core as core

FORMS = ("linear_gaussian", "dense", "sample")
every_form = pytest.mark.parametrize("form", FORMS)
every_kind = pytest.mark.parametrize("kind", ["exact", "empirical"])
HIDDEN = {"linear": (), "small": (3,), "two layers": (7, 5)}


def fisher_of(p: Problem, kind: str = "exact", weights: bool = True, **options) -> core.Fisher:
    return core.Fisher(
        p.core,
        p.observations,
        kind=kind,
        actions=p.actions if kind == "empirical" else None,
        weights=p.weights if weights else None,
        **options,
    )


def oracle_fisher(p: Problem, kind: str = "exact", weights: bool = True) -> np.ndarray:
    w = p.weights if weights else None
    if kind == "exact":
        return p.oracle.fisher(p.theta, p.observations, w)
    return p.oracle.empirical_fisher(p.theta, p.observations, p.actions, w)


def forms_of(distribution: str, hidden: tuple[int, ...], kind: str) -> list[str]:
    linear = distribution == "gaussian" and not hidden and kind == "exact"
    return [form for form in FORMS if form != "linear_gaussian" or linear]


def allowed(dtype: str, matrix: np.ndarray, damping: float) -> float:
    """What rounding F may do to x, by its condition: a few units in the last place of F."""
    condition = (np.linalg.norm(matrix, 2) + damping) / damping
    return 5 * float(np.finfo(dtype).eps) * condition


# ------------------------------------------------------------------------------- exactness


@every_dtype
@every_kind
@every_distribution
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("count", [1, 5, 40, 300])
def test_every_form_solves_the_dense_system(hidden, distribution, kind, dtype, count):
    p = make_problem(distribution, hidden=HIDDEN[hidden], dtype=dtype, count=count)
    b = np.random.default_rng(1).normal(size=p.theta.size)
    for weights in (True, False):
        matrix = oracle_fisher(p, kind, weights)
        F = fisher_of(p, kind, weights)
        for damping in (1.0, 0.1, 0.01):
            want = np.linalg.solve(matrix + damping * np.eye(b.size), b)
            tolerance = allowed(dtype, matrix, damping)
            if tolerance > {"float64": 1e-9, "float32": 1e-3}[dtype]:
                continue
            for form in forms_of(distribution, HIDDEN[hidden], kind):
                result = F.solve(b, damping, solver=form)
                assert result.status == core.CgStatus.CONVERGED
                assert result.solver == form
                assert result.iterations == 0
                assert relative_error(result.x, want) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
@every_distribution
def test_a_realistic_policy_is_solved_to_the_precision_of_its_dtype(distribution, dtype, tolerance):
    p = make_problem(distribution, hidden=(16, 16), observation_size=11, dtype=dtype, count=120)
    p.core.parameters[:] *= 0.3
    p.theta = p.core.parameters.astype(float)
    g = p.core.score(p.observations, p.actions, p.advantages)
    matrix = oracle_fisher(p, weights=False)
    for damping in (0.1, 10.0):
        want = np.linalg.solve(matrix + damping * np.eye(g.size), g)
        for form in ("dense", "sample"):
            got = fisher_of(p, weights=False).solve(g, damping, solver=form)
            assert relative_error(got.x, want) < tolerance


@every_form
def test_the_dampings_of_operator_and_call_add_up(form):
    p = make_problem("gaussian", hidden=(), count=30)
    b = np.random.default_rng(1).normal(size=p.theta.size)
    want = fisher_of(p).solve(b, 0.3, solver=form)
    got = fisher_of(p, damping=0.1).solve(b, 0.2, solver=form)
    assert relative_error(got.x, want.x) < 1e-12
    np.testing.assert_allclose(
        got.quadratic_form, want.quadratic_form + 0.1 * want.x @ want.x, rtol=1e-10
    )


@every_form
@every_dtype
def test_the_residual_is_the_one_that_the_solution_has(form, dtype):
    p = make_problem("gaussian", hidden=(), count=30, dtype=dtype)
    b = np.random.default_rng(1).normal(size=p.theta.size)
    F = fisher_of(p)
    result = F.solve(b, 0.1, solver=form)
    rounding = {"float64": 1e-12, "float32": 1e-4}[dtype] * np.linalg.norm(b)
    assert 0 < result.residual_norm < rounding
    np.testing.assert_allclose(result.quadratic_form, result.x @ (F @ result.x), rtol=1e-5)
    residual = np.linalg.norm(b - F @ result.x - 0.1 * result.x)
    assert abs(result.residual_norm - residual) < rounding


@every_form
def test_a_right_hand_side_of_zeros_has_the_solution_zero(form):
    p = make_problem("gaussian", hidden=(), count=30)
    result = fisher_of(p).solve(np.zeros(p.theta.size), 0.1, solver=form)
    assert result.status == core.CgStatus.ZERO_RHS
    assert not result.x.any()


def test_a_thousand_parameters_need_several_blocks_of_the_factorisation():
    p = make_problem("categorical", hidden=(30, 24), observation_size=6, count=90)
    b = np.random.default_rng(1).normal(size=p.theta.size)
    assert b.size > 1000
    matrix = oracle_fisher(p)
    want = np.linalg.solve(matrix + 0.1 * np.eye(b.size), b)
    for form in ("dense", "sample"):
        assert relative_error(fisher_of(p).solve(b, 0.1, solver=form).x, want) < 1e-10


def test_linear_policies_with_fourier_features_have_every_form():
    policy = core.Policy(
        3, core.DiagonalGaussian(2), hidden=(), dtype="float64", fourier_features=12
    )
    rng = np.random.default_rng(0)
    F = core.Fisher(policy, rng.normal(size=(40, 3)))
    b = rng.normal(size=policy.parameters.size)
    want = np.linalg.solve(F.to_dense() + 0.1 * np.eye(b.size), b)
    for form in FORMS:
        assert relative_error(F.solve(b, 0.1, solver=form).x, want) < 1e-11


# ------------------------------------------------------------------------------- singular matrices


SINGULAR = {
    "one observation": {"count": 1},
    "a softmax": {"distribution": "categorical", "count": 60},
    "more parameters than observations": {"count": 5},
    "a single parameter pair": {"hidden": (), "observation_size": 1, "count": 1},
}


@pytest.mark.parametrize("case", SINGULAR)
@every_kind
def test_without_damping_the_shortest_least_squares_solution_comes_out(case, kind):
    p = make_problem(**{"distribution": "gaussian", "hidden": (3,), **SINGULAR[case]})
    matrix = oracle_fisher(p, kind)
    b = np.random.default_rng(1).normal(size=p.theta.size)
    want = np.linalg.lstsq(matrix, b, rcond=1e-13)[0]
    got = fisher_of(p, kind).solve(b, 0.0)
    assert relative_error(got.x, want) < 1e-6
    outside = np.linalg.norm(b - matrix @ want)
    solved = outside < 1e-8 * np.linalg.norm(b)
    assert got.status == (core.CgStatus.CONVERGED if solved else core.CgStatus.INDEFINITE)
    assert np.isclose(got.residual_norm, outside, rtol=1e-6)  # of b in the null space


def dead_layer(dtype: str) -> Problem:
    """Every relu of the only hidden layer is off for every observation."""
    p = make_problem("gaussian", hidden=(4,), activation="relu", dtype=dtype, count=20)
    for block in p.core.layout:
        if block.name == "0.bias":
            p.core.parameters[block.offset : block.offset + block.size] = -100
    p.theta = p.core.parameters.astype(float)
    return p


@every_dtype
def test_a_dead_layer_and_repeated_rows_are_solved_with_and_without_damping(dtype):
    dead = dead_layer(dtype)
    repeated = make_problem("categorical", hidden=(4,), dtype=dtype, count=20)
    repeated.observations[:] = repeated.observations[0]
    for p, form, damping in itertools.product((dead, repeated), ("dense", "sample"), (0.0, 0.1)):
        if form == "sample" and damping == 0:
            continue
        g = p.core.score(p.observations, p.actions, p.advantages)
        F = fisher_of(p, weights=False)
        result = F.solve(g, damping, solver=form)
        assert np.isfinite(result.x).all()
        matrix = F.to_dense() + damping * np.eye(g.size)
        want = np.linalg.lstsq(matrix, g, rcond=1e-6 if dtype == "float32" else 1e-13)[0]
        assert relative_error(result.x, want) < (1e-3 if dtype == "float32" else 1e-9)


def test_outputs_that_overflow_end_in_a_status_and_not_in_nan():
    p = make_problem("gaussian", hidden=(3,), dtype="float32", count=20)
    p.core.parameters[-3:] = -60  # 1 / sigma^2 is beyond float32
    b = np.ones(p.theta.size)
    for form in ("dense", "sample"):
        result = fisher_of(p).solve(b, 0.1, solver=form)
        assert result.status == core.CgStatus.INDEFINITE
        assert not result.x.any()
        assert np.isclose(result.residual_norm, np.linalg.norm(b))


@every_dtype
def test_damping_below_the_rounding_of_the_gram_matrix_is_a_status(dtype):
    p = make_problem("gaussian", hidden=(3,), dtype=dtype, count=20)
    b = np.ones(p.theta.size)
    result = fisher_of(p).solve(b, 1e-30, solver="sample")
    assert result.status == core.CgStatus.INDEFINITE
    assert not result.x.any()
    assert fisher_of(p).solve(b, 1.0, solver="sample").status == core.CgStatus.CONVERGED


def test_every_damping_gives_finite_numbers():
    for dtype, damping in itertools.product(("float64", "float32"), 10.0 ** np.arange(-20, 21, 4)):
        p = make_problem("categorical", hidden=(4,), dtype=dtype, count=20)
        g = p.core.score(p.observations, p.actions, p.advantages)
        for form in ("dense", "sample"):
            result = fisher_of(p).solve(g, damping, solver=form)
            assert np.isfinite(result.x).all()
            assert np.isfinite(result.residual_norm)


# ------------------------------------------------------------------------------- threads


@every_dtype
@every_distribution
def test_the_bits_do_not_depend_on_the_number_of_threads(distribution, dtype):
    p = make_problem(distribution, hidden=(9, 8), dtype=dtype, count=1100)
    b = np.random.default_rng(1).normal(size=p.theta.size)
    few = make_problem(distribution, hidden=(9, 8), dtype=dtype, count=130)
    before = core.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8):
            core.set_num_threads(threads)
            results.append(
                [
                    fisher_of(p).to_dense(),
                    fisher_of(p).solve(b, 0.1, solver="dense").x,
                    fisher_of(few).solve(b, 0.1, solver="sample").x,
                ]
            )
    finally:
        core.set_num_threads(before)
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_second_solve_and_another_batch_leave_no_trace():
    p = make_problem("gaussian", hidden=(7, 5), count=60)
    b = np.random.default_rng(1).normal(size=p.theta.size)
    F = fisher_of(p)
    first = [F.solve(b, 0.1, solver=form).x for form in ("dense", "sample")]
    F.solve(2 * b, 10.0, solver="sample")
    F.solve(2 * b, 10.0, solver="dense")
    F @ b
    again = [F.solve(b, 0.1, solver=form).x for form in ("dense", "sample")]
    np.testing.assert_array_equal(first, again)


# ------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda F, b: F.solve(b[1:]), "b: want shape"),
        (lambda F, b: F.solve(b * np.nan), "b.*finite"),
        (lambda F, b: F.solve(b, -1.0), "damping: want a finite number >= 0"),
        (lambda F, b: F.solve(b, 1.0, solver="cg"), "solver: want direct, linear_gaussian"),
        (
            lambda F, b: F.solve(b, 1.0, solver="linear_gaussian"),
            "solver: want a form that this matrix",
        ),
        (lambda F, b: F.solve(b, 0.0, solver="sample"), "solver: want a form that this matrix"),
    ],
)
def test_misuse_is_refused_by_name(call, message):
    p = make_problem("gaussian", hidden=(3,), count=20)
    with pytest.raises(ValueError, match=message):
        call(fisher_of(p), np.ones(p.theta.size))


def test_matrices_that_are_too_large_are_refused():
    policy = core.Policy(60, core.Categorical(3), hidden=(64, 64))
    F = core.Fisher(policy, np.zeros((5000, 60), dtype="float32"))
    for form in ("direct", "dense", "sample"):
        with pytest.raises(ValueError, match="solver: want a form that this matrix has"):
            F.solve(np.ones(policy.parameters.size), 0.1, solver=form)


# ------------------------------------------------------------------------------- the update


@every_dtype
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_an_update_takes_the_natural_step_of_every_form(distribution, dtype):
    steps = {}
    for solver in ("cg", "dense", "sample", "direct"):
        p = make_problem(distribution, hidden=(3,), dtype=dtype, count=60, seed=2)
        update = core.TrustRegionUpdate(
            damping=1.0,
            line_search=None,
            solver=core.ConjugateGradient(200, rtol=1e-12) if solver == "cg" else solver,
        )
        report = update(p.core, p.batch)
        assert report.accepted
        assert report.solver == solver or (solver == "direct" and report.solver != "cg")
        assert report.as_dict()["solver"] == report.solver
        if solver != "cg":
            assert report.cg.status == core.CgStatus.CONVERGED
            assert report.cg.iterations == 0
            assert report.cg.relative_residual < (1e-10 if dtype == "float64" else 1e-3)
        steps[solver] = p.core.parameters - p.theta
    for step in steps.values():
        assert relative_error(step, steps["cg"]) < (1e-8 if dtype == "float64" else 1e-2)


@pytest.mark.parametrize(
    ("options", "solver"),
    [
        ({"solver": "linear_gaussian"}, "cg"),  # not linear
        ({"solver": "sample", "damping": 0.0}, "cg"),
        ({"solver": "direct", "damping": 0.0}, "dense"),
        ({"solver": "sample", "fisher": "empirical", "curvature_fraction": 0.3}, "sample"),
    ],
    ids=id_of,
)
def test_conjugate_gradients_take_over_where_there_is_no_such_form(options, solver):
    p = make_problem("gaussian", hidden=(3,), count=60)
    report = core.TrustRegionUpdate(**options)(p.core, p.batch)
    assert report.accepted
    assert report.solver == solver
    assert (report.cg.iterations > 0) == (solver == "cg")


def test_a_form_that_fails_leaves_the_start_of_a_warm_solve_alone():
    steps = []
    for or_direct in (False, True):
        p = make_problem("gaussian", hidden=(64, 64), dtype="float32", count=16)
        solver = core.ConjugateGradient(5, warm_start=True, or_direct=or_direct)
        damped = core.TrustRegionUpdate(solver=solver, damping=0.1, max_kl=1e-4)
        assert damped(p.core, p.batch).solver == ("sample" if or_direct else "cg")
        p.core.parameters = p.theta
        update = core.TrustRegionUpdate(solver=solver, damping=1e-12, max_kl=1e-4)
        for _ in range(3):  # rounding forbids the form that is chosen first
            assert update(p.core, p.batch).solver == "cg"
        steps.append(p.core.parameters - p.theta)
    np.testing.assert_array_equal(*steps)


def test_a_direct_form_is_refused_beside_a_metric():
    metric = core.FixedDamping(metric=np.ones(3))
    with pytest.raises(ValueError, match="solver: want auto, cg or ConjugateGradient"):
        core.TrustRegionUpdate(damping=metric, solver="direct")


def test_an_update_that_rounding_keeps_from_a_direct_form_goes_by_conjugate_gradients():
    p = make_problem("gaussian", hidden=(3,), dtype="float32", count=60)
    report = core.TrustRegionUpdate(solver="sample", damping=1e-12)(p.core, p.batch)
    assert report.solver == "cg"
    assert report.accepted


@pytest.mark.parametrize(
    ("hidden", "count", "solver"),
    [((), 4000, "dense"), ((64, 64), 12, "sample"), ((64, 64), 2000, "cg")],
)
def test_auto_is_direct_for_few_parameters_or_observations_and_iterates_else(hidden, count, solver):
    policy = core.Policy(4, core.Categorical(2), hidden=hidden)
    rng = np.random.default_rng(0)
    observations, advantages = rng.normal(size=(count, 4)), rng.normal(size=count)
    batch = Batch(observations, rng.integers(2, size=count), advantages)
    assert core.TrustRegionUpdate()(policy, batch).solver == solver


def test_fewer_iterations_announced_make_conjugate_gradients_the_choice():
    p = make_problem("gaussian", hidden=(4,), dtype="float32", count=4000)
    chosen = [core.TrustRegionUpdate(cg_iterations=n)(p.core, p.batch).solver for n in (1, 60)]
    assert chosen == ["cg", "dense"]
