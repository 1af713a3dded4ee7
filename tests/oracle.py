"""The slow, obvious answer to everything the core computes.

NumPy, float64, one observation at a time, every formula written out from its definition. Nothing
here is shared with the core, and nothing here is meant to be fast. Networks and log probabilities
also accept complex parameters, so that `complex_step` differentiates them to rounding error: that
is how the Jacobians and scores written out below are themselves checked (`test_oracle.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.integrate import quad
from scipy.special import erf, loggamma, polygamma, psi

# --------------------------------------------------------------------------------------------------
# networks


def _normal_cdf(z):
    return 0.5 * (1.0 + erf(z / np.sqrt(2.0)))


def _normal_pdf(z):
    return np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)


def _sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "tanh": (np.tanh, lambda z: 1.0 - np.tanh(z) ** 2),
    "relu": (lambda z: np.where(z.real > 0, z, 0.0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "elu": (
        lambda z: np.where(z.real > 0, z, np.expm1(np.where(z.real > 0, 0.0, z))),
        lambda z: np.where(z > 0, 1.0, np.exp(np.minimum(z, 0.0))),
    ),
    "silu": (
        lambda z: z * _sigmoid(z),
        lambda z: _sigmoid(z) * (1.0 + z * (1.0 - _sigmoid(z))),
    ),
    "gelu": (lambda z: z * _normal_cdf(z), lambda z: _normal_cdf(z) + z * _normal_pdf(z)),
    "identity": (lambda z: z, lambda z: np.ones_like(z)),
}


@dataclass
class Network:
    """A multilayer perceptron as a function of one flat parameter vector."""

    sizes: Sequence[int]  # inputs, hidden layers, outputs
    activation: str = "tanh"
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    clip: float = np.inf

    @property
    def parameter_count(self) -> int:
        return sum(m * n + m for n, m in itertools.pairwise(self.sizes))

    def normalize(self, x: np.ndarray) -> np.ndarray:
        if self.mean is None:
            return x
        return np.clip((x - self.mean) / self.std, -self.clip, self.clip)

    def layers(self, theta: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        at, result = 0, []
        for n, m in itertools.pairwise(self.sizes):
            weight = theta[at : at + m * n].reshape(m, n)
            at += m * n
            result.append((weight, theta[at : at + m]))
            at += m
        return result

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        f, _ = ACTIVATIONS[self.activation]
        h, layers = self.normalize(x), self.layers(theta)
        for weight, bias in layers[:-1]:
            h = f(weight @ h + bias)
        weight, bias = layers[-1]
        return weight @ h + bias

    def jacobian(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """d outputs / d theta, one row per output."""
        f, df = ACTIVATIONS[self.activation]
        layers = self.layers(theta)
        inputs, slopes = [self.normalize(x)], []
        for weight, bias in layers[:-1]:
            z = weight @ inputs[-1] + bias
            inputs.append(f(z))
            slopes.append(df(z))
        blocks = []
        d = np.eye(self.sizes[-1])  # d outputs / d (what the current layer returns)
        for index in reversed(range(len(layers))):
            if index < len(layers) - 1:
                d = d * slopes[index]
            by_weight = d[:, :, None] * inputs[index]
            blocks = [by_weight.reshape(len(d), -1), d, *blocks]
            d = d @ layers[index][0]
        return np.concatenate(blocks, axis=1)


# --------------------------------------------------------------------------------------------------
# distributions: all functions take the parameters of one observation


def log_softmax(logits):
    shifted = logits - np.max(logits.real)
    return shifted - np.log(np.sum(np.exp(shifted)))


class _Discrete:
    """Expectations are sums over every action that there is."""

    def probability(self, outputs, action):
        return np.exp(self.log_prob(outputs, action))

    def entropy(self, outputs):
        return -sum(
            self.probability(outputs, a) * self.log_prob(outputs, a) for a in self.all_actions()
        )

    def kl(self, old, new):
        return sum(
            self.probability(old, a) * (self.log_prob(old, a) - self.log_prob(new, a))
            for a in self.all_actions()
        )

    def fisher(self, outputs):
        return sum(
            self.probability(outputs, a) * np.outer(self.score(outputs, a), self.score(outputs, a))
            for a in self.all_actions()
        )


@dataclass
class Categorical(_Discrete):
    n: int
    own_parameters: int = field(default=0, init=False)

    @property
    def parameter_size(self) -> int:
        return self.n

    network_outputs = parameter_size

    def all_actions(self):
        return list(range(self.n))

    def log_prob(self, outputs, action):
        return log_softmax(outputs)[int(action)]

    def score(self, outputs, action):
        return np.eye(self.n)[int(action)] - np.exp(log_softmax(outputs))

    def mode(self, outputs):
        return int(np.argmax(outputs))

    def random_actions(self, rng, count):
        return rng.integers(0, self.n, count)


@dataclass
class MultiCategorical(_Discrete):
    sizes: tuple[int, ...]
    own_parameters: int = field(default=0, init=False)

    @property
    def parameter_size(self) -> int:
        return sum(self.sizes)

    network_outputs = parameter_size

    def split(self, outputs):
        return np.split(outputs, np.cumsum(self.sizes)[:-1])

    def all_actions(self):
        return list(itertools.product(*(range(n) for n in self.sizes)))

    def log_prob(self, outputs, action):
        return sum(
            log_softmax(part)[int(a)] for part, a in zip(self.split(outputs), action, strict=True)
        )

    def score(self, outputs, action):
        return np.concatenate(
            [
                np.eye(len(part))[int(a)] - np.exp(log_softmax(part))
                for part, a in zip(self.split(outputs), action, strict=True)
            ]
        )

    def mode(self, outputs):
        return np.array([np.argmax(part) for part in self.split(outputs)])

    def random_actions(self, rng, count):
        return np.stack([rng.integers(0, n, count) for n in self.sizes], axis=1)


@dataclass
class Bernoulli(_Discrete):
    n: int
    own_parameters: int = field(default=0, init=False)

    @property
    def parameter_size(self) -> int:
        return self.n

    network_outputs = parameter_size

    def all_actions(self):
        return list(itertools.product((0, 1), repeat=self.n))

    def log_prob(self, outputs, action):
        # log sigmoid(z) if the bit is set, log sigmoid(-z) if not
        return sum(
            -np.log1p(np.exp(-z)) if a else -np.log1p(np.exp(z))
            for z, a in zip(outputs, action, strict=True)
        )

    def score(self, outputs, action):
        return np.asarray(action, dtype=float) - _sigmoid(outputs)

    def mode(self, outputs):
        return (outputs > 0).astype(int)

    def random_actions(self, rng, count):
        return rng.integers(0, 2, (count, self.n))


@dataclass
class DiagonalGaussian:
    n: int
    state_dependent_std: bool = False

    @property
    def parameter_size(self) -> int:
        return 2 * self.n

    @property
    def network_outputs(self) -> int:
        return 2 * self.n if self.state_dependent_std else self.n

    @property
    def own_parameters(self) -> int:
        return 0 if self.state_dependent_std else self.n

    def log_prob(self, outputs, action):
        mean, log_std = outputs[: self.n], outputs[self.n :]
        z = (np.asarray(action) - mean) / np.exp(log_std)
        return np.sum(-0.5 * z * z - log_std - 0.5 * np.log(2 * np.pi))

    def score(self, outputs, action):
        mean, log_std = outputs[: self.n], outputs[self.n :]
        z = (np.asarray(action) - mean) / np.exp(log_std)
        return np.concatenate([z / np.exp(log_std), z * z - 1.0])

    def entropy(self, outputs):
        return np.sum(outputs[self.n :] + 0.5 * np.log(2 * np.pi * np.e))

    def kl(self, old, new):
        mean0, std0 = old[: self.n], np.exp(old[self.n :])
        mean1, std1 = new[: self.n], np.exp(new[self.n :])
        return np.sum(np.log(std1 / std0) + (std0**2 + (mean0 - mean1) ** 2) / (2 * std1**2) - 0.5)

    def fisher(self, outputs):
        return np.diag(np.concatenate([np.exp(-2.0 * outputs[self.n :]), 2.0 * np.ones(self.n)]))

    def mode(self, outputs):
        return outputs[: self.n]

    def random_actions(self, rng, count):
        return rng.normal(size=(count, self.n))


@dataclass
class SquashedGaussian(DiagonalGaussian):
    """Actions are u; densities are those of low + (high - low) (1 + tanh u) / 2."""

    low: float = -1.0
    high: float = 1.0

    def log_derivative(self, u):
        return np.log(0.5 * (self.high - self.low) * (1.0 - np.tanh(u) ** 2))

    def log_prob(self, outputs, action):
        return super().log_prob(outputs, action) - np.sum(self.log_derivative(np.asarray(action)))

    def entropy(self, outputs):
        """E[-log p], the volume part by adaptive quadrature over the standard normal variable."""
        total = super().entropy(outputs)
        for mean, log_std in zip(outputs[: self.n], outputs[self.n :], strict=True):
            std = np.exp(log_std)
            kink = np.clip(-mean / std, -8.9, 8.9)  # of |u|, where a large deviation is not smooth

            def integrand(z, mean=mean, std=std):
                # 1 - tanh^2 = 1 / cosh^2, and cosh overflows where its logarithm is |u| - log 2
                u = abs(mean + std * z)
                log_cosh = u + np.log1p(np.exp(-2 * u)) - np.log(2)
                return np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi) * -2 * log_cosh

            parts = ((-9.0, kink), (kink, 9.0))
            total += sum(
                quad(integrand, *p, epsabs=1e-13, epsrel=1e-13, limit=200)[0] for p in parts
            )
        return total + self.n * np.log(0.5 * (self.high - self.low))


@dataclass
class Beta:
    """Outputs are softplus^-1 of alpha - 1, then of beta - 1; actions are u = artanh(2 x - 1)."""

    n: int
    low: float = -1.0
    high: float = 1.0
    own_parameters: int = field(default=0, init=False)

    @property
    def parameter_size(self) -> int:
        return 2 * self.n

    network_outputs = parameter_size

    def shapes(self, outputs):
        shapes = 1.0 + np.log(1.0 + np.exp(outputs))
        return shapes[: self.n], shapes[self.n :]

    def log_partition(self, a, b):
        return loggamma(a) + loggamma(b) - loggamma(a + b)

    def log_prob(self, outputs, action):
        a, b = self.shapes(outputs)
        x = 0.5 * (1.0 + np.tanh(np.asarray(action)))
        density = (a - 1) * np.log(x) + (b - 1) * np.log(1 - x) - self.log_partition(a, b)
        return np.sum(density - np.log(self.high - self.low))

    def score(self, outputs, action):
        a, b = self.shapes(outputs)
        x = 0.5 * (1.0 + np.tanh(np.asarray(action)))
        by_shape = [np.log(x) - psi(a) + psi(a + b), np.log(1 - x) - psi(b) + psi(a + b)]
        return _sigmoid(outputs) * np.concatenate(by_shape)

    def entropy(self, outputs):
        a, b = self.shapes(outputs)
        means = (a - 1) * (psi(a) - psi(a + b)) + (b - 1) * (psi(b) - psi(a + b))  # of log x, ...
        return np.sum(self.log_partition(a, b) - means + np.log(self.high - self.low))

    def kl(self, old, new):
        if not np.iscomplexobj(new):  # SciPy has these functions in double at most
            old, new = np.asarray(old, dtype=float), np.asarray(new, dtype=float)
        (a, b), (c, d) = self.shapes(old), self.shapes(new)
        means = (a - c) * (psi(a) - psi(a + b)) + (b - d) * (psi(b) - psi(a + b))
        return np.sum(self.log_partition(c, d) - self.log_partition(a, b) + means)

    def fisher(self, outputs):
        a, b = self.shapes(outputs)
        both = np.tile(np.diag(polygamma(1, a + b)), (2, 2))
        by_shape = np.diag(polygamma(1, np.concatenate([a, b]))) - both
        return np.outer(_sigmoid(outputs), _sigmoid(outputs)) * by_shape

    def mode(self, outputs):
        a, b = self.shapes(outputs)
        return np.arctanh(2 * a / (a + b) - 1)

    def random_actions(self, rng, count):
        return rng.normal(size=(count, self.n))


# --------------------------------------------------------------------------------------------------
# policies


@dataclass
class Policy:
    """A network with a distribution on top, and the matrices of information geometry."""

    observation_size: int
    distribution: Categorical | MultiCategorical | Bernoulli | DiagonalGaussian | Beta
    hidden: Sequence[int] = ()
    activation: str = "tanh"
    normalizer: tuple[np.ndarray, np.ndarray, float] | None = None

    def __post_init__(self):
        mean, std, clip = self.normalizer or (None, None, np.inf)
        sizes = (self.observation_size, *self.hidden, self.distribution.network_outputs)
        self.network = Network(sizes, self.activation, mean, std, clip)

    @property
    def parameter_count(self) -> int:
        return self.network.parameter_count + self.distribution.own_parameters

    def output(self, theta, x):
        own = self.distribution.own_parameters
        out = self.network(theta[: len(theta) - own], x)
        return np.concatenate([out, theta[len(theta) - own :]])

    def jacobian(self, theta, x):
        own = self.distribution.own_parameters
        of_network = self.network.jacobian(theta[: len(theta) - own], x)
        result = np.zeros((len(of_network) + own, len(theta)))
        result[: len(of_network), : len(theta) - own] = of_network
        result[len(of_network) :, len(theta) - own :] = np.eye(own)
        return result

    def outputs(self, theta, observations):
        return np.array([self.output(theta, x) for x in observations])

    def log_prob(self, theta, observations, actions):
        return np.array(
            [
                self.distribution.log_prob(self.output(theta, x), a)
                for x, a in zip(observations, actions, strict=True)
            ]
        )

    def entropy(self, theta, observations):
        return np.array([self.distribution.entropy(self.output(theta, x)) for x in observations])

    def kl(self, theta, observations, old_theta):
        """KL(old || new); in extended precision, because nearly all of it cancels."""
        return np.array(
            [
                self.distribution.kl(
                    self.output(old_theta, x).astype(np.longdouble),
                    self.output(theta, x).astype(np.longdouble),
                )
                for x in observations
            ],
            dtype=float,
        )

    def scores(self, theta, observations, actions):
        """grad_theta log pi(a_n | s_n), one row per observation."""
        return np.array(
            [
                self.jacobian(theta, x).T @ self.distribution.score(self.output(theta, x), a)
                for x, a in zip(observations, actions, strict=True)
            ]
        )

    def score(self, theta, observations, actions, weights=None):
        weights = np.ones(len(observations)) if weights is None else weights
        return np.mean(weights[:, None] * self.scores(theta, observations, actions), axis=0)

    def fisher(self, theta, observations, weights=None):
        """(1/N) sum_n w_n J_n' M_n J_n."""
        weights = np.ones(len(observations)) if weights is None else weights
        total = np.zeros((len(theta), len(theta)))
        for x, w in zip(observations, weights, strict=True):
            jacobian = self.jacobian(theta, x)
            total += w * (jacobian.T @ self.distribution.fisher(self.output(theta, x)) @ jacobian)
        return total / len(observations)

    def fisher_product(self, theta, observations, v, weights=None):
        """The same matrix times `v`, for problems whose matrix is too large to write down."""
        weights = np.ones(len(observations)) if weights is None else weights
        total = np.zeros(len(theta))
        for x, w in zip(observations, weights, strict=True):
            jacobian = self.jacobian(theta, x)
            m = self.distribution.fisher(self.output(theta, x))
            total += w * (jacobian.T @ (m @ (jacobian @ v)))
        return total / len(observations)

    def empirical_fisher(self, theta, observations, actions, weights=None):
        weights = np.ones(len(observations)) if weights is None else weights
        scores = self.scores(theta, observations, actions)
        return sum(w * np.outer(s, s) for w, s in zip(weights, scores, strict=True)) / len(scores)


def curvature_rows(count: int, fraction: float) -> np.ndarray:
    """The fixed subsample of a batch of `count` rows that Fisher(fraction=...) looks at."""
    m = max(1, round(fraction * count))
    return np.array([(i * count) // m for i in range(m)])


def complex_step(f: Callable, theta: np.ndarray, h: float = 1e-30) -> np.ndarray:
    """d f / d theta without cancellation: the imaginary part of f(theta + ih) over h."""
    columns = []
    for k in range(len(theta)):
        shifted = theta.astype(complex)
        shifted[k] += 1j * h
        columns.append(np.imag(f(shifted)) / h)
    return np.array(columns).T


# --------------------------------------------------------------------------------------------------
# the solver tower


def conjugate_gradient(matrix, b, iterations, rtol=1e-10, atol=0.0):
    """Hestenes and Stiefel (1952), from x = 0: (x, iterations done, converged)."""
    x, r = np.zeros_like(b), b.copy()
    p, rr = r.copy(), b @ b
    threshold = max(rtol * np.sqrt(rr), atol)
    for done in range(iterations):
        if np.sqrt(rr) <= threshold:
            return x, done, True
        q = matrix @ p
        alpha = rr / (p @ q)
        x = x + alpha * p
        r = r - alpha * q
        rr, previous = r @ r, rr
        p = r + (rr / previous) * p
    return x, iterations, bool(np.sqrt(rr) <= threshold)


@dataclass
class Update:
    """What one update must return."""

    status: str
    parameters: np.ndarray
    kl: float = 0.0
    improvement: float = 0.0
    expected_improvement: float = 0.0
    step_fraction: float = 0.0
    backtracks: int = 0
    full_step: np.ndarray | None = None
    gradient: np.ndarray | None = None
    solution: np.ndarray | None = None
    cg_iterations: int = 0
    reduction_ratio: float = 0.0


def surrogate(policy, theta, batch_observations, actions, advantages, log_probs):
    ratio = np.exp(policy.log_prob(theta, batch_observations, actions) - log_probs)
    return np.mean(ratio * advantages)


def trust_region_update(
    policy: Policy,
    theta: np.ndarray,
    observations,
    actions,
    advantages,
    log_probs=None,
    *,
    max_kl=0.01,
    damping=0.1,
    cg_iterations=10,
    cg_rtol=1e-10,
    line_search=(0.8, 10, 0.0),  # shrink, max_backtracks, accept_ratio; None: the full step
    normalize_advantages=False,
    fisher="exact",
    curvature_fraction=1.0,
    damped_step=False,
    damping_metric=None,  # diagonal of D in (F + damping D) x = g
    start=None,  # of conjugate gradients, in any length
    cg_atol=0.0,
    kl_reduction="sum",
    kl_direction="old_new",
    step_size=None,
) -> Update:
    """Algorithm box of the method, with a dense matrix."""
    if normalize_advantages:
        advantages = (advantages - np.mean(advantages)) / np.std(advantages)
    if log_probs is None:
        log_probs = policy.log_prob(theta, observations, actions)
    ratio = np.exp(policy.log_prob(theta, observations, actions) - log_probs)
    gradient = policy.score(theta, observations, actions, ratio * advantages)

    rows = curvature_rows(len(observations), curvature_fraction)
    if fisher == "exact":
        matrix = policy.fisher(theta, observations[rows])
    else:
        matrix = policy.empirical_fisher(theta, observations[rows], actions[rows])
    dimensions = np.atleast_2d(actions.T).shape[0] if kl_reduction == "mean" else 1
    matrix = matrix / dimensions
    metric = np.ones(len(theta)) if damping_metric is None else damping_metric
    damped = matrix + damping * np.diag(metric)

    # Of the multiples of `start` the best, then a correction; measured by the metric, D^-1/2 r is
    # what conjugate gradients make small and D^1/2 x what they make it small with.
    x, budget = np.zeros_like(gradient), cg_iterations
    if start is not None and cg_iterations > 1:
        x, budget = start * (gradient @ start) / (start @ damped @ start), cg_iterations - 1
    root = np.sqrt(metric)
    correction, iterations, _ = conjugate_gradient(
        damped / np.outer(root, root),
        (gradient - damped @ x) / root,
        budget,
        0.0,
        max(cg_rtol * np.linalg.norm(gradient / root), cg_atol),
    )
    x = x + correction / root
    curvature = x @ (damped if damped_step else matrix) @ x
    full_step = (np.sqrt(2.0 * max_kl / curvature) if step_size is None else step_size) * x
    expected = gradient @ full_step
    before = surrogate(policy, theta, observations, actions, advantages, log_probs)

    def evaluate(fraction):
        new = theta + fraction * full_step
        after = surrogate(policy, new, observations, actions, advantages, log_probs)
        first, second = (theta, new) if kl_direction == "old_new" else (new, theta)
        kl = np.mean(policy.kl(second, observations, first)) / dimensions
        return new, after - before, kl

    facts = {
        "expected_improvement": expected,
        "full_step": full_step,
        "gradient": gradient,
        "solution": x,
        "cg_iterations": iterations,
    }
    _, improvement, kl = evaluate(1.0)
    facts["reduction_ratio"] = min(
        improvement / expected, 0.5 * full_step @ matrix @ full_step / kl
    )
    if line_search is None:
        new, improvement, kl = evaluate(1.0)
        return Update("ACCEPTED", new, kl, improvement, step_fraction=1.0, **facts)
    shrink, max_backtracks, accept_ratio = line_search
    for k in range(max_backtracks):
        fraction = shrink**k
        new, improvement, kl = evaluate(fraction)
        if kl <= max_kl and improvement > accept_ratio * fraction * expected:
            return Update(
                "ACCEPTED", new, kl, improvement, step_fraction=fraction, backtracks=k, **facts
            )
    return Update("LINE_SEARCH_FAILED", theta.copy(), **facts)


# --------------------------------------------------------------------------------------------------
# advantages


def gae(rewards, values, next_values, terminated, truncated, gamma, gae_lambda, valid=None):
    """Every advantage as its own sum of discounted temporal differences, one after another."""
    steps, envs = rewards.shape
    valid = np.ones((steps, envs), dtype=bool) if valid is None else valid
    advantages = np.zeros((steps, envs))
    for env in range(envs):
        for start in range(steps):
            discount, total = 1.0, 0.0
            for t in range(start, steps):
                if not valid[t, env]:
                    break
                bootstrap = 0.0 if terminated[t, env] else gamma * next_values[t, env]
                total += discount * (rewards[t, env] + bootstrap - values[t, env])
                if terminated[t, env] or truncated[t, env]:
                    break
                discount *= gamma * gae_lambda
            advantages[start, env] = total
    return advantages, advantages + values
