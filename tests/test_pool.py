"""EnvPool as a stepper: Gymnasium's physics, resets in the same step, and exact resumption."""

import importlib.util
import sys

import gymnasium
import numpy as np
import pytest
from environments import SMALL, contents, copy

import natgrad
from natgrad import cli
from natgrad.rollouts.pool import REPLAYED, EnvPoolStepper

needs_pool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="envpool is not installed"
)
VERSIONS = {
    "CartPole": 1,
    "Pendulum": 1,
    "Acrobot": 1,
    "MountainCar": 0,
    "MountainCarContinuous": 0,
}
TASKS = sorted(f"{name}-v{VERSIONS.get(name, 5)}" for name in REPLAYED)
POOLED = {**SMALL, "n_envs": 3, "batch_size": 96, "stepper": "envpool"}


def pooled(task, n=3, seed=0, dtype="float64", **options):
    return natgrad.rollouts.Environments(
        task, n, seed, dtype=dtype, stepper="envpool", options=options or None
    )


def collect(environments, steps, counter=0):
    policy = natgrad.Policy(
        environments.encoder.size, environments.decoder.distribution, (8,), dtype="float64"
    )
    rng = natgrad.Rng(1)
    rng.counter = counter
    return natgrad.rollouts.collect(policy, environments, steps, rng)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"pip install 'natgrad\[envpool\]'"):
        natgrad.TRPO("CartPole-v1", stepper="envpool")


def test_processes_and_a_pool_exclude_each_other():
    with pytest.raises(ValueError, match=r"vectorization is 'async' with stepper 'envpool'"):
        natgrad.TRPO("CartPole-v1", stepper="envpool", vectorization="async")


@needs_pool
def test_what_the_pool_cannot_make_is_refused():
    with pytest.raises(ValueError, match="env: envpool cannot make 'CartPole-v9': KeyError"):
        pooled("CartPole-v9")
    with pytest.raises(ValueError, match=r"env: envpool cannot make 'CartPole-v1': .*nonsense"):
        pooled("CartPole-v1", nonsense=1)
    with pytest.raises(ValueError, match="env_options has 'env_seed', which follows from"):
        pooled("CartPole-v1", env_seed=[1])
    with pytest.raises(TypeError, match="env: EnvPool wants the id of a task; got function"):
        natgrad.rollouts.Environments(lambda: None, stepper="envpool")


@needs_pool
@pytest.mark.parametrize("task", TASKS)
def test_spaces_and_time_limit_are_those_of_gymnasium(task):
    environments, theirs = pooled(task), gymnasium.make(task)
    assert environments.observation_space.shape == theirs.observation_space.shape
    ours = environments.action_space
    if isinstance(ours, gymnasium.spaces.Box):
        np.testing.assert_array_equal(ours.low.astype(np.float32), theirs.action_space.low)
        np.testing.assert_array_equal(ours.high.astype(np.float32), theirs.action_space.high)
    else:
        assert ours == theirs.action_space
    assert environments._pool._limit == theirs.spec.max_episode_steps
    theirs.close()


def set_state(env, row):
    """Puts one of Gymnasium's environments where the pool's observation says."""
    if env.spec.id == "CartPole-v1":
        env.unwrapped.state = tuple(row)
    else:
        hidden = {"Swimmer-v5": 2, "InvertedPendulum-v5": 0}.get(env.spec.id, 1)  # free coordinates
        n = env.unwrapped.model.nq - hidden
        env.unwrapped.set_state(np.concatenate([np.zeros(hidden), row[:n]]), row[n:])


@needs_pool
@pytest.mark.parametrize(
    "task", ["CartPole-v1", "HalfCheetah-v5", "Hopper-v5", "InvertedPendulum-v5", "Swimmer-v5"]
)
def test_the_physics_are_those_of_gymnasium(task):
    rollout = collect(pooled(task, 1), 20)
    env = gymnasium.make(task)
    env.reset(seed=0)
    set_state(env, rollout.observations[0, 0])
    decoder = natgrad.spaces.ActionDecoder(env.action_space)
    for t, action in enumerate(decoder.decode(rollout.actions[:, 0])):
        observation, reward, terminated, truncated, _ = env.step(action)
        # The pool's rewards and CartPole's observations are float32.
        assert rollout.rewards[t, 0] == pytest.approx(reward, rel=1e-5, abs=1e-5)
        assert (rollout.terminated[t, 0], rollout.truncated[t, 0]) == (terminated, truncated)
        if terminated:
            break
        np.testing.assert_allclose(rollout.observations[t + 1, 0], observation, rtol=0, atol=1e-5)
    env.close()


@needs_pool
def test_ends_of_episodes_are_told_apart_and_reset_in_the_same_step():
    rollout = collect(pooled("CartPole-v1", max_episode_steps=15), 200)
    assert rollout.valid.all()
    lengths = np.array([episode.length for episode in rollout.episodes])
    assert lengths.max() == 15
    assert rollout.terminated.any()
    assert rollout.truncated.any()
    ends = rollout.terminated | rollout.truncated
    starts = rollout.observations[1:][ends]
    assert (np.abs(starts) <= 0.05).all()  # where CartPole starts
    where = rollout.truncated & ~rollout.terminated
    assert len(rollout.final_observations) == where.sum()
    assert (np.abs(rollout.final_observations) > 0.05).any(axis=1).all()
    assert len({row.tobytes() for row in starts}) == len(starts)


@needs_pool
def test_an_episode_that_terminates_in_its_last_permitted_step_has_terminated():
    """A pool on its own calls it cut off, and a learner would add the value of a fallen pole."""
    free = collect(pooled("CartPole-v1", 1), 60)
    length = free.episodes[0].length
    assert free.terminated[length - 1, 0]
    limited = collect(pooled("CartPole-v1", 1, max_episode_steps=length), 60)
    assert limited.terminated[length - 1, 0]
    assert limited.episodes[0].length == length


@needs_pool
def test_a_task_without_a_limit_has_none():
    rollout = collect(pooled("Pendulum-v1", max_episode_steps=2**31 - 1), 250)
    assert not rollout.truncated.any()
    assert collect(pooled("Pendulum-v1"), 250).truncated.any()


@needs_pool
def test_every_copy_of_every_run_has_a_stream_of_its_own_whoever_runs_beside_it():
    rows = np.concatenate(
        [pooled("CartPole-v1", 4, seed).begin().observations for seed in range(4)]
    )
    assert len({row.tobytes() for row in rows}) == 16
    alone, among = (collect(pooled("Pendulum-v1", n), 300) for n in (1, 4))
    for name in ("observations", "actions", "rewards", "truncated"):
        np.testing.assert_array_equal(getattr(alone, name)[:, 0], getattr(among, name)[:, 0])


@needs_pool
@pytest.mark.parametrize("task", TASKS)
def test_every_task_that_is_said_to_be_replayed_is(task):
    """After a break in the middle of later episodes: as if there had been none."""
    limit = {"max_episode_steps": 12}
    whole, broken = pooled(task, **limit), pooled(task, **limit)
    collect(whole, 30)
    collect(broken, 30)
    assert (broken.state.episodes >= 2).all()
    assert broken.state.lengths.any()
    broken.close()
    np.testing.assert_array_equal(broken.begin().observations, whole.state.observations)
    first, second = (collect(environments, 30, 30) for environments in (whole, broken))
    for name in ("observations", "rewards", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@needs_pool
@pytest.mark.parametrize("task", ["CartPole-v1", "HalfCheetah-v5"])
def test_going_on_from_a_file_is_never_having_stopped(tmp_path, task):
    agent = natgrad.TRPO(task, **POOLED).learn(192)
    resumed = copy(agent, tmp_path)
    agent.learn(192)
    assert contents(resumed.learn(192)) == contents(agent)


@needs_pool
def test_the_command_line_trains_and_goes_on_with_the_pool(tmp_path, capsys):
    train = ["train", "CartPole-v1", "--stepper", "envpool", "--n-envs", "4", "--batch-size", "128"]
    assert cli.main([*train, "--steps", "256", "--run-dir", str(tmp_path / "run")]) == 0
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--steps", "512"]) == 0
    resumed = natgrad.TRPO.load(tmp_path / "run")
    options = {"n_envs": 4, "batch_size": 128, "stepper": "envpool"}
    assert resumed.num_timesteps == 512
    assert contents(resumed) == contents(natgrad.TRPO("CartPole-v1", **options).learn(512))
    capsys.readouterr()


@needs_pool
def test_the_pool_is_used_and_the_agent_acts_in_gymnasium_s_environment():
    agent = natgrad.TRPO("HalfCheetah-v5", **POOLED).learn(96)
    assert isinstance(agent._environments._vector, EnvPoolStepper)
    evaluation = natgrad.evaluate(agent, "HalfCheetah-v5", episodes=1)
    assert np.isfinite(evaluation.mean)
    assert agent.make_env().spec.id == "HalfCheetah-v5"


@needs_pool
def test_a_task_that_draws_in_its_steps_starts_new_episodes_after_a_break():
    environments = pooled("FrozenLake-v1")
    collect(environments, 30)
    episodes = environments.state.episodes.copy()
    environments.close()
    with pytest.warns(UserWarning, match="EnvPool's episodes of this task cannot be brought back"):
        environments.begin()
    np.testing.assert_array_equal(environments.state.episodes, episodes + 1)
    assert not environments.state.lengths.any()
    collect(environments, 30)


@needs_pool
def test_a_rollout_that_was_given_up_changes_nothing():
    agent, unhurt = (natgrad.TRPO("CartPole-v1", **POOLED).learn(96) for _ in range(2))
    before = contents(agent)
    calls = iter(range(1000))
    with pytest.raises(natgrad.rollouts.rollout.RolloutInterrupted):
        natgrad.rollouts.collect(
            agent.policy, agent._environments, 20, agent._rng, lambda: next(calls) == 10
        )
    assert contents(agent) == before
    assert contents(agent.learn(96)) == contents(unhurt.learn(96))
