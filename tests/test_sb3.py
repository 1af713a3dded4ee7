"""natgrad.sb3 does what sb3-contrib does, in its own conventions, and survives what breaks it."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from conftest import relative_error
from gymnasium import spaces

import natgrad

sb3_contrib = pytest.importorskip("sb3_contrib", reason="needs natgrad[sb3]")

import torch  # noqa: E402
from sb3_contrib.common.utils import conjugate_gradient_solver  # noqa: E402
from stable_baselines3.common.callbacks import (  # noqa: E402
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.distributions import kl_divergence  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.policies import ActorCriticPolicy  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402
from torch import nn  # noqa: E402

from natgrad.sb3 import NPG, TRPO  # noqa: E402
from natgrad.torch import UnreadableError, policy_of, read_layers  # noqa: E402

BOX = spaces.Box(-1.0, 1.0, (5,), np.float32)
ACTIONS = {
    "box": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(3),
}
OBSERVATIONS = {
    "box": BOX,
    "discrete": spaces.Discrete(6),
    "multi-binary": spaces.MultiBinary(4),
    "dict": spaces.Dict({"a": BOX, "b": spaces.Discrete(3)}),
    "image": spaces.Box(0, 255, (3, 36, 36), np.uint8),
    "dict-image": spaces.Dict({"a": BOX, "b": spaces.Box(0, 255, (3, 36, 36), np.uint8)}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Task(gymnasium.Env):
    """Rewards a sum of what is seen and done; a reward may be spoilt."""

    def __init__(self, observations=BOX, actions=ACTIONS["box"], reward=None):
        self.observation_space, self.action_space, self.reward = observations, actions, reward
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        observation = self.observation_space.sample()
        reward = float(np.sum(action) + self.steps % 3)
        if self.reward is not None:
            reward = self.reward(self.steps)
        return observation, reward, False, self.steps == 20, {}


def policy_name(observations):
    if isinstance(observations, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if len(observations.shape) == 3 else "MlpPolicy"


def model_of(cls, observations=BOX, actions=ACTIONS["box"], reward=None, steps=64, **options):
    options = {"n_steps": steps, "batch_size": 32, "seed": 0, "device": "cpu", **options}
    options.setdefault("policy", policy_name(observations))
    env = DummyVecEnv([lambda: Task(observations, actions, reward)])
    return cls(env=env, **options)


def collected(model):
    """The same model with a full rollout buffer, ready to train."""
    _, callback = model._setup_learn(10_000, None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def pair(**options):
    """sb3-contrib's model and ours, with equal weights and rollouts."""
    host, ours = (collected(model_of(cls, **options)) for cls in (sb3_contrib.TRPO, TRPO))
    for p, q in zip(host.policy.parameters(), ours.policy.parameters(), strict=True):
        assert torch.equal(p, q)
    np.testing.assert_array_equal(host.rollout_buffer.advantages, ours.rollout_buffer.advantages)
    return host, ours


def weights(model):
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors]).double().numpy()


def trained(model):
    """Its logger's values after one update."""
    np.random.seed(0)  # noqa: NPY002  # permutations of the buffer
    model.train()
    return dict(model.logger.name_to_value)


# ------------------------------------------------------------------------------- parity


def products(actions, dtype):
    """Host's model, its product with its parameters, and the core's Fisher of the same network."""
    model = model_of(sb3_contrib.TRPO, actions=actions, cg_damping=0.07)
    policy = model.policy.to(dtype)
    generator = torch.Generator().manual_seed(1)
    for p in policy.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=dtype)
    observations = torch.randn(80, 5, generator=generator, dtype=dtype)

    def distribution():  # get_distribution() casts to float32
        latent = policy.mlp_extractor.forward_actor(observations)
        return policy._get_action_dist_from_latent(latent)

    with torch.no_grad():
        old = copy.deepcopy(distribution())
    now = distribution()
    taken = now.get_actions()
    kl = kl_divergence(now, old).mean()
    parameters, _, kl_gradient, _ = model._compute_actor_grad(kl, now.log_prob(taken).mean())

    def host(v):
        return model.hessian_vector_product(parameters, kl_gradient, v)

    kinds = {
        spaces.Box: lambda: natgrad.DiagonalGaussian(3),
        spaces.Discrete: lambda: natgrad.Categorical(4),
        spaces.MultiDiscrete: lambda: natgrad.MultiCategorical((3, 2)),
        spaces.MultiBinary: lambda: natgrad.Bernoulli(3),
    }
    modules = nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net)
    kind, log_std = kinds[type(actions)](), getattr(policy, "log_std", None)
    order = read_layers([modules], kind, log_std).tensors
    core = policy_of(modules, kind, log_std)
    offsets = dict(zip(map(id, order), (block.offset for block in core.layout), strict=True))
    place = np.concatenate([offsets[id(p)] + np.arange(p.numel()) for p in parameters])
    average = 3 if isinstance(actions, spaces.Box | spaces.MultiBinary) else 1
    F = natgrad.Fisher(core, observations.numpy())

    def ours(v):
        scattered = np.empty(v.shape)
        scattered[place] = v
        return (F @ scattered)[place] / average + 0.07 * v

    return host, ours, place.size


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("actions", ACTIONS.values(), ids=ACTIONS)
def test_products_with_the_fisher_matrix_are_the_hosts(actions, dtype, tolerance):
    host, ours, size = products(actions, dtype)
    v = np.random.default_rng(0).normal(size=size)
    want = host(torch.as_tensor(v).to(dtype)).double().numpy()
    assert relative_error(ours(v), want) < tolerance


@pytest.mark.parametrize("actions", ACTIONS.values(), ids=ACTIONS)
def test_the_solve_with_the_hosts_settings_is_the_hosts(actions):
    host, ours, size = products(actions, torch.float64)
    g = np.random.default_rng(0).normal(size=size)
    torch.manual_seed(3)
    want = conjugate_gradient_solver(host, torch.as_tensor(g), max_iter=15)
    torch.manual_seed(3)
    start = 1e-4 * torch.randn(size, dtype=torch.float64)
    settings = {"rtol": 0.0, "atol": 1e-5, "max_iterations": 15}
    found = natgrad.conjugate_gradient(ours, g, x0=start, **settings)
    assert relative_error(found.x, want) < 1e-8


# Enough iterations that neither the host's random start nor rounding is seen.
EXACT = {"cg_max_steps": 60, "cg_damping": 0.5}


@pytest.mark.parametrize("actions", ACTIONS.values(), ids=ACTIONS)
def test_one_update_is_the_hosts(actions):
    host, ours = pair(actions=actions, target_kl=0.02, steps=256, **EXACT)
    before = weights(host)
    logs = [trained(model) for model in (host, ours)]
    assert "by the core: 5-64-64" in ours._updater.path
    after = [weights(model) for model in (host, ours)]
    for name in before:
        if "value" in name:
            assert torch.equal(after[0][name], after[1][name]), name
    steps = [flat(w[n] - before[n] for n in before if "value" not in n) for w in after]
    assert np.linalg.norm(steps[0]) > 1e-2
    assert relative_error(steps[1], steps[0]) < 1e-3
    assert logs[1].pop("train/status") == "ACCEPTED"
    assert logs[0].keys() == logs[1].keys()
    for key, value in logs[0].items():
        np.testing.assert_allclose(logs[1][key], value, rtol=2e-3, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"use_sde": True}, "gSDE"),
        ({"use_sde": True, "policy_kwargs": {"use_expln": True, "full_std": False}}, "gSDE"),
        ({"use_sde": True, "policy_kwargs": {"squash_output": True}}, "gSDE"),
        ({"policy_kwargs": {"activation_fn": nn.Softplus}}, "Softplus"),
        ({"observations": OBSERVATIONS["image"]}, "NatureCNN"),
        ({"observations": OBSERVATIONS["dict-image"]}, "CombinedExtractor"),
        (
            {
                "observations": OBSERVATIONS["image"],
                "policy_kwargs": {"share_features_extractor": False},
            },
            "NatureCNN",
        ),
    ],
    ids=["gsde", "gsde-expln", "gsde-squashed", "activation", "cnn", "dict", "cnn-not-shared"],
)
def test_one_update_by_torchs_products_is_the_hosts(options, why):
    host, ours = pair(**options, **EXACT)
    before = weights(host)
    logs = [trained(model) for model in (host, ours)]
    assert ours._updater.path.startswith("Fisher products by torch: ")
    assert why in ours._updater.path
    after = [weights(model) for model in (host, ours)]
    steps = [flat(w[n] - before[n] for n in before if "value" not in n) for w in after]
    assert relative_error(steps[1], steps[0]) < 5e-3
    values = [flat(w[n] for n in before if "value" in n) for w in after]
    assert relative_error(values[1], values[0]) < 1e-3
    assert logs[1].pop("train/status") == "ACCEPTED"
    for key, value in logs[0].items():
        np.testing.assert_allclose(logs[1][key], value, rtol=1e-2, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("observations", ["box", "discrete", "multi-binary", "dict"])
@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {},
        {"net_arch": []},
        {"net_arch": {"pi": [16], "vf": [8, 8]}, "activation_fn": nn.ReLU},
        {"log_std_init": -1.0, "share_features_extractor": False, "activation_fn": nn.ELU},
    ],
    ids=["default", "linear", "relu", "not-shared"],
)
def test_whatever_is_flattened_before_a_perceptron_goes_to_the_core(observations, policy_kwargs):
    model = collected(
        model_of(
            TRPO, OBSERVATIONS[observations], policy_kwargs=policy_kwargs, normalize_advantage=False
        )
    )
    log = trained(model)
    assert "by the core" in model._updater.path
    assert log["train/status"] == "ACCEPTED"


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("observations", ["box", "dict"])
def test_a_part_of_the_batch_may_be_used(observations, factor):
    model = collected(model_of(TRPO, OBSERVATIONS[observations], sub_sampling_factor=factor))
    assert trained(model)["train/status"] == "ACCEPTED"
    if observations == "box":
        host, ours = pair(sub_sampling_factor=factor, steps=256, **EXACT)
        logs = [trained(m) for m in (host, ours)]
        for key in ("train/kl_divergence_loss", "train/policy_objective"):
            np.testing.assert_allclose(logs[1][key], logs[0][key], rtol=2e-3)


def test_the_core_works_on_the_memory_of_the_policy():
    model = collected(model_of(TRPO))
    optimizer = model.policy.optimizer
    trained(model)
    core = model._updater._twin.model
    bias = model.policy.action_net.bias
    assert np.shares_memory(bias.detach().numpy(), core.parameters)
    assert any(bias is p for group in optimizer.param_groups for p in group["params"])


# ------------------------------------------------------------------------------- conventions


def test_one_switch_gives_natgrads_own_conventions():
    model = collected(model_of(TRPO, conventions="natgrad", cg_damping=0.2, cg_max_steps=7))
    before = weights(model)
    trained(model)
    found = weights(model)

    own = collected(model_of(TRPO, conventions="natgrad", cg_damping=0.2, cg_max_steps=7))
    policy, buffer = own.policy, own.rollout_buffer
    net = nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net)
    core = policy_of(net, natgrad.DiagonalGaussian(3), policy.log_std)
    advantages = buffer.advantages.flatten().astype(float)
    batch = natgrad.Batch(
        buffer.observations[:, 0],
        buffer.actions[:, 0],
        (advantages - advantages.mean()) / advantages.std(),
        buffer.log_probs.flatten(),
    )
    assert natgrad.TrustRegionUpdate(max_kl=0.01, damping=0.2, cg_iterations=7)(
        core, batch
    ).accepted
    want = weights(own)
    actor = [name for name in before if "value" not in name]
    steps = [flat(w[n] - before[n] for n in actor) for w in (found, want)]
    assert relative_error(steps[0], steps[1]) < 1e-3


# A first step that the line search refuses.
LARGE = {"conventions": "natgrad", "target_kl": 1.0, "cg_damping": 1e-3}


@pytest.mark.parametrize(
    "options",
    [
        {"conventions": "natgrad"},
        {"kl_reduction": "sum"},
        {"kl_direction": "old_new", "target_kl": 0.5},
        {"conventions": "natgrad", "kl_reduction": "mean"},
        {"critic": "natgrad"},
        {"target_kl": 0.1},
        {"cg_damping": 1.0},
        {"cg_max_steps": 1},
        {"line_search_shrinking_factor": 0.1, **LARGE},
        {"normalize_advantage": False, "cg_max_steps": 30},
    ],
    ids=str,
)
def test_every_option_changes_the_update(options):
    base = (
        {"target_kl": options["target_kl"]} if len(options) > 1 and "target_kl" in options else {}
    )
    results = []
    for chosen in (base, options):
        model = collected(model_of(TRPO, steps=128, **chosen))
        kl = trained(model)["train/kl_divergence_loss"]
        results.append(np.append(flat(weights(model).values()), 1e3 * kl))
    assert relative_error(results[1], results[0]) > 1e-6


@pytest.mark.parametrize("name", ["conventions", "kl_reduction", "kl_direction", "critic"])
def test_bad_options_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name}: want one of"):
        model_of(TRPO, **{name: "other"})


def test_npg_takes_the_full_step_of_trpo():
    steps = []
    for cls in (TRPO, NPG):
        model = collected(model_of(cls, target_kl=1e-4))  # accepted at once
        before = weights(model)
        assert trained(model)["train/status"] == "ACCEPTED"
        steps.append(flat(w - before[n] for n, w in weights(model).items()))
    np.testing.assert_array_equal(*steps)
    large = [collected(model_of(cls, **LARGE)) for cls in (TRPO, NPG)]
    kl = [trained(model)["train/kl_divergence_loss"] for model in large]
    assert kl[0] <= 1.0 < kl[1]


# ------------------------------------------------------------------------------- critic


def test_the_critic_may_be_fitted_by_the_core_on_torchs_memory():
    model = collected(model_of(TRPO, critic="natgrad", steps=256))
    data = next(model.rollout_buffer.get(None))

    def loss():
        with torch.no_grad():
            values = model.policy.predict_values(data.observations).flatten()
        return float((values - data.returns).square().mean())

    before, losses = loss(), []
    for _ in range(5):
        log = trained(model)
        np.testing.assert_allclose(log["train/value_loss"], loss(), rtol=1e-4)
        losses.append(loss())
    assert losses[0] < before
    assert losses == sorted(losses, reverse=True)


def test_a_critic_that_the_core_cannot_fit_is_refused():
    model = collected(model_of(TRPO, OBSERVATIONS["image"], critic="natgrad"))
    with pytest.raises(UnreadableError, match="NatureCNN"):
        model.train()


# ------------------------------------------------------------------------------- misreading


class Warm(ActorCriticPolicy):
    """The same modules, another distribution."""

    def get_distribution(self, obs):
        distribution = super().get_distribution(obs)
        return self.action_dist.proba_distribution(
            2.0 * distribution.distribution.mean, self.log_std
        )


class Larger(ActorCriticPolicy):
    """A parameter more, on the way to the action."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.full((3,), 1.0))
        self.action_net.register_forward_hook(lambda net, inputs, output: output * self.gain)


class Hooked(ActorCriticPolicy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.action_net.register_forward_hook(lambda net, inputs, output: 1.5 * output)


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (Warm, "get_distribution of its own"),
        (Larger, "a forward of its own"),
        (Hooked, "a forward of its own"),
    ],
)
def test_a_policy_that_computes_something_else_is_not_misread(policy, why):
    host, ours = pair(policy=policy, **EXACT)
    before = weights(host)
    for model in (host, ours):
        trained(model)
    assert "by torch" in ours._updater.path
    assert why in ours._updater.path
    steps = [
        flat(w - before[n] for n, w in weights(model).items() if "value" not in n)
        for model in (host, ours)
    ]
    assert relative_error(steps[1], steps[0]) < 5e-3


def test_the_path_is_logged_once_and_the_status_each_time(capsys):
    model = model_of(TRPO, verbose=1)
    model.learn(192)
    printed = capsys.readouterr().out
    assert printed.count("natgrad: Fisher products by the core: 5-64-64-3 tanh") == 1
    assert "| status " in printed.replace("|    status", "| status")
    assert "ACCEPTED" in printed


# ------------------------------------------------------------------------------- robustness


def spoilt(kind):
    """Options of a model that learns from something broken."""
    return {
        "NaN reward": {"reward": lambda step: np.nan if step == 7 else 1.0 * (step % 2)},
        "infinite reward": {"reward": lambda step: np.inf if step == 7 else 1.0},
        "collapsed std": {"policy_kwargs": {"log_std_init": -25.0}},
        "constant advantages": {},
    }[kind]


@pytest.mark.parametrize("cls", [TRPO, NPG])
@pytest.mark.parametrize("path", ["core", "torch"])
@pytest.mark.parametrize(
    "kind", ["NaN reward", "infinite reward", "collapsed std", "constant advantages"]
)
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # the host's advantages of infinities
def test_what_breaks_the_host_leaves_the_policy_untouched(kind, path, cls):
    options = spoilt(kind)
    if path == "torch":
        options["policy"] = Warm
    model = collected(model_of(cls, **options))
    if kind == "constant advantages":
        model.rollout_buffer.advantages[:] = 0.1
    before = weights(model)
    status = trained(model)["train/status"]
    after = weights(model)
    assert all(torch.isfinite(w).all() for w in after.values())
    actor = [name for name in before if "value" not in name]
    assert status != "ACCEPTED"
    assert all(torch.equal(before[n], after[n]) for n in actor)
    if "reward" in kind:
        assert status == "NON_FINITE"
        assert all(torch.equal(before[n], after[n]) for n in before)  # the critic too


def test_training_goes_on_after_a_batch_that_is_not_finite():
    calls = []

    def reward(step):
        calls.append(step)
        return np.nan if len(calls) == 10 else float(step % 3)

    statuses = []

    class Record(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            statuses.append(self.logger.name_to_value.get("train/status"))

    model = model_of(TRPO, reward=reward)
    model.learn(64 * 4, callback=Record(), log_interval=1000)
    assert statuses[1] == "NON_FINITE"
    assert statuses[2:] == ["ACCEPTED"] * 2


# ------------------------------------------------------------------------------- the host's life


@pytest.mark.parametrize("order", [(TRPO, sb3_contrib.TRPO), (sb3_contrib.TRPO, TRPO)])
def test_files_are_interchangeable_both_ways(order, tmp_path):
    writer, reader = order
    model = model_of(writer)
    model.learn(128)
    model.save(tmp_path / "model.zip")
    observations = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    loaded = reader.load(tmp_path / "model.zip", env=model.env, device="cpu")
    assert type(loaded) is reader
    for (name, p), q in zip(weights(model).items(), weights(loaded).values(), strict=True):
        assert torch.equal(p, q), name
    predictions = [m.predict(observations, deterministic=True)[0] for m in (model, loaded)]
    np.testing.assert_array_equal(*predictions)
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 192
    loaded.set_parameters(model.get_parameters())
    for p, q in zip(weights(model).values(), weights(loaded).values(), strict=True):
        assert torch.equal(p, q)
    loaded.learn(64, reset_num_timesteps=False)
    if reader is TRPO:
        assert "by the core" in loaded._updater.path


def test_our_options_survive_saving(tmp_path):
    model = model_of(TRPO, conventions="natgrad", kl_reduction="mean", critic="natgrad")
    model.learn(64)
    model.save(tmp_path / "model.zip")
    loaded = TRPO.load(tmp_path / "model.zip", env=model.env, device="cpu")
    assert (loaded.conventions, loaded.kl_reduction, loaded.critic) == (
        "natgrad",
        "mean",
        "natgrad",
    )
    loaded.learn(64)


def test_vecnormalize_several_environments_and_deepcopies_work():
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0))
    model = TRPO("MlpPolicy", env, n_steps=64, batch_size=32, seed=0, device="cpu")
    model.learn(256)
    assert "by the core: 4-64-64-2" in model._updater.path
    twin = copy.deepcopy(model.policy)
    before = flat(p.detach() for p in twin.parameters())
    model.learn(128)
    np.testing.assert_array_equal(flat(p.detach() for p in twin.parameters()), before)


@pytest.mark.parametrize("cls", [TRPO, NPG])
def test_callbacks_evaluate_save_and_stop(cls, tmp_path):
    env, eval_env = (
        VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=i), training=i == 0)
        for i in range(2)
    )
    stop = StopTrainingOnRewardThreshold(reward_threshold=5.0)  # whatever the policy does
    evaluate = EvalCallback(
        eval_env,
        callback_on_new_best=stop,
        eval_freq=100,  # in the second rollout
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    checkpoint = CheckpointCallback(50, str(tmp_path), save_vecnormalize=True)
    model = cls("MlpPolicy", env, n_steps=64, batch_size=32, seed=0, device="cpu")
    model.learn(10_000, callback=[checkpoint, evaluate])
    assert model.num_timesteps == 200
    assert evaluate.best_mean_reward >= 5.0
    np.testing.assert_array_equal(eval_env.obs_rms.mean, env.obs_rms.mean)
    reader = sb3_contrib.TRPO if cls is TRPO else NPG
    saved = reader.load(tmp_path / "best_model.zip", device="cpu")
    for p, q in zip(weights(model).values(), weights(saved).values(), strict=True):
        assert torch.equal(p, q)
    early = reader.load(tmp_path / "rl_model_100_steps.zip", device="cpu")
    assert not torch.equal(early.policy.action_net.weight, model.policy.action_net.weight)
    normalized = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_100_steps.pkl"), env.venv)
    early.set_env(normalized)
    early.learn(128, reset_num_timesteps=False)
    assert early.num_timesteps == 100 + 128


@pytest.mark.parametrize("actions", ACTIONS)
def test_set_parameters_gives_the_actor_what_the_core_works_on(actions):
    """Weights that come from elsewhere are those that the next update starts from."""
    model, other = (collected(model_of(TRPO, actions=ACTIONS[actions], seed=s)) for s in (0, 1))
    trained(model)
    other.rollout_buffer = copy.deepcopy(model.rollout_buffer)
    for m in (model, other):
        m.set_parameters(
            model_of(sb3_contrib.TRPO, actions=ACTIONS[actions], seed=2).get_parameters()
        )
        assert trained(m)["train/status"] == "ACCEPTED"
    for (name, p), q in zip(weights(model).items(), weights(other).values(), strict=True):
        if "value" not in name:  # Adam's moments differ
            assert torch.equal(p, q), name


def test_policy_arguments_reach_the_policy_and_the_core():
    """A shape, a deviation and separate extractors that are not the defaults."""
    options = {
        "net_arch": {"pi": [16, 12], "vf": [8]},
        "log_std_init": -0.7,
        "share_features_extractor": False,
        "activation_fn": nn.SiLU,
        "ortho_init": False,
    }
    host, ours = pair(policy_kwargs=options, steps=256, **EXACT)
    np.testing.assert_allclose(ours.policy.log_std.detach(), -0.7)
    before = weights(host)
    for model in (host, ours):
        trained(model)
    assert "by the core: 5-16-12-3 silu" in ours._updater.path
    steps = [
        flat(w - before[n] for n, w in weights(model).items() if "value" not in n)
        for model in (host, ours)
    ]
    assert relative_error(steps[1], steps[0]) < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("critic", ["sb3", "natgrad"])
@pytest.mark.parametrize(
    "policy_kwargs", [{}, {"activation_fn": nn.Softplus}], ids=["mlp", "other"]
)
@pytest.mark.filterwarnings("ignore:.*on the GPU.*:UserWarning")  # the host's advice
def test_a_model_on_a_cuda_device_learns_as_on_the_cpu(policy_kwargs, critic):
    if critic == "natgrad" and policy_kwargs:
        pytest.skip("the core has no such critic")
    steps = []
    for device in ("cpu", "cuda"):
        options = {"policy_kwargs": policy_kwargs, "critic": critic, "device": device, **EXACT}
        model = collected(model_of(TRPO, **options))
        reference = collected(model_of(TRPO, **{**options, "device": "cpu"}))
        model.policy.load_state_dict(reference.policy.state_dict())
        model.rollout_buffer = copy.deepcopy(reference.rollout_buffer)
        model.rollout_buffer.device = model.device
        before = weights(model)
        assert trained(model)["train/status"] == "ACCEPTED"
        after = weights(model)
        assert {p.device.type for p in after.values()} == {device}
        steps.append(flat((after[n] - before[n]).cpu() for n in before if "value" not in n))
    assert relative_error(steps[1], steps[0]) < 1e-3


@pytest.mark.slow
def test_cartpole_is_learnt():
    returns = []
    for seed in range(3):
        env = make_vec_env("CartPole-v1", n_envs=4, seed=seed)
        model = TRPO("MlpPolicy", env, n_steps=512, seed=seed, device="cpu", critic="natgrad")
        model.learn(40_000)
        returns.append(np.mean([episode["r"] for episode in model.ep_info_buffer]))
    assert np.median(returns) > 150, returns


@pytest.mark.parametrize("name", ["README.md", "docs/backends.md"])
def test_the_documented_lines_run(name, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / name).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "natgrad.sb3" in block]
    names = {}
    monkeypatch.chdir(tmp_path)
    exec(compile(block, name, "exec"), names)
    assert "by the core" in names["model"]._updater.path
    if "save" in block:
        assert sb3_contrib.TRPO.load("model.zip").num_timesteps > 0


def test_without_the_host_the_module_says_which_extra_to_install():
    program = (
        "import sys; sys.modules['sb3_contrib'] = None\n"
        "try: import natgrad.sb3\n"
        "except ImportError as error: print(error)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert "pip install 'natgrad[sb3]'" in printed
