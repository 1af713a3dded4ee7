"""Rollouts: the same transitions whoever steps and resets, and nothing learnt from a fault."""

import functools
import itertools

import gymnasium
import numpy as np
import pytest
from environments import SMALL, Counting, Random, Trouble, contents, copy, parameters
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import natgrad

LENGTHS, ENDS = (3, 2, 4), ("terminated", "truncated", "truncated")


def vector(kind, mode, n, make):
    return kind([make] * n, autoreset_mode=mode)


STEPPERS = {
    "sync": lambda n, make: natgrad.rollouts.Environments(make, n, dtype="float64"),
    "async": lambda n, make: natgrad.rollouts.Environments(
        make, n, dtype="float64", vectorization="async"
    ),
    **{
        f"{kind.__name__} {mode.value}": lambda n, make, kind=kind, mode=mode: (
            natgrad.rollouts.Environments(vector(kind, mode, n, make), dtype="float64")
        )
        for kind in (SyncVectorEnv, AsyncVectorEnv)
        for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)
    },
}
every_stepper = pytest.mark.parametrize("stepper", STEPPERS)
counting = functools.partial(Counting, LENGTHS, ENDS)


@pytest.fixture
def made():
    """Environments that are closed after the test, whoever made them."""
    opened = []
    yield opened
    for environments in opened:
        environments.close()
        if environments.make is None:
            environments._vector.close()


def collect(environments, steps, seed=0):
    policy = natgrad.Policy(
        environments.encoder.size, environments.decoder.distribution, (4,), dtype="float64"
    )
    return natgrad.rollouts.collect(policy, environments, steps, natgrad.Rng(seed))


def transitions(rollout, i):
    """(observation, reward, terminated, truncated, what followed in the same episode) of one."""
    ends = zip(*rollout.final_index, strict=True)
    finals = dict(zip(ends, rollout.final_observations.tolist(), strict=True))
    found = []
    for t in np.flatnonzero(rollout.valid[:, i]):
        following = finals.get((t, i), rollout.observations[t + 1, i].tolist())
        terminated = bool(rollout.terminated[t, i])
        found.append(
            (
                rollout.observations[t, i].tolist(),
                float(rollout.rewards[t, i]),
                terminated,
                bool(rollout.truncated[t, i]),
                None if terminated else following,
            )
        )
    return found


def expected_transitions(count):
    found, episode, step = [], 0, 0
    while len(found) < count:
        k = episode % len(LENGTHS)
        done = step + 1 == LENGTHS[k]
        ends = ENDS[k] if done else None
        following = None if ends == "terminated" else [episode, step + 1]
        found.append(
            ([episode, step], step + 1.0, ends == "terminated", ends == "truncated", following)
        )
        episode, step = (episode + 1, 0) if done else (episode, step + 1)
    return found


# Transitions -----------------------------------------------------------------------------------


@every_stepper
@pytest.mark.parametrize("n", [1, 3])
def test_every_way_to_step_and_reset_gives_the_same_transitions(made, stepper, n):
    made.append(environments := STEPPERS[stepper](n, counting))
    masks = "next_step" in stepper.lower().replace("nextstep", "next_step")
    rollout = collect(environments, 30)
    for i in range(n):
        found = transitions(rollout, i)
        # Three episodes take 9 steps, and 3 more rows where resets have a row of their own.
        assert len(found) == (23 if masks else 30)
        assert found == expected_transitions(len(found))
    assert rollout.valid.all() != masks


@every_stepper
def test_a_rollout_in_pieces_is_the_rollout_in_one(made, stepper):
    made.append(whole := STEPPERS[stepper](2, counting))
    made.append(pieces := STEPPERS[stepper](2, counting))
    together = collect(whole, 24)
    parts = [collect(pieces, steps) for steps in (1, 2, 3, 1, 5, 4, 8)]  # cut at, before, after
    for i in range(2):
        joined = [x for part in parts for x in transitions(part, i)]
        assert joined == transitions(together, i)
    episodes = [(e.total_reward, e.length) for part in parts for e in part.episodes]
    assert episodes == [(e.total_reward, e.length) for e in together.episodes]


@every_stepper
def test_returns_and_lengths_of_episodes_are_those_of_the_environment(made, stepper):
    made.append(environments := STEPPERS[stepper](2, counting))
    episodes = [e for _ in range(4) for e in collect(environments, 7).episodes]
    sums = {length: length * (length + 1) / 2 for length in LENGTHS}
    assert len(episodes) >= 12
    for k, episode in enumerate(episodes):
        assert episode.length == LENGTHS[k // 2 % 3]
        assert episode.total_reward == sums[episode.length]


@pytest.mark.parametrize("stepper", ["sync", "async"])
def test_final_observations_survive_an_environment_that_reuses_its_array(made, stepper):
    made.append(environments := STEPPERS[stepper](2, functools.partial(counting, reuse=True)))
    rollout = collect(environments, 30)
    assert len(rollout.final_observations) > 4
    for i in range(2):
        assert transitions(rollout, i) == expected_transitions(30)


def test_a_rollout_is_not_overwritten_by_the_next(made):
    made.append(environments := STEPPERS["async"](2, counting))
    first = collect(environments, 9)
    before = [first.observations.copy(), first.final_observations.copy(), first.rewards.copy()]
    collect(environments, 9)
    after = [first.observations, first.final_observations, first.rewards]
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))


# The actor -------------------------------------------------------------------------------------

BOUNDS = ([-0.5, -np.inf], [0.25, 0.0])
DISTRIBUTIONS = {
    "Categorical": natgrad.Categorical(3),
    "MultiCategorical": natgrad.MultiCategorical((3, 2)),
    "Bernoulli": natgrad.Bernoulli(2),
    "DiagonalGaussian": natgrad.DiagonalGaussian(2),
    "SquashedGaussian": natgrad.SquashedGaussian(2, low=[-0.5, 0.0], high=0.25),
    "Beta": natgrad.Beta(2, low=[-0.5, 0.0], high=0.25),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_an_actor_samples_what_the_policy_does(name, dtype):
    policy = natgrad.Policy(3, DISTRIBUTIONS[name], (8,), dtype=dtype, seed=1)
    observations = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(dtype)
    rng, again = natgrad.Rng(3, 2), natgrad.Rng(3, 2)
    bounds = BOUNDS if name == "DiagonalGaussian" else None
    actor = natgrad._core.Actor(policy, observations, rng, bounds)
    assert len(actor.actions) == len(actor.log_probs) == 4
    for t in range(4):
        actor(t)
        actions, log_probs = policy.sample(observations[t], again)
        np.testing.assert_array_equal(actor.actions[t], actions, strict=True)
        np.testing.assert_array_equal(actor.log_probs[t], log_probs, strict=True)
        assert rng.counter == again.counter
    if name in ("SquashedGaussian", "Beta"):
        sent = DISTRIBUTIONS[name].to_bounds(actor.actions.reshape(-1, 2)).reshape(4, 4, 2)
        np.testing.assert_array_equal(actor.sent, sent.astype(dtype), strict=True)
        with pytest.raises(ValueError, match=r"bounds: want \(low, high\) of a Gaussian's actions"):
            natgrad._core.Actor(policy, observations, rng, BOUNDS)
    elif bounds is None:
        assert actor.sent is None
    else:
        np.testing.assert_array_equal(actor.sent, np.clip(actor.actions, *BOUNDS).astype(dtype))


def test_an_actor_refuses_what_it_cannot_use():
    policy, rows = natgrad.Policy(3, natgrad.DiagonalGaussian(2)), np.zeros((3, 1, 3), np.float32)
    make, rng = natgrad._core.Actor, natgrad.Rng(0)
    for wrong in (rows[:1], rows[:, :, :2], rows.astype(float), rows[:, 0], rows[::2], rows.T):
        with pytest.raises(ValueError, match=r"observations: want a C-contiguous array \(T \+ 1"):
            make(policy, wrong, rng)
    with pytest.raises(TypeError, match="rng: want an Rng, got 5"):
        make(policy, rows, 5)
    with pytest.raises(ValueError, match=r"bounds: want \(low, high\)"):
        make(policy, rows, rng, [0.0])
    with pytest.raises(ValueError, match=r"bounds\[1\]: want shape \(2,\)"):
        make(policy, rows, rng, ([0, 0], [1]))
    actor = make(policy, rows, rng)
    for t in (-1, 2):
        with pytest.raises(ValueError, match=f"t: want a step from 0 to 1, got {t}"):
            actor(t)
    rows[1, 0, 2] = np.nan
    actor(0)
    with pytest.raises(ValueError, match=r"observations\[1\]: want finite numbers"):
        actor(1)
    assert rng.counter == 1


def test_what_an_environment_does_to_its_action_is_not_what_was_sampled():
    class Greedy(Random):
        def step(self, action):
            action *= 0
            return super().step(action)

    for dtype in ("float32", "float64"):  # of the space, and another
        environments = natgrad.rollouts.Environments(Greedy, dtype=dtype)
        policy = natgrad.Policy(3, environments.decoder.distribution, dtype=dtype)
        rollout = natgrad.rollouts.collect(policy, environments, 20, natgrad.Rng(0))
        assert (rollout.actions != 0).all()
        np.testing.assert_allclose(
            policy.log_prob(rollout.observations[:-1, 0], rollout.actions[:, 0]),
            rollout.log_probs[:, 0],
            rtol=1e-5,
        )


# Advantages ------------------------------------------------------------------------------------


def counting_agent(env, **options):
    """Its critic predicts twice the number of the step."""
    agent = natgrad.TRPO(
        env, gamma=0.5, gae_lambda=0.5, dtype="float64", critic_hidden=(), hidden=(4,), **options
    )
    agent.critic.parameters = [0.0, 2.0, 0.0]
    return agent


def advantages(agent, steps):
    rollout = natgrad.rollouts.collect(agent.policy, agent._environments, steps, natgrad.Rng(0))
    advantages, returns = agent._advantages(rollout)
    return [x.T[rollout.valid.T] for x in (advantages, returns)]


def test_truncation_bootstraps_and_termination_does_not():
    """Rewards 1, 2, ... and values 0, 2, 4, ..., discount and lambda a half, by hand.

    Terminated after 3 steps: residuals 1 + 1 - 0, 2 + 2 - 2 and 3 - 4, since nothing follows.
    Truncated after 2 steps: 1 + 1 - 0 and 2 + 2 - 2, since the value 4 of the final observation
    follows. Then one step of an episode that the rollout cuts off: 1 + 1 - 0.
    """
    agent = counting_agent(functools.partial(Counting, (3, 2), ("terminated", "truncated")))
    by_hand = [2 + (2 - 1 / 4) / 4, 2 - 1 / 4, -1, 2 + 2 / 4, 2, 2]
    found, returns = advantages(agent, 6)
    np.testing.assert_allclose(found, by_hand, rtol=1e-15)
    values = np.array([0, 2, 4, 0, 2, 0])
    np.testing.assert_allclose(returns, by_hand + values, rtol=1e-15)


def test_a_step_that_both_terminates_and_truncates_counts_as_terminated():
    class Both(Counting):
        def step(self, action):
            observation, reward, done, _, info = super().step(action)
            return observation, reward, done, done, info

    both = counting_agent(functools.partial(Both, (3,), ("terminated",)))
    plain = counting_agent(functools.partial(Counting, (3,), ("terminated",)))
    np.testing.assert_array_equal(advantages(both, 9), advantages(plain, 9))


@every_stepper
def test_advantages_are_the_same_however_the_environment_resets(made, stepper):
    made.append(environments := STEPPERS[stepper](2, counting))
    agent = counting_agent(counting, n_envs=2)
    want = [x.reshape(2, -1)[:, :18] for x in advantages(agent, 18)]  # two rounds of the lengths
    agent._environments.close()
    agent._environments = environments
    rows = 18 + 5 * environments.next_step_reset  # one more for each reset before the last row
    found = [x.reshape(2, -1) for x in advantages(agent, rows)]
    np.testing.assert_array_equal(found, want)


def test_an_agent_learns_the_same_from_every_mode_that_resets_in_the_same_step(made):
    agents = []
    for stepper in ("sync", "async", "SyncVectorEnv SameStep", "AsyncVectorEnv SameStep"):
        agent = counting_agent(counting, n_envs=2, batch_size=40)
        made.append(agent._environments)
        if "Vector" in stepper:
            agent._environments = STEPPERS[stepper](2, counting)
            made.append(agent._environments)
        agents.append(parameters(agent.learn(120)))
    assert len(set(agents)) == 1


def test_rows_that_only_reset_are_neither_learnt_from_nor_counted(made):
    agent = counting_agent(counting, n_envs=2, batch_size=60)
    agent._environments = STEPPERS["SyncVectorEnv NextStep"](2, counting)
    made.append(agent._environments)
    agent.learn(1)
    assert agent.num_timesteps == 2 * 23  # of 30 rows
    assert agent._moments.count == 2 * 23
    steps = [observation[1] for observation, *_ in expected_transitions(23)]
    np.testing.assert_allclose(agent._moments.mean[1], np.mean(steps), rtol=1e-14)


# Seeds -----------------------------------------------------------------------------------------


def first_observations(n_envs, seed, vectorization="sync"):
    environments = natgrad.rollouts.Environments(
        "CartPole-v1", n_envs, seed, vectorization=vectorization
    )
    rows = environments.begin().observations.copy()
    environments.close()
    return rows


def test_every_environment_of_every_run_has_a_stream_of_its_own():
    rows = np.concatenate([first_observations(4, seed) for seed in range(4)])
    assert len({row.tobytes() for row in rows}) == 16


def test_episodes_of_one_environment_differ():
    environments = natgrad.rollouts.Environments("CartPole-v1")
    rollout = collect(environments, 200)
    starts = rollout.observations[:-1][np.roll(rollout.terminated, 1, axis=0)]
    assert len(starts) > 3
    assert len({row.tobytes() for row in starts}) == len(starts)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_an_environment_goes_through_the_same_however_many_run_beside_it(env):
    alone, among = (collect(natgrad.rollouts.Environments(env, n), 100) for n in (1, 4))
    for name in ("observations", "actions", "rewards", "terminated"):
        np.testing.assert_array_equal(getattr(alone, name)[:, 0], getattr(among, name)[:, 0])
    assert len({among.observations[:, i].tobytes() for i in range(4)}) == 4
    assert len({among.actions[:, i].tobytes() for i in range(4)}) == 4


def test_processes_do_not_change_the_streams():
    np.testing.assert_array_equal(first_observations(3, 5), first_observations(3, 5, "async"))


def test_a_vector_environment_gets_one_seed_each(made):
    make = functools.partial(gymnasium.make, "CartPole-v1")
    made.append(foreign := natgrad.rollouts.Environments(SyncVectorEnv([make] * 4), seed=3))
    assert len({row.tobytes() for row in foreign.begin().observations}) == 4
    foreign._vector.close()
    make = functools.partial(gymnasium.make, "CartPole-v1")
    made.append(again := natgrad.rollouts.Environments(SyncVectorEnv([make] * 4), seed=3))
    np.testing.assert_array_equal(again.begin().observations, first_observations(4, 3))


# What is refused -------------------------------------------------------------------------------


def test_a_vector_environment_that_does_not_reset_itself_is_refused():
    env = vector(SyncVectorEnv, AutoresetMode.DISABLED, 2, counting)
    with pytest.raises(ValueError, match=r"env: .* autoreset mode DISABLED; wanted SAME_STEP or"):
        natgrad.TRPO(env)
    env.close()


@pytest.mark.parametrize("metadata", [{}, None, {"autoreset_mode": "Whenever"}])
def test_a_vector_environment_that_does_not_say_how_it_resets_is_refused(metadata):
    env = SyncVectorEnv([counting])
    env.metadata = metadata
    with pytest.raises(ValueError, match=r"metadata\['autoreset_mode'\] is .*; wanted"):
        natgrad.TRPO(env)
    env.close()


@pytest.mark.parametrize("env", [5, None, Counting(), ["CartPole-v1"]])
def test_what_is_no_environment_is_refused(env):
    with pytest.raises(TypeError, match="env must be the id of a registered environment"):
        natgrad.TRPO(env)


def test_an_unknown_environment_is_refused_with_its_name():
    with pytest.raises(ValueError, match="env: gymnasium cannot make 'CartPole-v7'"):
        natgrad.TRPO("CartPole-v7")
    with pytest.raises(ValueError, match=r"env: gymnasium cannot make .*unknown_option"):
        natgrad.TRPO("CartPole-v1", env_options={"unknown_option": 1})


def test_options_for_gymnasium_need_an_environment_by_id():
    with pytest.raises(ValueError, match=r"env_options go to gymnasium\.make"):
        natgrad.TRPO(counting, env_options={"length": 3})


# Faults ----------------------------------------------------------------------------------------


def discard(env):
    """Closes a vector environment that waits for dead workers, which its `close` would too."""
    for process in getattr(env, "processes", []):
        process.kill()
        process.join()
    env.closed = True


FAULTS = {  # kind of trouble: what is said about it
    "NaN observation": r"environment 1 returned the observation \[.*nan.*\] at step \d+ of the",
    "infinite observation": r"environment 1 returned the observation \[.*-inf.*\] at step \d+",
    "NaN final observation": r"environment 1 ended an episode with the observation \[.*nan.*\] at",
    "NaN reward": r"environment 1 returned the reward \[nan\] at step \d+ of the rollout",
    "infinite reward": r"environment 1 returned the reward \[inf\] at step \d+ of the rollout",
    "wide observation": r"environment 1 failed in step\(\) of episode 5, step 3: .*\(4,\); wanted",
    "no observation": r"environment 1 failed in step\(\) of episode 5, step 3: ",
    "text observation": r"environment 1 failed in step\(\) of episode 5, step 3: .*could not conv",
    "no reward": r"environment 1 failed in step\(\) of episode 5, step 3: TypeError",
    "vector reward": r"environment 1 failed in step\(\) of episode 5, step 3: TypeError",
    "exception": r"environment 1 failed in step\(\) of episode 5, step 3: OSError: the simulator",
    "death": "the worker process of environment 1 died",
}
RESET_FAULTS = {
    "NaN observation": r"environment 1 returned the observation \[.*nan.*\] at step \d+ of the",
    "wide observation": r"environment 1 failed in reset\(\) of episode 5, step 0: .*\(4,\); wanted",
    "exception": r"environment 1 failed in reset\(\) of episode 5, step 0: OSError: the simulator",
    "death": "the worker process of environment 1 died",
}
CASES = [(kind, 3, match) for kind, match in FAULTS.items()]
CASES += [(kind, 0, match) for kind, match in RESET_FAULTS.items()]
THREE = {**SMALL, "n_envs": 3, "batch_size": 90}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("kind", "step", "match"), CASES, ids=[f"{kind} at {step}" for kind, step, _ in CASES]
)
def test_a_fault_names_its_place_changes_nothing_and_is_forgotten_once_repaired(
    tmp_path, kind, step, match, vectorization
):
    if kind == "death" and vectorization == "sync":
        return  # an environment in our own process takes us with it
    trouble = Trouble(tmp_path)
    unhurt = natgrad.TRPO(Random, **THREE).learn(90)
    agent = natgrad.TRPO(trouble.make, **THREE, vectorization=vectorization).learn(90)
    before = contents(agent)
    trouble.start(kind, environment=1, episode=5, step=step)
    for _ in range(2):  # it persists, and nothing is remembered of the first time
        with pytest.raises(natgrad.rollouts.EnvironmentFault, match=match):
            agent.learn(900)
        assert contents(agent) == before
    trouble.stop()
    agent.learn(180)
    assert parameters(agent) == parameters(unhurt.learn(180))
    agent.close()


def test_a_worker_that_is_killed_between_updates_is_replaced():
    agent = natgrad.TRPO(Random, **THREE, vectorization="async").learn(90)
    before = contents(agent)
    agent._environments._vector.processes[2].kill()
    with pytest.raises(
        natgrad.rollouts.EnvironmentFault, match="worker process of environment 2 died"
    ):
        agent.learn(90)
    assert contents(agent) == before
    assert parameters(agent.learn(90)) == parameters(natgrad.TRPO(Random, **THREE).learn(180))
    agent.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_environments_that_are_closed_between_updates_are_built_again(vectorization):
    agent = natgrad.TRPO(Random, **THREE, vectorization=vectorization)
    for _ in range(3):
        agent.learn(90)
        agent.close()
    assert parameters(agent) == parameters(natgrad.TRPO(Random, **THREE).learn(270))


def test_an_environment_that_ignores_its_seed_starts_a_new_episode_after_a_break():
    seeds = itertools.count()

    class Fickle(Random):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=next(seeds))

    agent = natgrad.TRPO(Fickle, **THREE).learn(90)
    agent.close()
    episodes = agent._environments.state.episodes.copy()
    with pytest.warns(UserWarning, match=r"environments \[.*\] did not come back to their last"):
        agent.learn(90)
    assert (agent._environments.state.episodes > episodes).all()


def test_an_episode_too_long_to_be_replayed_starts_anew_after_a_break(monkeypatch):
    monkeypatch.setattr("natgrad.rollouts.rollout.LONGEST_REPLAY", 20)
    endless = functools.partial(Counting, (10**9,), ("terminated",))
    agent = natgrad.TRPO(endless, **SMALL).learn(64)
    agent.learn(64)
    assert agent._environments.state.lengths == 128
    agent.close()
    with pytest.warns(UserWarning, match="the episode of environment 0 is too long to be replayed"):
        agent.learn(64)
    assert agent._environments.state.lengths == 64


@pytest.mark.parametrize("step", [0, 3])
def test_a_fault_in_the_first_rollout_leaves_a_new_agent(tmp_path, step):
    trouble = Trouble(tmp_path)
    trouble.start("exception", environment=2, step=step)
    agent = natgrad.TRPO(trouble.make, **THREE)
    with pytest.raises(
        natgrad.rollouts.EnvironmentFault, match=r"environment 2 failed in .* of episode 0,"
    ):
        agent.learn(90)
    assert contents(agent) == contents(natgrad.TRPO(Random, **THREE))
    trouble.stop()
    assert parameters(agent.learn(90)) == parameters(natgrad.TRPO(Random, **THREE).learn(90))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_cannot_be_built_again_is_a_fault(tmp_path, vectorization):
    broken = tmp_path / "broken"

    def make():
        if broken.exists():
            raise OSError("no licence left")
        return Random()

    agent = natgrad.TRPO(make, **THREE, vectorization=vectorization)
    before = contents(agent)
    broken.touch()
    with pytest.raises(natgrad.rollouts.EnvironmentFault, match="OSError: no licence left"):
        agent.learn(90)
    assert contents(agent) == before
    broken.unlink()
    assert parameters(agent.learn(90)) == parameters(natgrad.TRPO(Random, **THREE).learn(90))
    agent.close()


@pytest.mark.parametrize(
    "kind",
    [
        "NaN observation",
        "NaN final observation",
        "NaN reward",
        "no observation",
        "exception",
        "death",
    ],
)
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("vectorize", [SyncVectorEnv, AsyncVectorEnv])
def test_a_fault_of_a_foreign_vector_environment_changes_nothing(tmp_path, kind, mode, vectorize):
    if kind == "death" and vectorize is SyncVectorEnv:
        return
    trouble = Trouble(tmp_path)
    trouble.start(kind, environment=1)
    env = vector(vectorize, mode, 3, trouble.make)
    agent = natgrad.TRPO(env, **{**SMALL, "batch_size": 90})
    before = contents(agent)
    with pytest.raises(natgrad.rollouts.EnvironmentFault):
        agent.learn(90)
    assert contents(agent) == before
    with_another = copy(agent, tmp_path, vector(SyncVectorEnv, mode, 3, Random))
    assert contents(with_another) == before
    with_another.learn(90)
    discard(env)


def test_a_policy_of_nan_is_blamed_itself_and_not_the_environment():
    agent = natgrad.TRPO("Pendulum-v1", batch_size=64)
    agent.policy.parameters[:] = np.nan
    with pytest.raises(ValueError, match="policy: its actions are not finite"):
        agent.learn(64)
