"""Policies of torch as operators, and their updates: by the core where it can read them."""

import copy
import importlib
import itertools
import re
import subprocess
import sys
import tracemalloc
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import relative_error
from scipy.sparse import linalg as sparse_linalg

import natgrad

torch = pytest.importorskip("torch", reason="needs natgrad[torch]")

from torch import distributions, nn  # noqa: E402

from natgrad import torch as backend  # noqa: E402

ACTIVATIONS = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


class Head(nn.Module):
    """A network and what its outputs mean to torch."""

    def __init__(self, net, kind, log_std=None):
        super().__init__()
        self.net, self.kind, self.log_std = net, kind, log_std

    def forward(self, observations):
        y = self.net(observations)
        if self.kind == "gaussian":
            normal = distributions.Normal(y, self.log_std.exp().expand_as(y))
            return distributions.Independent(normal, 1)
        if self.kind == "gaussian-state-std":
            mean, log_std = y.chunk(2, dim=1)
            return distributions.Normal(mean, log_std.exp())
        if self.kind == "categorical":
            return distributions.Categorical(logits=y)
        if self.kind == "multi-categorical":
            return [distributions.Categorical(logits=part) for part in y.split((2, 2), dim=1)]
        return distributions.Bernoulli(logits=y)


KINDS = {
    "gaussian": natgrad.DiagonalGaussian(4),
    "gaussian-state-std": natgrad.DiagonalGaussian(2, state_dependent_std=True),
    "categorical": natgrad.Categorical(4),
    "multi-categorical": natgrad.MultiCategorical((2, 2)),
    "bernoulli": natgrad.Bernoulli(4),
}


def make(kind="gaussian", dtype=torch.float64, activation="tanh", hidden=(7, 6), seed=0):
    """A module, its log_std or None, and observations."""
    generator = torch.Generator().manual_seed(seed)
    widths, layers = (5, *hidden, 4), []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m), ACTIVATIONS[activation]()]
    net = nn.Sequential(*layers[:-1]).to(dtype)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=dtype) * 0.5
    log_std = None
    if kind == "gaussian":
        log_std = nn.Parameter(torch.randn(4, generator=generator, dtype=dtype) * 0.3)
    observations = torch.randn(40, 5, generator=generator, dtype=dtype)
    return net, log_std, observations


def divergence(old, new):
    """Mean over the batch of KL(old || new), summed over the rest."""
    pairs = zip(old, new, strict=True) if isinstance(new, list) else [(old, new)]
    return sum(distributions.kl_divergence(a, b).sum() / len(b.sample()) for a, b in pairs)


def double_backpropagation(head, observations, parameters, v):
    """The usual product: the second derivative of the divergence at equal policies."""
    with torch.no_grad():
        old = head(observations)
    kl = divergence(old, head(observations))
    gradients = torch.autograd.grad(kl, parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    product = torch.autograd.grad(flat @ torch.as_tensor(v).to(flat), parameters)
    return torch.cat([g.reshape(-1) for g in product]).double().numpy()


# ------------------------------------------------------------------------------- operators


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_both_paths_multiply_as_double_back_propagation_does(kind, dtype):
    net, log_std, observations = make(kind, dtype)
    head = Head(net, kind, log_std)
    core = backend.FisherOperator(net, observations, KINDS[kind], log_std=log_std)
    parameters = core.parameters
    asked = backend.FisherOperator(head, observations, parameters=parameters)
    assert (core.path, core.reason) == ("core", "")
    assert asked.path == "autograd"
    assert asked.reason
    v = np.random.default_rng(0).normal(size=core.shape[0])
    want = double_backpropagation(head, observations, parameters, v)
    assert relative_error(core @ v, want) < TOLERANCE[dtype]
    assert relative_error(asked @ v, want) < TOLERANCE[dtype]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (7,), (7, 6, 5)])
def test_every_activation_and_depth_is_read(activation, hidden):
    net, log_std, observations = make("gaussian", activation=activation, hidden=hidden)
    F = backend.FisherOperator(net, observations, KINDS["gaussian"], log_std=log_std)
    assert F.path == "core"
    v = np.random.default_rng(0).normal(size=F.shape[0])
    head = Head(net, "gaussian", log_std)
    want = double_backpropagation(head, observations, F.parameters, v)
    assert relative_error(F @ v, want) < 1e-10


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(1, 3, 2)
        self.norm = nn.LayerNorm(4)
        self.last = nn.Linear(12, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, observations):
        h = torch.tanh(self.norm(self.first(observations[:, None])))
        return distributions.Categorical(logits=self.last(h.flatten(1)))


def test_any_module_has_a_fisher_matrix_in_the_parameters_that_matter():
    torch.manual_seed(0)
    module, observations = Convolution().double(), make()[2]
    F = backend.FisherOperator(module, observations)
    used = [p for name, p in module.named_parameters() if "unused" not in name]
    assert [id(p) for p in F.parameters] == [id(p) for p in used]
    v = np.random.default_rng(0).normal(size=F.shape[0])
    assert relative_error(F @ v, double_backpropagation(module, observations, used, v)) < 1e-10


def test_an_operator_serves_scipy_tensors_and_the_core_alike():
    net, log_std, observations = make()
    for F in (
        backend.FisherOperator(net, observations, KINDS["gaussian"], log_std=log_std),
        backend.FisherOperator(Head(net, "gaussian", log_std), observations),
    ):
        n = F.shape[0]
        dense = F @ np.eye(n)
        assert relative_error(dense, dense.T) < 1e-12
        damped = dense + 0.1 * np.eye(n)
        g = np.random.default_rng(1).normal(size=n)
        want = np.linalg.solve(damped, g)
        linear = sparse_linalg.aslinearoperator(F) + 0.1 * sparse_linalg.aslinearoperator(np.eye(n))
        found, _ = sparse_linalg.cg(linear, g, rtol=1e-12)
        assert relative_error(found, want) < 1e-8
        top = sparse_linalg.eigsh(F, k=2, return_eigenvectors=False)
        np.testing.assert_allclose(np.sort(top), np.linalg.eigvalsh(dense)[-2:], rtol=1e-9)
        solution = natgrad.conjugate_gradient(F, g, damping=0.1, max_iterations=500).x
        assert relative_error(solution, want) < 1e-8
        tensor = torch.from_numpy(g)
        assert relative_error((F @ tensor).numpy(), dense @ g) < 1e-12
        assert (F @ tensor.float()).dtype == torch.float32
        assert relative_error((F @ torch.eye(n)).double().numpy(), dense) < 1e-6
        assert (F.matvec(g[:, None])).shape == (n, 1)


def test_damping_is_added_to_the_operator():
    net, log_std, observations = make()
    arguments = (net, observations, KINDS["gaussian"])
    v = np.random.default_rng(0).normal(size=122)
    plain, damped = (
        backend.FisherOperator(*arguments, log_std=log_std, damping=damping) @ v
        for damping in (0.0, 0.3)
    )
    np.testing.assert_allclose(damped - plain, 0.3 * v, atol=1e-12)


def test_the_operator_keeps_the_parameters_that_it_was_made_with():
    net, _, observations = make("categorical")
    F = backend.FisherOperator(net, observations, KINDS["categorical"])
    v = np.random.default_rng(0).normal(size=F.shape[0])
    before = F @ v
    pointers = [p.data_ptr() for p in net.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p += 1
    np.testing.assert_array_equal(F @ v, before)
    assert [p.data_ptr() for p in net.parameters()] == pointers


# ---------------------------------------------------------------------------- natural gradient


def test_the_natural_gradient_solves_the_damped_system():
    for head in (False, True):
        net, log_std, observations = make()
        module = Head(net, "gaussian", log_std) if head else net
        options = {} if head else {"distribution": KINDS["gaussian"], "log_std": log_std}
        F = (
            backend.FisherOperator(module, observations, *options.values())
            if head
            else (backend.FisherOperator(net, observations, KINDS["gaussian"], log_std=log_std))
        )
        loss = net(observations).square().mean() + log_std.square().sum()
        loss.backward()
        found = backend.natural_gradient(
            module, observations, damping=0.2, max_iterations=500, **options
        )
        assert [x.shape for x in found] == [p.shape for p in F.parameters]
        g = torch.cat([p.grad.reshape(-1) for p in F.parameters]).numpy()
        dense = F @ np.eye(F.shape[0]) + 0.2 * np.eye(F.shape[0])
        flat = torch.cat([x.reshape(-1) for x in found]).numpy()
        assert relative_error(flat, np.linalg.solve(dense, g)) < 1e-8
        given = [p.grad for p in F.parameters]
        again = backend.natural_gradient(
            module, observations, given, damping=0.2, max_iterations=500, **options
        )
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_parameter_without_gradient_counts_as_zero_and_wrong_shapes_are_refused():
    net, _, observations = make("categorical")
    gradients = [None, *(torch.ones_like(p) for p in list(net.parameters())[1:])]
    zeros = [torch.zeros_like(net[0].weight), *gradients[1:]]
    options = {"distribution": KINDS["categorical"]}
    found, want = (
        backend.natural_gradient(net, observations, given, **options)
        for given in (gradients, zeros)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    with pytest.raises(ValueError, match="gradients"):
        backend.natural_gradient(net, observations, gradients[1:], **options)
    with pytest.raises(ValueError, match="gradients"):
        backend.natural_gradient(net, observations, gradients[::-1], **options)


# ------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_policy_and_its_module_share_memory_both_ways(dtype):
    net, log_std, observations = make("gaussian", dtype)
    before = net(observations).detach()
    parameters = list(net.parameters())
    policy = backend.policy_of(net, KINDS["gaussian"], log_std)
    assert next(iter(net.parameters())) is parameters[0]  # the same objects
    vector = torch.nn.utils.parameters_to_vector([*net.parameters(), log_std])
    np.testing.assert_array_equal(vector.detach().numpy(), policy.parameters)
    assert relative_error(policy.outputs(observations.numpy())[:, :4], before) < TOLERANCE[dtype]
    policy.parameters[-1] = 0.25
    assert log_std[-1].item() == 0.25
    torch.optim.SGD([*net.parameters(), log_std], lr=0.1).zero_grad()
    optimizer = torch.optim.Adam([*net.parameters(), log_std], lr=0.1)
    (net(observations).square().mean() + log_std.sum()).backward()
    optimizer.step()
    want = net(observations).detach()
    assert relative_error(policy.outputs(observations.numpy())[:, :4], want) < TOLERANCE[dtype]
    assert not torch.equal(want, before)


def test_copies_and_saved_states_of_a_sharing_module_are_its_own(tmp_path):
    net, log_std, observations = make()
    policy = backend.policy_of(net, KINDS["gaussian"], log_std)
    twin = copy.deepcopy(net)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    before = net(observations).detach()
    policy.parameters[:] += 1.0
    assert torch.equal(twin(observations), before)
    assert not torch.allclose(net(observations), before)
    net.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(net(observations), before)
    np.testing.assert_array_equal(net[0].bias.detach().numpy(), policy.parameters[35:42])


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_identities_at_the_end_of_a_network_are_nothing():
    net, log_std, observations = make()
    longer = nn.Sequential(*net, nn.Identity(), nn.Identity())
    F, same = (
        backend.FisherOperator(module, observations, KINDS["gaussian"], log_std=log_std)
        for module in (net, longer)
    )
    assert same.path == "core"
    v = np.random.default_rng(0).normal(size=F.shape[0])
    np.testing.assert_array_equal(F @ v, same @ v)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([], "no Linear"),
        ([nn.Identity()], "no Linear"),
        ([nn.Linear(5, 4), nn.Tanh()], "last module"),
        ([nn.Linear(5, 7), nn.Linear(7, 4)], "last module|activation"),
        ([nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4)], "differ"),
        ([nn.Linear(5, 7), nn.Softplus(), nn.Linear(7, 4)], "Softplus"),
        ([nn.Linear(5, 7), nn.ELU(0.5), nn.Linear(7, 4)], "alpha"),
        ([nn.Linear(5, 7), nn.GELU("tanh"), nn.Linear(7, 4)], "GELU"),
        ([nn.Linear(5, 7), nn.Tanh(), nn.Linear(6, 4)], "6 inputs"),
        ([nn.Linear(5, 3)], "3 outputs"),
        ([nn.Linear(5, 4, bias=False)], "bias"),
        ([Scaled(5, 4)], "Scaled"),
        ([nn.Linear(5, 4).half()], "float16"),
        ([nn.Linear(5, 4).requires_grad_(False)], "not learned"),
    ],
    ids=str,
)
def test_what_is_not_a_perceptron_of_the_core_is_not_read_as_one(modules, message):
    with pytest.raises(backend.UnreadableError, match=message):
        backend.read_layers(modules, natgrad.Categorical(4))
    with pytest.raises(backend.UnreadableError):
        backend.policy_of(nn.Sequential(*modules), natgrad.Categorical(4))


def test_a_gaussian_needs_its_log_std():
    with pytest.raises(backend.UnreadableError, match="log_std"):
        backend.read_layers([nn.Linear(5, 4)], natgrad.DiagonalGaussian(4))


def test_a_module_whose_forward_pass_differs_is_not_taken_for_what_it_looks_like():
    net, _, observations = make("categorical")
    net[0].register_forward_hook(lambda module, inputs, output: 1.1 * output)
    F = backend.FisherOperator(net, observations, KINDS["categorical"])
    assert F.path == "autograd"
    assert "forward of its own" in F.reason
    v = np.random.default_rng(0).normal(size=F.shape[0])
    want = double_backpropagation(Head(net, "categorical"), observations, F.parameters, v)
    assert relative_error(F @ v, want) < 1e-10


@pytest.mark.parametrize(
    ("make_bad", "error", "message"),
    [
        (lambda net, obs: backend.FisherOperator(net, obs, KINDS["bernoulli"], damping=-1.0),
         ValueError, "damping"),
        (lambda net, obs: backend.FisherOperator(net, obs, KINDS["bernoulli"]) @ np.ones(3),
         ValueError, "v: want shape"),
        (lambda net, obs: backend.FisherOperator(lambda o: distributions.Gamma(o**2, 1.0), obs,
                                                 parameters=net.parameters()),
         backend.UnreadableError, "Gamma"),
    ],
    ids=["damping", "vector", "distribution"],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(make_bad, error, message):
    net, _, observations = make("bernoulli")
    with pytest.raises(error, match=message):
        make_bad(net, observations)


# ------------------------------------------------------------------------------- updates


def ingredients(kind, dtype=torch.float64, seed=0, device="cpu"):
    """What a host has at hand: reading, forward, parameters, actions, advantages, log probs."""
    net, log_std, observations = make(kind, dtype, seed=seed)
    head = Head(net, kind, log_std)
    torch.manual_seed(seed)

    def sample(d):
        return torch.stack([part.sample() for part in d], 1) if isinstance(d, list) else d.sample()

    def log_prob(d):
        if isinstance(d, list):
            return sum(part.log_prob(actions[:, i]) for i, part in enumerate(d))
        found = d.log_prob(actions)
        return found.sum(dim=1) if found.ndim == 2 else found

    actions = sample(head(observations))
    advantages = np.random.default_rng(seed).normal(size=len(observations))
    behaviour = log_prob(head(observations)).detach().double().numpy()
    taken, actions, observations = actions, actions.to(device), observations.to(device)
    if log_std is not None:
        log_std = head.log_std = nn.Parameter(log_std.detach().to(device))
    parameters = [*net.to(device).parameters(), *([] if log_std is None else [log_std])]

    def forward():
        d = head(observations)
        return d, log_prob(d)

    def read():
        return backend.read_layers([net], KINDS[kind], log_std), observations

    given = taken.numpy()
    if kind not in ("gaussian", "gaussian-state-std"):
        given = given.astype(np.int64)
    return read, forward, parameters, given, advantages, behaviour


def refuse():
    raise backend.UnreadableError("asked not to")


OPTIONS = {
    "defaults": {},
    "as sb3-contrib": {
        "kl_reduction": "mean",
        "kl_direction": "new_old",
        "solver": natgrad.ConjugateGradient(rtol=0.0, atol=1e-5, or_direct=True),
        "step_scale": "damped",
    },
    "few iterations": {"cg_iterations": 3},
    "adaptive and warm": {
        "damping": natgrad.AdaptiveDamping(0.5),
        "solver": natgrad.ConjugateGradient(5, warm_start=True),
    },
    "closed form": {"line_search": None, "max_kl": 0.05},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_both_paths_take_the_same_step(kind, options):
    steps, reports = [], []
    for asked in (False, True):
        read, forward, parameters, *rest = ingredients(kind)
        before = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
        updater = backend.PolicyUpdater()
        report = updater(OPTIONS[options], refuse if asked else read, forward, parameters, *rest)
        assert ("by torch: asked not to" if asked else "by the core: 5-7-6-4 tanh") in updater.path
        assert report.accepted, report.message
        steps.append(torch.nn.utils.parameters_to_vector(parameters).detach() - before)
        reports.append(report)
    assert relative_error(steps[1], steps[0]) < 1e-6
    for name in ("kl", "improvement", "surrogate", "gradient_norm", "backtracks"):
        np.testing.assert_allclose(*(getattr(r, name) for r in reports), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    ("options", "spoil", "status"),
    [
        ({}, lambda a: 0 * a, ("ZERO_ADVANTAGES", "ZERO_GRADIENT")),
        ({"line_search": natgrad.LineSearch(max_backtracks=1), "max_kl": 900.0}, lambda a: a,
         ("LINE_SEARCH_FAILED", "NON_FINITE")),
        ({"line_search": None, "max_kl": 1e300}, lambda a: a, ("NON_FINITE",)),
    ],
    ids=["zero advantages", "failed search", "not finite"],
)  # fmt: skip
def test_an_update_without_success_changes_nothing(asked, options, spoil, status):
    read, forward, parameters, actions, advantages, behaviour = ingredients("gaussian")
    before = [p.detach().clone() for p in parameters]
    report = backend.PolicyUpdater()(
        options,
        refuse if asked else read,
        forward,
        parameters,
        actions,
        spoil(advantages),
        behaviour,
    )
    assert report.status.name in status
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_an_exception_of_the_policy_reaches_the_caller_and_changes_nothing():
    _, forward, parameters, *rest = ingredients("gaussian")
    before = [p.detach().clone() for p in parameters]
    calls = []

    def faulty():
        calls.append(None)
        if len(calls) == 2:
            raise ZeroDivisionError("in forward")
        return forward()

    with pytest.raises(ZeroDivisionError, match="in forward"):
        backend.PolicyUpdater()({}, refuse, faulty, parameters, *rest)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_the_likelihood_is_that_of_the_policy_before_the_update(kind, asked):
    read, forward, parameters, actions, advantages, _ = ingredients(kind)
    want = float((forward()[1].detach() * torch.from_numpy(advantages)).mean())
    updater = backend.PolicyUpdater()
    first = refuse if asked else read
    report = updater({}, first, forward, parameters, actions, advantages, None)
    assert report.accepted
    np.testing.assert_allclose(updater.likelihood, want, rtol=1e-10)


def test_parameters_more_or_fewer_than_the_network_has_are_not_read():
    read, forward, parameters, *rest = ingredients("gaussian")
    extra = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    updater = backend.PolicyUpdater()
    assert updater({}, read, forward, [*parameters, extra], *rest).accepted
    assert "it has 125 parameters, the core's network 122" in updater.path
    assert torch.equal(extra, torch.zeros_like(extra))


def test_sharing_is_mended_after_parameters_were_given_other_memory():
    read, forward, parameters, *rest = ingredients("gaussian")
    updater = backend.PolicyUpdater()
    assert updater({}, read, forward, parameters, *rest).accepted
    parameters[0].data = parameters[0].data.clone() + 0.1
    moved = [p.detach().clone() for p in parameters]
    fresh_read, fresh_forward, fresh, *fresh_rest = ingredients("gaussian")
    for p, value in zip(fresh, moved, strict=True):
        p.data = value.clone()
    assert updater({}, read, forward, parameters, *rest).accepted
    assert backend.PolicyUpdater()({}, fresh_read, fresh_forward, fresh, *fresh_rest).accepted
    assert all(torch.equal(p, q) for p, q in zip(parameters, fresh, strict=True))


def test_an_updater_is_copied_and_pickled_as_a_new_one():
    read, forward, parameters, *rest = ingredients("gaussian")
    updater = backend.PolicyUpdater()
    updater({}, read, forward, parameters, *rest)
    assert copy.deepcopy(updater).path == ""


# ------------------------------------------------------------------------------- the solver


def test_conjugate_gradients_work_with_tensors():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(20, 20))
    A = torch.from_numpy(A @ A.T + np.eye(20))
    b = torch.from_numpy(rng.normal(size=20))
    want = np.linalg.solve(A, b)
    seen = []

    def product(v):
        seen.append(type(v))
        return (A @ v).requires_grad_()

    for operator in (A, A.mv, product):
        found = natgrad.conjugate_gradient(operator, b, max_iterations=200)
        assert relative_error(found.x, want) < 1e-8
    single = natgrad.conjugate_gradient(A.float().mv, b.float().requires_grad_(), max_iterations=50)
    assert relative_error(single.x, want) < 1e-3
    assert set(seen) == {torch.Tensor}
    arrays = natgrad.conjugate_gradient(A.numpy(), b.numpy(), x0=torch.ones(20), max_iterations=200)
    assert relative_error(arrays.x, want) < 1e-8


@pytest.mark.parametrize("kind", ["matvec", "operator", "function"])
def test_conjugate_gradients_mix_scipy_torch_and_functions(kind):
    """The operator is of one library, the right-hand side of another."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(20, 20))
    A = A @ A.T + np.eye(20)
    b = rng.normal(size=20)
    operator, given = {
        "matvec": (torch.from_numpy(A).mv, torch.from_numpy(b)),
        "operator": (sparse_linalg.aslinearoperator(A), torch.from_numpy(b)),
        "function": (lambda v: A @ v, b),
    }[kind]
    found = natgrad.conjugate_gradient(operator, given, max_iterations=200)
    assert relative_error(found.x, np.linalg.solve(A, b)) < 1e-8
    if kind == "operator":  # and the other way round: our product inside SciPy's solver
        net, log_std, observations = make()
        F = backend.FisherOperator(
            net, observations, KINDS["gaussian"], log_std=log_std, damping=0.1
        )
        g = rng.normal(size=F.shape[0])
        x, failed = sparse_linalg.cg(F, g, rtol=1e-10)
        assert not failed
        assert relative_error(F @ x, g) < 1e-8


@pytest.mark.parametrize(("dtype", "copied"), [(torch.float32, False), (torch.float64, True)])
def test_a_tensor_of_the_policys_dtype_is_read_where_it_is(dtype, copied):
    policy = natgrad.Policy(8, natgrad.Categorical(2), dtype="float32")
    observations = torch.zeros(100_000, 8, dtype=dtype)
    policy.mode(observations)  # the core's own memory grows now
    tracemalloc.start()
    policy.mode(observations)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    results = 8 * len(observations)  # an action each
    assert (peak - results > 4 * observations.numel() - 4096) == copied, peak


def test_arrays_come_in_by_dlpack_alone():
    class OnlyDlpack:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    policy = natgrad.Policy(3, natgrad.Categorical(2))
    observations = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_array_equal(
        policy.outputs(OnlyDlpack(observations)), policy.outputs(observations)
    )
    view = torch.from_dlpack(policy.parameters)
    assert view.data_ptr() == policy.parameters.ctypes.data
    view[0] = 7.0
    assert policy.parameters[0] == 7.0
    with pytest.raises(TypeError, match=r"observations.*requires grad"):
        policy.outputs(torch.zeros(5, 3, requires_grad=True))


# ------------------------------------------------------------------------------- devices

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_a_policy_on_a_cuda_device_takes_the_same_steps(kind, asked):
    results = []
    for device in ("cpu", "cuda"):
        read, forward, parameters, *rest = ingredients(kind, device=device)
        updater = backend.PolicyUpdater()
        first = refuse if asked else read
        for _ in range(3):
            assert updater({}, first, forward, parameters, *rest).accepted
        assert {p.device.type for p in parameters} == {device}
        results.append(torch.nn.utils.parameters_to_vector(parameters).detach().cpu())
    assert relative_error(results[1], results[0]) < 1e-8


@cuda
@pytest.mark.parametrize("asked", [False, True])
def test_an_update_without_success_changes_nothing_on_a_cuda_device(asked):
    read, forward, parameters, actions, advantages, behaviour = ingredients(
        "gaussian", device="cuda"
    )
    before = [p.detach().clone() for p in parameters]
    arguments = (refuse if asked else read, forward, parameters, actions)
    updater = backend.PolicyUpdater()
    assert not updater({}, *arguments, 0 * advantages, behaviour).accepted
    large = {"line_search": None, "max_kl": 1e300}
    assert not updater(large, *arguments, advantages, behaviour).accepted
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


@cuda
@pytest.mark.parametrize("head", [False, True])
def test_an_operator_on_a_cuda_device_gives_tensors_there(head):
    products, directions = [], []
    for device in ("cpu", "cuda"):
        net, log_std, observations = make()
        net, log_std = net.to(device), nn.Parameter(log_std.detach().to(device))
        module = Head(net, "gaussian", log_std) if head else net
        options = {} if head else {"distribution": KINDS["gaussian"], "log_std": log_std}
        rows = observations.to(device)
        F = backend.FisherOperator(
            module, rows, parameters=[*net.parameters(), log_std] if head else None, **options
        )
        assert F.path == ("autograd" if head else "core")
        v = torch.ones(F.shape[0], dtype=torch.float64, device=device)
        assert (F @ v).device.type == device
        products.append((F @ v).cpu())
        solution = natgrad.conjugate_gradient(F, v, damping=0.1, max_iterations=50).x
        gradients = [torch.ones_like(p) for p in F.parameters]
        natural = backend.natural_gradient(module, rows, gradients, **options)
        assert {x.device.type for x in natural} == {device}
        directions.append(solution)
    assert relative_error(products[1], products[0]) < 1e-10
    assert relative_error(directions[1], directions[0]) < 1e-8


@cuda
def test_a_value_network_on_a_cuda_device_is_fitted():
    net, _, observations = make("categorical")
    value = nn.Sequential(*net[:-1], nn.Linear(6, 1, dtype=torch.float64))
    twin = copy.deepcopy(value).to("cuda")
    targets = np.random.default_rng(0).normal(size=len(observations))
    errors = [
        backend.ValueFitter()([module], rows, targets)
        for module, rows in ((value, observations), (twin, observations.to("cuda")))
    ]
    np.testing.assert_allclose(*errors, rtol=1e-8)
    assert relative_error(twin(observations.to("cuda")).detach().cpu(), value(observations)) < 1e-6


@cuda
def test_views_of_memory_on_a_cuda_device_are_refused():
    net = make("categorical")[0].to("cuda")
    with pytest.raises(backend.UnreadableError, match="on cuda:0, want cpu"):
        backend.policy_of(net, KINDS["categorical"])


# ------------------------------------------------------------------------------- the documents


def documented(word):
    """The block of code in docs/backends.md that has a word."""
    text = (Path(__file__).parents[1] / "docs" / "backends.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return compile(block, "backends.md", "exec")


def test_the_documented_lines_run():
    names = {}
    exec(documented("policy_of("), names)
    assert names["x"].shape == (names["F"].shape[0],)
    assert np.shares_memory(names["policy"].parameters, names["net"][0].bias.detach().numpy())


def library(monkeypatch, name, **contents):
    """A module, or a stand-in of its name with these contents where it cannot be imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception:  # whatever old libraries do on a Python that they do not know
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                module = types.ModuleType(".".join(parts[:depth]))
                monkeypatch.setitem(sys.modules, module.__name__, module)
            vars(module).update(contents)
            return module


def averaged_over_ranks(tensor):
    """OmniSafe's `distributed.avg_tensor` in one process."""


class Actor(nn.Module):
    """As OmniSafe builds it: log_std comes first, an Identity last."""

    def __init__(self, mean, log_std):
        super().__init__()
        self.mean, self.log_std = nn.Sequential(*mean, nn.Identity()), log_std

    def forward(self, observations):
        return distributions.Normal(self.mean(observations), self.log_std.exp())


def test_the_recipe_for_omnisafe_gives_its_products(monkeypatch):
    """_fvp(params): the Hessian of a KL averaged over rows and dimensions, plus damping."""
    host = library(
        monkeypatch,
        "omnisafe.algorithms.on_policy.base.natural_pg",
        NaturalPG=type("NaturalPG", (), {"_fvp": None}),
    )
    distributed = types.SimpleNamespace(avg_tensor=averaged_over_ranks)
    if "omnisafe.utils" not in sys.modules:
        library(monkeypatch, "omnisafe.utils", distributed=distributed)
    monkeypatch.setattr(host.NaturalPG, "_fvp", None)  # and given back
    exec(documented("omnisafe"), {})
    net, log_std, observations = make()
    algorithm = host.NaturalPG.__new__(host.NaturalPG)
    algorithm._actor_critic = types.SimpleNamespace(actor=Actor(net, log_std))
    algorithm._cfgs = types.SimpleNamespace(algo_cfgs=types.SimpleNamespace(cg_damping=0.07))
    parameters = list(algorithm._actor_critic.actor.parameters())
    assert parameters[0] is log_std
    for rows in (observations[::2], observations):
        algorithm._fvp_obs = rows
        v = torch.randn(sum(p.numel() for p in parameters), dtype=torch.float64)
        hessian = double_backpropagation(algorithm._actor_critic.actor, rows, parameters, v)
        assert relative_error(algorithm._fvp(v), hessian / 4 + 0.07 * v.numpy()) < 1e-10
    assert algorithm._fisher.path == "core"


def test_the_recipe_for_mjrl_gives_its_products(monkeypatch):
    """HVP(observations, actions, vector, regu_coef): the Hessian of a mean KL, plus damping."""
    host = library(monkeypatch, "mjrl.algos.npg_cg", NPG=type("NPG", (), {}))
    for name in ("HVP", "build_Hvp_eval"):
        monkeypatch.setattr(host.NPG, name, None, raising=False)  # and given back
    exec(documented("mjrl"), {})
    net, log_std, observations = make(dtype=torch.float32)
    parameters = [*net.parameters(), log_std]
    model = types.SimpleNamespace(fc_layers=[m for m in net if isinstance(m, nn.Linear)])
    theta = torch.nn.utils.parameters_to_vector(parameters).detach().numpy()
    algorithm = host.NPG.__new__(host.NPG)
    algorithm.policy = types.SimpleNamespace(
        n=5, m=4, model=model, get_param_values=lambda: theta.copy()
    )
    algorithm.FIM_invert_args = {"iters": 10, "damping": 1e-4}
    v = np.random.default_rng(0).normal(size=theta.size)
    head = Head(net, "gaussian", log_std)
    hessian = double_backpropagation(head, observations, parameters, v)
    rows = observations.numpy()
    for given, damping in ((None, 1e-4), (0.3, 0.3)):
        product = algorithm.HVP(rows, None, v, regu_coef=given)
        assert relative_error(product, hessian + damping * v) < 1e-5
        np.testing.assert_array_equal(algorithm.build_Hvp_eval([rows, None], given)(v), product)


def test_without_torch_the_module_says_which_extra_to_install():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import natgrad\n"
        "try: import natgrad.torch\n"
        "except ImportError as error: print(error)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert "pip install 'natgrad[torch]'" in printed
