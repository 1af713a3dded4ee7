"""Spaces: what the policy sees is what Gymnasium flattens, and its actions are in the space."""

import functools

import numpy as np
import pytest
from environments import Recording, Vetting, contains
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

import natgrad
from natgrad.spaces import ActionDecoder, ObservationEncoder

OBSERVATIONS = {
    "vector": spaces.Box(-1, 1, (3,), np.float32),
    "unbounded vector in double": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "matrix": spaces.Box(-1, 1, (2, 3), np.float64),
    "picture": spaces.Box(0, 255, (4, 3, 3), np.uint8),
    "integers": spaces.Box(-5, 5, (4,), np.int32),
    "discrete": spaces.Discrete(5),
    "discrete with a start": spaces.Discrete(5, start=-2),
    "multi-discrete": spaces.MultiDiscrete([2, 4, 3]),
    "multi-discrete with a start": spaces.MultiDiscrete([2, 4], start=[-1, 7]),
    "multi-discrete table": spaces.MultiDiscrete([[2, 4], [3, 2]]),
    "multi-binary": spaces.MultiBinary(4),
    "multi-binary table": spaces.MultiBinary((2, 3)),
    "dictionary": spaces.Dict(
        z=spaces.Discrete(3, start=1), a=spaces.Box(-1, 1, (2, 2)), m=spaces.MultiBinary(2)
    ),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(-9, 9, (2,), np.float64)]),
    "nested": spaces.Dict(
        outer=spaces.Tuple([spaces.Dict(x=spaces.Discrete(2), y=spaces.MultiDiscrete([3, 2]))]),
        other=spaces.Box(0, 1, ()),
    ),
}
ACTIONS = {
    "discrete": spaces.Discrete(4),
    "discrete with a start": spaces.Discrete(3, start=-1),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-discrete with a start": spaces.MultiDiscrete([2, 3], start=[5, -1]),
    "multi-discrete table": spaces.MultiDiscrete([[2, 3], [2, 2]]),
    "multi-binary": spaces.MultiBinary(3),
    "multi-binary table": spaces.MultiBinary((2, 2)),
    "box": spaces.Box(-0.5, 0.5, (2,), np.float32),
    "box in double": spaces.Box(np.array([-1.0, 0.0]), np.array([0.0, 0.5]), dtype=np.float64),
    "box without bounds": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "box with one bound": spaces.Box(np.array([0, -np.inf], "f"), np.array([np.inf, 0], "f")),
    "matrix": spaces.Box(-1, 1, (2, 2), np.float32),
    "scalar": spaces.Box(-1, 1, (), np.float32),
}
UNSUPPORTED = {
    "Text": spaces.Text(5),
    "Sequence": spaces.Sequence(spaces.Discrete(2)),
    "Graph": spaces.Graph(spaces.Box(-1, 1, (2,)), None),
    "OneOf": spaces.OneOf([spaces.Discrete(2), spaces.Box(-1, 1, (2,))]),
}
every_observation = pytest.mark.parametrize("space", OBSERVATIONS.values(), ids=OBSERVATIONS)
every_action = pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)


def samples(space, count=6):
    space.seed(0)
    return [space.sample() for _ in range(count)]


def batched(space, items):
    """As a vector environment would return them."""
    return concatenate(space, items, create_empty_array(space, len(items)))


def flatten(space, item):
    """Gymnasium's flattening, whose one-hot of MultiDiscrete may forget the start."""
    return np.asarray(spaces.flatten(space, item), dtype=float)


# Observations ----------------------------------------------------------------------------------


@every_observation
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_observation_is_flattened_as_gymnasium_does_it(space, dtype):
    encoder = ObservationEncoder(space, dtype)
    assert encoder.size == spaces.flatdim(space)
    for item in samples(space):
        row = encoder.encode(item)
        assert row.dtype == dtype
        np.testing.assert_array_equal(row, flatten(space, item).astype(dtype))


@every_observation
def test_nothing_is_lost_by_flattening(space):
    encoder = ObservationEncoder(space, "float64")
    for item in samples(space):
        restored = spaces.unflatten(space, encoder.encode(item))
        assert space.contains(restored)
        np.testing.assert_array_equal(flatten(space, restored), flatten(space, item))


@every_observation
def test_a_batch_is_flattened_row_by_row(space):
    encoder, items = ObservationEncoder(space), samples(space)
    rows = np.stack([encoder.encode(item) for item in items])
    np.testing.assert_array_equal(encoder.encode(batched(space, items)), rows)
    np.testing.assert_array_equal(encoder.encode(batched(space, items), (6,)), rows)
    np.testing.assert_array_equal(encoder.encode(batched(space, items[:1])), rows[:1])
    assert batch_space(space, 6).contains(batched(space, items))


def test_lists_are_observations_too():
    encoder = ObservationEncoder(OBSERVATIONS["vector"])
    np.testing.assert_array_equal(encoder.encode([0, 1, 2]), np.arange(3))
    np.testing.assert_array_equal(ObservationEncoder(spaces.Discrete(3)).encode(2), [0, 0, 1])


@pytest.mark.parametrize(("name", "space"), UNSUPPORTED.items(), ids=UNSUPPORTED)
def test_an_observation_space_without_a_fixed_size_is_refused_by_name(name, space):
    with pytest.raises(ValueError, match=rf"observation: space {name} is not supported; wanted"):
        ObservationEncoder(space)
    inside = spaces.Dict(good=spaces.Discrete(2), bad=spaces.Tuple([space]))
    with pytest.raises(ValueError, match=rf"observation\['bad'\]\[0\]: space {name} is not"):
        ObservationEncoder(inside)
    with pytest.raises(ValueError, match=name):
        natgrad.TRPO(functools.partial(Vetting, space, spaces.Discrete(2)))


@pytest.mark.parametrize("space", [spaces.Dict(), spaces.Tuple([]), spaces.Box(-1, 1, (0,))])
def test_an_observation_space_without_elements_is_refused(space):
    with pytest.raises(ValueError, match="has no elements"):
        ObservationEncoder(space)


@pytest.mark.parametrize(
    ("name", "observation", "complaint"),
    [
        ("vector", np.zeros(4), r"observation has shape \(4,\); wanted \(3,\)"),
        ("vector", np.zeros((2, 2, 3)), r"shape \(2, 2, 3\)"),
        ("vector", 1.0, r"shape \(\)"),
        ("matrix", np.zeros((3, 2)), r"shape \(3, 2\); wanted \(2, 3\)"),
        ("discrete", 5, "wanted integers within Discrete"),
        ("discrete", 1.5, "wanted integers within Discrete"),
        ("discrete with a start", -3, "wanted integers within Discrete"),
        ("multi-discrete", [0, 4, 0], "wanted integers within MultiDiscrete"),
        ("dictionary", {"a": np.zeros((2, 2)), "z": 1}, r"wanted the parts \['z', 'a', 'm'\]"),
        ("dictionary", np.zeros(3), r"wanted the parts \['z', 'a', 'm'\]"),
        ("tuple", (1,), r"wanted the parts \[0, 1\]"),
        ("nested", {"outer": ({"x": 1, "y": [0]},), "other": 0.0}, r"observation\['outer'\]\[0\]"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(name, observation, complaint):
    with pytest.raises(ValueError, match=complaint):
        ObservationEncoder(OBSERVATIONS[name]).encode(observation)


# Actions ---------------------------------------------------------------------------------------


@every_action
def test_every_sample_and_mode_of_the_policy_is_an_action_of_the_space(space):
    decoder = ActionDecoder(space)
    policy = natgrad.Policy.for_spaces(spaces.Box(-1, 1, (2,)), space, hidden=(4,))
    assert type(policy.distribution) is type(decoder.distribution)
    observations = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    drawn, _ = policy.sample(observations, natgrad.Rng(0))
    for batch in (drawn, policy.mode(observations)):
        actions = decoder.decode(batch)
        assert actions.shape == (200, *space.shape)
        assert actions.dtype == space.dtype
        assert all(contains(space, action) for action in actions)


@every_action
def test_every_discrete_action_can_be_reached(space):
    if isinstance(space, spaces.Box):
        bounds = np.concatenate([np.ravel(space.low), np.ravel(space.high)])
        pushed = [ActionDecoder(space).decode(np.full((1, space.low.size), x)) for x in (-9e9, 9e9)]
        reached = np.concatenate([np.ravel(actions) for actions in pushed])
        np.testing.assert_array_equal(reached[np.isfinite(bounds)], bounds[np.isfinite(bounds)])
        return
    policy = natgrad.Policy.for_spaces(spaces.Box(-1, 1, (2,)), space, hidden=())
    drawn, _ = policy.sample(np.zeros((2000, 2), np.float32), natgrad.Rng(0))
    actions = ActionDecoder(space).decode(drawn)
    drawn_from_space = np.array(samples(space, 2000))
    assert {a.tobytes() for a in actions} == {a.tobytes() for a in drawn_from_space}


def test_a_box_action_is_clipped_at_the_environment_and_not_in_the_likelihood():
    received = []
    space = spaces.Box(np.array([-0.1, -np.inf], "f"), np.array([0.1, 0.3], "f"))
    environments = natgrad.rollouts.Environments(
        functools.partial(Recording, received, space), seed=0
    )
    policy = natgrad.Policy.for_spaces(environments.observation_space, space, hidden=(4,))
    rollout = natgrad.rollouts.collect(policy, environments, 300, natgrad.Rng(0))
    assert np.abs(rollout.actions[:, 0, 0]).max() > 1, "the samples should go beyond the box"
    clipped = np.clip(rollout.actions[:, 0], space.low, space.high)
    np.testing.assert_array_equal(np.array(received), clipped)
    observations = rollout.observations[:-1, 0]
    np.testing.assert_array_equal(
        rollout.log_probs[:, 0], policy.log_prob(observations, rollout.actions[:, 0])
    )
    assert not np.array_equal(rollout.log_probs[:, 0], policy.log_prob(observations, clipped))


WITHIN_BOUNDS = ("beta", "squashed")
BOUNDED = {n: s for n, s in ACTIONS.items() if isinstance(s, spaces.Box) and s.is_bounded()}


@pytest.mark.parametrize("distribution", WITHIN_BOUNDS)
@pytest.mark.parametrize("space", BOUNDED.values(), ids=BOUNDED)
def test_an_agent_trains_within_the_bounds_of_every_box(space, distribution):
    assert len(BOUNDED) >= 4
    agent = check_training(spaces.Box(-1, 1, (3,)), space, distribution=distribution)
    low, high = agent.policy.distribution.low, agent.policy.distribution.high
    np.testing.assert_array_equal(low, np.ravel(space.low))
    np.testing.assert_array_equal(high, np.ravel(space.high))
    policy = natgrad.Policy.for_spaces(
        spaces.Box(-1, 1, (3,)), space, distribution=distribution, hidden=(8,)
    )
    assert repr(policy.distribution) == repr(agent.policy.distribution)
    row = np.array([0.1, 0.2, 0.3], "f")
    mode = agent.policy.distribution.to_bounds(agent.policy.mode(row))
    np.testing.assert_allclose(np.ravel(agent.predict(row)), mode, rtol=1e-6)


@pytest.mark.parametrize("distribution", WITHIN_BOUNDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])  # of the space, and another
def test_the_environment_gets_actions_within_bounds_and_the_rollout_keeps_u(distribution, dtype):
    received = []
    space = spaces.Box(np.array([-0.1, 2.0], "f"), np.array([0.1, 9.0], "f"))
    make = functools.partial(Recording, received, space)
    environments = natgrad.rollouts.Environments(
        make, seed=0, dtype=dtype, distribution=distribution
    )
    kind = environments.decoder.distribution
    policy = natgrad.Policy(environments.encoder.size, kind, (4,), dtype=dtype)
    rollout = natgrad.rollouts.collect(policy, environments, 300, natgrad.Rng(0))
    u = rollout.actions[:, 0]
    assert np.abs(u).max() > 1
    received = np.array(received)
    assert received.dtype == np.float32
    np.testing.assert_array_equal(received, kind.to_bounds(u).astype("f"))
    assert np.all((received >= space.low) & (received <= space.high))
    again = policy.log_prob(rollout.observations[:-1, 0], u)
    rtol = 1e-12 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(rollout.log_probs[:, 0], again, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("distribution", WITHIN_BOUNDS)
def test_actions_without_bounds_cannot_be_kept_within_them(distribution):
    for space in (
        spaces.Box(np.array([0, -np.inf], "f"), np.array([np.inf, 0], "f")),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(np.array([0, 1], "f"), np.array([2, 1], "f")),
        spaces.Discrete(3),
        spaces.MultiBinary(3),
    ):
        with pytest.raises(ValueError, match=f"distribution is '{distribution}' and the action sp"):
            ActionDecoder(space, distribution)
    with pytest.raises(ValueError, match="distribution is 'gamma'; wanted 'gaussian', 'beta' or"):
        ActionDecoder(spaces.Box(-1, 1), "gamma")
    with pytest.raises(ValueError, match="distribution is 'beta' and the action space Discrete"):
        natgrad.TRPO("CartPole-v1", distribution="beta")


def test_an_integer_box_is_refused_as_action_space():
    with pytest.raises(ValueError, match=r"Box\(0, 3, \(2,\), int64\) is not supported; wanted"):
        ActionDecoder(spaces.Box(0, 3, (2,), np.int64))


@pytest.mark.parametrize(
    "space",
    [*UNSUPPORTED.values(), spaces.Dict(a=spaces.Discrete(2)), spaces.Tuple([spaces.Discrete(2)])],
    ids=[*UNSUPPORTED, "Dict", "Tuple"],
)
def test_an_action_space_without_a_distribution_is_refused_by_name(space):
    with pytest.raises(ValueError, match=r"action space .* is not supported; wanted Discrete"):
        ActionDecoder(space)
    with pytest.raises(ValueError, match=type(space).__name__):
        natgrad.TRPO(functools.partial(Vetting, spaces.Discrete(2), space))


# Both ------------------------------------------------------------------------------------------


@every_observation
def test_an_agent_trains_on_every_observation_space(space):
    check_training(space, spaces.Discrete(2))


@every_action
def test_an_agent_trains_on_every_action_space(space):
    check_training(spaces.Box(-1, 1, (3,)), space)


def check_training(observation_space, action_space, **options):
    make = functools.partial(Vetting, observation_space, action_space)
    agent = natgrad.TRPO(make, batch_size=50, hidden=(8,), critic_hidden=(8,), n_envs=2, **options)
    start = agent.policy.parameters.copy()
    agent.learn(100)  # Vetting refuses actions outside of its space
    assert not np.array_equal(agent.policy.parameters, start)
    observations = samples(observation_space, 4)
    for deterministic in (True, False):
        assert contains(action_space, agent.predict(observations[0], deterministic))
        batch = agent.predict(batched(observation_space, observations), deterministic)
        assert len(batch) == 4
        assert all(contains(action_space, action) for action in batch)
    assert len(natgrad.evaluate(agent, episodes=2).returns) == 2
    return agent
