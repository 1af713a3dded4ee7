"""Policies: every quantity against the oracle, and what the parameter vector promises."""

import gc
import json
import pickle

import numpy as np
import pytest
from conftest import ACTIVATIONS, DISTRIBUTIONS, DTYPES, make_problem
from scipy import stats

import natgrad
from natgrad import _core as core

ARCHITECTURES = {
    "linear": {"hidden": (), "observation_size": 5, "count": 7},
    "two-layers": {"hidden": (7, 5), "observation_size": 4, "count": 300, "normalized": True},
    "wide-and-odd": {"hidden": (33,), "observation_size": 3, "count": 7},
    "deep-and-narrow": {"hidden": (5, 3, 9), "observation_size": 1, "count": 1, "normalized": True},
}
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@every_dtype
@every_activation
@every_distribution
@every_architecture
def test_every_quantity_equals_the_oracles(exact, architecture, distribution, activation, dtype):
    p = make_problem(
        distribution, activation=activation, dtype=dtype, **ARCHITECTURES[architecture]
    )
    obs, act = p.observations, p.actions
    exact("outputs", dtype, p.core.outputs(obs), p.oracle.outputs(p.theta, obs))
    exact("log_prob", dtype, p.core.log_prob(obs, act), p.oracle.log_prob(p.theta, obs, act))
    exact("entropy", dtype, p.core.entropy(obs), p.oracle.entropy(p.theta, obs))
    exact("kl", dtype, p.core.kl(obs, p.old_theta), p.oracle.kl(p.theta, obs, p.old_theta))
    exact("score", dtype, p.core.score(obs, act), p.oracle.score(p.theta, obs, act))
    exact(
        "score with weights",
        dtype,
        p.core.score(obs, act, p.advantages),
        p.oracle.score(p.theta, obs, act, p.advantages),
    )


@every_dtype
@pytest.mark.parametrize("size", ["17-64-64-6", "300-40-3"])
def test_problems_of_realistic_size_are_as_exact(exact, size, dtype):
    shape = {
        "17-64-64-6": {"observation_size": 17, "hidden": (64, 64), "count": 600},
        "300-40-3": {"observation_size": 300, "hidden": (40,), "count": 97},
    }[size]
    p = make_problem("gaussian", dtype=dtype, seed=3, normalized=True, **shape)
    obs, act = p.observations, p.actions
    exact("outputs", dtype, p.core.outputs(obs), p.oracle.outputs(p.theta, obs))
    exact("log_prob", dtype, p.core.log_prob(obs, act), p.oracle.log_prob(p.theta, obs, act))
    exact("kl", dtype, p.core.kl(obs, p.old_theta), p.oracle.kl(p.theta, obs, p.old_theta))
    exact(
        "score with weights",
        dtype,
        p.core.score(obs, act, p.advantages),
        p.oracle.score(p.theta, obs, act, p.advantages),
    )


@every_distribution
@every_dtype
def test_results_have_the_policys_dtype_and_the_documented_shapes(distribution, dtype):
    p = make_problem(distribution, dtype=dtype, count=6)
    obs, n = p.observations, 6
    assert p.core.dtype == np.dtype(dtype)
    for result, shape in [
        (p.core.outputs(obs), (n, p.oracle.distribution.parameter_size)),
        (p.core.log_prob(obs, p.actions), (n,)),
        (p.core.entropy(obs), (n,)),
        (p.core.kl(obs, p.old_theta), (n,)),
        (p.core.score(obs, p.actions), p.theta.shape),
        (p.core.sample(obs, core.Rng(0))[1], (n,)),
    ]:
        assert result.dtype == np.dtype(dtype)
        assert result.shape == shape
    for actions in (p.core.mode(obs), p.core.sample(obs, core.Rng(0))[0]):
        assert actions.shape == p.actions.shape
        if p.core.distribution.discrete:
            assert actions.dtype == np.int64
        else:
            assert actions.dtype == np.dtype(dtype)


@every_distribution
def test_one_observation_may_come_without_its_leading_axis(distribution):
    p = make_problem(distribution, count=3)
    one, first = p.observations[0], p.observations[:1]
    np.testing.assert_array_equal(p.core.outputs(one), p.core.outputs(first)[0])
    np.testing.assert_array_equal(p.core.mode(one), p.core.mode(first)[0])
    np.testing.assert_array_equal(
        p.core.log_prob(one, p.actions[0]), p.core.log_prob(first, p.actions[:1])[0]
    )
    np.testing.assert_array_equal(p.core.entropy(one), p.core.entropy(first)[0])
    np.testing.assert_array_equal(p.core.kl(one, p.old_theta), p.core.kl(first, p.old_theta)[0])
    action, log_prob = p.core.sample(one, core.Rng(5))
    actions, log_probs = p.core.sample(first, core.Rng(5))
    np.testing.assert_array_equal(action, actions[0])
    assert np.shape(action) == p.actions.shape[1:]
    assert np.shape(log_prob) == ()
    assert log_prob == log_probs[0]


@every_distribution
def test_mode_is_the_oracles(distribution):
    p = make_problem(distribution, count=40)
    want = [p.oracle.distribution.mode(p.oracle.output(p.theta, x)) for x in p.observations]
    np.testing.assert_allclose(p.core.mode(p.observations), want, rtol=1e-12)


@every_distribution
def test_log_probability_of_a_sample_is_the_one_that_log_prob_reports(distribution):
    p = make_problem(distribution, count=40)
    actions, log_probs = p.core.sample(p.observations, core.Rng(7))
    np.testing.assert_allclose(
        log_probs, p.core.log_prob(p.observations, actions), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    "kind", ["float32", "float64", "int64", "uint8", "fortran", "strided", "list"]
)
@every_dtype
def test_observations_of_any_real_kind_and_memory_layout_are_converted(kind, dtype):
    p = make_problem(dtype=dtype, count=9)
    whole = np.rint(3 * p.observations)
    if kind == "uint8":
        whole = np.abs(whole)
    given = {
        "fortran": lambda: np.asfortranarray(whole),
        "strided": lambda: np.repeat(np.repeat(whole, 2, axis=0), 3, axis=1)[::2, ::3],
        "list": lambda: whole.tolist(),
    }.get(kind, lambda: whole.astype(kind))()
    np.testing.assert_array_equal(p.core.outputs(given), p.core.outputs(whole.astype(dtype)))


@pytest.mark.parametrize("kind", ["int32", "uint8", "int64", "list", "strided"])
@pytest.mark.parametrize("distribution", ["categorical", "multi-categorical", "bernoulli"])
def test_discrete_actions_of_any_integer_kind_are_accepted(distribution, kind):
    p = make_problem(distribution, count=9)
    given = {
        "list": lambda: p.actions.tolist(),
        "strided": lambda: np.repeat(p.actions, 2, axis=0)[::2],
    }.get(kind, lambda: p.actions.astype(kind))()
    np.testing.assert_array_equal(
        p.core.log_prob(p.observations, given), p.core.log_prob(p.observations, p.actions)
    )


def test_bernoulli_accepts_boolean_actions():
    p = make_problem("bernoulli", count=9)
    np.testing.assert_array_equal(
        p.core.log_prob(p.observations, p.actions.astype(bool)),
        p.core.log_prob(p.observations, p.actions),
    )


def test_a_read_only_array_is_as_good_as_any():
    p = make_problem(count=5)
    frozen = p.observations.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(p.core.outputs(frozen), p.core.outputs(p.observations))


# ------------------------------------------------------------------------------- parameter vector


def test_parameters_are_a_writable_view_without_a_copy():
    p = make_problem(count=5)
    view = p.core.parameters
    assert view.flags.writeable
    assert view.flags.c_contiguous
    assert np.shares_memory(view, p.core.parameters)
    before = p.core.outputs(p.observations)
    view[:] += 0.25
    assert not np.array_equal(p.core.outputs(p.observations), before)
    np.testing.assert_allclose(
        p.core.outputs(p.observations), p.oracle.outputs(p.theta + 0.25, p.observations), rtol=1e-11
    )


def test_assigning_parameters_copies_into_the_same_memory():
    p = make_problem()
    view, new = p.core.parameters, np.arange(p.theta.size) / p.theta.size
    p.core.parameters = new
    np.testing.assert_array_equal(view, new)
    new[:] = 0
    assert np.any(view != 0)
    p.core.parameters += 1.0  # reads the view, adds in place, assigns the view to itself
    np.testing.assert_array_equal(view, np.arange(p.theta.size) / p.theta.size + 1.0)


def test_parameters_may_be_assigned_from_a_view_of_themselves():
    p = make_problem()
    p.core.parameters = p.core.parameters[::-1]
    np.testing.assert_array_equal(p.core.parameters, p.theta[::-1])


def test_the_view_of_the_parameters_outlives_the_policy():
    p = make_problem()
    view, want = p.core.parameters, p.core.parameters.copy()
    del p
    gc.collect()
    np.testing.assert_array_equal(view, want)


@every_distribution
def test_layout_tiles_the_parameter_vector_in_the_order_of_torch(distribution):
    p = make_problem(distribution, hidden=(7, 5), observation_size=4)
    outputs = p.oracle.distribution.network_outputs
    want = [(7, 4), (7,), (5, 7), (5,), (outputs, 5), (outputs,)]
    if p.oracle.distribution.own_parameters:
        want.append((p.oracle.distribution.own_parameters,))
    assert [block.shape for block in p.core.layout] == want
    offset = 0
    for block in p.core.layout:
        assert block.offset == offset
        assert block.size == np.prod(block.shape)
        offset += block.size
    assert offset == p.core.parameters.size == p.oracle.parameter_count
    names = [block.name for block in p.core.layout]
    assert len(set(names)) == len(names)
    assert ("log_std" in names) == (distribution in ("gaussian", "squashed"))


def test_the_state_independent_log_std_starts_at_log_std_init():
    policy = core.Policy(3, core.DiagonalGaussian(2), log_std_init=-0.75)
    np.testing.assert_array_equal(policy.parameters[-2:], [-0.75, -0.75])
    np.testing.assert_allclose(policy.outputs(np.zeros((4, 3)))[:, 2:], -0.75)


def test_a_state_dependent_log_std_starts_near_log_std_init():
    policy = core.Policy(3, core.DiagonalGaussian(2, True), log_std_init=-0.75)
    obs = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(policy.outputs(obs)[:, 2:], -0.75, atol=0.2)
    squashed = core.Policy(3, core.SquashedGaussian(2, True), log_std_init=-0.75)
    np.testing.assert_array_equal(squashed.outputs(obs), policy.outputs(obs))


@pytest.mark.parametrize("init", ["orthogonal", "scaled"])
def test_initialisation_depends_on_the_seed_alone(init):
    def parameters(seed):
        return core.Policy(5, core.Categorical(3), seed=seed, init=init).parameters.copy()

    np.testing.assert_array_equal(parameters(1), parameters(1))
    assert not np.array_equal(parameters(1), parameters(2))


def test_both_initialisations_start_with_zero_biases_and_differ_in_the_weights():
    policies = {i: core.Policy(5, core.Categorical(3), init=i) for i in ("orthogonal", "scaled")}
    for policy in policies.values():
        for block in policy.layout:
            values = policy.parameters[block.offset : block.offset + block.size]
            assert np.all(values == 0) == (len(block.shape) == 1)
    assert not np.array_equal(policies["orthogonal"].parameters, policies["scaled"].parameters)


def test_orthogonal_weights_have_orthogonal_rows_or_columns_of_equal_length():
    policy = core.Policy(5, core.Categorical(3), hidden=(8, 6), dtype="float64", init="orthogonal")
    for block in policy.layout:
        if len(block.shape) == 2:
            w = policy.parameters[block.offset : block.offset + block.size].reshape(block.shape)
            gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            np.testing.assert_allclose(
                gram, gram[0, 0] * np.eye(len(gram)), atol=1e-12 * gram[0, 0]
            )


@pytest.mark.parametrize("init", ["orthogonal", "scaled"])
def test_output_scale_multiplies_the_last_weights(init):
    small, large = (
        core.Policy(5, core.Categorical(3), dtype="float64", init=init, output_scale=s)
        for s in (0.01, 1.0)
    )
    block = small.layout[-2]
    last = slice(block.offset, block.offset + block.size)
    np.testing.assert_allclose(100 * small.parameters[last], large.parameters[last], rtol=1e-12)
    np.testing.assert_array_equal(
        small.parameters[: block.offset], large.parameters[: block.offset]
    )


def test_a_fresh_policy_is_close_to_indifferent():
    policy = core.Policy(5, core.Categorical(4), seed=3)
    obs = np.random.default_rng(0).normal(size=(20, 5))
    np.testing.assert_allclose(policy.entropy(obs), np.log(4), rtol=1e-3)


@every_distribution
@every_dtype
def test_config_rebuilds_the_same_policy(distribution, dtype):
    make, _ = DISTRIBUTIONS[distribution]
    policy = core.Policy(
        4,
        make(),
        hidden=(6, 3),
        activation="silu",
        dtype=dtype,
        seed=11,
        log_std_init=-0.5,
        init="scaled",
        output_scale=0.3,
        fourier_features=5,
        fourier_bandwidth=2.0,
    )
    config = dict(policy.config)
    assert isinstance(config, dict)
    assert config["hidden"] == (6, 3) or config["hidden"] == [6, 3]
    assert config["activation"] == policy.activation == "silu"
    assert policy.hidden == (6, 3)
    assert policy.observation_size == 4
    again = core.Policy(**{**config, "distribution": make()})
    np.testing.assert_array_equal(again.parameters, policy.parameters)
    obs = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_array_equal(again.outputs(obs), policy.outputs(obs))


def test_distribution_describes_itself():
    described = [
        (core.Categorical(5), 5, 1, True),
        (core.DiagonalGaussian(3), 6, 3, False),
        (core.DiagonalGaussian(3, state_dependent_std=True), 6, 3, False),
        (core.MultiCategorical((3, 2)), 5, 2, True),
        (core.Bernoulli(4), 4, 4, True),
        (core.SquashedGaussian(3), 6, 3, False),
        (core.Beta(3), 6, 3, False),
    ]
    for distribution, parameters, actions, discrete in described:
        assert distribution.parameter_size == parameters
        assert distribution.action_size == actions
        assert distribution.discrete is discrete
        policy = core.Policy(2, distribution, hidden=())
        assert policy.outputs(np.zeros((1, 2))).shape == (1, parameters)
        assert type(policy.distribution) is type(distribution)
    assert core.MultiCategorical([3, 2]).sizes == (3, 2)
    assert core.DiagonalGaussian(3, True).state_dependent_std is True
    assert core.DiagonalGaussian(3).state_dependent_std is False


# ------------------------------------------------------------------------------- normalisation


def test_the_normalizer_starts_as_the_identity_and_returns_what_was_set():
    policy = core.Policy(3, core.Categorical(2), dtype="float64")
    mean, std, _ = policy.normalizer
    np.testing.assert_array_equal(mean, np.zeros(3))
    np.testing.assert_array_equal(std, np.ones(3))
    policy.set_normalizer([1.0, 2.0, 3.0], [0.5, 1.0, 2.0], clip=4.0)
    mean, std, clip = policy.normalizer
    np.testing.assert_array_equal(mean, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(std, [0.5, 1.0, 2.0])
    assert clip == 4.0


@every_dtype
def test_the_network_sees_the_clipped_standardised_observation(dtype):
    p = make_problem(dtype=dtype, count=20)
    mean, std, clip = np.full(4, 0.5), np.full(4, 0.25), 1.25
    want = p.core.outputs(np.clip((p.observations - mean) / std, -clip, clip))
    p.core.set_normalizer(mean, std, clip)
    np.testing.assert_allclose(p.core.outputs(p.observations), want, rtol=1e-5, atol=1e-6)


def test_each_part_of_the_normalizer_changes_the_outputs():
    p = make_problem(count=20)
    outputs = []
    for mean, std, clip in [(0, 1, 9), (0.5, 1, 9), (0, 2, 9), (0, 1, 0.5)]:
        p.core.set_normalizer(np.full(4, mean), np.full(4, std), clip)
        outputs.append(p.core.outputs(p.observations))
    for other in outputs[1:]:
        assert not np.allclose(outputs[0], other)


def test_observations_far_outside_float32_are_clipped_not_infinite():
    policy = core.Policy(2, core.Categorical(2), dtype="float32", hidden=(4,))
    policy.set_normalizer([0.0, 0.0], [1.0, 1.0], clip=10.0)
    np.testing.assert_array_equal(
        policy.outputs(np.array([[1e30, -1e30]])), policy.outputs(np.array([[10.0, -10.0]]))
    )


# ------------------------------------------------------------------------------- Fourier features


def fourier_policy(seed=0, bandwidth=1.5, m=12, hidden=(5,), **kwargs):
    return core.Policy(
        3,
        core.DiagonalGaussian(2),
        hidden=hidden,
        dtype="float64",
        seed=seed,
        output_scale=1.0,
        fourier_features=m,
        fourier_bandwidth=bandwidth,
        **kwargs,
    )


def test_random_fourier_features_are_a_fixed_layer_before_the_first_weights():
    policy = fourier_policy()
    assert policy.layout[0].shape == (5, 12)
    assert policy.parameters.size == 5 * 12 + 5 + 2 * 5 + 2 + 2
    linear = fourier_policy(hidden=())
    assert linear.layout[0].shape == (2, 12)


def test_random_fourier_features_depend_on_seed_and_bandwidth_only():
    obs = np.random.default_rng(0).normal(size=(6, 3))
    theta = np.random.default_rng(1).normal(size=fourier_policy().parameters.size)

    def outputs(**kwargs):
        policy = fourier_policy(**kwargs)
        policy.parameters = theta
        return policy.outputs(obs)

    np.testing.assert_array_equal(outputs(), outputs())
    assert not np.allclose(outputs(), outputs(seed=1))
    assert not np.allclose(outputs(), outputs(bandwidth=3.0))


def test_a_large_bandwidth_gives_smooth_features_and_a_small_one_rough_features():
    obs = np.random.default_rng(0).normal(size=(200, 3))

    def variation(bandwidth):
        policy = fourier_policy(bandwidth=bandwidth, hidden=(), m=64)
        return np.mean(np.abs(policy.outputs(obs + 1e-3) - policy.outputs(obs)))

    assert variation(0.1) > 5 * variation(10.0)


def test_random_fourier_features_are_sines_of_a_linear_function():
    # With one feature and a linear policy, output = w sin(k x + phase) + b along any line.
    policy = fourier_policy(m=1, hidden=(), bandwidth=1.0)
    policy.parameters = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    t = np.linspace(-3, 3, 601)
    f = policy.outputs(t[:, None] * [1.0, 0.0, 0.0])[:, 0]
    h = t[1] - t[0]
    assert np.max(np.abs(f)) <= 1.0
    second = (f[2:] - 2 * f[1:-1] + f[:-2]) / h**2  # f'' = -k^2 f
    k2 = -np.sum(second * f[1:-1]) / np.sum(f[1:-1] ** 2)
    np.testing.assert_allclose(second, -k2 * f[1:-1], atol=1e-3 * max(1.0, k2**2))


def test_random_fourier_features_have_exact_scores_too():
    policy = fourier_policy()
    rng = np.random.default_rng(2)
    obs, act = rng.normal(size=(9, 3)), rng.normal(size=(9, 2))
    theta, h = policy.parameters.copy(), 1e-5
    numeric = []
    for e in np.eye(theta.size):
        policy.parameters = theta + h * e
        up = policy.log_prob(obs, act).mean()
        policy.parameters = theta - h * e
        numeric.append((up - policy.log_prob(obs, act).mean()) / (2 * h))
    policy.parameters = theta
    np.testing.assert_allclose(policy.score(obs, act), numeric, rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------- sampling


def test_a_row_is_drawn_alike_whatever_the_size_of_the_batch():
    for distribution in DISTRIBUTIONS:
        p = make_problem(distribution, count=33)
        whole, _ = p.core.sample(p.observations, core.Rng(9))
        for n in (1, 2, 8, 32):
            part, _ = p.core.sample(p.observations[:n], core.Rng(9))
            np.testing.assert_array_equal(part, whole[:n])


def test_streams_shift_the_rows():
    p = make_problem("gaussian", count=33)
    whole, _ = p.core.sample(p.observations, core.Rng(9))
    rest, _ = p.core.sample(p.observations[10:], core.Rng(9, stream=10))
    np.testing.assert_array_equal(rest, whole[10:])


def test_every_call_draws_anew_and_a_restored_counter_draws_again():
    p = make_problem("gaussian", count=10)
    rng = core.Rng(3)
    assert rng.counter == 0
    first, _ = p.core.sample(p.observations, rng)
    assert rng.counter == 1
    second, _ = p.core.sample(p.observations, rng)
    assert rng.counter == 2
    assert not np.any(first == second)
    rng.counter = 1
    again, _ = p.core.sample(p.observations, rng)
    np.testing.assert_array_equal(again, second)


@pytest.mark.parametrize("distribution", ["categorical", "multi-categorical", "bernoulli"])
def test_frequencies_of_sampled_actions_agree_with_the_probabilities(distribution):
    p = make_problem(distribution, count=1, seed=5)
    n = 20_000
    actions, _ = p.core.sample(np.repeat(p.observations, n, axis=0), core.Rng(12))
    output, twin = p.oracle.output(p.theta, p.observations[0]), p.oracle.distribution
    every = twin.all_actions()
    observed = [np.sum(np.all(np.asarray(a) == np.atleast_2d(actions.T).T, axis=1)) for a in every]
    expected = [n * twin.probability(output, a) for a in every]
    assert sum(observed) == n
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_gaussian_samples_have_the_right_moments_and_shape():
    p = make_problem("gaussian", count=1, seed=5)
    n = 20_000
    actions, _ = p.core.sample(np.repeat(p.observations, n, axis=0), core.Rng(12))
    output = p.oracle.output(p.theta, p.observations[0])
    z = (actions - output[:3]) / np.exp(output[3:])
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=4 / np.sqrt(n))
    np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=5 / np.sqrt(n))
    for column in z.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sampling_ends_whatever_the_parameters_are(dtype):
    """Beta variables are drawn by rejection, which nothing that is not a number would end."""
    policy = core.Policy(2, core.Beta(2), hidden=(), dtype=dtype)
    for bad in (np.nan, np.inf, -np.inf):
        policy.parameters[:] = bad
        with pytest.raises(ValueError, match=r"observations\[0\]: want a distribution of finite"):
            policy.sample(np.ones((3, 2)), core.Rng(0))


@pytest.mark.parametrize(
    "distribution",
    [core.Beta(2, [-2.0, 0.0], 1.0), core.SquashedGaussian(2, low=[-2.0, 0.0], high=1.0)],
    ids=["beta", "squashed"],
)
def test_copies_and_pickles_of_a_policy_keep_the_bounds(distribution):
    policy = natgrad.Policy(3, distribution, (4,))
    rows = np.random.default_rng(0).normal(size=(5, 3))
    for again in (policy.copy(), pickle.loads(pickle.dumps(policy))):
        assert repr(again.distribution) == repr(distribution)
        np.testing.assert_array_equal(again.mode(rows), policy.mode(rows))
    assert json.loads(json.dumps(policy.config)) == policy.config


def test_sampling_leaves_the_policy_alone():
    p = make_problem(count=5)
    before = p.core.parameters.tobytes()
    p.core.sample(p.observations, core.Rng(0))
    assert p.core.parameters.tobytes() == before
