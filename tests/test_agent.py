"""Agents: they learn, every option counts, and the same seed means the same bits."""

import contextlib
import dataclasses
import fcntl
import functools
import os
import pty
import re
import signal
import struct
import termios
import threading

import gymnasium
import numpy as np
import pytest
from environments import SMALL, Counting, Random, Trouble, contents, parameters, popen
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import natgrad
from natgrad.agents.config import AgentConfig
from natgrad.rollouts.normalization import RunningMoments

ALGORITHMS = {"trpo": natgrad.TRPO, "npg": natgrad.NPG, "reinforce": natgrad.REINFORCE}
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
Discrete = functools.partial(Random, discrete=True)


def history(agent, steps, **keywords):
    """Learns; returns the numbers of every update."""
    logs = []
    agent.learn(steps, callback=lambda _, log: logs.append(log.copy()), **keywords)
    return logs


# They learn ------------------------------------------------------------------------------------


@pytest.mark.slow
@every_algorithm
def test_cartpole_is_solved_by_most_seeds(algorithm):
    means = []
    for seed in range(3):
        agent = algorithm("CartPole-v1", seed=seed).learn(60_000)
        result = natgrad.evaluate(agent, episodes=20)
        assert result.returns.shape == result.lengths.shape == (20,)
        np.testing.assert_array_equal(result.returns, result.lengths)
        means.append(result.mean)
    assert sorted(means)[1] >= 475


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "steps", "before", "after"),
    [("Pendulum-v1", 60_000, -900, -400), ("Acrobot-v1", 35_000, -450, -150)],
)
def test_classic_control_is_learnt_by_most_seeds(env, steps, before, after):
    returns = []
    for seed in range(3):
        agent = natgrad.TRPO(env, natgrad.agents.TRPOConfig(batch_size=1024, seed=seed))
        assert history(agent, steps)[0]["rollout/ep_rew_mean"] < before
        returns.append(natgrad.evaluate(agent, episodes=10).mean)
    assert sorted(returns)[1] > after


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["beta", "squashed"])
def test_pendulum_is_learnt_by_most_seeds_within_its_bounds(distribution):
    returns = []
    for seed in range(3):
        config = natgrad.agents.TRPOConfig(n_envs=4, seed=seed, distribution=distribution)
        agent = natgrad.TRPO("Pendulum-v1", config)
        agent.learn(200_000)
        returns.append(natgrad.evaluate(agent, episodes=10).mean)
    assert sorted(returns)[1] > -250


@pytest.mark.slow
def test_halfcheetah_improves_in_processes_and_stays_within_its_trust_region():
    config = natgrad.agents.TRPOConfig(
        n_envs=2, vectorization="async", batch_size=2000, max_kl=0.02
    )
    agent = natgrad.TRPO("HalfCheetah-v5", config)
    logs = history(agent, 24_000)
    agent.close()
    assert all(log["train/status"] == "ACCEPTED" for log in logs)
    assert all(0 < log["train/kl_divergence_loss"] <= 0.02 for log in logs)
    assert np.mean([log["train/explained_variance"] for log in logs[-6:]]) > 0.1
    assert logs[-1]["rollout/ep_rew_mean"] > logs[0]["rollout/ep_rew_mean"]
    assert logs[-1]["rollout/ep_len_mean"] == 1000


# Options ---------------------------------------------------------------------------------------

WITH_ADAM = {"critic": "adam"}
# Problems as small as these are solved directly.
WITH_CG = {"solver": "cg", "preconditioner": "none"}
WITH_KFAC = {"solver": "cg", "preconditioner": "kfac"}
WITH_SUBSAMPLE = {"solver": "cg", "preconditioner": "subsample", "cg_iterations": 2}
WITH_BACKTRACKING = {"max_kl": 5.0, "damping": 1e-5, **WITH_CG}
CHANGES = {  # option: another value, and options without which it would mean nothing
    "seed": (1, {}),
    "n_envs": (2, {}),
    "batch_size": (150, {}),
    "gamma": (0.5, {}),
    "gae_lambda": (0.5, {}),
    "normalize_observations": (False, {}),
    "clip_observations": (0.5, {}),
    "hidden": ((5, 4), {}),
    "activation": ("relu", {}),
    "distribution": ("beta", {}),
    "log_std_init": (-1.0, {}),
    "init": ("scaled", {}),
    "dtype": ("float64", {}),
    "fourier_features": (10, {}),
    "fourier_bandwidth": (3.0, {"fourier_features": 10}),
    "critic": ("adam", {}),
    "critic_hidden": ((3,), {}),
    "critic_steps": (1, {}),
    "critic_cg_iterations": (1, {}),
    "critic_damping": (10.0, {}),
    "critic_max_change": (1e-3, {}),
    "critic_epochs": (2, WITH_ADAM),
    "critic_minibatch_size": (20, WITH_ADAM),
    "critic_learning_rate": (0.1, WITH_ADAM),
    "max_kl": (0.05, {}),
    "max_kl_end": (0.1, {}),
    "log_std_min": (0.5, {"log_std_init": 0.5}),
    "damping": (1.0, {}),
    "cg_iterations": (1, WITH_CG),
    "cg_rtol": (0.9, WITH_CG),
    "cg_progress_tolerance": (0.1, WITH_CG),
    "cg_progress_window": (1, {"cg_progress_tolerance": 0.05, **WITH_CG}),
    "warm_start": (True, WITH_CG),
    "damping_mode": ("trace", {}),
    "damping_min": (0.09, {"damping_mode": "adaptive"}),
    "damping_max": (0.1, {"damping_mode": "adaptive", **WITH_BACKTRACKING, "damping": 0.1}),
    "solver": ("direct", WITH_CG),
    "preconditioner": ("kfac", {"solver": "cg"}),
    "kfac_every": (4, WITH_KFAC),
    "kfac_refresh": (2, WITH_KFAC),
    "kfac_decay": (0.5, WITH_KFAC),
    "subsample_every": (3, WITH_SUBSAMPLE),
    "subsample_iterations": (1, WITH_SUBSAMPLE),
    "cg_last_residual": (False, {**WITH_CG, "cg_iterations": 1}),
    "nystrom_rank": (5, {**WITH_CG, "preconditioner": "nystrom"}),
    "fisher": ("empirical", {}),
    "curvature_fraction": (0.2, {}),
    "line_search_shrink": (0.3, WITH_BACKTRACKING),
    "line_search_max_backtracks": (1, WITH_BACKTRACKING),
    "line_search_accept_ratio": (0.95, WITH_BACKTRACKING),
    "learning_rate": (0.1, {}),
    "optimizer": ("sgd", {}),
}
TESTED_BELOW = {"vectorization", "env_options"}  # the first must not change what is learnt
TESTED_WITH_THE_POOL = {"stepper"}  # in test_pool.py
CONFIGS = (natgrad.agents.TRPOConfig, natgrad.agents.NPGConfig, natgrad.agents.REINFORCEConfig)


def test_every_option_is_tested():
    names = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    assert names == CHANGES.keys() | TESTED_BELOW | TESTED_WITH_THE_POOL


def algorithm_with(option):
    return next(a for a in ALGORITHMS.values() if option in a.config_class.__dataclass_fields__)


@pytest.mark.parametrize("option", CHANGES)
def test_every_option_changes_what_is_learnt(option):
    value, context = CHANGES[option]
    algorithm = algorithm_with(option)
    options = {"hidden": (8,), "critic_hidden": (8,), "batch_size": 120, **context}
    default = algorithm(Random, **options)
    assert getattr(default.config, option) != value
    changed = algorithm(Random, **{**options, option: value})
    assert parameters(changed.learn(200)) != parameters(default.learn(200))


@pytest.mark.parametrize("env", ["CartPole-v1", Random])
def test_processes_change_nothing_that_is_learnt(env):
    agents = [
        natgrad.TRPO(env, **SMALL, n_envs=2, vectorization=vectorization).learn(192)
        for vectorization in ("sync", "async")
    ]
    processes = [getattr(agent._environments._vector, "processes", []) for agent in agents]
    assert [len(p) for p in processes] == [0, 2]
    assert parameters(agents[0]) == parameters(agents[1])
    agents[1].close()


def test_environment_options_reach_the_environment():
    long, short = (
        natgrad.TRPO("CartPole-v1", **SMALL, env_options=options).learn(128)
        for options in ({}, {"max_episode_steps": 4})
    )
    assert max(episode.length for episode in long.recent_episodes) > 4
    assert max(episode.length for episode in short.recent_episodes) == 4
    assert short.make_env().spec.max_episode_steps == 4
    assert short.make_env(max_episode_steps=6).spec.max_episode_steps == 6


def test_options_can_be_given_as_one_object_and_are_kept():
    config = natgrad.agents.TRPOConfig(**SMALL, max_kl=0.02)
    agent = natgrad.TRPO("CartPole-v1", config)
    assert agent.config is config
    assert natgrad.agents.TRPOConfig.from_options(config.to_json()) == config
    for wrong in (natgrad.agents.NPGConfig(), natgrad.agents.REINFORCEConfig()):
        with pytest.raises(TypeError, match=f"config is a {type(wrong).__name__} .*; wanted"):
            natgrad.TRPO("CartPole-v1", wrong)
    with pytest.raises(TypeError, match=r"with 1 options besides; wanted either a TRPOConfig or"):
        natgrad.TRPO("CartPole-v1", config, seed=3)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("batchsize", "batch_size"),
        ("max_KL", "max_kl"),
        ("n_env", "n_envs"),
        ("lambda", "gae_lambda"),
        ("zzz", None),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_one(given, meant):
    hint = f"did you mean '{meant}'" if meant else "wanted one of seed, n_envs"
    with pytest.raises(ValueError, match=f"'{given}' is not an option of TRPO; {hint}"):
        natgrad.TRPO("CartPole-v1", **{given: 1})


def test_an_option_of_another_algorithm_is_unknown():
    with pytest.raises(ValueError, match="'learning_rate' is not an option of TRPO"):
        natgrad.TRPO("CartPole-v1", learning_rate=0.1)
    with pytest.raises(ValueError, match="'max_kl' is not an option of REINFORCE"):
        natgrad.REINFORCE("CartPole-v1", max_kl=0.1)


@pytest.mark.parametrize(
    ("option", "value", "error", "wanted"),
    [
        ("seed", -1, ValueError, "an integer >= 0"),
        ("seed", 1.5, ValueError, "an integer >= 0"),
        ("seed", None, TypeError, "an integer >= 0"),
        ("n_envs", 0, ValueError, "an integer >= 1"),
        ("n_envs", True, ValueError, "an integer >= 1"),
        ("batch_size", "2048", TypeError, "an integer >= 2"),
        ("batch_size", 1, ValueError, "an integer >= 2"),
        ("gamma", 1.01, ValueError, "a number >= 0 and <= 1"),
        ("gamma", float("nan"), ValueError, "a number >= 0 and <= 1"),
        ("max_kl", 0, ValueError, "a number > 0"),
        ("max_kl", float("inf"), ValueError, "a number > 0"),
        ("damping", -1e-9, ValueError, "a number >= 0"),
        ("cg_iterations", 0, ValueError, "an integer >= 1"),
        ("line_search_shrink", 1.0, ValueError, "a number > 0 and <= 0.99"),
        ("hidden", 64, TypeError, "a sequence of integers"),
        ("hidden", "64", TypeError, "a sequence of integers"),
        ("hidden", (64, 0), ValueError, "an integer >= 1"),
        ("hidden", (64, "a"), TypeError, "an integer >= 1"),
        ("activation", "sigmoid", ValueError, "one of tanh, relu, elu, silu, gelu, identity"),
        ("dtype", "float16", ValueError, "one of float32, float64"),
        ("critic", None, ValueError, "one of gauss_newton, adam"),
        ("normalize_observations", 1, TypeError, "True or False"),
        ("env_options", [1], TypeError, "a mapping of names to values"),
    ],
)
def test_a_bad_value_is_refused_with_the_name_of_the_option(option, value, error, wanted):
    message = re.escape(f"{option} is ") + ".*" + re.escape(f"; wanted {wanted}")
    with pytest.raises(error, match=message):
        natgrad.TRPO("CartPole-v1", **{option: value})


def test_a_batch_has_at_least_one_step_of_every_environment():
    with pytest.raises(ValueError, match="batch_size is 4; wanted at least n_envs = 5"):
        natgrad.TRPO("CartPole-v1", batch_size=4, n_envs=5)


@pytest.mark.parametrize(
    "options",
    [
        {"damping": 20.0},
        {"damping": 0.0},
        {"damping_min": 0.2},
        {"damping_min": 2, "damping_max": 1},
    ],
    ids=str,
)
def test_a_damping_that_is_adapted_starts_within_its_bounds(options):
    with pytest.raises(ValueError, match=r"damping.*wanted"):
        natgrad.agents.TRPOConfig(damping_mode="adaptive", **options)
    if options.get("damping_max") is None:
        natgrad.agents.TRPOConfig(**options)  # bounds of another mode


def test_the_log_says_how_the_system_was_solved():
    options = {**SMALL, **WITH_CG}
    logs = history(natgrad.TRPO("CartPole-v1", cg_progress_tolerance=0.05, **options), 256)
    assert {log["train/cg_status"] for log in logs} == {"SLOW_PROGRESS"}
    assert all(log["train/cg_products"] == log["train/cg_iterations"] < 10 for log in logs)
    assert all(log["train/damping"] == 0.1 for log in logs)
    assert all(np.isfinite(log["train/reduction_ratio"]) for log in logs)
    adaptive = natgrad.TRPO("CartPole-v1", damping_mode="adaptive", warm_start=True, **options)
    logs = history(adaptive, 256)
    assert len({log["train/damping"] for log in logs}) > 1
    assert all(log["train/cg_products"] > log["train/cg_iterations"] for log in logs[1:])


def test_every_option_has_a_help_text_and_a_group():
    for config in CONFIGS:
        for field in dataclasses.fields(config):
            assert len(field.metadata["help"]) > 5, field.name
            assert field.metadata["group"], field.name
    assert issubclass(natgrad.agents.TRPOConfig, AgentConfig)


# Normalisation ---------------------------------------------------------------------------------


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


# Predictions -----------------------------------------------------------------------------------


def test_predictions_have_the_shape_of_actions():
    continuous, discrete = (natgrad.TRPO(make, **SMALL) for make in (Random, Discrete))
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for deterministic in (True, False):
        assert continuous.predict(rows, deterministic).shape == (5, 2)
        assert continuous.predict(rows[0], deterministic).shape == (2,)
        assert discrete.predict(rows, deterministic).shape == (5,)
        single = discrete.predict(rows[0], deterministic)
        assert np.ndim(single) == 0
        assert int(single) in range(3)
    batch = continuous.predict(rows)
    np.testing.assert_array_equal(batch, [continuous.predict(row) for row in rows])
    np.testing.assert_array_equal(batch, continuous.predict(rows.tolist()))


def test_predictions_are_clipped_to_the_space():
    agent = natgrad.TRPO(Random, **SMALL, log_std_init=2.0)
    agent.policy.parameters = 50 * np.sign(agent.policy.parameters)
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    for deterministic in (True, False):
        actions = agent.predict(rows, deterministic)
        assert np.abs(actions).max() == 1
        assert all(agent.make_env().action_space.contains(action) for action in actions)
    np.testing.assert_array_equal(agent.predict(rows), np.clip(agent.policy.mode(rows), -1, 1))


def test_deterministic_predictions_repeat_and_samples_do_not():
    agent = natgrad.TRPO(Random, **SMALL)
    row = np.ones(3, np.float32)
    np.testing.assert_array_equal(agent.predict(row), agent.predict(row))
    assert not np.array_equal(agent.predict(row, False), agent.predict(row, False))
    first, second = (agent.predict(row, False, rng=natgrad.Rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, agent.predict(row, False, rng=natgrad.Rng(4)))


@pytest.mark.parametrize(
    ("observation", "match"),
    [
        (np.zeros(4), r"observation has shape \(4,\); wanted \(3,\)"),
        (np.zeros((2, 4)), r"observation has shape \(2, 4\)"),
        (np.array([0, np.nan, 0]), "observations"),
        (np.array([0, np.inf, 0]), "observations"),
        (np.zeros((2, 2, 3)), "shape"),
    ],
)
def test_a_bad_observation_is_refused_by_predict(observation, match):
    agent = natgrad.TRPO(Random, **SMALL)
    for deterministic in (True, False):
        with pytest.raises(ValueError, match=match):
            agent.predict(observation, deterministic)


def test_predicting_and_evaluating_do_not_change_training():
    undisturbed = natgrad.TRPO(Random, **SMALL).learn(256)

    def disturb(agent, log):
        agent.predict(np.ones((7, 3)), deterministic=False)
        natgrad.evaluate(agent, episodes=2, deterministic=False)

    disturbed = natgrad.TRPO(Random, **SMALL).learn(256, callback=disturb)
    assert contents(disturbed) == contents(undisturbed)


# Evaluation ------------------------------------------------------------------------------------


def test_an_evaluation_repeats_and_its_seed_chooses_the_episodes():
    agent = natgrad.TRPO(Random, **SMALL)
    for deterministic in (True, False):
        first, again, other = (
            natgrad.evaluate(agent, episodes=5, seed=seed, deterministic=deterministic)
            for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first.returns, again.returns)
        np.testing.assert_array_equal(first.lengths, again.lengths)
        assert not np.array_equal(first.returns, other.returns)
    more = natgrad.evaluate(agent, episodes=8, seed=1)
    np.testing.assert_array_equal(
        more.returns[:5], natgrad.evaluate(agent, episodes=5, seed=1).returns
    )
    assert more.mean == more.returns.mean()
    assert more.std == more.returns.std()
    assert str(more) == f"{more.mean:.2f} ± {more.std:.2f} over 8 episodes"


def test_an_evaluation_counts_whole_episodes_of_the_environment_it_is_given():
    agent = natgrad.TRPO(Counting, **SMALL)
    for env in (None, Counting, Counting()):
        result = natgrad.evaluate(agent, env, episodes=4)
        np.testing.assert_array_equal(result.lengths, [3, 2, 3, 2])
        np.testing.assert_array_equal(result.returns, [6, 3, 6, 3])
    with pytest.raises(ValueError, match="episodes is 0; wanted at least 1"):
        natgrad.evaluate(agent, episodes=0)
    with pytest.raises(ValueError, match="gymnasium cannot make 'Nothing-v0'"):
        natgrad.evaluate(agent, "Nothing-v0")


def test_a_given_environment_is_left_open_and_others_are_closed():
    closed = []

    class Closing(Counting):
        def close(self):
            closed.append(self)

    agent = natgrad.TRPO(Counting, **SMALL)
    natgrad.evaluate(agent, Closing(), episodes=1)
    assert not closed
    natgrad.evaluate(agent, Closing, episodes=1)
    assert len(closed) == 1


def test_an_agent_of_a_vector_environment_needs_another_to_be_evaluated_in():
    agent = natgrad.TRPO(SyncVectorEnv([Counting]), **SMALL).learn(64)
    with pytest.raises(ValueError, match="was given a VectorEnv and cannot make another"):
        natgrad.evaluate(agent)
    assert natgrad.evaluate(agent, Counting, episodes=2).lengths.tolist() == [3, 2]


# Reproducibility -------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [natgrad.TRPO, natgrad.NPG])
def test_the_bound_falls_linearly_to_the_end_of_training(algorithm):
    options = {**SMALL, "max_kl": 1e-3, "max_kl_end": 0.1}
    agent = algorithm("CartPole-v1", **options)
    size, seen = options["batch_size"], []
    agent.learn(10 * size, callback=lambda _, log: seen.append(log["train/kl_divergence_loss"]))
    bounds = 1e-3 * (1 - 0.9 * np.arange(10) / 10)
    slack = 1.0 if algorithm is natgrad.TRPO else 1.5  # without a search the bound holds roughly
    assert (np.array(seen) <= slack * bounds).all()
    assert (np.array(seen) > 0.3 * bounds).all()
    assert agent._update.max_kl == pytest.approx(bounds[-1], rel=1e-12)
    agent.learn(10 * size)  # the second call is the second half
    assert agent._update.max_kl == pytest.approx(1e-3 * (1 - 0.9 * 19 / 20), rel=1e-12)


@pytest.mark.parametrize("n_envs", [1, 3])
@every_algorithm
@pytest.mark.parametrize("make", [Random, Discrete], ids=["Box", "Discrete"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(algorithm, make, n_envs):
    first, again, other = (
        algorithm(make, **SMALL, n_envs=n_envs, seed=seed).learn(200) for seed in (5, 5, 6)
    )
    assert contents(first) == contents(again)
    assert parameters(first) != parameters(other)


@every_algorithm
@pytest.mark.parametrize("critic", ["gauss_newton", "adam"])
def test_learning_twice_is_learning_once(algorithm, critic):
    once, twice = (algorithm("CartPole-v1", **SMALL, n_envs=2, critic=critic) for _ in range(2))
    once.learn(6 * 64)
    twice.learn(2 * 64).learn(64).learn(3 * 64)
    assert contents(once) == contents(twice)


def test_learning_takes_whole_updates():
    agent = natgrad.TRPO("CartPole-v1", **SMALL, n_envs=3)
    agent.learn(1)
    assert (agent.num_timesteps, agent.num_updates) == (66, 1)  # 22 steps of three
    agent.learn(67)
    assert (agent.num_timesteps, agent.num_updates) == (198, 3)


@pytest.mark.parametrize(
    "steps", [0, -5, 2.5, float("inf"), float("nan"), "many", None, True, [1000]]
)
def test_a_number_of_steps_that_is_none_is_refused(steps):
    agent = natgrad.TRPO("CartPole-v1", **SMALL)
    with pytest.raises((ValueError, TypeError), match=r"total_timesteps is .*wanted"):
        agent.learn(steps)


def test_policy_and_critic_do_not_start_from_the_same_weights():
    agent = natgrad.TRPO("CartPole-v1", **SMALL)
    size = agent.policy.layout[0].size
    assert not np.array_equal(agent.policy.parameters[:size], agent.critic.parameters[:size])


# Nothing to learn ------------------------------------------------------------------------------


@every_algorithm
@pytest.mark.parametrize("reward", ["zero", "constant"])
def test_rewards_without_information_do_no_harm(algorithm, reward):
    agent = algorithm(functools.partial(Random, reward=reward), **SMALL)
    for log in history(agent, 20 * 64):
        assert log["train/status"] in ("ACCEPTED", "ZERO_ADVANTAGES", "LINE_SEARCH_FAILED")
        if log["train/status"] == "ACCEPTED" and algorithm is natgrad.TRPO:
            assert log["train/kl_divergence_loss"] <= agent.config.max_kl
    assert np.isfinite(agent.policy.parameters).all()
    assert np.isfinite(agent.critic.parameters).all()


@every_algorithm
def test_zero_advantages_change_nothing_and_are_no_failure(algorithm):
    """Without values and rewards all advantages are exactly 0."""
    agent = algorithm(
        functools.partial(Random, reward="zero"), **SMALL, normalize_observations=False
    )
    agent.critic.parameters = np.zeros_like(agent.critic.parameters)
    start = agent.policy.parameters.tobytes()
    logs = history(agent, 10 * 64)
    assert {log["train/status"] for log in logs} == {"ZERO_ADVANTAGES"}
    assert all(log["train/message"] for log in logs)
    assert agent.policy.parameters.tobytes() == start


# Stalling --------------------------------------------------------------------------------------


@every_algorithm
def test_training_stops_after_five_failed_updates_with_the_agent_as_it_was(algorithm):
    agent = algorithm(Discrete, **SMALL).learn(64)
    agent.policy.parameters[3] = np.nan  # a view of the core's memory
    broken = agent.policy.parameters.tobytes()
    logs = []
    with pytest.raises(
        natgrad.agents.TrainingStalled,
        match="5 updates in a row failed, the last one with NON_FINITE: ",
    ):
        agent.learn(6400, callback=lambda _, log: logs.append(log))
    assert [log["train/status"] for log in logs] == ["NON_FINITE"] * 5
    assert agent.policy.parameters.tobytes() == broken
    with pytest.raises(natgrad.agents.TrainingStalled, match="6 updates in a row"):
        agent.learn(6400)


@every_algorithm
def test_one_good_update_forgives_the_failures_before(algorithm):
    agent = algorithm(Discrete, **SMALL).learn(64)
    good = np.array(agent.policy.parameters)
    statuses = []

    def damage(agent, log):
        statuses.append(log["train/status"])
        agent.policy.parameters[:] = good if len(statuses) % 5 == 4 else np.nan

    agent.learn(12 * 64, callback=damage)
    assert statuses.count("NON_FINITE") == 9
    assert statuses.count("ACCEPTED") == 3


# Callbacks -------------------------------------------------------------------------------------


class Recorder(natgrad.agents.Callback):
    def __init__(self, name="", events=None, fail_at=None):
        self.name, self.events, self.fail_at = name, [] if events is None else events, fail_at

    def _note(self, event):
        self.events.append(self.name + event)
        if event == self.fail_at:
            raise ZeroDivisionError(event)

    def on_training_start(self, agent):
        self._note("start")

    def on_update_end(self, agent, log):
        self._note("update")

    def on_training_end(self, agent):
        self._note("end")


def test_callbacks_are_called_in_order_and_ended_in_reverse():
    events = []
    agent = natgrad.TRPO(Random, **SMALL)
    agent.learn(128, callback=[Recorder("a ", events), Recorder("b ", events)])
    updates = ["a update", "b update"] * 2
    assert events == ["a start", "b start", *updates, "b end", "a end"]


@pytest.mark.parametrize("where", ["start", "update", "end"])
@pytest.mark.parametrize("first", [True, False])
def test_a_callback_that_fails_does_not_keep_others_from_ending(tmp_path, where, first):
    good, bad = Recorder(), Recorder(fail_at=where)
    agent = natgrad.TRPO(Random, **SMALL)
    with pytest.raises(ZeroDivisionError, match=where):
        agent.learn(
            64, callback=[good, bad] if first else [bad, good], progress_bar=True, run_dir=tmp_path
        )
    assert good.events[-1] == bad.events[-1] == "end"
    assert agent.num_updates == (0 if where == "start" else 1)
    assert agent.learn(64).num_updates >= 1


def test_a_function_can_stop_training_and_add_to_the_log(tmp_path):
    agent = natgrad.TRPO(Random, **SMALL)

    def third(agent, log):
        log["mine/number"] = 7 * agent.num_updates
        return agent.num_updates < 3

    agent.learn(6400, callback=third, run_dir=tmp_path)
    assert agent.num_updates == 3
    last = (tmp_path / "progress.csv").read_text().splitlines()
    assert "mine/number" in last[0]
    assert ",21" in last[-1] or last[-1].startswith("21,")


@pytest.mark.parametrize("answer", [None, True, 0, np.False_])
def test_only_false_stops(answer):
    agent = natgrad.TRPO(Random, **SMALL)
    agent.learn(128, callback=lambda agent, log: answer)
    assert agent.num_updates == (1 if answer is np.False_ else 2)


@pytest.mark.parametrize("callback", [5, "stop", [5], [None]])
def test_what_is_no_callback_is_refused(callback):
    with pytest.raises(TypeError, match=r"callback is .*; wanted a Callback or a function"):
        natgrad.TRPO(Random, **SMALL).learn(64, callback=callback)


def test_training_stops_at_the_wanted_return():
    agent = natgrad.TRPO("CartPole-v1", batch_size=512)
    logs = history(agent, 512)
    agent.learn(200_000, callback=natgrad.agents.StopOnReturn(60))
    assert len(agent.recent_episodes) >= 20
    mean = np.mean([episode.total_reward for episode in agent.recent_episodes])
    assert 60 <= mean < 120
    assert logs[0]["rollout/ep_rew_mean"] < 60
    patient = natgrad.TRPO("CartPole-v1", batch_size=512)
    patient.learn(512, callback=natgrad.agents.StopOnReturn(1, episodes=10**6))
    assert patient.learn(1024, natgrad.agents.StopOnReturn(1, episodes=10**6)).num_updates == 3


def test_an_evaluation_callback_logs_and_keeps_the_best(tmp_path):
    callback = natgrad.agents.EvalCallback(2, 3, best_path=tmp_path / "best.npz")
    agent = natgrad.TRPO("CartPole-v1", batch_size=256)
    logs = []
    agent.learn(256 * 7, callback=[callback, lambda _, log: logs.append(log.copy())])
    means = [log["eval/mean_reward"] for log in logs if "eval/mean_reward" in log]
    assert [("eval/mean_reward" in log) for log in logs] == [False, True] * 3 + [False]
    assert callback.best.mean == max(means)
    best = natgrad.TRPO.load(tmp_path / "best.npz")
    assert natgrad.evaluate(best, episodes=3).mean == max(means)
    assert best.num_updates == 2 * (1 + means.index(max(means)))
    assert {"eval/std_reward", "eval/mean_ep_length"} <= logs[1].keys()
    with pytest.raises(ValueError, match="every is 0"):
        natgrad.agents.EvalCallback(0)


def test_a_resumed_training_keeps_the_best_agent_of_the_one_before(tmp_path):
    path = tmp_path / "best.npz"
    agent = natgrad.TRPO("CartPole-v1", batch_size=256)
    agent.learn(256 * 6, callback=natgrad.agents.EvalCallback(6, 3, best_path=path))
    good = natgrad.evaluate(agent, episodes=3).mean

    bad = natgrad.TRPO("CartPole-v1", batch_size=256).learn(256)
    before = path.read_bytes()
    callback = natgrad.agents.EvalCallback(1, 3, best_path=path)
    bad.learn(256, callback=callback)
    assert callback.best.mean == good > natgrad.evaluate(bad, episodes=3).mean
    assert path.read_bytes() == before

    fresh = natgrad.agents.EvalCallback(1, 3, best_path=path)  # a training of its own starts over
    natgrad.TRPO("CartPole-v1", batch_size=256).learn(256, callback=fresh)
    assert fresh.best.mean < good
    assert path.read_bytes() != before

    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="the best agent is sought anew"):
        bad.learn(256, callback=(callback := natgrad.agents.EvalCallback(1, 3, best_path=path)))
    assert natgrad.evaluate(natgrad.TRPO.load(path), episodes=3).mean == callback.best.mean


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("CartPole-v1", {"env_options": {"sutton_barto_reward": True}}),
        (Random, {}),  # has no id
        (lambda: gymnasium.wrappers.TimeLimit(gymnasium.make("CartPole-v1"), 7), {}),
    ],
    ids=["options", "class", "wrapped"],
)
def test_the_best_agent_is_evaluated_where_the_others_are(tmp_path, env, options):
    path = tmp_path / "best.npz"
    agent = natgrad.TRPO(env, batch_size=64, **options)
    agent.learn(64, callback=(first := natgrad.agents.EvalCallback(1, 3, best_path=path)))
    second = natgrad.agents.EvalCallback(10**6, 3, best_path=path)
    agent.learn(64, callback=second)
    np.testing.assert_array_equal(second.best.returns, first.best.returns)


def test_a_checkpoint_callback_keeps_the_newest_files(tmp_path):
    callback = natgrad.agents.CheckpointCallback(tmp_path / "deep" / "folder", every=2, keep=2)
    agent = natgrad.TRPO(Random, **SMALL).learn(64 * 9, callback=callback)
    files = sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir())
    assert files == ["checkpoint-000000008.npz", "checkpoint-000000009.npz"]
    newest = natgrad.TRPO.load(tmp_path / "deep" / "folder" / files[-1], Random)
    assert contents(newest) == contents(agent)
    for bad in ({"every": 0}, {"keep": 0}):
        with pytest.raises(ValueError, match="wanted at least 1"):
            natgrad.agents.CheckpointCallback(tmp_path, **bad)


def test_the_progress_bar_is_on_stderr_and_reaches_its_end(capfd):
    natgrad.TRPO(Random, **SMALL).learn(256, progress_bar=True)
    output, errors = capfd.readouterr()
    assert output == ""
    last = errors.rpartition("\r")[2]
    assert "256/256" in last
    for part in ("return ", " kl ", " cg ", "/s ", " left"):
        assert part in last


def test_the_progress_bar_fits_into_80_columns():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    code = "natgrad.TRPO(Random, **SMALL).learn(1000, progress_bar=True)"
    process = popen("-c", f"import natgrad; from environments import *; {code}", stderr=theirs)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # what a terminal says when nobody is left
        while part := os.read(ours, 4096):
            text += part
    os.close(ours)
    process.communicate()
    assert process.returncode == 0
    lines = [line for line in re.split("[\r\n]+", text.decode()) if line.strip()]
    assert all(len(line) <= 80 for line in lines), lines
    assert "1.00k/1.00k" in lines[-1]  # the last update goes beyond, the bar does not
    assert "█" in lines[-1]


def test_the_table_is_on_stdout_with_every_number(capfd):
    agent = natgrad.TRPO(Random, **SMALL)
    logs = history(agent, 128, log=True)
    output, errors = capfd.readouterr()
    assert errors == ""
    assert output.count("| train/") == 2
    for key in logs[0]:
        assert output.count(f"   {key.rpartition('/')[2]} ") >= 2, key
    widths = {len(line) for line in output.splitlines()[: len(output.splitlines()) // 2]}
    assert len(widths) == 1


def test_silence_is_the_default(capfd):
    natgrad.TRPO(Random, **SMALL).learn(128)
    assert capfd.readouterr() == ("", "")


def test_the_log_agrees_with_the_agent():
    agent = natgrad.TRPO("CartPole-v1", **SMALL, n_envs=2)
    for k, log in enumerate(history(agent, 64 * 5), start=1):
        assert log["time/iterations"] == log["train/n_updates"] == k
        assert log["time/total_timesteps"] == 64 * k
        assert 0 < log["time/rollout"] + log["time/update"] < log["time/time_elapsed"]
    assert log["rollout/ep_rew_mean"] == pytest.approx(
        np.mean([episode.total_reward for episode in agent.recent_episodes])
    )
    assert agent.num_episodes == len(agent.recent_episodes)
    assert log["train/status"] == "ACCEPTED"
    assert 0 < log["train/entropy"] <= np.log(2) + 1e-6


def test_the_log_of_a_gaussian_has_its_standard_deviation():
    agent = natgrad.TRPO(Random, **SMALL, log_std_init=-0.5)
    log = history(agent, 64)[-1]
    assert log["train/std"] == pytest.approx(np.exp(agent.policy.parameters[-2:]).mean())
    assert "train/std" not in history(natgrad.TRPO(Discrete, **SMALL), 64)[-1]
    squashed = natgrad.TRPO(Random, **SMALL, log_std_init=-0.5, distribution="squashed")
    assert "train/std" in history(squashed, 64)[-1]


# Interrupts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
def test_a_signal_gives_up_the_rollout_and_nothing_else(tmp_path, kind):
    trouble = Trouble(tmp_path)
    agent = natgrad.TRPO(trouble.make, **SMALL).learn(64)
    before = contents(agent)
    trouble.start(kind, episode=agent.num_episodes + 2)
    with pytest.raises(KeyboardInterrupt, match=f"interrupted by {kind} after 64 steps; no run_d"):
        agent.learn(640)
    assert contents(agent) == before
    trouble.stop()
    assert parameters(agent.learn(128)) == parameters(natgrad.TRPO(Random, **SMALL).learn(192))


def test_a_second_signal_interrupts_at_once(tmp_path):
    trouble = Trouble(tmp_path)
    agent = natgrad.TRPO(trouble.make, **SMALL).learn(64)
    before = contents(agent)
    trouble.start("two signals", episode=agent.num_episodes + 2)
    with pytest.raises(KeyboardInterrupt) as caught:
        agent.learn(640)
    assert not isinstance(caught.value, natgrad.agents.TrainingInterrupted)
    assert contents(agent) == before


def test_a_signal_in_a_callback_lets_the_update_count(tmp_path):
    agent = natgrad.TRPO(Random, **SMALL)
    with pytest.raises(
        natgrad.agents.TrainingInterrupted, match="after 64 steps; saved to "
    ) as caught:
        agent.learn(
            640, callback=lambda *_: signal.raise_signal(signal.SIGTERM), run_dir=tmp_path / "run"
        )
    saved = str(caught.value).partition("saved to ")[2]
    assert contents(natgrad.TRPO.load(saved, Random)) == contents(agent)


def test_signal_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    inside = []
    natgrad.TRPO(Random, **SMALL).learn(
        64, callback=lambda *_: inside.append(signal.getsignal(signal.SIGINT))
    )
    assert inside[0] != before[0]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_agents_learn_in_threads():
    agents = [natgrad.TRPO(Random, **SMALL) for _ in range(3)]
    threads = [threading.Thread(target=agent.learn, args=(320,)) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = parameters(natgrad.TRPO(Random, **SMALL).learn(320))
    assert [parameters(agent) for agent in agents] == [alone] * 3
