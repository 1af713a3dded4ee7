"""The Fisher information: against the oracle, against its two other definitions, and its laws."""

import itertools

import numpy as np
import oracle
import pytest
from conftest import ACTIVATIONS, Problem, make_problem, relative_error
from scipy.sparse import linalg as sparse_linalg
from test_policy import (
    ARCHITECTURES,
    every_activation,
    every_architecture,
    every_distribution,
    every_dtype,
)

from natgrad import _core as core


def dense(policy: Problem, **options):
    return core.Fisher(policy.core, policy.observations, **options).to_dense()


# ------------------------------------------------------------------------------- exactness


@every_dtype
@every_activation
@every_distribution
@every_architecture
def test_the_exact_fisher_equals_the_oracles(exact, architecture, distribution, activation, dtype):
    p = make_problem(
        distribution, activation=activation, dtype=dtype, **ARCHITECTURES[architecture]
    )
    want = p.oracle.fisher(p.theta, p.observations, p.weights)
    v = np.random.default_rng(1).normal(size=p.theta.size)
    F = core.Fisher(p.core, p.observations, weights=p.weights)
    exact("F @ v", dtype, F @ v, want @ v)
    exact("F.to_dense()", dtype, F.to_dense(), want)
    exact("F.diagonal()", dtype, F.diagonal(), np.diag(want))


@every_dtype
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@every_distribution
@every_architecture
def test_the_empirical_fisher_equals_the_oracles(
    exact, architecture, distribution, activation, dtype
):
    p = make_problem(
        distribution, activation=activation, dtype=dtype, **ARCHITECTURES[architecture]
    )
    for weights in (None, p.weights):
        want = p.oracle.empirical_fisher(p.theta, p.observations, p.actions, weights)
        v = np.random.default_rng(1).normal(size=p.theta.size)
        F = core.Fisher(
            p.core, p.observations, kind="empirical", actions=p.actions, weights=weights
        )
        exact("empirical F @ v", dtype, F @ v, want @ v)
        exact("empirical F.to_dense()", dtype, F.to_dense(), want)
        exact("empirical F.diagonal()", dtype, F.diagonal(), np.diag(want))


@every_dtype
@every_distribution
@pytest.mark.parametrize("fraction", [1e-9, 0.11, 0.26, 0.77, 1.0])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_a_fraction_of_the_batch_is_the_documented_rows(exact, kind, fraction, distribution, dtype):
    p = make_problem(distribution, dtype=dtype, count=43)
    rows = oracle.curvature_rows(43, fraction)
    obs, act, w = p.observations[rows], p.actions[rows], p.weights[rows]
    if kind == "exact":
        want = p.oracle.fisher(p.theta, obs, w)
    else:
        want = p.oracle.empirical_fisher(p.theta, obs, act, w)
    actions = p.actions if kind == "empirical" else None
    F = core.Fisher(
        p.core, p.observations, kind=kind, actions=actions, weights=p.weights, fraction=fraction
    )
    v = np.random.default_rng(1).normal(size=p.theta.size)
    exact("F(fraction) @ v", dtype, F @ v, want @ v)
    exact("F(fraction).to_dense()", dtype, F.to_dense(), want)
    exact("F(fraction).diagonal()", dtype, F.diagonal(), np.diag(want))


@every_dtype
@pytest.mark.parametrize("size", ["17-64-64-6", "300-40-3"])
@pytest.mark.parametrize("distribution", ["gaussian", "categorical"])
def test_products_of_realistic_size_are_as_exact(exact, size, distribution, dtype):
    shape = {
        "17-64-64-6": {"observation_size": 17, "hidden": (64, 64), "count": 600},
        "300-40-3": {"observation_size": 300, "hidden": (40,), "count": 97},
    }[size]
    p = make_problem(distribution, dtype=dtype, seed=3, normalized=True, **shape)
    v = np.random.default_rng(1).normal(size=p.theta.size)
    F = core.Fisher(p.core, p.observations)
    exact("F @ v", dtype, F @ v, p.oracle.fisher_product(p.theta, p.observations, v))


@every_dtype
def test_matrix_and_product_of_a_realistic_policy_agree(exact, dtype):
    p = make_problem("gaussian", dtype=dtype, observation_size=17, hidden=(24, 24), count=300)
    v = np.random.default_rng(1).normal(size=p.theta.size)
    F = core.Fisher(p.core, p.observations)
    matrix = F.to_dense()
    exact("F @ v against F.to_dense() @ v", dtype, F @ v, matrix @ v)
    exact("F.diagonal() against F.to_dense()", dtype, F.diagonal(), np.diag(matrix))


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@every_dtype
def test_damping_adds_a_multiple_of_the_identity_everywhere(kind, dtype):
    p = make_problem("gaussian", dtype=dtype, count=20)
    v = np.random.default_rng(1).normal(size=p.theta.size)
    actions = p.actions if kind == "empirical" else None
    bare = core.Fisher(p.core, p.observations, kind=kind, actions=actions)
    damped = core.Fisher(p.core, p.observations, damping=0.3, kind=kind, actions=actions)
    assert bare.damping == 0.0
    assert damped.damping == 0.3
    assert damped.kind == kind
    np.testing.assert_allclose(damped @ v, bare @ v + 0.3 * v, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        damped.to_dense(), bare.to_dense() + 0.3 * np.eye(v.size), rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(damped.diagonal(), bare.diagonal() + 0.3, rtol=1e-12)


def test_weights_of_one_are_the_default_and_weights_change_the_matrix():
    p = make_problem(count=20)
    np.testing.assert_array_equal(dense(p), dense(p, weights=np.ones(20)))
    assert relative_error(dense(p, weights=p.weights), dense(p)) > 0.01


def test_a_row_of_weight_zero_is_as_good_as_absent_but_still_counts():
    p = make_problem(count=20)
    weights = np.ones(20)
    weights[[3, 8]] = 0
    kept = np.flatnonzero(weights)
    F = core.Fisher(p.core, p.observations[kept]).to_dense() * len(kept) / 20
    np.testing.assert_allclose(dense(p, weights=weights), F, rtol=1e-12, atol=1e-14)


def test_the_kind_changes_the_matrix():
    p = make_problem(count=20)
    assert relative_error(dense(p, kind="empirical", actions=p.actions), dense(p)) > 0.01


def test_an_operator_keeps_the_parameters_that_it_was_made_with():
    p = make_problem(count=20)
    F = core.Fisher(p.core, p.observations)
    v = np.random.default_rng(0).normal(size=p.theta.size)
    product, matrix, diagonal = F @ v, F.to_dense(), F.diagonal()
    p.core.parameters[:] += 1.0
    np.testing.assert_array_equal(F @ v, product)
    np.testing.assert_array_equal(F.to_dense(), matrix)
    np.testing.assert_array_equal(F.diagonal(), diagonal)


def test_an_operator_outlives_policy_and_observations():
    p = make_problem(count=20)
    v = np.random.default_rng(0).normal(size=p.theta.size)
    observations = p.observations.copy()
    F = core.Fisher(p.core, observations)
    want = F @ v
    observations[:] = np.nan
    p.core = None
    np.testing.assert_array_equal(F @ v, want)


def test_random_fourier_features_have_the_fisher_of_their_jacobian():
    policy = core.Policy(
        3,
        core.DiagonalGaussian(2),
        hidden=(5,),
        dtype="float64",
        output_scale=1.0,
        fourier_features=8,
        fourier_bandwidth=1.5,
        log_std_init=-0.3,
    )
    obs = np.random.default_rng(2).normal(size=(9, 3))
    theta, h = policy.parameters.copy(), 1e-5
    columns = []
    for e in np.eye(theta.size):
        policy.parameters = theta + h * e
        up = policy.outputs(obs)
        policy.parameters = theta - h * e
        columns.append((up - policy.outputs(obs)) / (2 * h))
    policy.parameters = theta
    jacobians = np.stack(columns, axis=-1)  # (N, K, P)
    m = policy.distribution.fisher(policy.outputs(obs))
    want = np.einsum("nkp,nkl,nlq->pq", jacobians, m, jacobians) / len(obs)
    F = core.Fisher(policy, obs)
    np.testing.assert_allclose(F.to_dense(), want, rtol=0, atol=1e-7 * np.abs(want).max())
    v = np.random.default_rng(3).normal(size=theta.size)
    np.testing.assert_allclose(F @ v, F.to_dense() @ v, rtol=1e-11, atol=1e-12)


# ------------------------------------------------------------------------------- other definitions


@every_distribution
@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "relu"])  # it has a kink
def test_hessian_of_the_kl_at_the_current_parameters_is_the_fisher(distribution, activation):
    p = make_problem(distribution, activation=activation, hidden=(3,), observation_size=2, count=5)
    matrix = dense(p)
    tolerance = 2e-6 if activation == "elu" else 1e-7  # the second derivative of elu jumps

    def curvature(direction):
        """d' H d by symmetric second differences, extrapolated to a step of zero."""

        def second_difference(h):
            total = 0.0
            for sign in (+1, -1):
                p.core.parameters = p.theta + sign * h * direction
                total += p.core.kl(p.observations, p.theta).mean()
            return total / h**2

        return (4 * second_difference(1e-3) - second_difference(2e-3)) / 3

    identity = np.eye(p.theta.size)
    for i, j in itertools.combinations_with_replacement(range(0, p.theta.size, 2), 2):
        mixed = (curvature(identity[i] + identity[j]) - curvature(identity[i] - identity[j])) / 4
        assert abs(mixed - matrix[i, j]) < tolerance * max(1.0, np.abs(matrix).max())


@every_distribution
def test_gradient_of_the_kl_vanishes_at_the_current_parameters_and_is_the_oracles_elsewhere(
    distribution,
):
    p = make_problem(distribution, hidden=(3,), observation_size=2, count=5)
    h = 1e-6

    def numeric_gradient(at):
        result = []
        for e in np.eye(p.theta.size):
            p.core.parameters = at + h * e
            up = p.core.kl(p.observations, p.old_theta).mean()
            p.core.parameters = at - h * e
            result.append((up - p.core.kl(p.observations, p.old_theta).mean()) / (2 * h))
        return np.array(result)

    def mean_kl(theta):
        return sum(
            p.oracle.distribution.kl(p.oracle.output(p.old_theta, x), p.oracle.output(theta, x))
            for x in p.observations
        ) / len(p.observations)

    np.testing.assert_allclose(numeric_gradient(p.old_theta), 0, atol=1e-9)
    np.testing.assert_allclose(
        numeric_gradient(p.theta), oracle.complex_step(mean_kl, p.theta), rtol=1e-6, atol=1e-8
    )


@every_distribution
def test_kl_is_half_the_quadratic_form_up_to_third_order(distribution):
    p = make_problem(distribution, count=30)
    d = np.random.default_rng(4).normal(size=p.theta.size)
    d *= 0.1 / np.linalg.norm(d)
    F = core.Fisher(p.core, p.observations)
    steps = np.array([1.0, 0.5, 0.25, 0.125])
    remainders = []
    for step in steps:
        p.core.parameters = p.theta + step * d
        kl = p.core.kl(p.observations, p.theta).mean()
        remainders.append(abs(kl - 0.5 * step**2 * (d @ (F @ d))))
    order = np.polyfit(np.log(steps), np.log(remainders), 1)[0]
    assert 2.7 < order < 4.5, f"remainders {remainders} are of order {order:.2f}"


@every_distribution
def test_score_outer_products_of_sampled_actions_average_to_the_fisher(distribution):
    p = make_problem(distribution, hidden=(2,), observation_size=2, count=4, seed=8)
    n = 40_000
    actions, _ = p.core.sample(np.repeat(p.observations, n // 4, axis=0), core.Rng(21))
    scores = np.empty((n, p.theta.size))
    for i, x in enumerate(p.observations):
        rows = slice(i * n // 4, (i + 1) * n // 4)
        outputs = np.repeat(p.oracle.output(p.theta, x)[None], n // 4, axis=0)
        of_outputs = p.core.distribution.score(outputs, actions[rows])
        scores[rows] = of_outputs @ p.oracle.jacobian(p.theta, x)
    # Stratified by observation, hence the standard error within strata.
    strata = scores.reshape(4, n // 4, -1)
    products = strata[:, :, :, None] * strata[:, :, None, :]
    error = np.sqrt(products.var(axis=1).mean(axis=0) / n)
    deviation = (products.mean(axis=(0, 1)) - dense(p))[error > 0] / error[error > 0]
    assert np.max(np.abs(deviation)) < 5.0
    assert 0.3 < np.sqrt(np.mean(deviation**2)) < 1.6
    mean_error = np.sqrt(strata.var(axis=1).mean(axis=0) / n)
    z = scores.mean(axis=0)[mean_error > 0] / mean_error[mean_error > 0]
    assert np.max(np.abs(z)) < 5.0  # E[score] = 0


@pytest.mark.parametrize("distribution", ["categorical", "multi-categorical", "bernoulli"])
def test_the_expected_score_is_zero_exactly_when_every_action_is_enumerated(distribution):
    p = make_problem(distribution, count=3)
    every = p.oracle.distribution.all_actions()
    total = np.zeros(p.theta.size)
    for action in every:
        repeated = np.repeat(np.asarray(action)[None], 3, axis=0)
        probability = np.exp(p.core.log_prob(p.observations, repeated))
        total += p.core.score(p.observations, repeated, probability)
    assert np.linalg.norm(total) < 1e-13 * p.theta.size


@pytest.mark.parametrize("distribution", ["categorical", "multi-categorical", "bernoulli"])
def test_the_exact_fisher_is_the_empirical_one_averaged_over_every_action(distribution):
    p = make_problem(distribution, count=5)
    total = np.zeros((p.theta.size, p.theta.size))
    for action in p.oracle.distribution.all_actions():
        repeated = np.repeat(np.asarray(action)[None], 5, axis=0)
        probability = np.exp(p.core.log_prob(p.observations, repeated))
        total += dense(p, kind="empirical", actions=repeated, weights=probability)
    assert relative_error(total, dense(p)) < 1e-13


# ------------------------------------------------------------------------------- laws


@every_distribution
@every_dtype
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_the_fisher_is_symmetric_and_positive_semidefinite_to_rounding(distribution, dtype, kind):
    p = make_problem(distribution, dtype=dtype, count=40)
    actions = p.actions if kind == "empirical" else None
    F = core.Fisher(p.core, p.observations, kind=kind, actions=actions)
    matrix = F.to_dense()
    rounding = {"float64": 1e-13, "float32": 1e-5}[dtype] * np.linalg.norm(matrix, 2)
    assert np.abs(matrix - matrix.T).max() <= rounding
    assert np.linalg.eigvalsh(matrix).min() > -rounding
    rng = np.random.default_rng(2)
    for _ in range(20):
        u, v = rng.normal(size=(2, p.theta.size))
        assert abs(u @ (F @ v) - v @ (F @ u)) < rounding * np.linalg.norm(u) * np.linalg.norm(v)
        assert v @ (F @ v) > -rounding * (v @ v)


@every_dtype
def test_the_product_is_linear(dtype):
    p = make_problem("gaussian", dtype=dtype, count=40)
    F = core.Fisher(p.core, p.observations)
    u, v = np.random.default_rng(2).normal(size=(2, p.theta.size))
    tolerance = {"float64": 1e-13, "float32": 3e-6}[dtype]
    assert relative_error(F @ (2.5 * u - 0.3 * v), 2.5 * (F @ u) - 0.3 * (F @ v)) < tolerance
    np.testing.assert_array_equal(F @ np.zeros_like(v), np.zeros_like(v))
    np.testing.assert_array_equal(F @ (4.0 * v), 4.0 * (F @ v))


@every_dtype
@every_distribution
def test_a_batch_written_down_twice_has_the_same_fisher(distribution, dtype):
    p = make_problem(distribution, dtype=dtype, count=60)
    twice = core.Fisher(p.core, np.concatenate([p.observations, p.observations])).to_dense()
    assert relative_error(twice, dense(p)) < {"float64": 1e-14, "float32": 1e-6}[dtype]


def test_the_fisher_of_a_batch_is_the_mean_over_its_halves_and_ignores_the_order():
    p = make_problem("gaussian", count=60)
    halves = [core.Fisher(p.core, p.observations[i::2]).to_dense() for i in (0, 1)]
    assert relative_error((halves[0] + halves[1]) / 2, dense(p)) < 1e-14
    backwards = core.Fisher(p.core, p.observations[::-1]).to_dense()
    assert relative_error(backwards, dense(p)) < 1e-14


def test_the_fisher_of_a_trajectory_is_its_horizon_times_the_fisher_of_a_decision():
    """Two actions, three steps, and the next observation depends on the action taken."""
    horizon = 3
    rng = np.random.default_rng(6)
    policy = core.Policy(2, core.Categorical(2), hidden=(3,), dtype="float64", output_scale=1.0)
    histories = [h for t in range(horizon) for h in itertools.product((0, 1), repeat=t)]
    observation = {h: rng.normal(size=2) for h in histories}
    outputs = {h: policy.outputs(x) for h, x in observation.items()}

    def log_softmax(z):
        return z - np.log(np.exp(z).sum())

    fisher_of_trajectory = np.zeros((policy.parameters.size,) * 2)
    for actions in itertools.product((0, 1), repeat=horizon):
        visited = [actions[:t] for t in range(horizon)]
        log_probability = sum(
            log_softmax(outputs[h])[a] for h, a in zip(visited, actions, strict=True)
        )
        score = horizon * policy.score(np.array([observation[h] for h in visited]), actions)
        fisher_of_trajectory += np.exp(log_probability) * np.outer(score, score)

    visits = {
        h: np.exp(sum(log_softmax(outputs[h[:t]])[a] for t, a in enumerate(h))) for h in histories
    }
    assert np.isclose(sum(visits.values()), horizon)
    per_decision = core.Fisher(
        policy,
        np.array(list(observation.values())),
        weights=np.array(list(visits.values())) * len(histories) / horizon,
    ).to_dense()
    assert relative_error(fisher_of_trajectory, horizon * per_decision) < 1e-12


@every_distribution
def test_the_natural_gradient_is_within_ninety_degrees_of_the_gradient(distribution):
    for seed in range(5):
        p = make_problem(distribution, count=60, seed=seed)
        g = p.core.score(p.observations, p.actions, p.advantages)
        for damping in (1e-3, 0.1):
            F = core.Fisher(p.core, p.observations, damping=damping)
            assert g @ np.linalg.solve(F.to_dense(), g) > 0
            for iterations in (1, 3, 10):
                x = core.conjugate_gradient(F, g, max_iterations=iterations).x
                assert g @ x > 0


def reparameterised_linear_policies(seed=0):
    """The same linear Gaussian policy, with observations in two systems of units."""
    p = make_problem("gaussian", hidden=(), observation_size=3, count=80, seed=seed)
    A = np.array([[2.0, 0.5, 0.0], [0.0, 0.1, 0.0], [0.3, 0.0, 5.0]])
    q = make_problem("gaussian", hidden=(), observation_size=3, count=80, seed=seed)
    weights = p.theta[:9].reshape(3, 3) @ np.linalg.inv(A)
    q.core.parameters = np.concatenate([weights.ravel(), p.theta[9:]])
    q.observations = p.observations @ A.T
    np.testing.assert_allclose(
        p.core.outputs(p.observations), q.core.outputs(q.observations), rtol=1e-12
    )
    return p, q


def moved(p, step):
    p.core.parameters = p.core.parameters + step
    return p.core.outputs(p.observations)


def natural_step(p, damping, kl=0.01):
    F = core.Fisher(p.core, p.observations)
    g = p.core.score(p.observations, p.actions, p.advantages)
    x = np.linalg.solve(F.to_dense() + damping * np.eye(g.size), g)
    return np.sqrt(2 * kl / (x @ (F @ x))) * x


def test_the_natural_step_does_not_depend_on_the_units_of_the_observations():
    p, q = reparameterised_linear_policies()
    outputs = moved(p, natural_step(p, 0.0))
    np.testing.assert_allclose(moved(q, natural_step(q, 0.0)), outputs, rtol=1e-10)


def test_the_whole_update_does_not_depend_on_the_units_of_the_observations():
    p, q = reparameterised_linear_policies()
    update = core.TrustRegionUpdate(damping=0.0, solver=core.ConjugateGradient(60, rtol=1e-13))
    reports = [update(p.core, p.batch), update(q.core, q.batch)]
    assert all(report.accepted for report in reports)
    np.testing.assert_allclose(reports[0].kl, reports[1].kl, rtol=1e-7)
    np.testing.assert_allclose(
        p.core.outputs(p.observations), q.core.outputs(q.observations), rtol=1e-7
    )


def test_the_plain_gradient_does_depend_on_the_units_of_the_observations():
    p, q = reparameterised_linear_policies()
    steps = []
    for problem in (p, q):
        g = problem.core.score(problem.observations, problem.actions, problem.advantages)
        steps.append(moved(problem, 0.01 * g / np.linalg.norm(g)))
    assert relative_error(steps[0], steps[1]) > 1e-3


def test_damping_costs_the_invariance_in_proportion():
    differences = []
    for damping in (1e-4, 1e-2):
        p, q = reparameterised_linear_policies()
        before = p.core.outputs(p.observations)
        change = moved(p, natural_step(p, damping)) - before
        differences.append(relative_error(moved(q, natural_step(q, damping)) - before, change))
    assert differences[0] > 1e-6
    assert differences[1] > 10 * differences[0]


def test_a_linear_gaussian_policy_has_the_closed_form_kronecker_product():
    p = make_problem("gaussian", hidden=(), observation_size=3, count=80)
    phi = np.hstack([p.observations, np.ones((80, 1))])
    second_moment = phi.T @ phi / 80
    precision = np.exp(-2 * p.theta[-3:])
    want = np.zeros((p.theta.size,) * 2)
    # theta holds W (3 x 3, row-major), then b: coordinate (i, j) is weight j, or the bias, of row i
    index = {(i, j): 3 * i + j if j < 3 else 9 + i for i in range(3) for j in range(4)}
    for (i, j), (k, m) in itertools.product(index, index):
        want[index[i, j], index[k, m]] = (i == k) * precision[i] * second_moment[j, m]
    want[12:, 12:] = 2 * np.eye(3)
    assert relative_error(dense(p), want) < 1e-13


def test_cg_on_a_fisher_ends_after_as_many_iterations_as_it_has_eigenvalues():
    """Whitened observations: F has the eigenvalues 1/sigma_i^2 and 2 and no others."""
    policy = core.Policy(3, core.DiagonalGaussian(2), hidden=(), dtype="float64")
    policy.parameters[-2:] = [-0.5, 0.5]
    observations = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    F = core.Fisher(policy, observations)
    eigenvalues = np.linalg.eigvalsh(F.to_dense())
    distinct = np.unique(np.round(eigenvalues, 10))
    assert len(distinct) == 3
    b = np.random.default_rng(0).normal(size=F.shape[0])
    result = core.conjugate_gradient(F, b, rtol=1e-9, max_iterations=100)
    assert result.status == core.CgStatus.CONVERGED
    assert result.iterations == 3
    two = core.conjugate_gradient(F, b, rtol=1e-9, max_iterations=2)
    assert two.status == core.CgStatus.MAX_ITERATIONS


# ------------------------------------------------------------------------------- as an operator


def test_a_fisher_is_a_linear_operator_as_scipy_understands_it():
    p = make_problem("gaussian", count=40)
    F = core.Fisher(p.core, p.observations, damping=0.1)
    n = p.theta.size
    assert F.shape == (n, n)
    assert F.dtype == np.float64
    v = np.random.default_rng(0).normal(size=n)
    np.testing.assert_array_equal(F.matvec(v), F @ v)
    np.testing.assert_array_equal(F.rmatvec(v), F @ v)
    operator = sparse_linalg.aslinearoperator(F)
    np.testing.assert_array_equal(operator @ v, F @ v)


def test_scipys_conjugate_gradients_take_a_fisher_as_it_is():
    p = make_problem("gaussian", count=40)
    F = core.Fisher(p.core, p.observations, damping=0.1)
    b = np.random.default_rng(0).normal(size=F.shape[0])
    x, info = sparse_linalg.cg(F, b, rtol=1e-12)
    assert info == 0
    np.testing.assert_allclose(x, np.linalg.solve(F.to_dense(), b), rtol=1e-8)


def test_scipys_eigsh_takes_a_fisher_as_it_is():
    p = make_problem("gaussian", count=40)
    F = core.Fisher(p.core, p.observations)
    top = sparse_linalg.eigsh(F, k=3, v0=np.ones(F.shape[0]), return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(top), np.linalg.eigvalsh(F.to_dense())[-3:], rtol=1e-10)


def test_vectors_of_any_real_kind_are_accepted():
    p = make_problem(count=10)
    F = core.Fisher(p.core, p.observations)
    v = np.arange(p.theta.size)
    want = F @ v.astype(float)
    for given in (v, v.astype(np.float32), v.tolist(), np.repeat(v, 2)[::2]):
        np.testing.assert_array_equal(F @ given, want)


# ------------------------------------------------------------------------------- cached adjoints


def both_ways(p: Problem, **options):
    return [
        core.Fisher(p.core, p.observations, method=method, **options)
        for method in ("passes", "adjoints")
    ]


@every_dtype
@every_activation
@every_distribution
@every_architecture
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_products_by_cached_adjoints_are_those_by_passes_and_the_oracles(
    architecture, distribution, activation, dtype, kind
):
    p = make_problem(
        distribution, activation=activation, dtype=dtype, **ARCHITECTURES[architecture]
    )
    actions = p.actions if kind == "empirical" else None
    v = np.random.default_rng(1).normal(size=(2, p.theta.size))
    for weights in (None, p.weights):
        passes, adjoints = both_ways(p, kind=kind, actions=actions, weights=weights, damping=0.1)
        if kind == "exact":
            want = p.oracle.fisher(p.theta, p.observations, weights)
        else:
            want = p.oracle.empirical_fisher(p.theta, p.observations, p.actions, weights)
        for x in v:  # the second product finds the adjoints made
            tolerance = {"float64": 1e-13, "float32": 1e-5}[dtype]
            assert relative_error(adjoints @ x, passes @ x) < tolerance
            # Against ||F|| ||x||: what the layers add to a coefficient may cancel.
            error = np.linalg.norm(adjoints @ x - 0.1 * x - want @ x)
            assert error < 10 * tolerance * np.linalg.norm(want, 2) * np.linalg.norm(x)


@every_dtype
@pytest.mark.parametrize("rows", [1, 11, 600, 2100])
@pytest.mark.parametrize("distribution", ["categorical", "gaussian", "multi-categorical"])
def test_cached_adjoints_hold_for_many_shards_and_tiles(rows, distribution, dtype):
    p = make_problem(distribution, dtype=dtype, observation_size=17, hidden=(33, 64), count=rows)
    v = np.random.default_rng(1).normal(size=p.theta.size)
    passes, adjoints = both_ways(p)
    assert relative_error(adjoints @ v, passes @ v) < {"float64": 1e-13, "float32": 1e-5}[dtype]


@pytest.mark.parametrize("sizes", [(1,), (1, 1), (1, 3), (2, 1)])
def test_a_variable_with_one_category_adds_nothing(sizes):
    policy = core.Policy(3, core.MultiCategorical(sizes), hidden=(4,), dtype="float64")
    observations = np.random.default_rng(0).normal(size=(7, 3))
    v = np.random.default_rng(1).normal(size=policy.parameters.size)
    by = {m: core.Fisher(policy, observations, method=m) for m in ("auto", "passes", "adjoints")}
    np.testing.assert_allclose(by["adjoints"] @ v, by["passes"] @ v, atol=1e-15)
    np.testing.assert_allclose(by["auto"].to_dense() @ v, by["passes"] @ v, atol=1e-15)


def test_the_method_and_the_length_of_the_series_decide_how_products_are_made():
    p = make_problem("categorical", observation_size=4, hidden=(64, 64), count=300, dtype="float32")
    policy = core.Policy(4, core.Categorical(2), hidden=(64, 64), output_scale=1.0)
    v = np.random.default_rng(1).normal(size=policy.parameters.size)
    auto, passes, adjoints = (
        core.Fisher(policy, p.observations, method=m) for m in ("auto", "passes", "adjoints")
    )
    assert not np.array_equal(adjoints @ v, passes @ v)  # by rounding
    np.testing.assert_array_equal(auto @ v, passes @ v)
    np.testing.assert_array_equal((auto @ np.tile(v[:, None], 10))[:, 3], adjoints @ v)
    np.testing.assert_array_equal(auto @ v, passes @ v)  # whatever came before
    for iterations, like in ((1, passes), (10, adjoints)):
        solve = {"damping": 0.1, "rtol": 0.0, "max_iterations": iterations}
        np.testing.assert_array_equal(
            core.conjugate_gradient(auto, v, **solve).x,
            core.conjugate_gradient(like, v, **solve).x,
        )


def test_a_method_that_does_not_exist_is_named():
    p = make_problem(count=3)
    with pytest.raises(ValueError, match="method: want auto, passes or adjoints, got 'cache'"):
        core.Fisher(p.core, p.observations, method="cache")


@every_dtype
def test_products_and_solutions_by_adjoints_are_the_same_bits_for_any_number_of_threads(dtype):
    p = make_problem("categorical", dtype=dtype, observation_size=5, hidden=(40, 30), count=3000)
    v = np.random.default_rng(1).normal(size=p.theta.size)
    before, results = core.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            core.set_num_threads(threads)
            results.append(core.Fisher(p.core, p.observations, method="adjoints") @ v)
    finally:
        core.set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


# ------------------------------------------------------------------------------- linear Gaussian


@every_dtype
@pytest.mark.parametrize("weighted", [False, True])
def test_series_of_products_of_a_linear_gaussian_policy_are_the_oracles(exact, dtype, weighted):
    p = make_problem("gaussian", dtype=dtype, hidden=(), count=400)
    weights = p.weights if weighted else None
    V = np.random.default_rng(1).normal(size=(p.theta.size, 12))
    auto, passes = (
        core.Fisher(p.core, p.observations, weights=weights, damping=0.2, method=m)
        for m in ("auto", "passes")
    )
    want = p.oracle.fisher(p.theta, p.observations, weights) @ V + 0.2 * V
    exact("F @ V, linear Gaussian", dtype, auto @ V, want)
    assert not np.array_equal(auto @ V, passes @ V)


# ---------------------------------------------------------------------------------- the cost model


WAYS = ("passes", "adjoints", "closed_form", "linear_gaussian", "dense", "sample", "factors")


@pytest.mark.parametrize("way", WAYS)
def test_a_cost_is_the_sum_of_its_constants_and_of_matrix_products(way):
    p = make_problem("gaussian", hidden=(), count=200)
    fisher = core.Fisher(p.core, p.observations)
    cost, terms = core.cost_model(fisher, way, 5)
    assert terms
    assert all(value > 0 and count > 0 for value, count in terms.values())
    rest = cost - sum(value * count for value, count in terms.values())
    if way == "sample":  # which multiplies a cost of products by a constant
        products = ("product_", "pass_", "sweep_", "kept_")
        rest += sum(v * n for name, (v, n) in terms.items() if name.startswith(products))
    assert rest >= -1e-9 * cost
    assert core.cost_model(fisher, way, 6)[0] >= cost


def test_the_cost_model_has_no_constant_that_counts_nowhere():
    counted = set()
    for name, hidden, count in (
        ("gaussian", (), 200),
        ("categorical", (9, 5), 200),
        ("categorical", (64, 64), 20_000),
    ):
        p = make_problem(name, hidden=hidden, count=count)
        fisher = core.Fisher(p.core, p.observations)
        for way, damped in itertools.product(WAYS, (True, False)):
            try:
                counted |= set(core.cost_model(fisher, way, 5, damped)[1])
            except ValueError:
                continue
    assert len(counted) == 44


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_automatic_products_take_the_way_whose_rows_cost_less(dtype):
    p = make_problem("categorical", dtype=dtype, hidden=(40, 30), count=300)
    V = np.random.default_rng(1).normal(size=(p.theta.size, 40))
    made = {m: core.Fisher(p.core, p.observations, method=m) @ V for m in ("passes", "adjoints")}
    auto = core.Fisher(p.core, p.observations)
    costs = {}
    for method in made:
        costs[method], terms = core.cost_model(auto, method, 40)
        value, count = terms.get("kept_column", (0, 0))  # which is not in the choice
        costs[method] -= value * count
    np.testing.assert_array_equal(auto @ V, made[min(costs, key=costs.get)])


@pytest.mark.parametrize("bad", ["closed_form", "linear_gaussian", "sample", "cg"])
def test_a_way_that_a_matrix_does_not_have_is_named(bad):
    p = make_problem("categorical", count=5000)
    with pytest.raises(ValueError, match="way: want"):
        core.cost_model(core.Fisher(p.core, p.observations), bad)


@pytest.mark.parametrize("distribution", ["categorical", "gaussian"])
def test_plans_for_other_numbers_of_products_do_not_disturb_each_other(distribution):
    p = make_problem(distribution, hidden=(40, 30), count=300)
    v = np.random.default_rng(1).normal(size=p.theta.size)
    alone = core.InnerSolver(core.Fisher(p.core, p.observations), 0.1, 5) @ v
    single = core.Fisher(p.core, p.observations) @ v
    fisher = core.Fisher(p.core, p.observations)
    inner = core.InnerSolver(fisher, 0.1, 5)  # for many products, by adjoints
    for _ in range(2):
        np.testing.assert_array_equal(fisher @ v, single)  # by passes
        np.testing.assert_array_equal(inner @ v, alone)
