"""Small environments against their closed forms, and agents that learn them."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from environments import SMALL
from gymnasium.utils.env_checker import check_env
from scipy import integrate
from test_mdp import differences

import natgrad
from natgrad import cli
from natgrad.mdp import MDP
from natgrad.theory.worlds import FiniteWorld, LinearQuadratic, LineWorld, TwoState, two_state

WORLDS = ("natgrad/LineWorld-v0", "natgrad/TwoState-v0", "natgrad/LinearQuadratic-v0")
every_world = pytest.mark.parametrize("id", WORLDS)


def returns(world, choose, episodes):
    """Of episodes in which `choose(rng, observation)` decides, in units of the document."""
    totals, rng = np.zeros(episodes), np.random.default_rng(1)
    for i in range(episodes):
        observation, _ = world.reset(seed=i)
        over = False
        while not over:
            action = choose(rng, observation)
            observation, reward, over, truncated, _ = world.step(action)
            totals[i] += reward
            assert not truncated
    return totals


def within_standard_error(samples, exact):
    return abs(samples.mean() - exact) < 4 * samples.std() / np.sqrt(len(samples))


@every_world
def test_gymnasiums_checker_has_nothing_to_say(id):
    env = gymnasium.make(id)
    check_env(env.unwrapped)  # warnings are errors
    env.close()


def test_worlds_are_registered_by_their_module_and_by_agents_that_want_one():
    for program in (
        f"import gymnasium; env = gymnasium.make('natgrad.theory.worlds:{WORLDS[0]}')",
        f"import gymnasium, natgrad.theory.worlds; env = gymnasium.make('{WORLDS[1]}')",
        f"import natgrad; env = natgrad.TRPO('{WORLDS[2]}').make_env()",
    ):
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", f"{program}; print(env.spec.id)"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert result.stdout.strip() in WORLDS
        assert result.stdout.strip() in program


# --------------------------------------------------------------------------------------- the line


def test_the_return_of_the_line_is_its_closed_form_and_that_of_episodes():
    world = LineWorld(horizon=6)

    def choose(rng, _):
        return rng.normal(10.0, 14.0, size=1) / world.action_scale

    samples = returns(world, choose, 3000)
    exact = world.expected_return(10.0, 14.0)
    assert within_standard_error(samples, exact)
    squares = sum(t * t for t in range(6)) + 6
    ones = sum(range(6)) + 6
    assert exact == pytest.approx(-(squares * 100 + ones * 196), rel=1e-14)


def test_the_gradient_of_the_line_is_the_one_of_finite_differences():
    world = LineWorld(horizon=9)
    want = differences(lambda x: np.array(world.expected_return(*x)), np.array([10.0, 14.0]))
    np.testing.assert_allclose(world.gradient(10.0, 14.0), want, rtol=1e-7)


def test_the_natural_gradient_of_the_line_is_the_gradient_times_the_variance_and_its_half():
    """As the document says, of (mu, sigma); the core has log sigma and observes nothing but 0."""
    policy = natgrad.Policy(1, natgrad.DiagonalGaussian(1), hidden=(), dtype="float64")
    policy.parameters = [0.0, 10.0, np.log(14.0)]
    F = natgrad.Fisher(policy, np.zeros((3, 1))).to_dense()[1:, 1:]
    to_log = np.diag([1, 1 / 14.0])  # d (mu, log sigma) / d (mu, sigma)
    np.testing.assert_allclose(to_log.T @ F @ to_log, np.diag([1 / 196, 2 / 196]), rtol=1e-12)


def test_an_episode_on_the_line_has_as_many_rewards_as_decisions_of_places_before_the_move():
    world = LineWorld(horizon=2, action_scale=50.0)
    observation, _ = world.reset(seed=0)
    np.testing.assert_array_equal(observation, [0.0])
    observation, reward, terminated, _, _ = world.step(np.array([0.1]))
    assert (observation[0], reward, terminated) == (5.0, -25.0, False)
    observation, reward, terminated, _, _ = world.step(np.array([-3.0]))  # held at -1
    assert (observation[0], reward, terminated) == (-45.0, -25.0 - 2500.0, True)


# ------------------------------------------------------------------------------ the linear system


def test_the_return_of_the_linear_system_is_that_of_episodes():
    world = LinearQuadratic(action_cost=0.5, horizon=8)
    gain, std = -0.5, 0.8

    def choose(rng, x):
        return (gain * x + std * rng.normal(size=1)) / world.action_scale

    assert within_standard_error(returns(world, choose, 4000), world.expected_return(gain, std))


def test_the_moments_of_the_linear_system_are_a_geometric_series():
    world = LinearQuadratic(decay=0.9, noise=0.5, horizon=12)
    q, t = (0.9 - 0.2) ** 2, np.arange(12)
    want = q**t * 0.25 + (0.36 + 0.25) * (1 - q**t) / (1 - q)
    np.testing.assert_allclose(world.second_moments(-0.2, 0.6), want, rtol=1e-12)
    assert world.expected_return(-0.2, 0.6) == pytest.approx(-want.sum())


@pytest.mark.parametrize("cost", [0.0, 0.3])
def test_the_gradient_of_the_linear_system_is_the_one_of_finite_differences(cost):
    world = LinearQuadratic(action_cost=cost)
    want = differences(lambda x: np.array(world.expected_return(*x)), np.array([-0.4, 0.8]))
    np.testing.assert_allclose(world.gradient(-0.4, 0.8), want, rtol=1e-7)


def test_the_fisher_of_the_linear_system_is_the_cores_where_its_states_are():
    world = LinearQuadratic()
    gain, std = -0.5, 0.8
    policy = natgrad.Policy(1, natgrad.DiagonalGaussian(1), hidden=(), dtype="float64")
    policy.parameters = [gain, 0.0, np.log(std)]
    states = np.sqrt(world.second_moments(gain, std))[:, None] * [[1.0, -1.0]]
    F = natgrad.Fisher(policy, states.reshape(-1, 1)).to_dense()[np.ix_([0, 2], [0, 2])]
    to_log = np.diag([1, 1 / std])
    np.testing.assert_allclose(to_log @ F @ to_log, world.fisher(gain, std), rtol=1e-12)


def test_the_fisher_of_the_linear_system_is_the_sampled_one_within_its_standard_error():
    world, rng = LinearQuadratic(horizon=5), np.random.default_rng(0)
    gain, std, episodes = -0.5, 0.8, 4000
    samples = np.zeros((episodes, 2, 2))
    for i in range(episodes):
        x, _ = world.reset(seed=i)
        for _ in range(5):
            e = rng.normal()
            score = np.array([e * x[0] / std, (e * e - 1) / std])
            samples[i] += np.outer(score, score) / 5
            x, *_ = world.step((gain * x + std * e) / world.action_scale)
    error = samples.std(axis=0) / np.sqrt(episodes)
    assert (np.abs(samples.mean(axis=0) - world.fisher(gain, std)) < 4 * error).all()


def test_options_of_the_linear_system_change_it():
    base = LinearQuadratic()
    for options in ({"decay": 0.5}, {"noise": 0.5}, {"action_cost": 1.0}, {"horizon": 10}):
        world = LinearQuadratic(**options)
        assert world.expected_return(-0.5, 0.8) != base.expected_return(-0.5, 0.8)
    for scale in (1.0, 3.0):
        world = LinearQuadratic(noise=0.0, action_scale=scale)
        world.reset(seed=0)
        assert world.step(np.array([1.0]))[0] == scale


def test_the_linear_system_stays_within_its_limits():
    world = LinearQuadratic(decay=3.0, horizon=50)
    observation, _ = world.reset(seed=0)
    for _ in range(50):
        observation, *_ = world.step(np.array([1.0]))
        assert world.observation_space.contains(observation)
    assert observation[0] == LinearQuadratic.LIMIT


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LineWorld(horizon=0), "horizon is 0; wanted an integer >= 1"),
        (lambda: LineWorld(action_scale=0.0), "action_scale is 0.0; wanted a number > 0"),
        (lambda: LinearQuadratic(noise=-1.0), "noise is -1.0; wanted a number >= 0"),
        (lambda: LinearQuadratic(action_cost=np.nan), "action_cost is nan"),
        (lambda: LinearQuadratic(decay=np.inf), "decay is inf; wanted a finite number"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --------------------------------------------------------------------------------- the two states


def sigmoid(theta):
    return 1 / (1 + np.exp(-np.asarray(theta)))


def stay(theta):
    """The table of a policy that stays with probabilities sigmoid(theta)."""
    return np.stack([sigmoid(theta), sigmoid(-np.asarray(theta))], axis=1)


def test_two_states_have_their_closed_forms():
    rng = np.random.default_rng(0)
    for theta in rng.normal(scale=3.0, size=(20, 2)):
        p, c = sigmoid(theta), sigmoid(-theta)
        at = two_state().evaluate(stay(theta))
        assert at.value == pytest.approx((c[1] * p[0] + 2 * c[0] * p[1]) / c.sum(), rel=1e-10)
        np.testing.assert_allclose(at.state_distribution, c[::-1] / c.sum(), rtol=1e-10)
        gains = at.advantages[0, :, 0] - at.advantages[0, :, 1]
        want = np.array([2 - 3 * p[1], 4 - 3 * p[0]]) / c.sum()
        np.testing.assert_allclose(gains, want, rtol=1e-8)


def test_the_plateau_is_as_long_as_its_constant_says():
    """An independent integration of the gradient flow, in closed form, by SciPy."""

    def flow(_, theta):
        p, c = sigmoid(theta), sigmoid(-theta)
        weights = c[0] * c[1] * p / c.sum() ** 2
        return weights * [2 - 3 * p[1], 4 - 3 * p[0]]

    def level(t, theta):
        return two_state().evaluate(stay(theta)).value - 1.5

    level.terminal = True
    for start in ((0.8, 0.1), (0.9, 0.1), (0.8, 0.12)):
        theta = np.log(np.array(start) / (1 - np.array(start)))
        K = theta[0] - 4 * np.exp(-theta[0]) + theta[1] + 2 * np.exp(-theta[1])
        path = integrate.solve_ivp(
            flow, (0, 1e9), theta, "LSODA", events=level, rtol=1e-9, atol=1e-12
        )
        assert path.t_events[0][0] == pytest.approx(np.exp(K) / 4, rel=0.01)
        kept = path.y[0] - 4 * np.exp(-path.y[0]) + path.y[1] + 2 * np.exp(-path.y[1])
        np.testing.assert_allclose(kept, K, rtol=1e-5)


def test_episodes_of_two_states_are_cut_off_and_those_with_a_horizon_end():
    env = gymnasium.make("natgrad/TwoState-v0")
    assert env.reset(seed=0)[0] == 0
    steps = [env.step(np.int64(0)) for _ in range(100)]
    assert [s[1] for s in steps] == [1.0] * 100
    assert [s[2:4] for s in steps] == [(False, False)] * 99 + [(False, True)]
    world = FiniteWorld(two_state(horizon=3))
    world.reset(seed=0)
    played = [world.step(np.int64(a)) for a in (1, 0, 0)]
    assert [(s[0], s[1], s[2]) for s in played] == [
        (1, 0.0, False),
        (1, 2.0, False),
        (1, 2.0, True),
    ]
    assert isinstance(TwoState().mdp, MDP)


def test_a_finite_world_returns_what_its_mdp_says():
    rng = np.random.default_rng(3)
    mdp = MDP(
        rng.dirichlet(np.ones(3), size=(3, 2)), rng.normal(size=(3, 2)), [0.2, 0.3, 0.5], horizon=5
    )
    table = rng.dirichlet(np.ones(2), size=3)
    samples = returns(FiniteWorld(mdp), lambda r, s: int(r.random() > table[s, 0]), 4000)
    assert within_standard_error(samples, mdp.evaluate(table).value)


def test_a_discount_makes_two_states_worth_more_than_their_average():
    table = stay([0.0, 0.0])
    assert two_state(discount=0.9).evaluate(table).value == pytest.approx(7.5, rel=0.1)
    assert two_state().evaluate(table).value == pytest.approx(0.75)


# ------------------------------------------------------------------------------------ learning them


@pytest.mark.parametrize("id", WORLDS)
@pytest.mark.parametrize("agent", [natgrad.TRPO, natgrad.NPG, natgrad.REINFORCE])
def test_every_agent_trains_on_every_world(id, agent):
    trained = agent(id, **SMALL).learn(128)
    assert trained.num_timesteps == 128
    trained.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("id", "options", "enough"),
    [
        # The best are 0, 2 a step, and -20, the noise that nobody can prevent.
        ("natgrad/LineWorld-v0", {"log_std_init": -2.0}, -150.0),
        ("natgrad/TwoState-v0", {}, 185.0),
        ("natgrad/LinearQuadratic-v0", {"log_std_init": -2.0}, -26.0),
    ],
)
def test_trpo_learns_the_world(id, options, enough):
    agent = natgrad.TRPO(id, hidden=(), batch_size=1000, **options).learn(60_000)
    assert natgrad.evaluate(agent, episodes=50).mean > enough
    agent.close()


def test_the_command_line_trains_on_a_world(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--hidden", "8", "--critic-hidden", "8", "--batch-size", "64"]
    for id in WORLDS:
        assert cli.main(["train", id, "--steps", "128", *small]) in (None, 0)
    assert "128" in capsys.readouterr().out
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == sorted(f"{id.replace('/', '-')}_trpo_0_1" for id in WORLDS)
    assert cli.main(["eval", f"runs/{folders[0]}", "--episodes", "2"]) in (None, 0)
