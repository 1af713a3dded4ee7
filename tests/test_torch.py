"""Policies of torch as operators, and their updates: by the core where it can read them."""

import copy
import itertools
import re
import subprocess
import sys
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
    net.load_state_dict(torch.load(tmp_path / "net.pt"))
    assert torch.equal(net(observations), before)
    np.testing.assert_array_equal(net[0].bias.detach().numpy(), policy.parameters[35:42])


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([], "no Linear"),
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
    assert "outputs differ" in F.reason
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


def ingredients(kind, dtype=torch.float64, seed=0):
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
    parameters = [*net.parameters(), *([] if log_std is None else [log_std])]
    behaviour = log_prob(head(observations)).detach().double().numpy()

    def forward():
        d = head(observations)
        return d, log_prob(d)

    def read():
        return backend.read_layers([net], KINDS[kind], log_std), observations

    if kind in ("categorical", "multi-categorical", "bernoulli"):
        actions = actions.long() if kind != "bernoulli" else actions
    given = (
        actions.numpy().astype(np.int64)
        if kind != "gaussian" and "std" not in kind
        else (actions.numpy())
    )
    return read, forward, parameters, given, advantages, behaviour


def refuse():
    raise backend.UnreadableError("asked not to")


OPTIONS = {
    "defaults": {},
    "as sb3-contrib": {
        "kl_reduction": "mean",
        "kl_direction": "new_old",
        "cg_rtol": 0.0,
        "cg_atol": 1e-5,
        "damped_step": True,
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
    view[0] = 7.0
    assert policy.parameters[0] == 7.0
    with pytest.raises(TypeError, match=r"observations.*requires grad"):
        policy.outputs(torch.zeros(5, 3, requires_grad=True))


def test_the_documented_lines_run():
    text = (Path(__file__).parents[1] / "docs" / "backends.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "policy_of(" in block]
    names = {}
    exec(compile(block, "backends.md", "exec"), names)
    assert names["x"].shape == (names["F"].shape[0],)
    assert np.shares_memory(names["policy"].parameters, names["net"][0].bias.detach().numpy())


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
