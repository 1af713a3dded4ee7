"""Preconditioners in an update: as they are told, by automatic choice, and in the last product."""

import dataclasses
import itertools

import numpy as np
import pytest
from conftest import DTYPES, degenerate_problem, hard_problem, id_of, make_problem, relative_error

from natgrad import _core as core


def test_an_update_solves_with_the_preconditioner_it_is_told():
    solutions = {}
    for name in ("none", "kfac", "subsample"):
        problem = hard_problem()
        update = core.TrustRegionUpdate(
            damping=0.01, cg_iterations=4, line_search=None, preconditioner=name
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
        "kfac": core.KroneckerFactors(fisher, 0.01),
        "subsample": core.InnerSolver(part, 1.5 * 0.01, 4, core.KroneckerFactors(part, 8 * 0.01)),
    }.items():
        r = core.conjugate_gradient(fisher, g, damping=0.01, max_iterations=4, preconditioner=M)
        cosine = r.x @ solutions[name] / np.linalg.norm(r.x) / np.linalg.norm(solutions[name])
        assert 1 - cosine < 1e-14, name


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_a_part_of_the_batch_preconditions_networks_of_all_kinds_in_turn(fisher):
    options = {
        "damping": 0.05, "cg_iterations": 2, "line_search": None, "solver": "cg",
        "preconditioner": core.Subsample(every=3, iterations=2), "fisher": fisher,
        "curvature_fraction": 0.8,
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
        M = core.InnerSolver(part, 1.5 * 0.05, 2, core.KroneckerFactors(part, 8 * 0.05))
        x = core.conjugate_gradient(F, g, damping=0.05, max_iterations=2, preconditioner=M).x
        assert 1 - x @ steps[0] / np.linalg.norm(x) / np.linalg.norm(steps[0]) < 1e-14


def test_every_of_an_update_reaches_the_factors():
    steps = []
    for every in (1, 8):
        problem = hard_problem()
        update = core.TrustRegionUpdate(
            cg_iterations=2, line_search=None, preconditioner=core.KFac(every)
        )
        update(problem.core, problem.batch)
        steps.append(problem.core.parameters - problem.theta)
    assert not np.array_equal(*steps)


@pytest.mark.parametrize("solver", ["auto", "cg", "direct"])
@pytest.mark.parametrize(
    "preconditioner", ["none", "auto", "kfac", core.Subsample(every=3)], ids=id_of
)
@pytest.mark.parametrize("case", ["one observation", "duplicates", "dead layer", "smallest"])
def test_degenerate_batches_end_in_a_status_with_its_numbers(case, preconditioner, solver):
    for dtype, damping, last in itertools.product(DTYPES, (0.0, 1e-12, 0.1), (True, False)):
        problem, observations = degenerate_problem(case, dtype)
        batch = dataclasses.replace(problem, observations=observations).batch
        form = solver if solver == "direct" else core.ConjugateGradient(
            last_residual=last, or_direct=solver == "auto"
        )  # fmt: skip
        update = core.TrustRegionUpdate(damping=damping, preconditioner=preconditioner, solver=form)
        for _ in range(3):
            before = problem.core.parameters.tobytes()
            report = update(problem.core, batch)
            if not report.accepted:
                assert problem.core.parameters.tobytes() == before
                assert report.message
            numbers = [v for v in report.as_dict().values() if isinstance(v, float)]
            assert np.isfinite(numbers).all()
            assert np.isfinite(problem.core.parameters).all()


# The automatic choice ----------------------------------------------------------------------------


def large_problem(name="gaussian", spread=10.0, dtype="float64"):
    """Enough observations for factors to be cheap; scales so different that plain ones are slow."""
    problem = make_problem(name, hidden=(32, 32), count=4000, dtype=dtype)
    scales = np.geomspace(1 / spread, spread, 4).astype(dtype)
    return dataclasses.replace(problem, observations=problem.observations * scales)


def update_of(*, damping=0.1, preconditioner="none", **cg):
    """One that solves by conjugate gradients alone, up to their last iteration."""
    return core.TrustRegionUpdate(
        damping=damping, preconditioner=preconditioner, line_search=None, max_kl=1e-8,
        solver=core.ConjugateGradient(rtol=0.0, **cg),
    )  # fmt: skip


def automatic(**options):
    return update_of(**{"preconditioner": "auto", **options})


def test_auto_takes_factors_where_they_are_as_accurate_sooner():
    problem = large_problem()
    plain = update_of(damping=0.01)
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
    shorter = update_of(damping=0.01, preconditioner="kfac", iterations=max(first - 1, 1))
    problem.core.parameters = problem.theta
    assert first == 1 or shorter(problem.core, problem.batch).cg.model_value > goal


@pytest.mark.parametrize("case", ["solved", "small"])
def test_auto_goes_plain_where_factors_do_not_pay(case):
    # Damping that drowns F is solved by a few plain products; a few observations, by cheap ones.
    problem = large_problem() if case == "solved" else make_problem("gaussian", count=20)
    damping = 1e3 if case == "solved" else 0.1
    update, plain = automatic(damping=damping), update_of(damping=damping)
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
                         ids=id_of)  # fmt: skip
def test_a_state_of_no_automatic_update_is_refused(bad):
    update = core.TrustRegionUpdate(preconditioner="auto")
    with pytest.raises(ValueError, match="state"):
        update.state = bad
    np.testing.assert_array_equal(update.state, [0.1, 0.0, 0.0])


# Half of the last product ------------------------------------------------------------------------

HALVES = {
    "passes": {},
    "empirical": {"fisher": "empirical"},
    "adjoints": {"fisher": "empirical", "iterations": 10},
    "part": {"curvature_fraction": 0.4},
    "metric": {"damping": core.FixedDamping(metric=np.linspace(0.5, 2.0, 406))},
    "one": {"iterations": 1},
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
    options = {"line_search": None, "max_kl": 1e-4, **HALVES[case]}
    iterations = options.pop("iterations", 4)
    warm_start = options.pop("warm_start", False)
    made = []
    for last in (True, False):
        problem = dataclasses.replace(hard_problem()) if hidden else make_problem(
            "gaussian", hidden=(), count=900)  # fmt: skip
        solver = core.ConjugateGradient(
            iterations, rtol=0.0, warm_start=warm_start, last_residual=last
        )
        update = core.TrustRegionUpdate(solver=solver, **options)
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
    if iterations == 1:
        assert half.cg.relative_residual == 1.0
