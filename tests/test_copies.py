"""Copies and pickles: of policies and their subclasses, of distributions, generators and agents."""

import copy
import multiprocessing
import pickle

import gymnasium
import numpy as np
import pytest

import natgrad
from natgrad import _core as core

WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "the oldest pickle": lambda x: pickle.loads(pickle.dumps(x, protocol=2)),
}
every_way = pytest.mark.parametrize("again", WAYS.values(), ids=WAYS)


class Named(natgrad.Policy):
    def __init__(self, name):
        super().__init__(3, natgrad.DiagonalGaussian(2), hidden=(4,))
        self.name = name


class Scaled(natgrad.ValueFunction):
    def __init__(self, factor, *, offset):
        super().__init__(3, hidden=(4,))
        self.factor, self.offset = factor, offset


@every_way
def test_subclasses_with_a_constructor_of_their_own_and_attributes_survive(again):
    rows = np.random.default_rng(0).normal(size=(5, 3))
    policy, value = Named("a"), Scaled(2.0, offset=[1, 2])
    policy.set_normalizer(np.ones(3), np.full(3, 2.0))
    policy.parameters[:] = np.random.default_rng(1).normal(size=policy.parameters.size)
    value.target_scale = (3.0, 4.0)
    twin, other = again(policy), again(value)
    assert type(twin) is Named
    assert twin.name == "a"
    np.testing.assert_array_equal(twin.outputs(rows), policy.outputs(rows))
    twin.parameters[:] = 0
    assert policy.parameters.any()
    assert type(other) is Scaled
    assert (other.factor, other.offset) == (2.0, [1, 2])
    np.testing.assert_array_equal(other.predict(rows), value.predict(rows))
    assert policy.copy().name == "a"
    assert value.copy().offset == [1, 2]


DISTRIBUTIONS = [
    core.Categorical(3),
    core.DiagonalGaussian(2),
    core.DiagonalGaussian(2, state_dependent_std=True),
    core.MultiCategorical([2, 3]),
    core.Bernoulli(4),
    core.SquashedGaussian(2, True, low=[-1.0, 0.0], high=2.0),
    core.Beta(1, low=-0.1, high=1 / 3),
]


@every_way
@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_distributions(distribution, again):
    twin = again(distribution)
    assert type(twin) is type(distribution)
    assert repr(twin) == repr(distribution)
    outputs = np.random.default_rng(0).normal(size=(6, distribution.parameter_size))
    actions = distribution.sample(outputs, core.Rng(0))
    np.testing.assert_array_equal(
        twin.log_prob(outputs, actions), distribution.log_prob(outputs, actions)
    )


@every_way
def test_generators_go_on_where_they_were(again):
    rng, outputs = core.Rng(2**64 - 1, 7), np.zeros((4, 2))
    gaussian = core.DiagonalGaussian(1)
    gaussian.sample(outputs, rng)
    twin = again(rng)
    np.testing.assert_array_equal(gaussian.sample(outputs, twin), gaussian.sample(outputs, rng))
    assert (twin.seed, twin.stream, twin.counter) == (rng.seed, rng.stream, rng.counter)


@every_way
def test_an_agent_and_its_copy_learn_the_same(again):
    agent = natgrad.NPG("CartPole-v1", batch_size=128, hidden=(8,), seed=3)
    agent.learn(256)
    twin = again(agent)
    assert type(twin) is natgrad.NPG
    assert twin.num_timesteps == agent.num_timesteps
    for learner in (agent, twin):
        learner.learn(256)
    assert twin.policy.parameters.tobytes() == agent.policy.parameters.tobytes()


def parameters_in_another_process(agent):
    return agent.policy.parameters.tobytes()


def test_a_spawned_process_takes_an_agent():
    agent = natgrad.TRPO("CartPole-v1", batch_size=64, hidden=(4,))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(parameters_in_another_process, (agent,))
    assert there == agent.policy.parameters.tobytes()


class Unregistered(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)


def test_an_agent_whose_environment_has_no_id_says_what_to_do():
    agent = natgrad.TRPO(Unregistered, batch_size=64)
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"use save\(path\) and load\(path, env\)"):
            call(agent)
