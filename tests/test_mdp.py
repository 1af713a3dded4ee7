"""Exact policy gradients of finite MDPs, against enumeration, series, differences and samples."""

import itertools

import numpy as np
import pytest
from conftest import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

import natgrad
from natgrad.mdp import MDP, minorise_maximise
from natgrad.theory.worlds import FiniteWorld, two_state

CRITERIA = {"horizon": {"horizon": 4}, "discount": {"discount": 0.8}, "average": {}}
every_criterion = pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
bounded = pytest.mark.parametrize("criterion", [CRITERIA["horizon"], CRITERIA["discount"]])


def random_mdp(rng, states=3, actions=2, **options):
    return MDP(
        rng.dirichlet(np.ones(states), size=(states, actions)),
        rng.normal(size=(states, actions)),
        rng.dirichlet(np.ones(states)),
        **options,
    )


def random_table(rng, mdp):
    return rng.dirichlet(np.ones(mdp.rewards.shape[1]), size=len(mdp.rewards))


def network(mdp, hidden=(4,), dtype="float64", seed=0):
    return natgrad.Policy(
        mdp.features.shape[1],
        natgrad.Categorical(mdp.rewards.shape[1]),
        hidden=hidden,
        dtype=dtype,
        seed=seed,
        output_scale=1.0,
    )


def differences(f, x, h=1e-5):
    """Derivative of f by each element of x, by central differences."""
    result = np.empty(np.shape(f(x)) + x.shape)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i], down[i] = x[i] + h, x[i] - h
        result[..., *i] = (f(up) - f(down)) / (2 * h)
    return result


def at_parameters(policy, theta, f):
    """f() with other parameters."""
    before = policy.parameters.copy()
    policy.parameters = theta
    try:
        return f()
    finally:
        policy.parameters = before


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# ----------------------------------------------------------------------------------- trajectories


def trajectories(mdp, table):
    """Every (states, actions) of an episode and its probability."""
    states, actions = mdp.rewards.shape
    for path in itertools.product(range(states), repeat=mdp.horizon):
        for taken in itertools.product(range(actions), repeat=mdp.horizon):
            p = mdp.start[path[0]]
            for t in range(mdp.horizon):
                p *= table[path[t], taken[t]]
                if t + 1 < mdp.horizon:
                    p *= mdp.transitions[path[t], taken[t], path[t + 1]]
            yield path, taken, p


def test_return_and_occupancy_of_a_horizon_are_sums_over_all_trajectories():
    rng = np.random.default_rng(0)
    mdp = random_mdp(rng, horizon=4)
    table = random_table(rng, mdp)
    value, occupancy = 0.0, np.zeros((4, 3))
    for path, taken, p in trajectories(mdp, table):
        value += p * sum(mdp.rewards[s, a] for s, a in zip(path, taken, strict=True))
        for t, s in enumerate(path):
            occupancy[t, s] += p
    at = mdp.evaluate(table)
    assert at.value == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(at.occupancy, occupancy, rtol=1e-12)
    assert at.decisions == pytest.approx(4)


def test_divergence_and_fisher_of_trajectories_are_those_of_a_decision_times_the_horizon():
    rng = np.random.default_rng(1)
    mdp = random_mdp(rng, horizon=3, features=rng.normal(size=(3, 2)))
    policy, other = network(mdp), random_table(rng, mdp)
    at = mdp.evaluate(policy)
    scores = np.array([[policy.score(mdp.features[[s]], [a]) for a in range(2)] for s in range(3)])
    divergence, fisher = 0.0, 0.0
    for path, taken, p in trajectories(mdp, at.probabilities):
        steps = list(zip(path, taken, strict=True))
        divergence += p * sum(np.log(at.probabilities[sa] / other[sa]) for sa in steps)
        score = sum(scores[sa] for sa in steps)
        fisher += p * np.outer(score, score)
    assert at.trajectory_kl(other) == pytest.approx(divergence, rel=1e-12)
    assert at.trajectory_kl(other) / 3 == pytest.approx(at.state_distribution @ at.kl(other))
    assert relative_error(3 * mdp.fisher(policy).to_dense(), fisher) < 1e-12


def test_scores_times_returns_have_the_gradient_for_mean_whatever_the_baseline():
    """REINFORCE; and what does not depend on the action changes nothing."""
    rng = np.random.default_rng(21)
    mdp = random_mdp(rng, horizon=3)
    policy, baseline = network(mdp, hidden=(2,)), rng.normal(size=3)
    table = mdp.probabilities(policy)
    scores = np.array([[policy.score(mdp.features[[s]], [a]) for a in range(2)] for s in range(3)])
    whole = less = 0.0
    for path, taken, p in trajectories(mdp, table):
        rewards = [mdp.rewards[sa] for sa in zip(path, taken, strict=True)]
        each = [scores[sa] for sa in zip(path, taken, strict=True)]
        whole += p * sum(each) * sum(rewards)
        less += p * sum((sum(rewards[t:]) - baseline[path[t]]) * each[t] for t in range(3))
    assert relative_error(whole, mdp.gradient(policy)) < 1e-12
    assert relative_error(less, mdp.gradient(policy)) < 1e-12


def test_with_a_discount_an_episode_ends_after_each_step_with_what_is_missing_to_one():
    rng = np.random.default_rng(2)
    endless = random_mdp(rng, discount=0.7)
    table, other = random_table(rng, endless), random_table(rng, endless)
    at = endless.evaluate(table)
    # The same divergence with an absorbing state, in which both do the same, and a long horizon.
    ends = np.zeros((4, 2, 4))
    ends[:3, :, :3], ends[:3, :, 3], ends[3, :, 3] = 0.7 * endless.transitions, 0.3, 1.0
    padded = MDP(ends, np.zeros((4, 2)), [*endless.start, 0], horizon=200)
    long = padded.evaluate(np.vstack([table, [0.5, 0.5]]))
    want = long.trajectory_kl(np.vstack([other, [0.5, 0.5]]))
    assert at.trajectory_kl(other) == pytest.approx(want, rel=1e-12)
    assert at.decisions == pytest.approx(1 / 0.3)


# ----------------------------------------------------------------------------- value and gradient


def test_discounted_values_are_the_series():
    rng = np.random.default_rng(3)
    mdp = random_mdp(rng, discount=0.8)
    table = random_table(rng, mdp)
    chain = np.einsum("sa,sat->st", table, mdp.transitions)
    values, occupancy = np.zeros(3), np.zeros(3)
    for t in range(300):
        power = 0.8**t * np.linalg.matrix_power(chain, t)
        values += power @ (table * mdp.rewards).sum(axis=1)
        occupancy += mdp.start @ power
    at = mdp.evaluate(table)
    np.testing.assert_allclose(at.state_values[0], values, rtol=1e-12)
    np.testing.assert_allclose(at.visits, occupancy, rtol=1e-12)
    assert at.value == pytest.approx(mdp.start @ values, rel=1e-12)
    following = mdp.rewards + 0.8 * mdp.transitions @ values
    np.testing.assert_allclose(at.advantages[0], following - values[:, None], atol=1e-12)


def test_the_average_reward_is_what_a_long_episode_earns_per_step():
    rng = np.random.default_rng(4)
    mdp = random_mdp(rng)
    long = MDP(mdp.transitions, mdp.rewards, mdp.start, horizon=400)
    table = random_table(rng, mdp)
    at, sums = mdp.evaluate(table), long.evaluate(table)
    following = MDP(mdp.transitions, mdp.rewards, mdp.start, horizon=401).evaluate(table).value
    assert at.value == pytest.approx(following - sums.value, rel=1e-10)
    np.testing.assert_allclose(at.state_distribution, sums.occupancy[-1], rtol=1e-10)
    np.testing.assert_allclose(at.advantages[0], sums.advantages[0], atol=1e-10)
    assert at.decisions == pytest.approx(1)


def test_the_average_reward_does_not_depend_on_a_start_that_is_left_for_good():
    transitions = np.zeros((3, 2, 3))
    transitions[0, :, 1] = transitions[1, :, 2] = transitions[2, :, 1] = 1.0
    rewards = np.array([[9.0, 9.0], [1.0, 1.0], [3.0, 3.0]])
    mdp = MDP(transitions, rewards, [1, 0, 0])
    at = mdp.evaluate(np.full((3, 2), 0.5))
    assert at.value == pytest.approx(2.0)  # though the chain has a period
    np.testing.assert_allclose(at.state_distribution, [0, 0.5, 0.5], atol=1e-15)
    policy = network(mdp)
    dense = mdp.fisher(policy).to_dense()  # its weights are not negative, whatever the rounding
    want = natgrad.Fisher(policy, mdp.features[1:]).to_dense()
    np.testing.assert_allclose(dense, want, atol=1e-12)


@every_criterion
@pytest.mark.parametrize("features", [False, True])
def test_the_gradient_is_the_one_of_finite_differences(criterion, features):
    rng = np.random.default_rng(5)
    mdp = random_mdp(rng, features=rng.normal(size=(3, 2)) if features else None, **criterion)
    policy = network(mdp)

    def value(theta):
        return at_parameters(policy, theta, lambda: mdp.evaluate(policy).value)

    want = differences(value, policy.parameters.copy())
    assert np.linalg.norm(want) > 0.01
    assert relative_error(mdp.gradient(policy), want) < 1e-8


@every_criterion
def test_logits_of_a_table_have_the_gradient_of_their_credit(criterion):
    rng = np.random.default_rng(6)
    mdp = random_mdp(rng, actions=3, **criterion)
    logits = rng.normal(size=(3, 3))
    at = mdp.evaluate(softmax(logits))
    want = differences(lambda z: mdp.evaluate(softmax(z)).value, logits)
    assert relative_error(at.probabilities * at.credit, want) < 1e-8


@every_criterion
def test_the_natural_gradient_of_a_table_is_its_advantages_times_the_decisions(criterion):
    rng = np.random.default_rng(7)
    mdp = random_mdp(rng, actions=3, **criterion)
    policy = network(mdp, hidden=())  # one-hot: logits and a bias
    at = mdp.evaluate(policy)
    x = np.linalg.pinv(mdp.fisher(policy).to_dense()) @ mdp.gradient(policy)
    changes = x[:9].reshape(3, 3).T + x[9:]  # of the logits
    want = at.credit / at.visits[:, None] * at.decisions
    changes -= (at.probabilities * changes).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(changes, want, atol=1e-9)


def test_a_policy_in_float32_has_the_same_gradient_to_its_rounding():
    mdp = random_mdp(np.random.default_rng(8), horizon=4)
    double, single = network(mdp), network(mdp, dtype="float32")
    single.parameters = double.parameters
    assert relative_error(mdp.gradient(single), mdp.gradient(double)) < 1e-5
    assert mdp.gradient(single).dtype == np.float32


@every_criterion
def test_advantages_along_another_policys_way_add_up_to_its_gain(criterion):
    rng = np.random.default_rng(9)
    mdp = random_mdp(rng, **criterion)
    old, new = (mdp.evaluate(random_table(rng, mdp)) for _ in range(2))
    gain = np.einsum("ts,sa,tsa->", new.occupancy, new.probabilities, old.advantages)
    assert new.value - old.value == pytest.approx(gain, rel=1e-10)


# ----------------------------------------------------------------------------------------- Fisher


def test_the_exact_fisher_is_the_sampled_one_within_its_standard_error():
    """Scores along trajectories that an environment has played."""
    rng = np.random.default_rng(10)
    mdp = random_mdp(rng, horizon=5, features=rng.normal(size=(3, 2)))
    policy = network(mdp, hidden=(3,))
    table = mdp.probabilities(policy)
    scores = np.array([[policy.score(mdp.features[[s]], [a]) for a in range(2)] for s in range(3)])
    world, episodes = FiniteWorld(mdp), 4000
    samples = np.empty((episodes, *(policy.parameters.size,) * 2))
    for i in range(episodes):
        state, _ = world.reset(seed=i)
        score, over = 0.0, False
        while not over:
            action = int(rng.random() > table[state, 0])
            score = score + scores[state, action]
            state, _, over, _, _ = world.step(action)
        samples[i] = np.outer(score, score)
    error = samples.std(axis=0) / np.sqrt(episodes)
    exact = at_decisions = mdp.evaluate(policy).decisions * mdp.fisher(policy).to_dense()
    deviation = np.abs(samples.mean(axis=0) - exact)
    upper = np.triu_indices(len(exact))
    assert (deviation[upper] < 4.5 * error[upper] + 1e-12).all()
    assert np.linalg.norm(samples.mean(axis=0) - at_decisions) < 0.1 * np.linalg.norm(exact)
    # Not the one of states that are all equally likely: the weights matter.
    equal = 5 * natgrad.Fisher(policy, mdp.features).to_dense()
    assert (np.abs(samples.mean(axis=0) - equal)[upper] > 4.5 * error[upper]).any()


@every_criterion
def test_the_fisher_is_the_curvature_of_the_divergence_and_its_error_of_third_order(criterion):
    rng = np.random.default_rng(11)
    mdp = random_mdp(rng, **criterion)
    policy = network(mdp)
    at, F, theta = mdp.evaluate(policy), mdp.fisher(policy), policy.parameters.copy()
    d = rng.normal(size=theta.size)
    errors = []
    for scale in (2e-2, 1e-2, 5e-3):
        step = scale * d
        kl = at_parameters(policy, theta + step, lambda: at.trajectory_kl(policy)) / at.decisions
        errors.append(kl - 0.5 * step @ (F @ step))
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 8, rtol=0.1)
    assert at.trajectory_kl(policy) == 0.0
    slope = differences(
        lambda x: at_parameters(policy, x, lambda: at.trajectory_kl(policy)), theta, 1e-4
    )
    assert np.abs(slope).max() < 1e-6


def test_damping_is_added_to_the_fisher():
    mdp = random_mdp(np.random.default_rng(12), horizon=3)
    policy = network(mdp)
    v = np.ones(policy.parameters.size)
    np.testing.assert_allclose(
        mdp.fisher(policy, damping=0.5) @ v, mdp.fisher(policy) @ v + 0.5, rtol=1e-12
    )


def test_small_divergences_keep_their_digits():
    mdp = random_mdp(np.random.default_rng(13), horizon=3)
    at = mdp.evaluate([[0.5, 0.5]] * 3)
    for d in (1e-3, 1e-6):
        want = -0.5 * np.log1p(-4 * d * d)  # of (1/2 + d, 1/2 - d)
        np.testing.assert_allclose(at.kl([[0.5 + d, 0.5 - d]] * 3), want, rtol=1e-9)
    np.testing.assert_array_equal(at.kl([[1.0, 0.0]] * 3), np.inf)
    certain = mdp.evaluate([[1.0, 0.0]] * 3)
    np.testing.assert_allclose(certain.kl([[0.25, 0.75]] * 3), np.log(4))


# ------------------------------------------------------------------------------ surrogate, bounds


@every_criterion
def test_the_surrogate_has_the_value_and_the_gradient_of_the_return(criterion):
    rng = np.random.default_rng(14)
    mdp = random_mdp(rng, **criterion)
    policy = network(mdp)
    at, theta = mdp.evaluate(policy), policy.parameters.copy()
    assert at.surrogate(policy) == pytest.approx(at.value, abs=1e-14)
    slope = differences(lambda x: at_parameters(policy, x, lambda: at.surrogate(policy)), theta)
    assert relative_error(slope, mdp.gradient(policy)) < 1e-8


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    states=st.integers(1, 4),
    actions=st.integers(1, 3),
    criterion=st.one_of(
        st.builds(lambda h: {"horizon": h}, st.integers(1, 12)),
        st.builds(lambda g: {"discount": g}, st.floats(0.0, 0.99)),
    ),
    concentration=st.floats(0.05, 5.0),
    mixing=st.floats(0.0, 1.0),
)
def test_no_policy_returns_less_than_its_lower_bounds(
    seed, states, actions, criterion, concentration, mixing
):
    rng = np.random.default_rng(seed)
    mdp = random_mdp(rng, states, actions, **criterion)
    old, new = rng.dirichlet(np.full(actions, concentration), size=(2, states))
    new = mixing * new + (1 - mixing) * old
    at, value = mdp.evaluate(old), mdp.evaluate(new).value
    slack = 1e-9 * (1 + abs(value) + at.decisions)
    assert at.lower_bound(new) <= value + slack
    assert at.mean_lower_bound(new) <= value + slack
    assert at.lower_bound(old) == pytest.approx(at.value, abs=slack)
    assert at.mean_lower_bound(old) == pytest.approx(at.value, abs=slack)


def test_the_penalties_are_those_in_print():
    rng = np.random.default_rng(15)
    mdp = random_mdp(rng, discount=0.9)
    at = mdp.evaluate(random_table(rng, mdp))
    largest = np.abs(at.advantages).max()
    assert at.penalty == pytest.approx(4 * largest * 0.9 / 0.1**2)
    mdp = random_mdp(rng, horizon=7)
    at = mdp.evaluate(random_table(rng, mdp))
    assert at.penalty == pytest.approx(2 * np.abs(at.advantages).max() * 7 * 6)
    # The other one, with the distribution of states and the gain as Achiam et al. write them.
    mdp = random_mdp(rng, discount=0.9)
    at, new = mdp.evaluate(random_table(rng, mdp)), random_table(rng, mdp)
    gain = (new * at.advantages[0]).sum(axis=1)
    variation = 0.5 * np.abs(new - at.probabilities).sum(axis=1)
    terms = gain - 2 * 0.9 * np.abs(gain).max() / 0.1 * variation
    want = at.value + at.state_distribution @ terms / 0.1
    assert at.mean_lower_bound(new) == pytest.approx(want, rel=1e-10)


def test_the_bound_by_means_does_not_mind_changes_where_nobody_goes():
    transitions = np.zeros((3, 2, 3))
    transitions[:, 0, 0] = transitions[:, 1, 1] = 1.0
    mdp = MDP(transitions, [[0, 1], [1, 0], [1, 3]], [1, 0, 0], discount=0.9)
    at = mdp.evaluate(np.full((3, 2), 0.5))
    new = np.array([[0.5, 0.5], [0.5, 0.5], [0.1, 0.9]])  # the third state is out of reach
    assert at.mean_lower_bound(new) == pytest.approx(at.value)
    assert at.lower_bound(new) < at.value - 1


@pytest.mark.parametrize("name", ["lower_bound", "mean_lower_bound"])
def test_there_is_no_such_bound_for_the_average_reward(name):
    at = two_state().evaluate(np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="need an mdp with a horizon or a discount"):
        getattr(at, name)(at.probabilities)


# ------------------------------------------------------------------------------ minorise-maximise


@bounded
def test_no_table_has_a_better_bound_than_the_maximiser(criterion):
    rng = np.random.default_rng(16)
    mdp = random_mdp(rng, states=3, actions=3, **criterion)
    at = mdp.evaluate(random_table(rng, mdp))
    best = at.maximise_lower_bound()
    bound = at.lower_bound(best)
    assert bound > at.value
    np.testing.assert_allclose(at.kl(best), at.kl(best).max(), rtol=1e-9)  # all the same
    # The problem is concave, so these multipliers prove it: what an action is worth and what its
    # divergence costs balance within each state, and all states share one penalty.
    multipliers = []
    for worth, ratio in zip(at.credit, at.probabilities / best, strict=True):
        columns = np.stack([np.ones(3), -ratio], axis=1)
        (_, multiplier), residual, _, _ = np.linalg.lstsq(columns, worth)
        assert residual < 1e-20 * worth @ worth
        multipliers.append(multiplier)
    assert min(multipliers) > 0
    assert sum(multipliers) == pytest.approx(at.penalty, rel=1e-8)
    for scale in 10.0 ** -np.arange(1, 8):
        for _ in range(50):
            other = best * np.exp(scale * rng.normal(size=best.shape))
            assert at.lower_bound(other / other.sum(axis=1, keepdims=True)) <= bound + 1e-13


@settings(max_examples=100)
@given(
    seed=st.integers(0, 10**6),
    states=st.integers(1, 4),
    actions=st.integers(1, 4),
    discount=st.floats(1e-3, 0.99),
    concentration=st.floats(0.01, 5.0),
)
def test_the_maximiser_never_has_a_worse_bound_than_staying(
    seed, states, actions, discount, concentration
):
    rng = np.random.default_rng(seed)
    mdp = random_mdp(rng, states, actions, discount=discount)
    at = mdp.evaluate(rng.dirichlet(np.full(actions, concentration), size=states))
    best = at.maximise_lower_bound()
    slack = 1e-11 * (1 + abs(at.value))
    assert at.value - slack <= at.lower_bound(best) <= mdp.evaluate(best).value + slack


def best_return(mdp):
    """By trying all deterministic policies."""
    states, actions = mdp.rewards.shape
    choices = itertools.product(range(actions), repeat=states)
    return max(mdp.evaluate(np.eye(actions)[list(choice)]).value for choice in choices)


def test_minorise_maximise_never_loses_and_finds_the_best_table():
    mdp = random_mdp(np.random.default_rng(17), actions=3, discount=0.3)
    steps = itertools.islice(minorise_maximise(mdp, np.full((3, 3), 1 / 3)), 300)
    evaluations = list(steps)
    values = [at.value for at in evaluations]
    assert (np.diff(values) >= 0).all()
    assert values[-1] == pytest.approx(best_return(mdp), rel=1e-5)
    for at, following in itertools.pairwise(evaluations):
        bound = at.lower_bound(following.probabilities)
        assert at.value <= bound + 1e-13
        assert bound <= following.value + 1e-13


@bounded
def test_minorise_maximise_never_loses_with_a_network(criterion):
    rng = np.random.default_rng(18)
    mdp = random_mdp(rng, states=4, actions=3, features=rng.normal(size=(4, 2)), **criterion)
    policy = network(mdp)
    evaluations = list(itertools.islice(minorise_maximise(mdp, policy), 200))
    values = np.array([at.value for at in evaluations])
    assert (np.diff(values) >= 0).all()
    assert (np.diff(values)[:20] > 0).all()
    assert values[-1] > values[0] + 0.5 * (best_return(mdp) - values[0])
    assert mdp.evaluate(policy).value == values[-1]


def test_a_policy_that_cannot_be_improved_stays_as_it_is():
    mdp = random_mdp(np.random.default_rng(19), discount=0.5)
    choices = itertools.product(range(2), repeat=3)
    best = max((np.eye(2)[list(c)] for c in choices), key=lambda t: mdp.evaluate(t).value)
    np.testing.assert_array_equal(mdp.evaluate(best).maximise_lower_bound(), best)
    same = MDP(mdp.transitions, np.ones((3, 2)), mdp.start, discount=0.5)
    table = np.array([[0.3, 0.7], [0.5, 0.5], [1.0, 0.0]])
    np.testing.assert_allclose(same.evaluate(table).maximise_lower_bound(), table, rtol=1e-12)
    policy = network(same)
    before = policy.parameters.copy()
    list(itertools.islice(minorise_maximise(same, policy), 3))
    np.testing.assert_allclose(policy.parameters, before, atol=1e-12)


def test_where_nothing_follows_the_best_table_is_the_greedy_one():
    mdp = random_mdp(np.random.default_rng(20), actions=3, horizon=1)
    best = np.eye(3)[mdp.rewards.argmax(axis=1)]
    for table in (np.full((3, 3), 1 / 3), np.eye(3)[mdp.rewards.argmin(axis=1)], best):
        np.testing.assert_array_equal(mdp.evaluate(table).maximise_lower_bound(), best)


# ------------------------------------------------------------------------------------- bad inputs


def test_what_does_not_fit_is_named():
    P, r, start = np.full((2, 3, 2), 0.5), np.zeros((2, 3)), np.array([0.5, 0.5])
    mdp = MDP(P, r, start, horizon=2)
    cases = [
        (lambda: MDP(P, r[0], start), r"rewards has shape \(3,\)"),
        (lambda: MDP(P[:1], r, start), r"transitions has shape \(1, 3, 2\); wanted \(2, 3, 2\)"),
        (lambda: MDP(2 * P, r, start), "transitions: wanted probabilities"),
        (lambda: MDP(P, r, [1.5, -0.5]), "start: wanted probabilities"),
        (lambda: MDP(P, r + np.nan, start), "rewards has values that are not finite"),
        (lambda: MDP(P, r, start, horizon=3, discount=0.5), "horizon is 3 and discount 0.5"),
        (lambda: MDP(P, r, start, horizon=0), "horizon is 0; wanted an integer >= 1"),
        (lambda: MDP(P, r, start, horizon=2.5), "horizon is 2.5"),
        (lambda: MDP(P, r, start, discount=1.0), "discount is 1.0; wanted a number >= 0 and < 1"),
        (lambda: MDP(P, r, start, features=np.eye(3)), r"features has shape \(3, 3\)"),
        (lambda: mdp.evaluate(np.ones((2, 3))), "policy: wanted probabilities"),
        (lambda: mdp.evaluate(np.full((3, 3), 1 / 3)), r"policy has shape \(3, 3\)"),
        (
            lambda: mdp.evaluate(natgrad.Policy(2, natgrad.Categorical(2))),
            r"wanted Categorical\(3\)",
        ),
        (
            lambda: mdp.evaluate(natgrad.Policy(2, natgrad.DiagonalGaussian(3))),
            r"wanted Categorical\(3\)",
        ),
        (
            lambda: mdp.evaluate(natgrad.Policy(5, natgrad.Categorical(3))),
            "policy observes 5 numbers; wanted 2",
        ),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            wrong()


def test_an_average_that_depends_on_the_start_is_refused():
    transitions = np.eye(2)[:, None, :].repeat(2, axis=1)  # nobody ever leaves
    mdp = MDP(transitions, [[0, 0], [1, 1]], [0.5, 0.5])
    with pytest.raises(ValueError, match="several classes that are never left"):
        mdp.evaluate(np.full((2, 2), 0.5))
