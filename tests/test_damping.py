"""Damping and warm starts: what passes from update to update, and what maps onto itself."""

import itertools
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from conftest import DISTRIBUTIONS, core_options, id_of, make_problem, relative_error

from natgrad import _core as core

Status = core.UpdateStatus
RULE = {"low": 1e-5, "high": 10.0}
WARM = core.ConjugateGradient(warm_start=True, or_direct=True)


def run(p, updates=4, seed=0, **options):
    """Updates in a row, each on a batch of its own; yields report, batch and theta before it."""
    update = core.TrustRegionUpdate(**options)
    rng = np.random.default_rng(seed)
    for _ in range(updates):
        rows = rng.choice(len(p.observations), 30, replace=False)
        batch = BatchOf(p, rows, rng.normal(size=30))
        before = np.array(p.core.parameters, dtype=float)
        yield update(p.core, batch), batch, before


class BatchOf:
    """What an update wants, and the oracle's arguments."""

    log_probs = None

    def __init__(self, p, rows, advantages):
        self.observations, self.actions = p.observations[rows], p.actions[rows]
        self.advantages = advantages

    @property
    def arguments(self):
        return self.observations, self.actions, self.advantages


def next_damping(damping, ratio, low, high):
    if ratio < 0.25:
        return min(1.5 * damping, high)
    return max(damping / 1.5, low) if ratio > 0.75 else damping


# ----------------------------------------------------------------------------------- trace


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("hidden", [(), (7, 5), (6,)], ids=id_of)
def test_the_trace_is_that_of_the_dense_matrix_within_a_few_hundredths(distribution, hidden):
    p = make_problem(distribution, hidden=hidden, count=6000)
    F = core.Fisher(p.core, p.observations)
    assert abs(F.trace() / np.trace(F.to_dense()) - 1) < 0.03
    weighted = core.Fisher(p.core, p.observations, weights=p.weights, damping=0.2)
    assert abs(weighted.trace() / np.trace(weighted.to_dense()) - 1) < 0.03
    assert F.trace() == core.Fisher(p.core, p.observations).trace()


@pytest.mark.parametrize("activation", ["tanh", "silu", "gelu", "relu", "elu", "identity"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_trace_is_exact_where_one_column_reaches_the_layers(activation, dtype):
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(45, 4)).astype(dtype)
    options = {"hidden": (9, 6), "activation": activation, "dtype": dtype, "output_scale": 1.0}
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    for distribution in (core.Categorical(2), core.DiagonalGaussian(1), core.Bernoulli(1)):
        F = core.Fisher(core.Policy(4, distribution, **options), observations)
        np.testing.assert_allclose(F.trace(), np.trace(F.to_dense()), rtol=tolerance)
    p = make_problem("gaussian", activation=activation, dtype=dtype)
    F = core.Fisher(p.core, p.observations, kind="empirical", actions=p.actions)
    np.testing.assert_allclose(F.trace(), np.trace(F.to_dense()), rtol=tolerance)


@pytest.mark.parametrize("distribution", ["categorical", "multi-categorical", "gaussian"])
def test_the_signs_of_the_trace_are_without_bias(distribution):
    p = make_problem(distribution, count=1)

    def error(copies):  # the same observation with other signs each time
        F = core.Fisher(p.core, np.repeat(p.observations, copies, axis=0))
        return abs(F.trace() / np.trace(F.to_dense()) - 1)

    assert error(1) > 0.02  # it is an estimate,
    assert error(40_000) < 0.015  # with a variance of no more than 2 / copies


@pytest.mark.parametrize("distribution", ["gaussian", "categorical"])
def test_damping_by_trace_is_a_multiple_of_the_mean_of_the_diagonal(distribution):
    p, twin = (make_problem(distribution, count=64) for _ in range(2))
    mean = core.Fisher(p.core, p.observations).trace() / p.theta.size
    report = core.TrustRegionUpdate(damping=core.TraceDamping(2.5))(p.core, p.batch)
    assert np.isclose(report.damping, 2.5 * mean, rtol=1e-14)
    fixed = core.TrustRegionUpdate(damping=report.damping)(twin.core, twin.batch)
    assert fixed.damping == report.damping
    assert p.core.parameters.tobytes() == twin.core.parameters.tobytes()


def test_damping_by_trace_does_not_depend_on_the_scale_of_the_fisher_matrix():
    # A linear policy whose standard deviation is not learnt from: F of its weights is G / sigma^2.
    steps = {}
    dampings = {"fixed": core.FixedDamping(0.5), "trace": core.TraceDamping(0.5)}
    for mode, damping in dampings.items():
        for log_std in (0.0, -2.0):
            rng = np.random.default_rng(0)
            policy = core.Policy(
                5, core.DiagonalGaussian(1, state_dependent_std=False), hidden=(4,),
                dtype="float64", log_std_init=log_std,
            )  # fmt: skip
            observations = 30.0 * rng.normal(size=(80, 5))  # weights outweigh log_std in the trace
            noise = rng.normal(size=(80, 1)) * np.exp(log_std)
            actions = policy.outputs(observations)[:, :1] + noise
            before = np.array(policy.parameters)
            update = core.TrustRegionUpdate(damping=damping, line_search=None, max_kl=1e-8)
            batch = SimpleNamespace(
                observations=observations, actions=actions, advantages=noise[:, 0], log_probs=None
            )
            assert update(policy, batch).accepted
            weights = (policy.parameters - before)[:-1]
            steps[mode, log_std] = weights / np.linalg.norm(weights)
    turned = {m: np.linalg.norm(steps[m, 0.0] - steps[m, -2.0]) for m in ("fixed", "trace")}
    assert turned["trace"] < 0.1 * turned["fixed"]


@pytest.mark.parametrize("log_std", [-60.0, 40.0])
def test_a_trace_that_is_no_number_is_not_taken_for_one(log_std):
    p = make_problem("gaussian", dtype="float32")
    p.core.parameters = np.where(np.arange(p.theta.size) < p.theta.size - 3, p.theta, log_std)
    before = p.core.parameters.tobytes()
    report = core.TrustRegionUpdate(damping=core.TraceDamping())(p.core, p.batch)
    numbers = {k: v for k, v in report.as_dict().items() if not isinstance(v, str)}
    if not report.accepted:
        assert p.core.parameters.tobytes() == before
    assert np.isfinite(report.damping), numbers
    assert np.isfinite(report.reduction_ratio), numbers
    assert np.isfinite(report.cg.model_value), numbers


# -------------------------------------------------------------------------------- adaptive


@pytest.mark.parametrize(
    "line_search", [core.LineSearch(0.8, 2), None], ids=["search", "closed form"]
)
@pytest.mark.parametrize("distribution", ["categorical", "gaussian", "bernoulli"])
def test_adaptive_damping_follows_the_reduction_ratio(distribution, line_search):
    p = make_problem(distribution, count=60)
    # So large a step that the models fail on some batches and hold on others.
    options = {"max_kl": 0.3, "cg_iterations": 5, "line_search": line_search}
    damping, ratios = 0.1, []
    for report, batch, theta in run(p, 8, damping=core.AdaptiveDamping(), **options):
        want = oracle.trust_region_update(
            p.oracle,
            theta,
            *batch.arguments,
            damping=damping,
            max_kl=0.3,
            cg_iterations=5,
            line_search=None if line_search is None else (0.8, 2, 0.0),
        )
        np.testing.assert_allclose(report.damping, damping, rtol=1e-14)
        assert report.status.name == want.status
        np.testing.assert_allclose(report.reduction_ratio, want.reduction_ratio, rtol=1e-5)
        assert relative_error(p.core.parameters, want.parameters) < 1e-8
        damping = next_damping(damping, report.reduction_ratio if report.accepted else 0, **RULE)
        ratios.append(report.reduction_ratio)
    assert min(ratios) < 0.75 < max(ratios)


def test_adaptive_damping_stays_within_its_bounds():
    p = make_problem("gaussian", count=60)
    floor = core.AdaptiveDamping(low=0.05)
    found = [r.damping for r, _, _ in run(p, 6, damping=floor, max_kl=1e-6)]  # the models hold
    np.testing.assert_allclose(found, [0.1, 0.1 / 1.5, *[0.05] * 4])
    p = make_problem("gaussian", count=60)
    failing = {"max_kl": 0.2, "line_search": core.LineSearch(max_backtracks=1)}
    found = [r.damping for r, _, _ in run(p, 12, damping=core.AdaptiveDamping(high=0.1), **failing)]
    assert max(found) == 0.1
    assert any(b == 0.1 > a for a, b in itertools.pairwise(found))


def test_an_update_that_fails_raises_adaptive_damping():
    p = make_problem("gaussian", count=60)
    search, damping, seen = core.LineSearch(max_backtracks=1), 0.1, set()
    for report, _, _ in run(p, 12, damping=core.AdaptiveDamping(), max_kl=0.2, line_search=search):
        np.testing.assert_allclose(report.damping, damping, rtol=1e-14)
        damping = next_damping(damping, report.reduction_ratio if report.accepted else 0, **RULE)
        if not report.accepted and report.reduction_ratio > 0.25:  # the ratio alone would not
            seen.add(report.status)
    assert seen == {Status.LINE_SEARCH_FAILED}


def test_a_step_without_length_or_beyond_all_numbers_raises_adaptive_damping():
    p = make_problem("gaussian", count=40)
    theta = p.core.parameters.tobytes()
    update = core.TrustRegionUpdate(damping=core.AdaptiveDamping(), max_kl=1e300, line_search=None)
    report = update(p.core, p.batch)
    assert (report.status, report.reduction_ratio) == (Status.NON_FINITE, 0)
    np.testing.assert_allclose(update.state, [0.15])
    assert p.core.parameters.tobytes() == theta
    # The one row that the curvature looks at has observation zero, and the gradient lives in W.
    policy = core.Policy(1, core.Categorical(2), hidden=(), dtype="float64")
    policy.parameters = np.zeros(4)
    batch = SimpleNamespace(
        observations=np.array([[0.0], [1.0], [-1.0]]),
        actions=np.array([0, 0, 0]),
        advantages=np.array([0.0, 0.3, -0.3]),
        log_probs=None,
    )
    update = core.TrustRegionUpdate(damping=core.AdaptiveDamping(), curvature_fraction=1 / 3)
    assert update(policy, batch).status == Status.NOT_POSITIVE_DEFINITE
    np.testing.assert_allclose(update.state, [0.15])


def test_an_update_with_nothing_to_do_leaves_state_alone():
    p = make_problem("gaussian", count=40)
    update = core.TrustRegionUpdate(damping=core.AdaptiveDamping(), solver=WARM)
    assert update(p.core, p.batch).accepted
    before = update.state
    assert len(before) == 1 + p.theta.size
    batch = BatchOf(p, slice(None), np.zeros(40))
    report = update(p.core, batch)
    assert report.status == Status.ZERO_ADVANTAGES
    assert (report.damping, report.reduction_ratio) == (0, 0)
    assert update.state.tobytes() == before.tobytes()


# ------------------------------------------------------------------------------ warm start


@pytest.mark.parametrize("iterations", [1, 2, 6])
@pytest.mark.parametrize("distribution", ["gaussian", "categorical"])
def test_a_warm_start_goes_on_from_the_last_step(distribution, iterations):
    p = make_problem(distribution, count=60)
    start = None
    for report, batch, theta in run(p, solver=WARM.replace(iterations=iterations)):
        want = oracle.trust_region_update(
            p.oracle, theta, *batch.arguments, cg_iterations=iterations, start=start
        )
        assert report.accepted
        warm = start is not None and iterations > 1
        assert report.cg.iterations == want.cg_iterations == iterations - warm
        assert report.cg.products == iterations
        assert relative_error(p.core.parameters, want.parameters) < 1e-8
        start = want.full_step


def test_a_warm_start_saves_products_where_batches_are_alike():
    found = {}
    for warm in (False, True):
        p = make_problem("gaussian", count=60)
        update = core.TrustRegionUpdate(
            solver=core.ConjugateGradient(50, rtol=0.02, warm_start=warm), max_kl=1e-5
        )
        reports = [update(p.core, p.batch) for _ in range(3)]
        assert all(report.cg.status == core.CgStatus.CONVERGED for report in reports)
        found[warm] = [report.cg.products for report in reports]
    assert found[True][0] == found[False][0]
    assert all(warm < cold for warm, cold in zip(found[True][1:], found[False][1:], strict=True))


def test_a_step_that_now_leads_downhill_is_a_start_no_worse_than_zero():
    p = make_problem("gaussian", count=60)
    update = core.TrustRegionUpdate(solver=WARM.replace(iterations=2))
    assert update(p.core, p.batch).accepted
    cold = make_problem("gaussian", count=60)
    cold.core.parameters = p.core.parameters
    turned = BatchOf(p, slice(None), -p.advantages)
    report = update(p.core, turned)
    first = core.TrustRegionUpdate(cg_iterations=1)(cold.core, turned)
    assert report.accepted
    assert report.expected_improvement > 0
    assert report.cg.model_value < first.cg.model_value < 0


def test_the_step_of_a_failed_update_is_not_started_from():
    p = make_problem("gaussian", count=60)
    start, seen = None, set()
    search = core.LineSearch(max_backtracks=1)
    for report, batch, theta in run(p, 12, solver=WARM, max_kl=0.2, line_search=search):
        want = oracle.trust_region_update(
            p.oracle, theta, *batch.arguments, max_kl=0.2, line_search=(0.8, 1, 0.0), start=start
        )
        assert report.status.name == want.status
        assert report.cg.products == report.cg.iterations + (start is not None)
        assert relative_error(p.core.parameters, want.parameters) < 1e-8
        start = want.full_step if report.accepted else None
        seen.add(report.status)
    assert seen == {Status.ACCEPTED, Status.LINE_SEARCH_FAILED}


@pytest.mark.parametrize("preconditioner", ["kfac", "subsample"])
def test_all_of_it_works_with_a_preconditioner(preconditioner):
    p = make_problem("gaussian", count=60)
    solver = core.ConjugateGradient(200, rtol=1e-9, warm_start=True)
    options = {"preconditioner": preconditioner, "damping": core.AdaptiveDamping()}
    damping, warm = 0.1, False
    for report, batch, theta in run(p, 5, solver=solver, **options):
        assert report.preconditioner == preconditioner
        assert report.cg.status == core.CgStatus.CONVERGED
        replacements = report.cg.iterations // 50  # of the residual
        assert report.cg.products == report.cg.iterations + replacements + warm
        np.testing.assert_allclose(report.damping, damping)
        want = oracle.trust_region_update(
            p.oracle, theta, *batch.arguments, damping=damping, cg_iterations=400
        )
        assert relative_error(p.core.parameters - theta, want.parameters - theta) < 1e-5
        damping = next_damping(damping, report.reduction_ratio if report.accepted else 0, **RULE)
        warm = report.accepted


def test_a_step_of_another_size_is_not_started_from():
    p, q, twin = (make_problem("gaussian", hidden=h) for h in ((7, 5), (5, 5), (5, 5)))
    update = core.TrustRegionUpdate(solver=WARM)
    assert update(p.core, p.batch).accepted
    report = update(q.core, q.batch)
    assert report.accepted
    assert report.cg.products == report.cg.iterations
    core.TrustRegionUpdate()(twin.core, twin.batch)
    assert q.core.parameters.tobytes() == twin.core.parameters.tobytes()


# ----------------------------------------------------------------------------------- state


def test_an_update_without_memory_has_no_state():
    p = make_problem("gaussian")
    update = core.TrustRegionUpdate(damping=core.TraceDamping())
    update(p.core, p.batch)
    assert update.state.shape == (0,)
    update.state = []
    with pytest.raises(ValueError, match="state"):
        update.state = [0.1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [
        {"damping": core.AdaptiveDamping()},
        {"solver": WARM},
        {"damping": core.AdaptiveDamping(), "solver": WARM},
        {"preconditioner": "auto", "solver": WARM.replace(or_direct=False)},
    ],
    ids=["adaptive", "warm", "both", "automatic"],
)
def test_a_restored_update_goes_on_with_the_same_bits(options, dtype):
    p, twin = (make_problem("gaussian", dtype=dtype) for _ in range(2))
    update = core.TrustRegionUpdate(max_kl=0.05, **options)
    other = core.TrustRegionUpdate(max_kl=0.05, **options)
    other.state = update.state
    for _ in range(3):
        assert update(p.core, p.batch).accepted
    twin.core.parameters = p.core.parameters
    other.state = update.state
    for _ in range(2):
        assert update(p.core, p.batch).accepted
        assert other(twin.core, twin.batch).accepted
    assert p.core.parameters.tobytes() == twin.core.parameters.tobytes()
    assert other.state.tobytes() == update.state.tobytes()
    fresh = make_problem("gaussian", dtype=dtype)
    fresh.core.parameters = p.core.parameters
    core.TrustRegionUpdate(max_kl=0.05, **options)(fresh.core, fresh.batch)
    update(p.core, p.batch)
    assert fresh.core.parameters.tobytes() != p.core.parameters.tobytes()  # it is state


def test_a_state_moves_between_dtypes():
    p, q = make_problem("gaussian"), make_problem("gaussian", dtype="float32")
    update = core.TrustRegionUpdate(damping=core.AdaptiveDamping(), solver=WARM)
    assert update(p.core, p.batch).accepted
    before = update.state
    report = update(q.core, q.batch)
    assert report.cg.products == report.cg.iterations + 1
    assert report.damping == before[0]


@pytest.mark.parametrize(
    ("options", "bad"),
    [
        ({"damping": core.AdaptiveDamping()}, []),
        ({"damping": core.AdaptiveDamping()}, [0.0]),
        ({"damping": core.AdaptiveDamping()}, [-0.1]),
        ({"damping": core.AdaptiveDamping()}, [0.1, 1.0]),
        ({"solver": WARM}, [0.2]),
        ({"solver": WARM}, []),
        ({"solver": WARM}, [0.1, np.inf]),
    ],
    ids=id_of,
)
def test_a_state_of_another_kind_of_update_is_refused(options, bad):
    update = core.TrustRegionUpdate(**options)
    with pytest.raises(ValueError, match="state"):
        update.state = bad
    np.testing.assert_array_equal(update.state, [0.1])


# ---------------------------------------------------------------------------------- metric


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"damped_step": True},
        {"fisher": "empirical"},
        {"curvature_fraction": 0.4},
        {"cg_rtol": 0.3},
        {"max_kl": 1.0, "line_search": None},
    ],
    ids=id_of,
)
def test_an_update_with_a_metric_is_the_oracles(distribution, options):
    p = make_problem(distribution, count=43)
    metric = np.random.default_rng(3).uniform(0.1, 5.0, p.theta.size)
    options = {"cg_iterations": 4, **options}
    want = oracle.trust_region_update(
        p.oracle, p.theta, p.observations, p.actions, p.advantages, damping_metric=metric, **options
    )
    update = core.TrustRegionUpdate(**core_options(damping_metric=metric, **options))
    report = update(p.core, p.batch)
    assert report.cg.iterations == want.cg_iterations
    assert relative_error(p.core.parameters - p.theta, want.parameters - p.theta) < 1e-7


def test_a_metric_of_ones_changes_nothing_and_warm_starts_go_with_it():
    p, twin = (make_problem("gaussian", count=60) for _ in range(2))
    plain = core.TrustRegionUpdate(solver=WARM)
    with_ones = core.TrustRegionUpdate(
        damping=core.FixedDamping(metric=np.ones(p.theta.size)), solver=WARM
    )
    for _ in range(3):
        assert plain(p.core, p.batch).accepted
        assert with_ones(twin.core, twin.batch).accepted
    assert p.core.parameters.tobytes() == twin.core.parameters.tobytes()
    metric = np.random.default_rng(3).uniform(0.1, 5.0, p.theta.size)
    start = None
    damping, solver = core.FixedDamping(metric=metric), WARM.replace(iterations=5)
    for report, batch, theta in run(p, damping=damping, solver=solver):
        want = oracle.trust_region_update(
            p.oracle, theta, *batch.arguments, damping_metric=metric, start=start, cg_iterations=5
        )
        assert report.accepted
        assert relative_error(p.core.parameters, want.parameters) < 1e-8
        start = want.full_step


def textbook(A, b, inverse_of_m, iterations):
    """Preconditioned conjugate gradients (Nocedal and Wright 2006, algorithm 5.3)."""
    x, r = np.zeros_like(b), -b
    y = inverse_of_m @ r
    p = -y
    for _ in range(iterations):
        alpha = (r @ y) / (p @ A @ p)
        x = x + alpha * p
        after = r + alpha * A @ p
        y_after = inverse_of_m @ after
        p = -y_after + (after @ y_after) / (r @ y) * p
        r, y = after, y_after
    return x


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_a_metric_is_the_preconditioner_as_well(iterations):
    p = make_problem("gaussian", count=43)
    metric = np.random.default_rng(3).uniform(0.1, 5.0, p.theta.size)
    F = p.oracle.fisher(p.theta, p.observations)
    g = p.oracle.score(p.theta, p.observations, p.actions, p.advantages)
    want = textbook(F + 0.1 * np.diag(metric), g, np.diag(1 / metric), iterations)
    update = core.TrustRegionUpdate(
        damping=core.FixedDamping(metric=metric), cg_iterations=iterations, line_search=None
    )
    report = update(p.core, p.batch)
    step = p.core.parameters - p.theta
    assert relative_error(step / np.linalg.norm(step), want / np.linalg.norm(want)) < 1e-9
    model = 0.5 * want @ F @ want + 0.05 * want @ (metric * want) - g @ want
    np.testing.assert_allclose(report.cg.model_value, model, rtol=1e-9)
    np.testing.assert_allclose(report.cg.quadratic_form, want @ F @ want, rtol=1e-9)


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("damping", [core.FixedDamping(), core.AdaptiveDamping()], ids=id_of)
def test_updates_map_onto_each_other_under_a_change_of_units(damping, warm, iterations):
    """Observations in other units: W_1 = V_1 diag(1 / s) gives the same policy."""
    p, q = (make_problem("gaussian", count=60) for _ in range(2))
    scale = np.array([0.1, 0.5, 3.0, 20.0])
    q.core.set_normalizer(np.zeros(4), scale, np.inf)
    of_parameter = np.ones(p.theta.size)
    weights = next(block for block in p.core.layout if block.offset == 0)
    of_parameter[: weights.size] = np.tile(scale, weights.shape[0])
    q.core.parameters = p.theta * of_parameter
    np.testing.assert_allclose(p.core.outputs(p.observations), q.core.outputs(p.observations))

    def distance(transported):
        p.core.parameters, q.core.parameters = p.theta, p.theta * of_parameter
        metric = np.random.default_rng(0).uniform(0.5, 2.0, p.theta.size)
        other = metric / of_parameter**2 if transported else metric
        solver = core.ConjugateGradient(iterations, warm_start=warm)
        here, there = (
            core.TrustRegionUpdate(damping=damping.replace(metric=d), solver=solver)
            for d in (metric, other)
        )
        for _ in range(3):
            a, b = here(p.core, p.batch), there(q.core, p.batch)
            assert a.accepted
            assert b.accepted
        if transported:
            for name in ("kl", "improvement", "reduction_ratio", "damping"):
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-6)
            np.testing.assert_allclose(a.cg.model_value, b.cg.model_value, rtol=1e-6)
        return relative_error(
            q.core.parameters / of_parameter - p.theta, p.core.parameters - p.theta
        )

    assert distance(transported=True) < 1e-8
    assert distance(transported=False) > 0.1


def test_any_linear_map_is_served_by_an_operator_and_a_preconditioner():
    """theta = A psi with D = I carried along as A'A: every iterate maps, not the solution alone."""
    p = make_problem("gaussian", count=43)
    F, n = core.Fisher(p.core, p.observations), p.theta.size
    g = p.core.score(p.observations, p.actions, p.advantages)
    A = np.eye(n) + 0.3 * np.random.default_rng(1).normal(size=(n, n)) / np.sqrt(n)
    metric = A.T @ A
    inverse = np.linalg.inv(metric)
    for iterations in (1, 3, 8):
        x = core.conjugate_gradient(F, g, damping=0.1, max_iterations=iterations).x
        transported = core.conjugate_gradient(
            lambda v: A.T @ (F @ (A @ v)) + 0.1 * metric @ v,
            A.T @ g,
            max_iterations=iterations,
            preconditioner=inverse,
        ).x
        assert relative_error(A @ transported, x) < 1e-10
        plain = core.conjugate_gradient(
            lambda v: A.T @ (F @ (A @ v)), A.T @ g, damping=0.1, max_iterations=iterations
        ).x
        assert relative_error(A @ plain, x) > 1e-2
