"""The update in JAX, written as an expert would, in several ways.

The fastest way depends on the problem: it is measured, and competes.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer
from natgrad.bench import CG_ITERATIONS, DAMPING, MAX_KL, Doubles, Problem

__all__ = ["Variant", "peers", "solvers", "variants"]


@dataclass(frozen=True)
class Variant:
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


def variants(rows: int, threads: int) -> Iterator[Variant]:
    """The batch whole and in chunks of about 256, 512 and 1024 rows, on one device or several."""
    for devices in sorted({1, threads}):
        possible = [n for n in range(devices, rows + 1, devices) if rows % n == 0]
        if not possible:
            continue
        counts = {possible[0]}
        for height in (256, 512, 1024):
            counts.add(min(possible, key=lambda n: abs(np.log(n * height / rows))))
        for columns, chunks in itertools.product((False, True), sorted(counts)):
            yield Variant(False, columns, chunks, devices)
            if chunks == 1:
                yield Variant(True, columns, chunks, devices)


class JaxUpdate:
    """The update as pure functions of JAX arrays; one object for each problem and variant.

    Data have a leading axis of chunks: observations, actions (classes as unit vectors), advantages
    and log probabilities. With several devices, `update` and `product` run on each of them and see
    its chunks only; sums over the batch then go over the devices as well.
    """

    def __init__(self, problem: Problem, variant: Variant) -> None:
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


def peers(problem: Problem, threads: int) -> Iterator[Peer]:
    """Every way to write the update for this problem."""
    for variant in variants(problem.shape.rows, threads):
        yield _peer(problem, variant)


def solvers(
    problem: Any, threads: int
) -> Iterator[tuple[str, Callable[[Doubles, float], Doubles]]]:
    """Conjugate gradients alone in JAX: every way to write them, and its name.

    Args:
        problem: has the attributes of `Problem` that hold the shape, the batch and the parameters.
        threads: devices that may share the batch.

    Yields:
        A name, and a function that maps g and the damping to the approximate solution.
    """
    for variant in variants(problem.shape.rows, threads):
        functions, compiled, place, batch = _program(problem, variant)
        solve, theta = compiled(functions.solve, 3), place(problem.start)

        def run(
            g: Doubles, damping: float, solve: Any = solve, theta: Any = theta, batch: Any = batch,
            place: Any = place,
        ) -> Doubles:  # fmt: skip
            return np.asarray(solve(theta, place(g), place(damping), *batch), np.float64)

        yield str(variant), run


def _program(
    problem: Problem, variant: Variant
) -> tuple[JaxUpdate, Callable[..., Any], Callable[[Any], Any], list[Any]]:
    """The functions, a compiler, a function that copies an array to all devices, and the batch."""
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

    return JaxUpdate(problem, variant), compiled, place, batch


def _peer(problem: Problem, variant: Variant) -> Peer:
    functions, compiled, place, batch = _program(problem, variant)
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
