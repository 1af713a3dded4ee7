"""natgrad.tianshou does what tianshou does, and survives what breaks it."""

import copy
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import relative_error
from gymnasium import spaces

import natgrad

pytest.importorskip("tianshou", reason="needs natgrad[tianshou]")

import torch
from tianshou import algorithm as host
from tianshou.algorithm.algorithm_base import policy_within_training_step
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, ReplayBuffer
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import (
    ContinuousActorProbabilistic,
    ContinuousCritic,
)
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from torch import nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from natgrad.tianshou import NPG, TRPO
from natgrad.torch import FisherOperator

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # tianshou's, of its own defaults
HOSTS = {"NPG": host.NPG, "TRPO": host.TRPO}
OURS = {"NPG": NPG, "TRPO": TRPO}
OBSERVATIONS = 5


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def gaussian(loc_scale):
    return Independent(Normal(*loc_scale), 1)


def categorical(logits):
    return Categorical(logits=logits)


def categorical_of_probabilities(probabilities):
    return Categorical(probs=probabilities)


ACTORS = {
    "gaussian": ({"unbounded": True}, gaussian),
    "bounded": ({"unbounded": False}, gaussian),
    "conditioned": ({"unbounded": True, "conditioned_sigma": True}, gaussian),
    "elementwise": ({"unbounded": True}, lambda loc_scale: Normal(*loc_scale)),
    "categorical": ({"softmax_output": False}, categorical),
    "probabilities": ({"softmax_output": True}, categorical_of_probabilities),
    "misused": ({"softmax_output": True}, categorical),
}
CORE = ("gaussian", "categorical", "probabilities")


def algorithm_of(cls, actor="gaussian", seed=0, **options):
    torch.manual_seed(seed)
    arguments, dist_fn = ACTORS[actor]
    nets = [
        Net(state_shape=(OBSERVATIONS,), hidden_sizes=(16, 12), activation=nn.Tanh)
        for _ in range(2)
    ]
    if "softmax_output" in arguments:
        space = spaces.Discrete(3)
        module = DiscreteActor(preprocess_net=nets[0], action_shape=3, **arguments)
        critic = DiscreteCritic(preprocess_net=nets[1])
    else:
        space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        module = ContinuousActorProbabilistic(
            preprocess_net=nets[0], action_shape=(3,), **arguments
        )
        critic = ContinuousCritic(preprocess_net=nets[1])
    for p in module.parameters():
        p.data += 0.2 * torch.randn_like(p)
    policy = ProbabilisticActorPolicy(
        actor=module,
        dist_fn=dist_fn,
        action_space=space,
        action_scaling=False,
        action_bound_method=None,
    )
    return cls(policy=policy, critic=critic, optim=AdamOptimizerFactory(), **options)


def filled_buffer(algorithm, steps=120, reward=None, seed=0):
    """Steps of a policy in a task that rewards sums; episodes of 20."""
    rng, buffer = np.random.default_rng(seed), ReplayBuffer(size=steps)
    observations = rng.normal(size=(steps + 1, OBSERVATIONS)).astype(np.float32)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        actions = algorithm.policy(Batch(obs=observations[:-1], info=Batch())).act.numpy()
    for t in range(steps):
        earned = float(actions[t].sum() + t % 3) if reward is None else reward(t)
        ended = t % 20 == 19
        step = Batch(
            obs=observations[t],
            act=actions[t],
            rew=earned,
            terminated=False,
            truncated=ended,
            done=ended,
            obs_next=observations[t + 1],
            info={},
        )
        buffer.add(step)
    return buffer


def updated(algorithm, buffer, repeat=1, batch_size=None):
    np.random.seed(0)  # noqa: NPY002  # the order of the buffer
    with policy_within_training_step(algorithm.policy):
        return algorithm.update(buffer, batch_size, repeat)


def weights(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).double().numpy()


# ------------------------------------------------------------------------------- parity


def product_of_host(algorithm, observations, v):
    """F v + damping v by tianshou's own double back-propagation."""
    batch = Batch(obs=observations, info=Batch())
    distribution = algorithm.policy(batch).dist
    with torch.no_grad():
        old = algorithm.policy(batch).dist
    kl = kl_divergence(old, distribution).mean()
    gradient = algorithm._get_flat_grad(kl, algorithm.policy.actor, create_graph=True)
    return algorithm._MVP(torch.as_tensor(v).to(gradient), gradient).double().numpy()


@pytest.mark.parametrize("actor", ["gaussian", "bounded", "conditioned", "categorical", "misused"])
def test_products_with_the_fisher_matrix_are_the_hosts(actor):
    algorithm = algorithm_of(host.TRPO, actor)
    observations = np.random.default_rng(0).normal(size=(60, OBSERVATIONS)).astype(np.float32)
    actor_module = algorithm.policy.actor
    F = FisherOperator(
        lambda rows: algorithm.policy.dist_fn(actor_module(rows)[0]),
        torch.as_tensor(observations),
        damping=0.1,
        parameters=actor_module.parameters(),
    )
    v = np.random.default_rng(1).normal(size=F.shape[0])
    assert relative_error(F @ v, product_of_host(algorithm, observations, v)) < 1e-4


@pytest.mark.parametrize("actor", ["gaussian", "categorical"])
def test_the_cores_products_and_solve_are_the_hosts(actor):
    """The solve with tianshou's settings: ten iterations from 0, until r'r < 1e-10."""
    algorithm = algorithm_of(TRPO, actor)
    buffer = filled_buffer(algorithm)
    observations = buffer.obs
    updated(algorithm, buffer)
    core = algorithm._updater._twin.model
    views = algorithm._updater._twin.source.tensors
    parameters = list(algorithm.policy.actor.parameters())
    offsets = dict(zip(map(id, views), (b.offset for b in core.layout), strict=True))
    place = np.concatenate([offsets[id(p)] + np.arange(p.numel()) for p in parameters])
    F = natgrad.Fisher(core, observations)

    def ours(v):
        scattered = np.empty(v.size)
        scattered[place] = v
        return (F @ scattered)[place] + 0.1 * v

    g = np.random.default_rng(2).normal(size=place.size)
    want = product_of_host(algorithm, observations, g)
    assert relative_error(ours(g), want) < 1e-4
    batch = Batch(obs=observations, info=Batch())
    with torch.no_grad():
        old = algorithm.policy(batch).dist
    kl = kl_divergence(old, algorithm.policy(batch).dist).mean()
    gradient = algorithm._get_flat_grad(kl, algorithm.policy.actor, create_graph=True)
    solution = algorithm._conjugate_gradients(torch.as_tensor(g).float(), gradient, nsteps=10)
    found = natgrad.conjugate_gradient(ours, g, rtol=0.0, atol=1e-5, max_iterations=10)
    assert relative_error(found.x, solution.double().numpy()) < 1e-3


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("actor", ACTORS)
def test_one_update_is_the_hosts(kind, actor):
    # Little is left to the solve after ten iterations with this much damping.
    steps, values, statistics = [], [], []
    for cls in (HOSTS[kind], OURS[kind]):
        algorithm = algorithm_of(cls, actor)
        algorithm._damping = 1.0
        buffer = filled_buffer(algorithm)
        before = weights(algorithm.policy.actor)
        statistics.append(updated(algorithm, buffer).get_loss_stats_dict())
        steps.append(weights(algorithm.policy.actor) - before)
        values.append(weights(algorithm.critic))
    assert np.linalg.norm(steps[0]) > 1e-3
    assert relative_error(steps[1], steps[0]) < 2e-3
    np.testing.assert_array_equal(values[0], values[1])
    assert statistics[0].keys() == statistics[1].keys()
    for name, value in statistics[0].items():
        np.testing.assert_allclose(statistics[1][name], value, rtol=5e-3, atol=1e-6, err_msg=name)
    if actor != "elementwise":
        assert ("by the core" in algorithm._updater.path) == (actor in CORE)


@pytest.mark.parametrize("kind", HOSTS)
def test_the_updates_along_a_training_are_the_hosts(kind):
    """From the same weights on the same rollouts, with tianshou's own settings, eight in a row."""
    pair = [
        algorithm_of(cls, "categorical", trust_region_size=0.1) for cls in (OURS[kind], HOSTS[kind])
    ]
    ours, theirs = pair
    start = weights(ours.policy.actor)
    for turn in range(8):
        theirs.load_state_dict(ours.state_dict())
        theirs.ret_rms = copy.deepcopy(ours.ret_rms)
        buffer = filled_buffer(ours, steps=400, seed=turn)
        before = weights(ours.policy.actor)
        kl = [updated(algorithm, buffer).kl.mean for algorithm in pair]
        steps = [weights(algorithm.policy.actor) - before for algorithm in pair]
        assert relative_error(steps[0], steps[1]) < 1e-2
        np.testing.assert_allclose(*kl, rtol=2e-2)
    assert np.linalg.norm(weights(ours.policy.actor) - start) > 0.1


@pytest.mark.parametrize("kind", HOSTS)
def test_repetitions_and_minibatches_are_the_hosts(kind):
    results = []
    for cls in (HOSTS[kind], OURS[kind]):
        options = {"trust_region_size": 0.05, "advantage_normalization": False}
        algorithm = algorithm_of(cls, **options, return_scaling=True, optim_critic_iters=2)
        algorithm._damping = 1.0
        buffer = filled_buffer(algorithm)
        statistics = updated(algorithm, buffer, repeat=2, batch_size=60)
        results.append((weights(algorithm.policy.actor), statistics.kl.mean))
        assert isinstance(statistics, type(updated(algorithm_of(HOSTS[kind]), buffer)))
    assert relative_error(results[1][0], results[0][0]) < 2e-3
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=2e-2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("NPG", {"trust_region_size": 0.1}),
        ("TRPO", {"max_kl": 0.1}),
        ("TRPO", {"advantage_normalization": False, "gae_lambda": 0.5}),
        ("TRPO", {"optim_critic_iters": 1}),
        ("TRPO", {"max_kl": 5.0, "backtrack_coeff": 0.1}),
        ("TRPO", {"max_kl": 5.0, "max_backtracks": 1}),
    ],
    ids=str,
)
def test_every_option_changes_the_update(kind, options):
    base = {"max_kl": 5.0} if options.get("max_kl") == 5.0 else {}
    results = []
    for chosen in (base, options):
        algorithm = algorithm_of(OURS[kind], **chosen)
        algorithm._damping = 1e-3 if base else 0.1
        updated(algorithm, filled_buffer(algorithm))
        results.append(np.append(weights(algorithm.policy.actor), weights(algorithm.critic)))
    assert relative_error(results[1], results[0]) > 1e-6


# ------------------------------------------------------------------------------- robustness


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("actor", ["gaussian", "bounded"])
@pytest.mark.parametrize("fault", ["NaN reward", "constant advantages", "collapsed std"])
def test_what_breaks_the_host_leaves_the_actor_untouched(fault, actor, kind, caplog):
    algorithm = algorithm_of(OURS[kind], actor, return_scaling=True)
    statistics = copy.deepcopy(algorithm.ret_rms)
    if fault == "collapsed std":
        algorithm.policy.actor.sigma_param.data[:] = -25.0
    rewards = {"NaN reward": lambda t: np.nan if t == 7 else float(t % 3)}
    buffer = filled_buffer(algorithm, reward=rewards.get(fault))
    if fault == "constant advantages":
        algorithm.gamma = 0.0  # the advantage is r - V = 1
        for p in algorithm.critic.parameters():
            p.data[:] = 0.0
        buffer.rew[:] = 1.0
    before, critic = weights(algorithm.policy.actor), weights(algorithm.critic)
    with caplog.at_level(logging.INFO, "natgrad.tianshou"):
        updated(algorithm, buffer, repeat=2)
    np.testing.assert_array_equal(weights(algorithm.policy.actor), before)
    assert np.isfinite(weights(algorithm.critic)).all()
    expected = {
        "NaN reward": ["NON_FINITE"],
        "constant advantages": ["ZERO_ADVANTAGES", "ZERO_GRADIENT"],
        # The gradient is rounding, and how much of it there is depends on the processor.
        "collapsed std": [
            "ZERO_GRADIENT",
            "NON_FINITE",
            "LINE_SEARCH_FAILED",
            "NOT_POSITIVE_DEFINITE",
        ],
    }[fault]
    assert any(status in caplog.text for status in expected), caplog.text
    if fault == "NaN reward":
        np.testing.assert_array_equal(weights(algorithm.critic), critic)
        assert algorithm.ret_rms.var == statistics.var
        algorithm_statistics = updated(algorithm, filled_buffer(algorithm, seed=1))
        assert np.isfinite(algorithm_statistics.kl.mean)
        assert not np.array_equal(weights(algorithm.policy.actor), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("actor", ["gaussian", "bounded", "categorical"])
def test_an_actor_on_a_cuda_device_takes_the_same_step(actor, kind):
    steps = []
    for device in ("cpu", "cuda"):
        algorithm = algorithm_of(OURS[kind], actor)
        buffer = filled_buffer(algorithm)
        algorithm.to(device)
        before = weights(algorithm.policy.actor.cpu())
        algorithm.to(device)
        updated(algorithm, buffer)
        assert next(algorithm.policy.actor.parameters()).device.type == device
        steps.append(weights(algorithm.policy.actor.cpu()) - before)
    assert relative_error(steps[1], steps[0]) < 2e-3


def test_a_new_distribution_of_the_policy_is_seen():
    """What is remembered of a policy is not taken for another's."""
    algorithm = algorithm_of(NPG)
    buffer = filled_buffer(algorithm)
    updated(algorithm, buffer)
    assert "by the core" in algorithm._updater.path
    algorithm.policy.dist_fn = lambda loc_scale: Independent(Normal(loc_scale[0], 1.0), 1)
    updated(algorithm, buffer)
    assert "by torch" in algorithm._updater.path


def test_the_path_is_logged_once(caplog):
    algorithm = algorithm_of(TRPO)
    buffer = filled_buffer(algorithm)
    with caplog.at_level(logging.INFO, "natgrad.tianshou"):
        for _ in range(3):
            updated(algorithm, buffer)
    assert caplog.text.count("Fisher products by the core: 5-16-12-3 tanh") == 1


def test_a_policy_with_a_forward_pass_of_its_own_is_not_misread():
    class Warm(ProbabilisticActorPolicy):
        def forward(self, batch, state=None):
            result = super().forward(batch, state)
            result.dist = gaussian((2 * result.logits[0], result.logits[1]))
            return result

    steps = []
    for cls in (host.TRPO, TRPO):
        algorithm = algorithm_of(cls)
        algorithm._damping = 1.0
        algorithm.policy.__class__ = Warm
        before = weights(algorithm.policy.actor)
        updated(algorithm, filled_buffer(algorithm))
        steps.append(weights(algorithm.policy.actor) - before)
    assert "forward pass of its own" in algorithm._updater.path
    assert relative_error(steps[1], steps[0]) < 2e-3


def test_states_are_interchangeable_and_algorithms_can_be_pickled(tmp_path):
    ours, theirs = algorithm_of(TRPO), algorithm_of(host.TRPO, seed=1)
    updated(ours, filled_buffer(ours))
    torch.save(ours.state_dict(), tmp_path / "state.pt")
    theirs.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    np.testing.assert_array_equal(weights(ours.policy), weights(theirs.policy))
    updated(theirs, filled_buffer(theirs))
    ours.load_state_dict(theirs.state_dict())
    np.testing.assert_array_equal(weights(ours.policy), weights(theirs.policy))
    twin = copy.deepcopy(ours)
    before = weights(ours.policy)
    updated(twin, filled_buffer(twin))
    np.testing.assert_array_equal(weights(ours.policy), before)
    assert not np.array_equal(weights(twin.policy), before)


def test_the_builders_of_the_high_level_interface_build_our_algorithms():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("joblib", reason="needs tianshou[eval]")
        pytest.importorskip("rliable", reason="needs tianshou[eval]")
        from tianshou.highlevel.env import EnvFactoryRegistered, VectorEnvType

        from natgrad import tianshou_highlevel as highlevel
    for builder_class, algorithm in (
        (highlevel.NPGExperimentBuilder, NPG),
        (highlevel.TRPOExperimentBuilder, TRPO),
    ):
        environments = EnvFactoryRegistered(task="Pendulum-v1", venv_type=VectorEnvType.DUMMY)
        factory = builder_class(environments)._create_algorithm_factory()
        made = factory.create_algorithm(environments.create_envs(1, 1), "cpu")
        assert type(made) is algorithm


def test_the_documented_lines_run(caplog):
    text = (Path(__file__).parents[1] / "docs" / "backends.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "natgrad.tianshou_highlevel" in block]
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, "natgrad.tianshou"):
        warnings.simplefilter("ignore")
        pytest.importorskip("joblib", reason="needs tianshou[eval]")
        pytest.importorskip("rliable", reason="needs tianshou[eval]")
        exec(compile(block, "backends.md", "exec"), {})
    assert "Fisher products by the core" in caplog.text


def test_without_the_host_the_module_says_which_extra_to_install():
    program = (
        "import sys; sys.modules['tianshou'] = None\n"
        "try: import natgrad.tianshou\n"
        "except ImportError as error: print(error)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert "pip install 'natgrad[tianshou]'" in printed
