"""Normalisation: the networks see observations by their running mean and deviation."""

import numpy as np
import pytest
from environments import SMALL, Counting, Random
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import natgrad
from natgrad.rollouts.normalization import RunningMoments


def test_running_moments_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1000, 4)) * [1, 1e-3, 1e3, 1] + [0, 5, -7, 1e6]
    moments = RunningMoments(4)
    for part in np.split(rows, [1, 2, 50, 50, 700]):
        moments.update(part)
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.std, rows.std(axis=0), rtol=1e-9)


def test_running_moments_leave_rows_out_that_are_not_finite():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 3))
    rows[7, 1], rows[8], rows[50, 2] = np.nan, np.inf, -np.inf
    moments = RunningMoments(3)
    for part in np.split(rows, 5):
        moments.update(part)
    good = np.delete(rows, [7, 8, 50], axis=0)
    assert (moments.count, moments.rejected) == (97, 3)
    np.testing.assert_allclose(moments.mean, good.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.std, good.std(axis=0), rtol=1e-13)
    before = moments.mean.tobytes(), moments.squares.tobytes()
    moments.update(np.full((5, 3), np.nan))
    moments.update(np.empty((0, 3)))
    assert (moments.mean.tobytes(), moments.squares.tobytes()) == before
    assert (moments.count, moments.rejected) == (97, 8)


def test_a_feature_that_does_not_vary_is_not_scaled_up():
    moments = RunningMoments(2)
    moments.update(np.column_stack([np.full(50, 0.1), np.arange(50.0)]))
    moments.update(np.column_stack([np.full(50, 0.1) + 1e-17, np.arange(50.0)]))
    assert moments.std[0] == 1.0
    np.testing.assert_allclose(moments.std[1], np.arange(50.0).std())
    with pytest.raises(ValueError, match=r"rows has shape \(3,\); wanted \(n, 2\)"):
        moments.update(np.zeros(3))


@pytest.mark.parametrize("mode", [None, AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_the_normaliser_knows_exactly_the_observations_that_were_acted_on(mode):
    seen = []

    class Watched(Counting):
        def step(self, action):
            seen.append(self._observe().copy())
            return super().step(action)

    env = Watched if mode is None else SyncVectorEnv([Watched], autoreset_mode=mode)
    agent = natgrad.TRPO(env, **{**SMALL, "dtype": "float64"}).learn(128)
    rows = np.array(seen)
    assert len(rows) == agent.num_timesteps == agent._moments.count
    mean, std, clip = agent.policy.normalizer
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, rows.std(axis=0), rtol=1e-12)
    assert clip == agent.config.clip_observations
    for mine, its in zip(agent.policy.normalizer, agent.critic.normalizer, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_without_normalisation_the_networks_see_raw_observations():
    agent = natgrad.TRPO(Random, **SMALL, normalize_observations=False).learn(128)
    mean, std, clip = agent.policy.normalizer
    assert (mean == 0).all()
    assert (std == 1).all()
    assert clip == np.inf
