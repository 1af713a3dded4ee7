"""Policies of torch: their Fisher matrix as an operator, natural gradients, and whole updates.

A multilayer perceptron is read into a `natgrad.Policy` on the same memory, and the core does the
rest. For any other module torch computes two products with the Jacobian of the distribution's
parameters, J v and J'u; M has a closed form, and the solver is the core's.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from natgrad import _core
from natgrad.batch import Batch
from natgrad.policy import Policy, ValueFunction

try:
    import torch
    from torch import distributions, nn
except ModuleNotFoundError as error:
    raise ImportError("natgrad.torch needs PyTorch: pip install 'natgrad[torch]'") from error

__all__ = [
    "FisherOperator",
    "Perceptron",
    "PolicyUpdater",
    "UnreadableError",
    "ValueFitter",
    "all_finite",
    "distribution_parameters",
    "few_threads",
    "natural_gradient",
    "normalized",
    "policy_of",
    "read_layers",
]

Doubles = NDArray[np.float64]


class UnreadableError(ValueError):
    """The core cannot compute a module; the message says why. Autograd may still be able to."""


# Reading a multilayer perceptron -----------------------------------------------------------------

# By the exact type: a subclass may compute something else.
_ACTIVATIONS: dict[type, str] = {
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.ELU: "elu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Identity: "identity",
}


@dataclass(frozen=True)
class Perceptron:
    """A multilayer perceptron of torch that the core can compute: see `read_layers`.

    Attributes:
        tensors: its parameters in the order of `natgrad.Policy.parameters`.
        inputs: size of an observation.
        hidden: widths of the hidden layers.
        activation: its name, as `natgrad.Policy` has it.
        distribution: of actions; None for a value function.
    """

    tensors: tuple[Any, ...]
    inputs: int
    hidden: tuple[int, ...]
    activation: str
    distribution: _core.Distribution | None

    def is_same_as(self, other: "Perceptron") -> bool:
        """Whether both describe the same tensors, used in the same way."""
        mine, others = (
            (p.inputs, p.hidden, p.activation, repr(p.distribution)) for p in (self, other)
        )
        return (
            mine == others
            and len(self.tensors) == len(other.tensors)
            and all(a is b for a, b in zip(self.tensors, other.tensors, strict=True))
        )


def read_layers(
    modules: Iterable[Any], distribution: _core.Distribution | None, log_std: Any = None
) -> Perceptron:
    """Reads Linear layers with an activation between any two of them, and Identities at the end.

    Args:
        modules: in the order in which they are applied; a `Sequential` may stand for its contents.
        distribution: whose parameters the last layer computes; None for a value function.
        log_std: (n,) or (n, 1) parameter, the log standard deviation of a `DiagonalGaussian(n)`.

    Raises:
        UnreadableError: the core has no such network; the message names the difference.
    """
    chain = list(_flatten(modules))
    while chain and type(chain[-1]) is nn.Identity:
        chain.pop()
    linear, between = chain[::2], chain[1::2]
    for module in linear:
        if type(module) is not nn.Linear:
            raise UnreadableError(f"a {type(module).__name__} stands where a Linear is wanted")
    if len(chain) % 2 == 0:
        raise UnreadableError("the last module is not a Linear" if chain else "there is no Linear")
    activations = {_activation_name(module) for module in between} or {"tanh"}
    if len(activations) > 1:
        raise UnreadableError(f"the activations differ: {', '.join(sorted(activations))}")
    for first, second in itertools.pairwise(linear):
        if first.out_features != second.in_features:
            raise UnreadableError(
                f"{first.out_features} outputs are followed by {second.in_features} inputs"
            )

    tensors = [tensor for layer in linear for tensor in (layer.weight, layer.bias)]
    outputs = 1 if distribution is None else distribution.parameter_size
    if isinstance(distribution, _core.DiagonalGaussian) and not distribution.state_dependent_std:
        outputs = distribution.action_size
        if not isinstance(log_std, torch.Tensor) or log_std.numel() != outputs:
            raise UnreadableError(f"log_std is not a parameter of {outputs} values")
        tensors.append(log_std)
    if linear[-1].out_features != outputs:
        raise UnreadableError(
            f"the last layer has {linear[-1].out_features} outputs, not the {outputs} of "
            + ("a value function" if distribution is None else repr(distribution))
        )
    for tensor in tensors:
        if not (isinstance(tensor, nn.Parameter) and tensor.requires_grad):
            raise UnreadableError("a layer without bias, or with parameters that are not learned")
    # One tensor in two places, or two over the same memory, have one gradient and not two.
    ranges = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors)
    if any(first[1] > second[0] for first, second in itertools.pairwise(ranges)):
        raise UnreadableError("a parameter is used in more than one place")
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
        raise UnreadableError(f"dtype {', '.join(map(str, kinds))}, want float32 or float64")
    hidden = tuple(layer.out_features for layer in linear[:-1])
    return Perceptron(
        tuple(tensors), linear[0].in_features, hidden, activations.pop(), distribution
    )


def _flatten(modules: Iterable[Any]) -> Iterable[Any]:
    for module in modules:
        # What its type says is not all that such a module does.
        hooks = ("_forward_hooks", "_forward_pre_hooks")
        if any(getattr(module, kind, None) for kind in hooks) or "forward" in vars(module):
            raise UnreadableError(f"a {type(module).__name__} has a hook or a forward of its own")
        if type(module) is nn.Sequential:
            yield from _flatten(module)
        else:
            yield module


def _activation_name(module: Any) -> str:
    name = _ACTIVATIONS.get(type(module))
    if name is None:
        raise UnreadableError(f"{type(module).__name__} is not an activation of the core")
    if name == "elu" and module.alpha != 1:
        raise UnreadableError(f"ELU has alpha {module.alpha}, want 1")
    if name == "gelu" and module.approximate != "none":
        raise UnreadableError("GELU is approximated")
    return name


_Model = TypeVar("_Model", Policy, ValueFunction)


class _Twin(Generic[_Model]):
    """A model of the core and the tensors of torch that it was read from.

    On the CPU they share memory; tensors on other devices are copied in both directions.
    """

    def __init__(self, model: _Model, source: Perceptron):
        self.model: _Model = model
        self.source = source
        flat = torch.from_numpy(model.parameters)
        self.views = [
            flat[block.offset : block.offset + block.size].view(tensor.shape)
            for block, tensor in zip(model.layout, source.tensors, strict=True)
        ]

    @staticmethod
    def options(source: Perceptron) -> dict[str, Any]:
        """Arguments of the model's constructor."""
        dtype = str(source.tensors[0].dtype).removeprefix("torch.")
        network = {"hidden": source.hidden, "activation": source.activation, "dtype": dtype}
        return {**network, "init": "scaled"}

    def fits(self, source: Perceptron) -> bool:
        return self.source.is_same_as(source) and source.tensors[0].dtype == self.views[0].dtype

    def read(self) -> None:
        """Copies torch's parameters into the core."""
        for tensor, view in zip(self.source.tensors, self.views, strict=True):
            view.copy_(tensor.data)

    def pull(self) -> None:
        """Copies torch's parameters into the core; on the CPU torch then uses the core's memory."""
        for tensor, view in zip(self.source.tensors, self.views, strict=True):
            if tensor.device.type != "cpu":
                view.copy_(tensor.data)
            elif not tensor.data.is_set_to(view):
                view.copy_(tensor.data)
                tensor.data = view

    def push(self) -> None:
        """Copies the core's parameters to torch where they do not share memory."""
        for tensor, view in zip(self.source.tensors, self.views, strict=True):
            if tensor.device.type != "cpu":
                tensor.data.copy_(view)


def _policy_twin(source: Perceptron) -> _Twin[Policy]:
    assert source.distribution is not None
    options = _Twin.options(source)
    return _Twin(Policy(source.inputs, source.distribution, **options), source)


def policy_of(module: Any, distribution: _core.Distribution, log_std: Any = None) -> Policy:
    """A policy of the core that shares the memory of a torch module.

    The module's parameters become views of `Policy.parameters`; optimisers and `state_dict` still
    work. Giving a parameter other memory, as `module.double()` does, ends the sharing.

    Args:
        module: a `Sequential` of Linear layers and activations.
        distribution: whose parameters it computes.
        log_std: the log standard deviation of a `DiagonalGaussian`.

    Raises:
        UnreadableError: the core has no such network, its outputs are not the module's, or the
            module is not on the CPU.
    """
    source = read_layers([module], distribution, log_std)
    if source.tensors[0].device.type != "cpu":
        raise UnreadableError(f"the parameters are on {source.tensors[0].device}, want cpu")
    twin = _policy_twin(source)
    twin.read()
    probe = torch.linspace(-1, 1, 4 * source.inputs).reshape(4, -1).to(source.tensors[0].dtype)
    _require_agreement(twin.model, probe, _plain_outputs(module, probe, log_std))
    twin.pull()
    return twin.model


# Distributions -----------------------------------------------------------------------------------


def distribution_parameters(distribution: Any) -> tuple[_core.Distribution, Any]:
    """The core's form of a torch distribution, and its parameters y (N, K) with their history.

    Args:
        distribution: Normal, Categorical or Bernoulli over a batch of N; these as the base of an
            Independent or of a TransformedDistribution, whose divergence and Fisher information are
            those of its base; or a sequence of Categoricals, independent of each other.

    Raises:
        UnreadableError: any other distribution.
    """
    if isinstance(distribution, Sequence):
        parts = [distribution_parameters(part) for part in distribution]
        if not all(isinstance(kind, _core.Categorical) for kind, _ in parts):
            raise UnreadableError("a sequence of distributions that are not all Categorical")
        kind = _core.MultiCategorical([kind.parameter_size for kind, _ in parts])
        return kind, torch.cat([y for _, y in parts], dim=1)
    if isinstance(distribution, distributions.Independent):
        return distribution_parameters(distribution.base_dist)
    if type(distribution) is distributions.TransformedDistribution:
        return distribution_parameters(distribution.base_dist)
    makers: dict[type, tuple[Callable[[int], _core.Distribution], Callable[[Any], Any]]] = {
        distributions.Normal: (
            lambda k: _core.DiagonalGaussian(k // 2, state_dependent_std=True),
            lambda d: torch.cat([d.loc, d.scale.log()], dim=-1),
        ),
        distributions.Categorical: (_core.Categorical, lambda d: d.logits),
        distributions.Bernoulli: (_core.Bernoulli, lambda d: d.logits),
    }
    if type(distribution) not in makers:
        raise UnreadableError(f"the core has no {type(distribution).__name__} distribution")
    make, parameters = makers[type(distribution)]
    y = parameters(distribution)
    if y.ndim != 2:
        raise UnreadableError(f"parameters of shape {tuple(y.shape)}, want (N, K)")
    return make(y.shape[1]), y


def _doubles(tensor: Any) -> Doubles:
    array: Doubles = tensor.detach().cpu().numpy().astype(np.float64, copy=False)
    return array


@contextlib.contextmanager
def _buffers_kept() -> Iterator[None]:
    """Puts the buffers of every module that runs meanwhile back to what they were before.

    Batch normalisation in training mode moves its statistics in each forward pass. What computes a
    matrix or tries a candidate is no pass of training.
    """
    kept: dict[int, tuple[Any, Any]] = {}

    def keep(module: Any, _: Any) -> None:
        for buffer in module.buffers(recurse=False):
            kept.setdefault(id(buffer), (buffer, buffer.detach().clone()))

    hook = nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
        for buffer, before in kept.values():
            if not torch.equal(buffer, before):
                buffer.data.copy_(before)  # a graph that is still needed may have saved it


# The Fisher matrix -------------------------------------------------------------------------------


class _AutogradFisher:
    """F = (1/N) sum_n J_n' M_n J_n by torch, with J the Jacobian of y (N, K) in `parameters`.

    J'u is linear in u, so J v is the derivative of v'(J'u) with respect to u. Both need reverse
    mode alone, one pass each, and are exact for any module whose backward pass torch can
    differentiate. Parameters on which y does not depend, or that do not learn, are left out.
    """

    def __init__(self, y: Any, parameters: Iterable[Any], distribution: _core.Distribution):
        self.y, self.distribution, self.outputs = y, distribution, _doubles(y)
        self.u = torch.zeros_like(y, requires_grad=True)
        given = [p for p in parameters if p.requires_grad]
        if not given or not y.requires_grad:
            raise ValueError("parameters: want one at least that the policy learns by, got none")
        pulled = torch.autograd.grad(y, given, self.u, create_graph=True, allow_unused=True)
        self.parameters = [p for p, g in zip(given, pulled, strict=True) if g is not None]
        self.pulled = [g for g in pulled if g is not None]
        size = sum(p.numel() for p in self.parameters)
        self.shape = (size, size)
        self._require_second_derivatives()

    def _require_second_derivatives(self) -> None:
        """Tests u'(J v) = v'(J'u), which fails where a backward pass leaves torch's graph."""
        random = torch.Generator().manual_seed(0)
        u, *v = (torch.randn(x.shape, generator=random).to(x) for x in (self.y, *self.parameters))
        advice = (
            "module: want a backward pass that torch can differentiate; {}. A torch.autograd."
            "Function needs a backward of torch operations on saved tensors, without "
            "once_differentiable; attention needs torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
        )
        try:
            (jv,) = torch.autograd.grad(
                self.pulled, self.u, v, retain_graph=True, materialize_grads=True
            )
        except RuntimeError as error:
            raise ValueError(advice.format(f"it says: {error}")) from error
        ju = torch.autograd.grad(self.y, self.parameters, u, retain_graph=True)
        left = float((u * jv).sum())
        right = float(sum((a * b).sum() for a, b in zip(v, ju, strict=True)))
        length = sum(
            float(a.square().sum()) * float(b.square().sum()) for a, b in zip(v, ju, strict=True)
        )
        bound = torch.finfo(self.y.dtype).eps ** 0.5 * (length**0.5 + float(u.norm() * jv.norm()))
        if not abs(left - right) <= bound:
            raise ValueError(advice.format(f"u'(J v) is {left:.4g} and v'(J'u) is {right:.4g}"))

    def split(self, v: Doubles) -> list[Any]:
        """A flat vector as tensors like the parameters."""
        flat = torch.as_tensor(v).to(self.y)
        parts = torch.split(flat, [p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def pull(self, scalar_or_y: Any, u: Any = None) -> Doubles:
        """J'u, or the gradient of a scalar, as one vector."""
        found = torch.autograd.grad(
            scalar_or_y, self.parameters, u, retain_graph=True, materialize_grads=True
        )
        return _doubles(torch.cat([g.reshape(-1) for g in found]))

    def matvec(self, v: Doubles) -> Doubles:
        (u,) = torch.autograd.grad(self.pulled, self.u, self.split(v), retain_graph=True)
        moved = _doubles(u)
        if not np.isfinite(moved).all():
            return np.full(self.shape[0], np.nan)  # the solver stops: INDEFINITE
        weighted = self.distribution.fisher_product(self.outputs, moved) / len(moved)
        return self.pull(self.y, torch.as_tensor(weighted).to(self.y))


class FisherOperator:
    """The Fisher matrix of a torch policy on a batch, plus damping times the identity.

    A linear operator as SciPy and `natgrad.conjugate_gradient` understand it (shape, dtype, matvec,
    @). Vectors are ordered as `torch.nn.utils.parameters_to_vector(parameters)`; NumPy arrays give
    float64 arrays, tensors give tensors like themselves.

    Args:
        module: called with `observations`; returns a torch distribution, see
            `distribution_parameters`, or the parameters (N, K) of `distribution`.
        observations: (N, ...).
        distribution: needed where the module returns a tensor. For a `DiagonalGaussian` without
            state-dependent deviations that tensor holds the means (N, n).
        log_std: (n,) parameter, the log standard deviation of such a Gaussian; the last in order.
        damping: >= 0.
        parameters: tensors to differentiate with respect to; the default is `module.parameters()`,
            then `log_std`. Those that the distribution does not depend on, or that do not require
            a gradient, are left out.

    Attributes:
        parameters: the tensors that a vector stands for, in order.
        path: 'core' if the module could be read as a multilayer perceptron, else 'autograd'.
        reason: why it could not be read; empty for 'core'.

    Raises:
        UnreadableError: the core has no such distribution.
    """

    def __init__(
        self,
        module: Any,
        observations: Any,
        distribution: _core.Distribution | None = None,
        *,
        log_std: Any = None,
        damping: float = 0.0,
        parameters: Iterable[Any] | None = None,
    ):
        if not (np.isfinite(damping) and damping >= 0):
            raise ValueError(f"damping: want a finite number >= 0, got {damping!r}")
        self.damping = float(damping)
        self.dtype = np.dtype(np.float64)
        self.path, self.reason = "core", ""
        self._F: _core.Fisher | _AutogradFisher
        self._device = getattr(observations, "device", torch.device("cpu"))
        try:
            self._F = self._read(module, observations, distribution, log_std, parameters)
        except UnreadableError as reason:
            self.path, self.reason = "autograd", str(reason)
            self._F = self._ask(module, observations, distribution, log_std, parameters)
            self.parameters = self._F.parameters
        self.shape = self._F.shape

    def _read(
        self, module: Any, observations: Any, distribution: Any, log_std: Any, parameters: Any
    ) -> _core.Fisher:
        if distribution is None or parameters is not None:
            raise UnreadableError("it returns a distribution, or parameters were chosen")
        source = read_layers([module], distribution, log_std)
        if observations.ndim != 2:
            raise UnreadableError(f"observations of shape {tuple(observations.shape)}")
        twin = _policy_twin(source)
        twin.read()
        outputs = _plain_outputs(module, observations, log_std)
        _require_agreement(twin.model, observations, outputs)
        self.parameters = list(source.tensors)
        return _core.Fisher(twin.model, _doubles(observations))

    def _ask(
        self, module: Any, observations: Any, distribution: Any, log_std: Any, parameters: Any
    ) -> _AutogradFisher:
        chosen = list(module.parameters() if parameters is None else parameters)
        if log_std is not None and parameters is None:
            chosen.append(log_std)
        # Whatever mode the caller is in, this needs a history.
        with torch.inference_mode(False), torch.enable_grad(), _buffers_kept():
            if isinstance(observations, torch.Tensor) and observations.is_inference():
                observations = observations.clone()
            y = module(observations)
            if distribution is None:
                distribution, y = distribution_parameters(y)
            elif (
                isinstance(distribution, _core.DiagonalGaussian)
                and not distribution.state_dependent_std
            ):
                y = torch.cat([y, log_std.reshape(1, -1).expand_as(y)], dim=1)
                distribution = _core.DiagonalGaussian(distribution.action_size, True)
            return _AutogradFisher(y, chosen, distribution)

    def matvec(self, v: Any) -> Any:
        """(F + damping I) v for v of shape (P,) or (P, 1)."""
        if isinstance(v, torch.Tensor):
            return torch.from_numpy(self.matvec(_doubles(v))).to(v)
        v = np.asarray(v, dtype=np.float64)
        if v.shape not in ((self.shape[0],), (self.shape[0], 1)):
            raise ValueError(f"v: want shape ({self.shape[0]},), got {v.shape}")
        return self._F.matvec(v.reshape(-1)).reshape(v.shape) + self.damping * v

    rmatvec = matvec

    def __matmul__(self, v: Any) -> Any:
        if v.ndim != 2:
            return self.matvec(v)
        columns = [self.matvec(column) for column in v.T]
        return torch.stack(columns, 1) if isinstance(v, torch.Tensor) else np.stack(columns, 1)

    def __repr__(self) -> str:
        return f"<FisherOperator {self.shape[0]} x {self.shape[1]} by {self.path}>"


def natural_gradient(
    module: Any,
    observations: Any,
    gradients: Iterable[Any] | None = None,
    *,
    distribution: _core.Distribution | None = None,
    log_std: Any = None,
    damping: float = 0.1,
    max_iterations: int = 10,
    rtol: float = 1e-10,
) -> list[Any]:
    """(F + damping I)^-1 g: the natural gradient of any loss in the metric of the policy.

    Args:
        module, observations, distribution, log_std: as `FisherOperator` takes them.
        gradients: tensors like the parameters; the default is their `.grad`. None counts as zero.
        damping: must be positive where F may be singular.
        max_iterations, rtol: of conjugate gradients.

    Returns:
        One tensor for each of `FisherOperator(...).parameters`, in order. To descend by any torch
        optimiser, assign them to `.grad`.

    Raises:
        ValueError: the gradients do not fit the parameters.
    """
    F = FisherOperator(module, observations, distribution, log_std=log_std)
    given = [p.grad for p in F.parameters] if gradients is None else list(gradients)
    shapes = [tuple(p.shape) for p in F.parameters]
    if len(given) != len(shapes) or any(
        g is not None and tuple(g.shape) != s for g, s in zip(given, shapes, strict=True)
    ):
        found = [None if g is None else tuple(g.shape) for g in given]
        raise ValueError(f"gradients: want shapes {shapes}, got {found}")
    filled = [
        torch.zeros_like(p) if g is None else g for g, p in zip(given, F.parameters, strict=True)
    ]
    g = _doubles(torch.cat([part.reshape(-1) for part in filled]))
    x = _core.conjugate_gradient(F, g, damping=damping, max_iterations=max_iterations, rtol=rtol).x
    parts = np.split(x, np.cumsum([p.numel() for p in F.parameters])[:-1])
    return [
        torch.from_numpy(part).to(p).view_as(p) for part, p in zip(parts, F.parameters, strict=True)
    ]


# Whole updates -----------------------------------------------------------------------------------


def _centred(y: Doubles, distribution: _core.Distribution) -> Doubles:
    """Logits of a softmax minus their mean, which it ignores; other parameters as they are."""
    if isinstance(distribution, _core.MultiCategorical):
        ends = np.cumsum(distribution.sizes)[:-1]
        parts = np.split(y, ends, axis=1)
        y = np.hstack([part - part.mean(axis=1, keepdims=True) for part in parts])
    elif isinstance(distribution, _core.Categorical):
        y = y - y.mean(axis=1, keepdims=True)
    return y


def _plain_outputs(module: Any, observations: Any, log_std: Any) -> Any:
    """What the module itself computes, with the log standard deviations behind the means."""
    with torch.no_grad(), _buffers_kept():
        y = module(observations)
        return y if log_std is None else torch.cat([y, log_std.reshape(1, -1).expand_as(y)], dim=1)


def _require_agreement(policy: Policy, observations: Any, outputs: Any) -> None:
    """Compares the core's forward pass with torch's outputs (N, K); raises UnreadableError."""
    want = _doubles(outputs)
    got = policy.outputs(_doubles(observations)).astype(np.float64)
    if got.shape != want.shape:
        raise UnreadableError(f"its outputs have shape {want.shape}, the core's {got.shape}")
    apart = np.abs(_centred(got, policy.distribution) - _centred(want, policy.distribution)).max()
    error = apart / max(np.abs(got).max(), np.finfo(np.float64).tiny)
    if not error <= (1e-4 if policy.dtype == np.float32 else 1e-10):
        raise UnreadableError(f"its outputs differ from the core's by {error:.1e} of their size")


@contextlib.contextmanager
def few_threads() -> Iterator[None]:
    """Gives torch one thread: more would go on spinning on processors that the core needs next."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def all_finite(*tensors: Any) -> bool:
    """Whether all tensors, including those in dictionaries, are finite."""
    parts = (t.values() if isinstance(t, dict) else (t,) for t in tensors)
    return all(map(_is_finite, itertools.chain.from_iterable(parts)))


def _is_finite(tensor: Any) -> bool:
    if not tensor.is_floating_point():
        return True
    if tensor.device.type == "cpu":  # NumPy needs a fortieth of torch's time
        return bool(np.isfinite(tensor.detach().numpy()).all())
    return bool(torch.isfinite(tensor).all())


def normalized(advantages: NDArray[Any], epsilon: float = 0.0) -> Doubles:
    """(A - mean) / (std + epsilon) with torch's std, over N - 1; zeros for constant advantages.

    Advantages that differ by no more than their own rounding count as constant.
    """
    a = advantages.astype(np.float64)
    std = a.std(ddof=1) if a.size > 1 else 0.0
    if std <= np.finfo(advantages.dtype).eps * np.abs(a).max():
        return np.zeros_like(a)
    scaled: Doubles = (a - a.mean()) / (std + epsilon)
    return scaled


class PolicyUpdater:
    """Updates a torch policy by a `natgrad.TrustRegionUpdate`, in the core if it can be read.

    The network that was read is compared with the policy's own forward pass before its first use,
    and again whenever its tensors have changed.

    Attributes:
        path: a sentence that says which side makes the Fisher-vector products, and why. Empty
            before the first update.
        parameters: tensors that the last update may have moved.
        likelihood: mean of log pi(a | s) times the advantage before the last update, if that was
            given no log probabilities; else NaN.
        seen: what the host stored about the policy that this was made for; copies do not have it.
    """

    def __init__(self) -> None:
        self.path = ""
        self.parameters: list[Any] = []
        self.likelihood = np.nan
        self.seen: tuple[Any, ...] = ()
        self._twin: _Twin[Policy] | None = None
        self._options = ""
        self._update = _core.TrustRegionUpdate()

    def __reduce__(self) -> tuple[Any, ...]:
        return PolicyUpdater, ()  # all state can be rebuilt

    def __call__(
        self,
        options: dict[str, Any],
        read: Callable[[], tuple[Perceptron, Any]],
        forward: Callable[[], tuple[Any, Any]],
        parameters: Iterable[Any],
        actions: Any,
        advantages: Doubles,
        log_probs: Doubles | None,
    ) -> _core.UpdateReport:
        """One update.

        Args:
            options: of `natgrad.TrustRegionUpdate`.
            read: returns the perceptron that the core computes, and the observations (N, inputs) of
                its first layer; may raise UnreadableError.
            forward: returns the torch distribution (see `distribution_parameters`) and the log
                probabilities of the actions taken (N,), both at the present parameters.
            parameters: tensors that may change; those that the policy does not depend on stay.
            actions: as `natgrad.Batch` takes them.
            advantages: (N,), finite.
            log_probs: (N,), finite, of the policy that acted; None if it is the present one.
        """
        parameters = list(parameters)
        twin = None
        try:
            source, observations = read()
            twin = self._provide_twin(source, observations, forward, parameters)
        except UnreadableError as reason:
            self.path = f"Fisher products by torch: {reason}"
        # The residual after the last product is not reported, so the core makes only that half of
        # the product which the step needs. A product by torch has no such half.
        solver = options.get("solver", "auto")
        if solver in ("auto", "cg"):
            iterations = options.get("cg_iterations", _core.ConjugateGradient().iterations)
            solver = _core.ConjugateGradient(iterations, or_direct=solver == "auto")
        if isinstance(solver, _core.ConjugateGradient):
            options = {**options, "solver": solver.replace(last_residual=twin is None)}
        if repr(options) != self._options:
            self._update, self._options = _core.TrustRegionUpdate(**options), repr(options)
        if twin is None:
            with _buffers_kept():
                report, self.parameters, self.likelihood = _step_by_autograd(
                    self._update, forward, parameters, advantages, log_probs
                )
            return report
        self.parameters = parameters
        outputs = source.tensors[2 * len(source.hidden) + 1].numel()
        widths = (source.inputs, *source.hidden, outputs)
        self.path = (
            f"Fisher products by the core: {'-'.join(map(str, widths))} {source.activation}, "
            f"{source.distribution!r}"
        )
        twin.pull()
        rows = observations.detach().cpu().numpy()
        self.likelihood = np.nan
        if log_probs is None:
            self.likelihood = float(np.mean(twin.model.log_prob(rows, actions) * advantages))
        report = self._update(twin.model, Batch(rows, actions, advantages, log_probs))
        if report.accepted:
            twin.push()
        return report

    def _provide_twin(
        self,
        source: Perceptron,
        observations: Any,
        forward: Callable[[], tuple[Any, Any]],
        parameters: list[Any],
    ) -> "_Twin[Policy]":
        if self._twin is not None and self._twin.fits(source):
            return self._twin
        if {id(t) for t in source.tensors} != {id(p) for p in parameters}:
            counts = (sum(t.numel() for t in tensors) for tensors in (parameters, source.tensors))
            raise UnreadableError("it has {} parameters, the core's network {}".format(*counts))
        twin = _policy_twin(source)
        twin.read()
        with torch.no_grad(), _buffers_kept():
            kind, y = distribution_parameters(forward()[0])
        if type(kind) is not type(source.distribution):
            raise UnreadableError(f"its distribution is {kind!r}, not {source.distribution!r}")
        _require_agreement(twin.model, observations, y)
        self._twin = twin
        return twin


def _step_by_autograd(
    update: _core.TrustRegionUpdate,
    forward: Callable[[], tuple[Any, Any]],
    parameters: list[Any],
    advantages: Doubles,
    log_probs: Doubles | None,
) -> tuple[_core.UpdateReport, list[Any], float]:
    """One update in which torch runs the policy in both directions, and the core does the rest.

    Returns the report, the tensors that the policy depends on, and `PolicyUpdater.likelihood`.
    """
    distribution, log_prob = forward()
    kind, y = distribution_parameters(distribution)
    F = _AutogradFisher(y, parameters, kind)
    weights = torch.as_tensor(advantages).to(log_prob)
    behaviour, likelihood = log_prob.detach(), np.nan
    if log_probs is None:
        likelihood = float(np.mean(_doubles(log_prob) * advantages))
    else:
        behaviour = torch.as_tensor(log_probs).to(log_prob)
    ratio = torch.exp(log_prob - behaviour)
    old_ratio, old_outputs = _doubles(ratio), F.outputs
    start = [p.detach().to("cpu", torch.float64, copy=True) for p in F.parameters]

    def move(step: Doubles) -> None:
        parts = np.split(step, np.cumsum([p.numel() for p in start])[:-1])
        for p, old, part in zip(F.parameters, start, parts, strict=True):
            p.data.copy_(old + torch.from_numpy(part).view_as(old))

    def evaluate(step: Doubles) -> tuple[float, float]:
        move(step)
        with torch.no_grad():
            try:
                distribution, log_prob = forward()
            except ValueError:  # torch's answer to distribution parameters that are not finite
                return np.nan, np.nan
            outputs = _doubles(distribution_parameters(distribution)[1])
            new_ratio = _doubles(torch.exp(log_prob - behaviour))
        if not np.isfinite(outputs).all():
            return np.nan, np.nan
        pair = (old_outputs, outputs)
        kl = kind.kl(*(pair if update.kl_direction == "old_new" else pair[::-1]))
        return float(np.mean((new_ratio - old_ratio) * advantages)), float(kl.mean())

    accepted = False
    try:
        surrogate = (ratio * weights).mean()
        report = update.step(
            F.pull(surrogate), F, evaluate, kind.action_size, float(surrogate.detach())
        )
        accepted = report.accepted
    finally:
        if not accepted:
            for p, old in zip(F.parameters, start, strict=True):
                p.data.copy_(old)
    return report, F.parameters, likelihood


class ValueFitter:
    """Fits a torch value network with `natgrad.GaussNewtonFit`, on its own memory."""

    def __init__(self) -> None:
        self._twin: _Twin[ValueFunction] | None = None
        self._fit = _core.GaussNewtonFit()
        self._scale = (0.0, 1.0)

    def __reduce__(self) -> tuple[Any, ...]:
        return ValueFitter, ()

    def __call__(self, modules: Iterable[Any], observations: Any, targets: Doubles) -> float:
        """Fits `modules` (see `read_layers`) to targets (N,); returns the final mean squared error.

        Raises:
            UnreadableError: the core has no such value function.
        """
        source = read_layers(modules, None)
        if self._twin is None or not self._twin.fits(source):
            value_function = ValueFunction(source.inputs, **_Twin.options(source))
            self._twin = _Twin(value_function, source)
            self._scale = (float(targets.mean()), float(targets.std()) or 1.0)
        twin, rows = self._twin, observations.detach().cpu().numpy()
        weight, bias = twin.views[-2:]
        twin.pull()
        # V = mean + std * network: torch's last layer holds mean and std, the core's does not
        mean, std = self._scale
        weight.div_(std)
        bias.sub_(mean).div_(std)
        twin.model.target_scale = self._scale
        self._fit(twin.model, rows, targets)
        mean, std = self._scale = twin.model.target_scale
        weight.mul_(std)
        bias.mul_(std).add_(mean)
        twin.model.target_scale = (0.0, 1.0)
        twin.push()
        return float(np.mean(np.square(twin.model.predict(rows) - targets)))
