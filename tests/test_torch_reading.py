"""What a torch module does beyond what the types of its parts say, and graphs that are cut."""

import numpy as np
import pytest

import natgrad

torch = pytest.importorskip("torch", reason="needs natgrad[torch]")

from torch import nn  # noqa: E402

from natgrad import torch as backend  # noqa: E402


def rows(count=24, inputs=4, dtype=torch.float64):
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(0)).to(dtype)


def perceptron(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*(layers or (nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))).double()


def dense_fisher(module, observations, parameters):
    """F of a softmax policy, from one gradient for each observation and output."""
    y = module(observations)
    J = np.array(
        [
            [
                np.concatenate(
                    [
                        g.numpy().ravel()
                        for g in torch.autograd.grad(y[n, k], parameters, retain_graph=True)
                    ]
                )
                for k in range(y.shape[1])
            ]
            for n in range(len(y))
        ]
    )
    p = y.softmax(1).detach().numpy()
    M = p[:, :, None] * (np.eye(p.shape[1]) - p[:, None, :])
    return np.einsum("nkp,nkl,nlq->pq", J, M, J) / len(y)


def tied_layers():
    shared = nn.Linear(4, 4)
    return perceptron(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 3))


def tied_tensors():
    module = perceptron(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    module[2].weight = module[0].weight
    return module


def with_pre_hook():
    module = perceptron()
    module.register_forward_pre_hook(lambda _, given: ((given[0] - 1) / 3,))
    return module


def with_inner_hook():
    module = perceptron()
    module[0].register_forward_hook(lambda _, __, y: 2 * y)
    return module


def with_other_forward():
    module = perceptron()
    plain = module[0].forward
    module[0].forward = lambda x: plain(x) + 1
    return module


SURPRISES = {
    f.__name__: f
    for f in (tied_layers, tied_tensors, with_pre_hook, with_inner_hook, with_other_forward)
}


@pytest.mark.parametrize("make", SURPRISES.values(), ids=SURPRISES)
def test_a_module_that_is_more_than_its_layers_is_differentiated_and_not_read(make):
    module, observations = make(), rows()
    F = backend.FisherOperator(module, observations, natgrad.Categorical(3))
    assert F.path == "autograd"
    parameters = list(module.parameters())
    want = dense_fisher(module, observations, parameters)
    assert F.shape == want.shape
    v = np.random.default_rng(0).normal(size=F.shape[0])
    np.testing.assert_allclose(F @ v, want @ v, rtol=1e-10, atol=1e-12)
    module(observations).logsumexp(1).mean().backward()
    g = torch.cat([p.grad.reshape(-1) for p in parameters]).numpy()
    found = backend.natural_gradient(
        module, observations, distribution=natgrad.Categorical(3), max_iterations=200
    )
    found = torch.cat([part.reshape(-1) for part in found]).numpy()
    wanted = np.linalg.solve(want + 0.1 * np.eye(len(g)), g)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", SURPRISES.values(), ids=SURPRISES)
def test_a_policy_shares_memory_only_with_a_module_that_it_computes(make):
    module = make()
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(backend.UnreadableError, match=r"more than one place|forward of its own"):
        backend.policy_of(module, natgrad.Categorical(3))
    for p, old in zip(module.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_a_global_change_of_the_forward_pass_is_noticed_by_its_outputs():
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _, y: 2 * y if isinstance(module, nn.Tanh) else None
    )
    try:
        with pytest.raises(backend.UnreadableError, match="differ from the core's"):
            backend.policy_of(perceptron(), natgrad.Categorical(3))
    finally:
        handle.remove()
    assert backend.policy_of(perceptron(), natgrad.Categorical(3)) is not None


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


class ThroughNumPy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(g.detach().numpy() * (1 - np.tanh(x.detach().numpy()) ** 2))


class Detached(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2) + g.detach()


class Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


class Activation(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("function", [OnceDifferentiable, ThroughNumPy, Detached])
def test_a_backward_pass_that_leaves_the_graph_is_refused_when_the_operator_is_made(function, last):
    layers = [nn.Linear(4, 6), Activation(function), nn.Linear(6, 3)]
    module = perceptron(
        *(layers[:2] + [nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 3)][: 1 + 2 * last])
    )
    with pytest.raises(ValueError, match="module: want a backward pass that torch can differenti"):
        backend.FisherOperator(module, rows(), natgrad.Categorical(3))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_activation_of_ones_own_and_callers_without_gradients_work(mode):
    module = perceptron(nn.Linear(4, 6), Activation(Differentiable), nn.Linear(6, 3))
    v = np.random.default_rng(0).normal(size=sum(p.numel() for p in module.parameters()))
    want = dense_fisher(module, rows(), list(module.parameters())) @ v
    with mode():
        F = backend.FisherOperator(module, rows(), natgrad.Categorical(3))
        assert F.path == "autograd"
        np.testing.assert_allclose(F @ v, want, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------ what may not change


def normalised():
    return perceptron(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).train()


def test_statistics_of_batch_normalisation_stay_when_an_operator_is_made():
    module = normalised()
    module(rows())  # some statistics
    before = {name: value.clone() for name, value in module.state_dict().items()}
    F = backend.FisherOperator(module, rows(), natgrad.Categorical(3))
    assert F.path == "autograd"
    backend.natural_gradient(
        module,
        rows(),
        [torch.ones_like(p) for p in F.parameters],
        distribution=natgrad.Categorical(3),
    )
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    module(rows())
    assert not torch.equal(module[1].running_mean, before["1.running_mean"])  # it still trains


@pytest.mark.parametrize("accept_ratio", [0.0, 0.99])
def test_an_update_moves_parameters_only_if_it_is_accepted_and_never_buffers(accept_ratio):
    module, observations = normalised(), rows(64)
    actions = torch.arange(64) % 3

    def read():
        raise backend.UnreadableError("not read")

    def forward():
        distribution = torch.distributions.Categorical(logits=module(observations))
        return distribution, distribution.log_prob(actions)

    before = {name: value.clone() for name, value in module.state_dict().items()}
    advantages = np.random.default_rng(0).normal(size=64)
    search = natgrad.LineSearch(0.8, 3, accept_ratio)  # with 0.99, a long step gains too little
    report = backend.PolicyUpdater()(
        {"max_kl": 10.0 ** (2 * accept_ratio - 2), "line_search": search},
        read,
        forward,
        module.parameters(),
        actions.numpy(),
        advantages,
        None,
    )
    assert report.accepted == (accept_ratio == 0)
    buffers = {name for name, _ in module.named_buffers()}
    for name, value in module.state_dict().items():
        same = torch.equal(value, before[name])
        assert same or (report.accepted and name not in buffers), name
    assert not report.accepted or not torch.equal(module[0].weight, before["0.weight"])


def test_layers_that_do_not_learn_are_left_out_and_nothing_is_mispaired():
    module, observations = perceptron(), rows()
    module[0].requires_grad_(False)
    learning = list(module[2].parameters())
    want = dense_fisher(module, observations, learning)
    v = np.random.default_rng(0).normal(size=len(want))
    for chosen in (None, module.parameters(), learning):
        F = backend.FisherOperator(module, observations, natgrad.Categorical(3), parameters=chosen)
        assert [id(p) for p in F.parameters] == [id(p) for p in learning]
        np.testing.assert_allclose(F @ v, want @ v, rtol=1e-10, atol=1e-12)
    g = [torch.ones(3, 6, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)]
    found = backend.natural_gradient(
        module, observations, g, distribution=natgrad.Categorical(3), max_iterations=200
    )
    flat = np.concatenate([part.numpy().ravel() for part in g])
    wanted = np.linalg.solve(want + 0.1 * np.eye(len(flat)), flat)
    found = np.concatenate([part.numpy().ravel() for part in found])
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="parameters: want one at least that the policy"):
        backend.FisherOperator(module, observations, natgrad.Categorical(3))
