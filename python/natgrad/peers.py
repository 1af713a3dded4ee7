"""The whole update against other implementations, in turn: the command `natgrad bench peers`.

Everybody gets the same parameters and the same batch: forward pass, gradient, ten iterations of
conjugate gradients, line search. Before anything is timed, each peer's Fisher product and its step
are compared with the core's. One round times everybody once, after a pause, so that a ratio
compares neighbours in time; medians and deciles are over rounds.

JAX is written as an expert would, in several ways, and the fastest one for the problem competes.
sb3-contrib and tianshou run their own code. Both divide by x'(F + damping I) x where natgrad
divides by x'Fx; their shorter step is accepted at once, which saves them a candidate, and both make
one product more to get that number (sb3-contrib a second one for its random start).
"""

import copy
import importlib.metadata
import importlib.util
import itertools
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from natgrad import _core
from natgrad.bench import (
    CG_ITERATIONS,
    DAMPING,
    MAX_KL,
    PIECES,
    Problem,
    Shape,
    headline,
    machine,
    preemptions,
    quantiles,
    require_close,
    save,
    spread_of_time,
    table,
    using_threads,
)

__all__ = ["PEERS", "Peer", "Turns", "bench_peers", "contenders", "limit_threads", "take_turns"]

Doubles = NDArray[np.float64]

PAUSE = 0.05  # seconds before each turn, for idle OpenMP threads of torch to stop spinning
WARM = 0.06  # seconds of calls that are not counted: threads wake up and settle on their cores
TURN = 0.04  # seconds of calls that are, at least
SLOW = 0.5  # seconds of a call that needs no such preparation
MIN_ROUNDS = 3
PRODUCT_TOLERANCE = 1e-4  # relative, in the 2-norm, between float32 programs
STEP_TOLERANCE = 2e-2  # of steps, after ten iterations in float32 (ours: float64)


@dataclass(frozen=True)
class Peer:
    """One implementation of the update, set up for a problem.

    Attributes:
        name: of the library.
        detail: how the update is written.
        run: one whole update, from the problem's parameters.
        prepare: what is to happen before each `run`, untimed.
        step: runs an update and returns the change of the parameters, in natgrad's order.
        product: (P,) v to F v, without damping.
        damped: whether the step is scaled by the damped matrix.
    """

    name: str
    detail: str
    run: Callable[[], Any]
    prepare: Callable[[], None]
    step: Callable[[], Doubles]
    product: Callable[[Doubles], Doubles]
    damped: bool = False


def limit_threads(threads: int) -> None:
    """Restricts this process, and every library that it will load, to so many processors.

    JAX and OpenMP size their thread pools when they start, by the processors they may use.

    Raises:
        ValueError: fewer processors than that are available.
        RuntimeError: a library with a thread pool of its own is already loaded.
    """
    for name in ("jax", "torch"):
        if name in sys.modules:
            raise RuntimeError(f"{name} is loaded already, with a number of threads of its own")
    if hasattr(os, "sched_setaffinity"):
        available = sorted(os.sched_getaffinity(0))
        if len(available) < threads:
            raise ValueError(f"threads: want at most {len(available)} processors, got {threads}")
        os.sched_setaffinity(0, available[:threads])
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    # One thread: none beside the caller's. Several: also as devices that share the batch.
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        if threads == 1
        else f"--xla_force_host_platform_device_count={threads}"
    )


# JAX ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Variant:
    """A way to write the update in JAX."""

    linearize: bool  # products by jax.linearize and its transpose, or passes written out
    columns: bool  # activations as (features, N), or as (N, features)
    chunks: int  # parts of the batch, one after the other
    devices: int  # among which the chunks are shared

    def __str__(self) -> str:
        return ", ".join(
            [
                "jax.linearize" if self.linearize else "hand-written passes",
                "(features, N)" if self.columns else "(N, features)",
                *([f"{self.chunks} chunks"] if self.chunks > self.devices else []),
                *([f"shared by {self.devices} devices"] if self.devices > 1 else []),
            ]
        )


def _jax_variants(rows: int, threads: int) -> Iterator[_Variant]:
    """Whole and in chunks of about 256, 512 and 1024 observations, on one device and on several."""
    for devices in sorted({1, threads}):
        possible = [n for n in range(devices, rows + 1, devices) if rows % n == 0]
        if not possible:
            continue
        counts = {possible[0]}
        for height in (256, 512, 1024):
            counts.add(min(possible, key=lambda n: abs(np.log(n * height / rows))))
        for columns, chunks in itertools.product((False, True), sorted(counts)):
            yield _Variant(False, columns, chunks, devices)
            if chunks == 1:
                yield _Variant(True, columns, chunks, devices)


class _JaxUpdate:
    """The update as pure functions of JAX arrays; one object for each problem and variant.

    Data have a leading axis of chunks: observations, actions (classes as unit vectors), advantages
    and log probabilities. With several devices, `update` and `product` run on each of them and see
    its chunks only; sums over the batch are then sums over devices, too.
    """

    def __init__(self, problem: Problem, variant: _Variant) -> None:
        import jax

        self.jax, self.jnp, self.variant = jax, jax.numpy, variant
        shape = problem.shape
        self.rows, self.columns, self.gaussian = shape.rows, variant.columns, shape.gaussian
        self.widths = (shape.observation_size, *shape.hidden, shape.outputs)
        self.free = shape.outputs if shape.gaussian else 0
        self.candidates = problem.report.backtracks + 1
        self.over_rows, self.over_actions = int(variant.columns), int(not variant.columns)

    # The network

    def layers(self, theta: Any) -> list[tuple[Any, Any]]:
        found, offset = [], 0
        for n, m in itertools.pairwise(self.widths):
            W = theta[offset : offset + n * m].reshape(m, n)
            found.append((W, theta[offset + n * m : offset + (n + 1) * m]))
            offset += (n + 1) * m
        return found

    def along(self, b: Any) -> Any:
        return b[:, None] if self.columns else b

    def times(self, h: Any, W: Any) -> Any:
        return W @ h if self.columns else h @ W.T

    def forward(self, theta: Any, x: Any) -> tuple[list[Any], Any]:
        inputs = [x]
        *hidden, (W, b) = self.layers(theta)
        for V, c in hidden:
            inputs.append(self.jnp.tanh(self.times(inputs[-1], V) + self.along(c)))
        return inputs, self.times(inputs[-1], W) + self.along(b)

    def push_forward(self, theta: Any, inputs: list[Any], v: Any) -> Any:
        u = None
        for h, (W, _), (dW, db) in zip(inputs, self.layers(theta), self.layers(v), strict=True):
            new = self.times(h, dW) + self.along(db)
            u = new if u is None else new + self.times((1 - h * h) * u, W)
        return u

    def pull_back(self, theta: Any, inputs: list[Any], d: Any) -> Any:
        parts: list[Any] = []
        for (W, _), h in zip(self.layers(theta)[::-1], inputs[::-1], strict=True):
            parts[:0] = [(d @ h.T if self.columns else d.T @ h).ravel(), d.sum(self.over_rows)]
            d = (W.T @ d if self.columns else d @ W) * (1 - h * h)  # the first one is dead code
        return self.jnp.concatenate(parts)

    # The distribution

    def log_std(self, theta: Any) -> Any:
        return self.along(theta[-self.free :])

    def log_prob(self, theta: Any, z: Any, a: Any) -> Any:
        if not self.gaussian:
            return (self.jax.nn.log_softmax(z, self.over_actions) * a).sum(self.over_actions)
        scaled = (a - z) * self.jnp.exp(-self.log_std(theta))
        each = 0.5 * scaled**2 + self.log_std(theta) + 0.5 * np.log(2 * np.pi)
        return -each.sum(self.over_actions)

    def score(self, theta: Any, z: Any, a: Any, weights: Any) -> tuple[Any, Any]:
        weights = weights[None, :] if self.columns else weights[:, None]
        if not self.gaussian:
            return weights * (a - self.jax.nn.softmax(z, self.over_actions)), theta[:0]
        inverse = self.jnp.exp(-self.log_std(theta))
        scaled = (a - z) * inverse
        return weights * scaled * inverse, (weights * (scaled**2 - 1)).sum(self.over_rows)

    def metric(self, theta: Any, z: Any, u: Any) -> Any:
        if self.gaussian:
            return u * self.jnp.exp(-2 * self.log_std(theta)) / self.rows
        p = self.jax.nn.softmax(z, self.over_actions)
        return p * (u - (p * u).sum(self.over_actions, keepdims=True)) / self.rows

    def divergence(self, old: Any, old_z: Any, new: Any, z: Any) -> Any:
        if not self.gaussian:
            log_p = self.jax.nn.log_softmax(old_z, self.over_actions)
            log_q = self.jax.nn.log_softmax(z, self.over_actions)
            return (self.jnp.exp(log_p) * (log_p - log_q)).sum() / self.rows
        s, t = self.log_std(old), self.log_std(new)
        moved = (old_z - z) ** 2 * self.jnp.exp(-2 * t)
        return (t - s + 0.5 * (self.jnp.exp(2 * (s - t)) + moved - 1)).sum() / self.rows

    # The update

    def summed(self, each: Callable[..., tuple[Any, Any]], size: int, *data: Any) -> Any:
        """Sum over the batch of each(chunk)[0], and what each(chunk)[1] keeps, chunk by chunk."""
        lax = self.jax.lax
        zero = self.jnp.zeros(size, np.float32)
        if self.variant.devices > 1:
            zero = lax.pcast(zero, "batch", to="varying")

        def add(total: Any, part: Any) -> tuple[Any, Any]:
            value, kept = each(*part)
            return total + value, kept

        total, kept = lax.scan(add, zero, data)
        return (lax.psum(total, "batch") if self.variant.devices > 1 else total), kept

    def linearize(self, theta: Any, *data: Any) -> tuple[Any, Any, Any, Callable[[Any], Any]]:
        """Gradient, objective, outputs, and the Fisher product."""
        network = theta.size - self.free

        def first(x: Any, a: Any, advantages: Any, old: Any) -> tuple[Any, Any]:
            inputs, z = self.forward(theta, x)
            ratio = self.jnp.exp(self.log_prob(theta, z, a) - old)
            d, d_free = self.score(theta, z, a, advantages * ratio / self.rows)
            objective = (advantages * ratio).sum() / self.rows
            parts = [self.pull_back(theta, inputs, d), d_free, objective[None]]
            return self.jnp.concatenate(parts), (inputs, z)

        sums, (inputs, z) = self.summed(first, theta.size + 1, *data)

        if self.variant.linearize:
            _, push = self.jax.linearize(lambda t: self.forward(t, data[0][0])[1], theta)
            pull = self.jax.linear_transpose(push, theta)

            def curvature(v: Any) -> Any:
                return pull(self.metric(theta, z[0], push(v)))[0][:network]
        else:

            def curvature(v: Any) -> Any:
                def each(h: Any, y: Any) -> tuple[Any, None]:
                    d = self.metric(theta, y, self.push_forward(theta, h, v))
                    return self.pull_back(theta, h, d), None

                return self.summed(each, network, inputs, z)[0]

        def product(v: Any) -> Any:
            return self.jnp.concatenate([curvature(v), 2 * v[network:]])

        return sums[:-1], sums[-1], z, product

    def conjugate_gradients(self, g: Any, product: Any, damping: float) -> tuple[Any, Any]:
        """x of (F + damping I) x = g after ten products, and its residual."""

        def iterate(_: Any, state: Any) -> Any:
            s, r, p, rr = state
            Ap = product(p) + damping * p
            alpha = rr / (p @ Ap)
            r = r - alpha * Ap
            new = r @ r
            return s + alpha * p, r, r + new / rr * p, new

        begin = (self.jnp.zeros_like(g), g, g, g @ g)
        s, r, *_ = self.jax.lax.fori_loop(0, CG_ITERATIONS, iterate, begin)
        return s, r

    def solve(self, theta: Any, g: Any, damping: Any, *data: Any) -> Any:
        """The same from scratch: passes over the batch, and the solution."""
        return self.conjugate_gradients(g, self.linearize(theta, *data)[3], damping)[0]

    def update(self, theta: Any, *data: Any) -> Any:
        """The new parameters."""
        jnp = self.jnp
        g, objective, z, product = self.linearize(theta, *data)
        s, r = self.conjugate_gradients(g, product, DAMPING)
        d = jnp.sqrt(2 * MAX_KL / (s @ (g - r) - DAMPING * (s @ s))) * s
        found, done = theta, False
        for n in range(self.candidates):
            candidate = theta + 0.8**n * d

            def each(
                x: Any, a: Any, advantages: Any, old: Any, z: Any, new: Any = candidate
            ) -> tuple[Any, None]:
                _, y = self.forward(new, x)
                ratio = jnp.exp(self.log_prob(new, y, a) - old)
                value = (advantages * ratio).sum() / self.rows
                return jnp.stack([self.divergence(theta, z, new, y), value]), None

            (kl, value), _ = self.summed(each, 2, *data, z)
            accept = (kl <= MAX_KL) & (value > objective)
            found = jnp.where(done | ~accept, found, candidate)
            done = done | accept
        return found

    def product(self, theta: Any, v: Any, *data: Any) -> Any:
        """F v."""
        return self.linearize(theta, *data)[3](v)


def _jax(problem: Problem, threads: int) -> Iterator[Peer]:
    for variant in _jax_variants(problem.shape.rows, threads):
        yield _jax_peer(problem, variant)


def jax_solvers(
    problem: Any, threads: int
) -> Iterator[tuple[str, Callable[[Doubles, float], Doubles]]]:
    """Conjugate gradients alone in JAX, each way to write them: what it is, and x of g and damping.

    `problem` needs the attributes of `Problem` that hold the shape, the batch and the parameters.
    """
    for variant in _jax_variants(problem.shape.rows, threads):
        functions, compiled, place, batch = _jax_program(problem, variant)
        solve, theta = compiled(functions.solve, 3), place(problem.start)

        def run(
            g: Doubles, damping: float, solve: Any = solve, theta: Any = theta, batch: Any = batch,
            place: Any = place,
        ) -> Doubles:  # fmt: skip
            return np.asarray(solve(theta, place(g), place(damping), *batch), np.float64)

        yield str(variant), run


def _jax_program(
    problem: Problem, variant: _Variant
) -> tuple[_JaxUpdate, Callable[..., Any], Callable[[Any], Any], list[Any]]:
    """The functions, what compiles them, what puts an array everywhere, and the batch in chunks."""
    import jax
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as Spec

    mesh = Mesh(np.array(jax.devices()[: variant.devices]), ("batch",))
    same, split = NamedSharding(mesh, Spec()), NamedSharding(mesh, Spec("batch"))

    def compiled(function: Callable[..., Any], vectors: int) -> Callable[..., Any]:
        if variant.devices > 1:
            specs = (*[Spec()] * vectors, *[Spec("batch")] * 4)
            function = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=Spec())
        return jax.jit(function)  # type: ignore[no-any-return]

    def chunked(array: Any) -> Any:
        parts = np.asarray(array, np.float32).reshape(variant.chunks, -1, *np.shape(array)[1:])
        if variant.columns and parts.ndim == 3:
            parts = np.ascontiguousarray(parts.transpose(0, 2, 1))
        return jax.device_put(parts, split)

    shape, actions = problem.shape, problem.actions
    batch = [
        chunked(problem.observations),
        chunked(actions if shape.gaussian else np.eye(shape.outputs)[actions]),
        chunked(problem.advantages),
        chunked(problem.log_probs),
    ]

    def place(array: Any) -> Any:
        return jax.device_put(np.asarray(array, np.float32), same)

    return _JaxUpdate(problem, variant), compiled, place, batch


def _jax_peer(problem: Problem, variant: _Variant) -> Peer:
    functions, compiled, place, batch = _jax_program(problem, variant)
    theta = place(problem.start)
    update, alone = compiled(functions.update, 1), compiled(functions.product, 2)

    def product(v: Doubles) -> Doubles:
        return np.array(alone(theta, place(v), *batch), np.float64)

    return Peer(
        "jax",
        str(variant),
        run=lambda: update(theta, *batch).block_until_ready(),
        prepare=lambda: None,
        step=lambda: np.asarray(update(theta, *batch), np.float64) - problem.start,
        product=product,
    )


# sb3-contrib -------------------------------------------------------------------------------------


def _flat(tensors: Sequence[Any]) -> Doubles:
    return np.concatenate([t.detach().numpy().ravel() for t in tensors]).astype(np.float64)


def _assign(tensors: Sequence[Any], theta: Any) -> None:
    """Puts parameters in natgrad's order into torch tensors."""
    import torch

    offset = 0
    with torch.no_grad():
        for tensor in tensors:
            part = theta[offset : offset + tensor.numel()]
            tensor.copy_(torch.as_tensor(np.array(part)).reshape(tensor.shape))
            offset += tensor.numel()


def _spaces(shape: Shape) -> tuple[Any, Any]:
    from gymnasium import spaces

    observations = spaces.Box(-np.inf, np.inf, (shape.observation_size,), np.float32)
    if shape.gaussian:
        return observations, spaces.Box(-1.0, 1.0, (shape.outputs,), np.float32)
    return observations, spaces.Discrete(shape.outputs)


def _sb3(problem: Problem, threads: int) -> Iterator[Peer]:
    import gymnasium
    import sb3_contrib
    import torch
    from stable_baselines3.common.distributions import kl_divergence
    from stable_baselines3.common.logger import configure

    torch.set_num_threads(threads)
    shape = problem.shape

    class Sizes(gymnasium.Env[Any, Any]):
        """Spaces only: nothing is ever stepped."""

        observation_space, action_space = _spaces(shape)

    # It averages divergences over the dimensions of an action: bound and damping shrink with them.
    mean_over = shape.outputs if shape.gaussian else 1
    model = sb3_contrib.TRPO(
        "MlpPolicy",
        Sizes(),
        n_steps=shape.rows,
        batch_size=shape.rows,
        cg_max_steps=CG_ITERATIONS,
        cg_damping=DAMPING / mean_over,
        target_kl=MAX_KL / mean_over,
        n_critic_updates=0,
        normalize_advantage=False,
        policy_kwargs={"net_arch": {"pi": list(shape.hidden), "vf": []}},
        device="cpu",
        seed=0,
    )
    model.set_logger(configure(None, []))
    buffer = model.rollout_buffer
    for name, values in (
        ("observations", problem.observations),
        ("actions", problem.actions),
        ("advantages", problem.advantages),
        ("log_probs", problem.log_probs),
    ):
        getattr(buffer, name)[:] = np.reshape(values, getattr(buffer, name).shape)
    buffer.full = True
    net = [m for m in model.policy.mlp_extractor.policy_net if hasattr(m, "weight")]
    tensors = [t for layer in (*net, model.policy.action_net) for t in (layer.weight, layer.bias)]
    if shape.gaussian:
        tensors.append(model.policy.log_std)

    def prepare() -> None:
        _assign(tensors, problem.start)

    next(buffer.get(None))  # it flattens its arrays at the first call, once for each rollout

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no value losses
            model.train()

    def step() -> Doubles:
        prepare()
        run()
        return _flat(tensors) - problem.start

    def product(v: Doubles) -> Doubles:
        prepare()
        observations = torch.as_tensor(problem.observations)
        with torch.no_grad():
            old = copy.copy(model.policy.get_distribution(observations))
        kl = kl_divergence(model.policy.get_distribution(observations), old).mean()
        gradients = torch.autograd.grad(kl, tensors, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        vector = torch.as_tensor(v.astype(np.float32))
        found: Doubles = model.hessian_vector_product(tensors, flat, vector).double().numpy()
        return mean_over * found - DAMPING * v

    yield Peer("sb3-contrib", "its TRPO.train() without critic", run, prepare, step, product, True)


# tianshou ----------------------------------------------------------------------------------------


def _tianshou(problem: Problem, threads: int) -> Iterator[Peer]:
    import torch
    from tianshou.algorithm import TRPO
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Batch
    from torch import nn
    from torch.distributions import Categorical, Independent, Normal, kl_divergence

    torch.set_num_threads(threads)
    shape = problem.shape
    widths = (shape.observation_size, *shape.hidden, shape.outputs)

    class Actor(nn.Module):  # type: ignore[misc]
        """The same network; its parameters are in natgrad's order."""

        def __init__(self) -> None:
            super().__init__()
            modules: list[Any] = []
            for n, m in itertools.pairwise(widths):
                modules += [nn.Linear(n, m), nn.Tanh()]
            self.net = nn.Sequential(*modules[:-1])
            if shape.gaussian:
                self.log_std = nn.Parameter(torch.zeros(shape.outputs))
            layers = list(self.net.parameters())
            self.ordered = [*layers, self.log_std] if shape.gaussian else layers

        def parameters(self, recurse: bool = True) -> Iterator[Any]:
            return iter(self.ordered)

        def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[Any, Any]:
            z = self.net(obs)
            return ((z, self.log_std.exp().expand_as(z)) if shape.gaussian else z), state

    def gaussian(outputs: Any) -> Any:
        return Independent(Normal(*outputs), 1)

    class Critic(nn.Module):  # type: ignore[misc]
        """One number: its update wants at least one step of a critic."""

        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.zeros(1))

        def forward(self, obs: Any) -> Any:
            return self.value.expand(len(obs))

    actor = Actor()
    tensors = actor.ordered
    algorithm = TRPO(
        policy=ProbabilisticActorPolicy(
            actor=actor,
            dist_fn=gaussian if shape.gaussian else lambda logits: Categorical(logits=logits),
            action_space=_spaces(shape)[1],
            action_scaling=False,
            action_bound_method=None,
        ),
        critic=Critic(),
        optim=AdamOptimizerFactory(),
        max_kl=MAX_KL,
        optim_critic_iters=1,
        advantage_normalization=False,
    )
    batch = Batch(
        obs=torch.as_tensor(problem.observations),
        act=torch.as_tensor(problem.actions),
        adv=torch.as_tensor(problem.advantages.astype(np.float32)),
        logp_old=torch.as_tensor(problem.log_probs),
        returns=torch.zeros(shape.rows),
        info=Batch(),
    )

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of each step back in the line search
            algorithm._update_with_batch(batch, None, 1)

    def prepare() -> None:
        _assign(tensors, problem.start)

    def step() -> Doubles:
        prepare()
        run()
        return _flat(tensors) - problem.start

    def product(v: Doubles) -> Doubles:
        prepare()
        distribution = algorithm.policy(batch).dist
        with torch.no_grad():
            old = algorithm.policy(batch).dist
        kl = kl_divergence(old, distribution).mean()
        gradient = algorithm._get_flat_grad(kl, actor, create_graph=True)
        vector = torch.as_tensor(v.astype(np.float32))
        found: Doubles = algorithm._MVP(vector, gradient).double().numpy()
        return found - DAMPING * v

    yield Peer("tianshou", "its TRPO, critic of one number", run, prepare, step, product, True)


# In turn -----------------------------------------------------------------------------------------

# Library: module, what pip is to install, and the ways to write the update with it.
PEERS: dict[str, tuple[str, str, Callable[[Problem, int], Iterator[Peer]]]] = {
    "jax": ("jax", "jax", _jax),
    "sb3-contrib": ("sb3_contrib", "sb3-contrib", _sb3),
    "tianshou": ("tianshou", "'tianshou>=2'", _tianshou),
}


def missing(names: Sequence[str] = tuple(PEERS)) -> dict[str, str]:
    """The libraries that are not installed, and the commands that install them."""
    return {
        name: f"pip install {PEERS[name][1]}"
        for name in names
        if importlib.util.find_spec(PEERS[name][0]) is None
    }


def _check(problem: Problem, peer: Peer) -> float:
    """The relative difference of the peer's step from ours."""
    step = problem.step
    if peer.damped:
        update = _core.TrustRegionUpdate(
            max_kl=MAX_KL, damping=DAMPING, cg_iterations=CG_ITERATIONS, cg_rtol=0.0,
            damped_step=True,
        )  # fmt: skip
        problem.restore()
        update(problem.policy, problem.batch)
        step = (problem.policy.parameters - problem.start).astype(np.float64)
        problem.restore()
    return require_close(f"{peer.name}: step", peer.step(), step, STEP_TOLERANCE)


def contenders(
    problem: Problem,
    threads: int,
    names: Sequence[str] = tuple(PEERS),
    *,
    note: Callable[[str], object] = print,
    wanted: Callable[[Peer], bool] = lambda peer: True,
) -> list[tuple[Peer, float]]:
    """Natgrad and the fastest variant of each installed peer, checked, each with its difference.

    Args:
        problem: what is to be solved.
        threads: for libraries that are told only now.
        names: from `PEERS`; those that are not installed are left out.
        note: called with a line for each peer.
        wanted: chooses among the variants, to save the time of trying them all.

    Raises:
        WrongAnswerError: a peer's step or Fisher product is not ours.
    """
    ours = Peer(
        "natgrad",
        "TrustRegionUpdate",
        run=problem.update,
        prepare=problem.restore,
        step=lambda: problem.step,
        product=lambda v: _core.Fisher(problem.policy, problem.observations) @ v,
    )
    problem.restore()
    for piece in ("product", "update"):
        PIECES[piece](problem)  # checks them against NumPy
    direction, want = problem.direction, ours.product(problem.direction)
    found = [(ours, 0.0)]
    for name in names:
        if importlib.util.find_spec(PEERS[name][0]) is None:
            continue
        tried: list[tuple[float, Peer, float]] = []
        for peer in filter(wanted, PEERS[name][2](problem, threads)):
            difference = _check(problem, peer)
            tried.append((_turn(peer), peer, difference))
        _, best, difference = min(tried, key=lambda t: t[0])
        require_close(f"{name}: Fisher product", best.product(direction), want, PRODUCT_TOLERANCE)
        version = importlib.metadata.version(name)
        slowest = 1e3 * max(tried, key=lambda t: t[0])[0]
        among = f"; best of {len(tried)}, the slowest {slowest:.3g} ms" if len(tried) > 1 else ""
        note(f"{name} {version}: {best.detail}{among}")
        found.append((best, difference))
    return found


@dataclass(frozen=True)
class Turns:
    """Seconds of an update, round by round, for each contender."""

    seconds: dict[str, list[float]]

    def ratios(self, name: str) -> list[float]:
        """How many times as long as natgrad's, round by round."""
        pairs = zip(self.seconds[name], self.seconds["natgrad"], strict=True)
        return [theirs / ours for theirs, ours in pairs]


def _turn(peer: Peer) -> float:
    """The median time of a call, hot."""
    calls: list[float] = []
    counted, warming = 0.0, WARM
    while counted < TURN:
        peer.prepare()
        began = time.perf_counter()
        peer.run()
        took = time.perf_counter() - began
        if warming > 0 and took < SLOW:
            warming -= took
        else:
            calls.append(took)
            counted += took
    return float(np.median(calls))


def take_turns(peers: Sequence[Peer], seconds: float, min_rounds: int = MIN_ROUNDS) -> Turns:
    """Times everybody in turn, for at least so many seconds and rounds.

    A turn is a pause, 60 ms of calls that are not counted, and 40 ms of which the median counts; a
    call that takes half a second is made once. Rounds in which another process got our cores are
    dropped as long as enough remain.
    """
    rounds: list[tuple[list[float], bool]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < min_rounds or time.perf_counter() < end:
        before, times = preemptions(), []
        for peer in peers:
            time.sleep(PAUSE)
            times.append(_turn(peer))
        rounds.append((times, preemptions() == before))
    kept = [times for times, alone in rounds if alone]
    if len(kept) < min_rounds:
        kept = [times for times, _ in rounds]
    return Turns({p.name: [times[i] for times in kept] for i, p in enumerate(peers)})


_COLUMNS = ("", "time", "10 - 90 %", "GFLOP/s", "/ natgrad", "10 - 90 %", "difference")


def bench_peers(
    shapes: Sequence[Shape],
    names: Sequence[str] = tuple(PEERS),
    *,
    threads: int | None = None,
    seconds: float = 6.0,
    json_file: str | os.PathLike[str] | None = None,
    csv_file: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Times whole updates, in float32, against other libraries and prints a table for each problem.

    Restricts the process to as many processors as there are threads, for good.

    Args:
        shapes: the problems.
        names: peers, from `PEERS`; those that are not installed are named.
        threads: of everybody; as many as the core uses when None.
        seconds: to spend on each problem, three rounds at least.
        json_file: to write machine and rows to.
        csv_file: to write rows to.
        progress: whether to show a bar on stderr; when None, if it is a terminal.

    Returns:
        A row for each shape and library: seconds of an update, the ratio to natgrad's in the same
        round, both with deciles; GFLOP/s by our count of operations; the step's difference to ours.

    Raises:
        WrongAnswerError: a peer's step or Fisher product is not ours.
    """
    threads = _core.get_num_threads() if threads is None else threads
    limit_threads(threads)
    rows: list[dict[str, Any]] = []
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    with using_threads(threads):
        about = machine()
        print(headline(about))
        print(
            f"whole updates: gradient, {CG_ITERATIONS} products, two candidates; in turn, each hot "
            f"after a pause of {1e3 * PAUSE:.0f} ms"
        )
        absent = missing(names)
        for name, command in absent.items():
            print(f"not installed: {name} ({command})")
        with tqdm(total=len(shapes), disable=hidden, leave=False, unit="shape") as bar:
            for shape in shapes:
                bar.set_postfix_str(shape.name)
                problem = Problem(shape)
                notes: list[str] = []
                checked = contenders(problem, threads, names, note=notes.append)
                turns = take_turns([peer for peer, _ in checked], seconds)
                lines = []
                for peer, difference in checked:
                    times = quantiles(turns.seconds[peer.name])
                    ratios = quantiles(turns.ratios(peer.name))
                    rows.append(
                        {
                            "shape": shape.name,
                            "library": peer.name,
                            "detail": peer.detail,
                            **dict(
                                zip(("seconds", "seconds_10", "seconds_90"), times, strict=True)
                            ),
                            **dict(zip(("ratio", "ratio_10", "ratio_90"), ratios, strict=True)),
                            "gflops": problem.update_operations / times[0] * 1e-9,
                            "difference": difference,
                            "rounds": len(turns.seconds[peer.name]),
                        }
                    )
                    ours = peer.name == "natgrad"
                    lines.append(
                        [
                            peer.name,
                            *spread_of_time(*times),
                            f"{rows[-1]['gflops']:.0f}",
                            "" if ours else f"{ratios[0]:.2f}",
                            "" if ours else f"{ratios[1]:.2f} - {ratios[2]:.2f}",
                            "" if ours else f"{difference:.0e}",
                        ]
                    )
                bar.update()
                with bar.external_write_mode():
                    print(f"\n{shape}, P = {problem.start.size}")
                    print(table(_COLUMNS, lines))
                    print("\n".join(f"  {note}" for note in notes), flush=True)
    save(about, rows, json_file, csv_file)
    return rows
