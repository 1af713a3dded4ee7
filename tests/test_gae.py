"""Generalised advantage estimation against one explicit sum per advantage."""

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natgrad import _core as core


def rollout(steps, envs, seed=0, masked=True, p_end=0.2):
    rng = np.random.default_rng(seed)
    r = {
        "rewards": rng.normal(size=(steps, envs)),
        "values": rng.normal(size=(steps, envs)),
        "next_values": rng.normal(size=(steps, envs)),
        "terminated": rng.random((steps, envs)) < p_end,
        "truncated": rng.random((steps, envs)) < p_end,
    }
    if masked:
        r["valid"] = rng.random((steps, envs)) > 0.15
    return r


@settings(max_examples=80)
@given(
    steps=st.integers(1, 20),
    envs=st.integers(1, 6),
    gamma=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
    masked=st.booleans(),
    p_end=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_advantage_is_its_sum_of_discounted_differences(
    steps, envs, gamma, gae_lambda, masked, p_end, seed
):
    r = rollout(steps, envs, seed, masked, p_end)
    got = core.gae(**r, gamma=gamma, gae_lambda=gae_lambda)
    want = oracle.gae(**r, gamma=gamma, gae_lambda=gae_lambda)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == np.float64
        np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-12)


def test_one_trajectory_may_come_without_the_axis_of_environments():
    r = rollout(12, 1)
    flat = core.gae(**{k: v[:, 0] for k, v in r.items()})
    whole = core.gae(**r)
    for f, w in zip(flat, whole, strict=True):
        assert f.shape == (12,)
        np.testing.assert_array_equal(f, w[:, 0])


def test_environments_do_not_mix():
    r = rollout(15, 4)
    advantages, _ = core.gae(**r)
    for env in range(4):
        alone, _ = core.gae(**{k: v[:, env] for k, v in r.items()})
        np.testing.assert_array_equal(alone, advantages[:, env])


def test_the_defaults_are_gamma_99_and_lambda_95():
    r = rollout(15, 2)
    np.testing.assert_array_equal(core.gae(**r), core.gae(**r, gamma=0.99, gae_lambda=0.95))


@pytest.mark.parametrize("option", ["gamma", "gae_lambda"])
def test_each_discount_changes_the_answer(option):
    r = rollout(15, 2)
    assert not np.allclose(core.gae(**r, **{option: 0.5}), core.gae(**r))


def test_termination_ignores_the_next_value_and_truncation_uses_it():
    def advantage(terminated, truncated, next_value):
        return core.gae([1.0], [0.5], [next_value], [terminated], [truncated], gamma=0.9)[0][0]

    assert advantage(True, False, 100.0) == 0.5
    assert advantage(False, True, 2.0) == pytest.approx(1.0 + 0.9 * 2.0 - 0.5)
    assert advantage(True, True, 100.0) == 0.5


def test_nothing_flows_back_across_an_end_or_a_masked_row():
    r = rollout(10, 1, masked=False, p_end=0.0)
    base, _ = core.gae(**r)
    for cut in ("terminated", "truncated", "valid"):
        changed = {k: v.copy() for k, v in r.items()}
        changed["valid"] = np.ones((10, 1), dtype=bool)
        changed[cut][5] = cut != "valid"
        before, _ = core.gae(**changed)
        changed["rewards"][6:] += 100.0
        after, _ = core.gae(**changed)
        np.testing.assert_array_equal(after[:6], before[:6])
        assert not np.allclose(after[6:], before[6:])
        assert not np.allclose(before[:5], base[:5])


def test_a_masked_row_has_no_advantage_and_its_own_value_as_return():
    r = rollout(10, 3)
    advantages, returns = core.gae(**r)
    np.testing.assert_array_equal(advantages[~r["valid"]], 0)
    np.testing.assert_array_equal(returns, advantages + r["values"])


def test_the_inputs_are_left_alone_and_any_layout_and_real_dtype_will_do():
    r = rollout(9, 4)
    kept = {k: v.copy() for k, v in r.items()}
    want = core.gae(**r)
    for k, v in kept.items():
        np.testing.assert_array_equal(r[k], v)
    other = {k: np.asfortranarray(v) for k, v in r.items()}
    np.testing.assert_array_equal(core.gae(**other), want)
    strided = {k: np.repeat(v, 2, axis=1)[:, ::2] for k, v in r.items()}
    np.testing.assert_array_equal(core.gae(**strided), want)
    single = {k: v.astype(np.float32) if v.dtype == float else v for k, v in r.items()}
    np.testing.assert_allclose(core.gae(**single), want, rtol=1e-4, atol=1e-5)
    assert core.gae(**single)[0].dtype == np.float64
