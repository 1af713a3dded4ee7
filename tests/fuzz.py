"""Random inputs from the whole range of doubles, and what has to hold for each.

    python tests/fuzz.py --trials 1000000

draws a million trials on every core, says how far it is, and prints what violates a promise with
the command that repeats it. A trial depends on its kind and seed alone. `test_fuzz.py` runs some of
each kind in the suite.

Promises: a call returns in bounded time; it raises ValueError or TypeError, or nothing; whatever it
returns is finite; a policy, a value function and an optimiser are unchanged to the last bit unless
the report says otherwise; the divergence and the residual of a report are those that one computes
afterwards.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import oracle
from tqdm import tqdm

import natgrad
from natgrad import _core as core
from natgrad import solvers
from natgrad.agents.checkpoint import CheckpointError

SECONDS = 30.0  # a trial takes milliseconds; denormal numbers can make it a thousand times slower
LARGEST = np.finfo(np.float64).max
EXTREMES = [0.0, -0.0, 5e-324, 1e-310, 2.3e-308, 1e-45, 1e-38, 1e38, 3.5e38, 1e154, 1e155, LARGEST]
NOT_FINITE = [np.nan, np.inf, -np.inf]


class Draws:
    """What a trial draws from its seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def choice(self, options):
        return options[self.integer(0, len(options) - 1)]

    def number(self, usual: float) -> float:
        """Mostly near `usual`, sometimes anything that a double can be."""
        if self.chance(0.6):
            return usual
        if self.chance(0.6):
            return float(usual * 10.0 ** self.rng.uniform(-8, 8))
        sign = -1.0 if self.chance(0.1) else 1.0
        return sign * float(self.choice(NOT_FINITE if self.chance(0.1) else EXTREMES))

    def scale(self) -> float:
        """A magnitude, from the least denormal number to the largest."""
        if self.chance(0.5):
            return 10.0 ** self.integer(-8, 8)
        return float(np.clip(10.0 ** self.rng.uniform(-324, 308.2), 5e-324, LARGEST))

    def values(self, *shape: int) -> np.ndarray:
        """Mostly standard normal; else of other magnitudes, constant, sparse or not finite."""
        x = self.rng.normal(size=shape)
        if self.chance(0.5):
            return x
        with np.errstate(over="ignore", under="ignore"):
            match self.integer(0, 6):
                case 0:
                    x = np.clip(x * self.scale(), -LARGEST, LARGEST)
                case 1:
                    x = np.clip(
                        x * 10.0 ** self.rng.uniform(-320, 308, size=shape), -LARGEST, LARGEST
                    )
                case 2:
                    x = np.full(shape, self.choice(EXTREMES) if self.chance(0.5) else x.flat[0])
                case 3:
                    x = np.where(self.rng.random(shape) < 0.5, 0.0, x)
                case 4:  # few distinct rows: matrices of low rank
                    x = x[self.rng.integers(0, min(2, len(x)), size=len(x))]
                case 5:
                    x = x * 1e-3 + self.scale()
                case 6:
                    x.flat[self.integer(0, x.size - 1)] = self.choice(NOT_FINITE + EXTREMES)
        return x


class ViolationError(AssertionError):
    """A promise that was not kept."""


def holds(condition: object, *what: object) -> None:
    if not condition:
        raise ViolationError(" ".join(map(str, what)))


def attempt(call: Callable, *untouched: Callable[[], bytes]):
    """The result of the call, or None if it was refused, in words and with nothing changed."""
    before = [state() for state in untouched]
    try:
        return call()
    except (ValueError, TypeError) as error:
        holds(str(error), "an error without a message")
        holds("incompatible" not in str(error), "no argument is named:", error)
        holds(before == [state() for state in untouched], "refused, but changed:", error)
        return None


def close(a: float, b: float, relative: float, absolute: float) -> bool:
    return bool(abs(a - b) <= relative * max(abs(a), abs(b)) + absolute)


# --------------------------------------------------------------------------------------------------
# what is drawn


def a_distribution(draw: Draws) -> core.Distribution:
    k = draw.integer(1, 4)
    bounds = {"low": -1.0, "high": draw.choice([1.0, 1e-3, 1e6, 1e300])}
    return draw.choice(
        [
            lambda: core.Categorical(k),
            lambda: core.DiagonalGaussian(k),
            lambda: core.DiagonalGaussian(k, state_dependent_std=True),
            lambda: core.MultiCategorical([k, draw.integer(1, 3)]),
            lambda: core.Bernoulli(k),
            lambda: core.SquashedGaussian(k, draw.chance(0.5), **bounds),
            lambda: core.Beta(k, **bounds),
        ]
    )()


def a_network(draw: Draws) -> dict:
    return {
        "hidden": draw.choice([(), (), (1,), (7,), (16, 16), (5, 3, 4)]),
        "activation": draw.choice(["tanh", "relu", "elu", "silu", "gelu", "identity"]),
        "dtype": draw.choice(["float32", "float64"]),
        "seed": draw.integer(0, 99),
        "output_scale": draw.choice([0.01, 1.0, 10.0]),
        "fourier_features": draw.choice([0, 0, 0, 5]),
    }


def set_parameters(draw: Draws, network: core.Policy | core.ValueFunction) -> None:
    """Leaves the initial ones, or moves some far away. The setter refuses what is not finite."""
    if draw.chance(0.7):
        return
    theta = network.parameters.astype(np.float64)
    changed = draw.values(theta.size)
    where = draw.rng.random(theta.size) < draw.choice([0.05, 1.0])
    theta[where] = changed[where]
    if network.dtype == np.float32:
        with np.errstate(over="ignore", under="ignore"):
            theta = theta.astype(np.float32)

    def assign() -> None:
        network.parameters = theta

    attempt(assign, network.parameters.tobytes)


def some_observations(draw: Draws, n: int, size: int) -> np.ndarray:
    x = draw.values(n, size)
    if draw.chance(0.5):
        with np.errstate(over="ignore", under="ignore"):
            x = x.astype(np.float32)
    return x


def update_options(draw: Draws, parameters: int) -> dict | None:
    metric = draw.choice([None, None, np.abs(draw.values(parameters))])
    damping = draw.number(draw.choice([0.1, 0.0]))
    options = {
        "max_kl": draw.number(0.01),
        "damping": draw.choice(
            [
                lambda: damping,
                lambda: core.FixedDamping(damping, metric),
                lambda: core.TraceDamping(draw.number(0.1)),
                lambda: core.AdaptiveDamping(
                    draw.number(0.1), draw.number(1e-5), draw.number(10.0)
                ),
            ]
        ),
        "cg_iterations": draw.choice([1, 3, 10, 40]),
        "line_search": draw.choice(
            [
                lambda: core.LineSearch(),
                lambda: None,
                lambda: core.LineSearch(0.5, draw.integer(0, 40), draw.number(0.1)),
            ]
        ),
        "normalize_advantages": draw.chance(0.5),
        "preconditioner": draw.choice(["none", "none", "auto", "kfac", "subsample"]),
        "solver": draw.choice(
            [
                *(lambda name=name: name for name in ("auto", "cg", "direct", "dense", "sample")),
                lambda: core.ConjugateGradient(
                    draw.integer(1, 40),
                    rtol=draw.number(1e-10),
                    atol=draw.choice([0.0, 1e-3]),
                    stop=core.Progress() if draw.chance(0.3) else None,
                    warm_start=draw.chance(0.5),
                    last_residual=draw.chance(0.5),
                    or_direct=draw.chance(0.5),
                ),
            ]
        ),
        "fisher": draw.choice(["exact", "exact", "empirical"]),
        "curvature_fraction": draw.choice([1.0, 1.0, 0.3]),
        "step_scale": draw.choice(["fisher", "fisher", "damped", draw.number(0.1)]),
        "kl_reduction": draw.choice(["sum", "mean"]),
        "kl_direction": draw.choice(["old_new", "new_old"]),
        "log_std_min": draw.choice([None, None, -2.0, draw.number(-20.0)]),
    }

    made = attempt(lambda: {k: o() if callable(o) else o for k, o in options.items()})
    if made is not None and isinstance(made["solver"], core.ConjugateGradient):
        del made["cg_iterations"]
    return made


# --------------------------------------------------------------------------------------------------
# the trials


def a_problem(draw: Draws):
    """A policy and a batch for it, or None where the policy cannot act on these observations."""
    size = draw.integer(1, 6)
    policy = core.Policy(size, a_distribution(draw), **a_network(draw))
    set_parameters(draw, policy)
    n = draw.choice([1, 2, 7, 40, 300])
    observations = some_observations(draw, n, size)
    rng = core.Rng(draw.integer(0, 99))
    sampled = attempt(lambda: policy.sample(observations, rng), policy.parameters.tobytes)
    if sampled is None:
        return None
    actions, log_probs = sampled
    holds(np.isfinite(actions).all(), "an action is not finite")
    if np.issubdtype(actions.dtype, np.floating) and draw.chance(0.2):
        actions = draw.values(*actions.shape)
    advantages = draw.values(n)
    if draw.chance(0.2):
        log_probs = draw.choice([None, log_probs + 0.3 * draw.values(n)])
    return policy, natgrad.Batch(observations, actions, advantages, log_probs)


def check_state(update, make: Callable) -> None:
    """What an optimiser keeps is finite, and another one takes it."""
    state = update.state
    holds(np.isfinite(state).all(), "the state is not finite")
    make().state = state


def check_report(policy, batch, options, report, before) -> None:
    after = policy.parameters
    if not report.accepted:
        holds(after.tobytes() == before, "rejected, but the parameters changed:", report)
        holds(report.message, "no message:", report)
        return
    holds(np.isfinite(after).all(), "accepted, but a parameter is not finite:", report)
    for name in ("kl", "improvement", "step_fraction", "surrogate"):
        holds(np.isfinite(getattr(report, name)), name, "is not finite:", report)
    old = np.frombuffer(before, policy.parameters.dtype)
    if options["kl_direction"] == "new_old":
        new = after.copy()
        policy.parameters = old
        kl = np.mean(policy.kl(batch.observations, new), dtype=np.float64)
        policy.parameters = new
    else:
        kl = np.mean(policy.kl(batch.observations, old), dtype=np.float64)
    if options["kl_reduction"] == "mean":
        kl /= dimensions(policy.distribution)
    eps = float(np.finfo(policy.dtype).eps)
    size = np.abs(policy.outputs(batch.observations)).max()  # of what is subtracted
    same = close(kl, report.kl, 1e3 * eps, 1e-14 + 100 * eps * float(size))
    holds(same, "kl is", kl, "not", report.kl, report)
    if options["line_search"] is not None:
        holds(report.kl <= options["max_kl"], "kl is above", options["max_kl"], report)
        holds(report.improvement > 0, "a step that does not improve:", report)


def dimensions(distribution: core.Distribution) -> int:
    if isinstance(distribution, core.Categorical):
        return 1
    return distribution.action_size


def trust_region(draw: Draws) -> str:
    problem = a_problem(draw)
    if problem is None:
        return "refused"
    policy, batch = problem
    options = update_options(draw, policy.parameters.size)
    update = options and attempt(lambda: core.TrustRegionUpdate(**options))
    if update is None:
        return "refused"
    outcome = "refused"
    for _ in range(draw.integer(1, 3)):
        before = policy.parameters.tobytes()
        report = attempt(
            lambda: update(policy, batch), policy.parameters.tobytes, update.state.tobytes
        )
        if report is None:
            return outcome
        check_report(policy, batch, options, report, before)
        check_state(update, lambda: core.TrustRegionUpdate(**options))
        outcome = report.status.name
    return outcome


def policy_gradient(draw: Draws) -> str:
    problem = a_problem(draw)
    if problem is None:
        return "refused"
    policy, batch = problem
    options = (draw.number(0.01), draw.choice(["adam", "sgd"]), draw.chance(0.5))
    update = attempt(lambda: core.PolicyGradientUpdate(*options))
    if update is None:
        return "refused"
    outcome = "refused"
    for _ in range(draw.integer(1, 3)):
        before = policy.parameters.tobytes()
        report = attempt(
            lambda: update(policy, batch), policy.parameters.tobytes, update.state.tobytes
        )
        if report is None:
            return outcome
        if report.accepted:
            holds(np.isfinite(policy.parameters).all(), "a parameter is not finite:", report)
        else:
            holds(policy.parameters.tobytes() == before, "rejected, but changed:", report)
        check_state(update, lambda: core.PolicyGradientUpdate(*options))
        outcome = report.status.name
    return outcome


def fit(draw: Draws) -> str:
    size, n = draw.integer(1, 6), draw.choice([1, 2, 7, 40, 300])
    value = core.ValueFunction(size, **a_network(draw))
    set_parameters(draw, value)
    observations, targets = some_observations(draw, n, size), draw.values(n)
    if draw.chance(0.5):
        arguments = (draw.integer(1, 4), draw.integer(1, 8), draw.number(0.1), draw.number(1.0))
        kind = core.GaussNewtonFit
    else:
        arguments = (draw.integer(1, 3), draw.choice([1, 16, 64]), draw.number(1e-3))
        kind = core.AdamFit
    fitter = attempt(lambda: kind(*arguments))
    if fitter is None:
        return "refused"
    outcome = "refused"
    for _ in range(draw.integer(1, 3)):
        scale = value.target_scale
        before = value.parameters.tobytes()
        report = attempt(
            lambda: fitter(value, observations, targets),
            value.parameters.tobytes,
            fitter.state.tobytes,
            lambda: np.array(value.target_scale).tobytes(),
        )
        if report is None:
            return outcome
        holds(np.isfinite(value.target_scale).all(), "the target scale is not finite:", report)
        if not report.accepted:
            same = value.parameters.tobytes() == before and value.target_scale == scale
            holds(same, "rejected, but changed:", report)
        else:
            holds(np.isfinite(report.loss), "accepted, but the loss is not finite:", report)
            holds(np.isfinite(value.parameters).all(), "a parameter is not finite:", report)
        check_state(fitter, lambda: kind(*arguments))
        outcome = "accepted" if report.accepted else "rejected"
    return outcome


def a_matrix(draw: Draws, n: int) -> np.ndarray:
    """Symmetric: definite, singular, indefinite or of any values at all."""
    q, _ = np.linalg.qr(draw.rng.normal(size=(n, n)))
    spectrum = 10.0 ** draw.rng.uniform(-draw.integer(0, 12), 0, size=n)
    match draw.integer(0, 4):
        case 1:
            spectrum[draw.rng.random(n) < 0.4] = 0
        case 2:
            spectrum *= draw.rng.choice([-1.0, 1.0], size=n)
        case 3:
            x = draw.values(n, n)
            return np.where(np.isfinite(x) & np.isfinite(x.T), np.minimum(x, x.T), x)
    with np.errstate(over="ignore", under="ignore"):
        a = (q * spectrum) @ q.T * draw.choice([1.0, 1.0, draw.scale()])
    return np.tril(a) + np.tril(a, -1).T


def linear_solve(draw: Draws) -> str:
    n = draw.integer(1, 12)
    a, b = a_matrix(draw, n), draw.values(n)
    damping, rtol, atol = (
        draw.number(draw.choice([0.0, 0.1])),
        draw.number(1e-10),
        draw.choice([0, 1e-3]),
    )
    operator = draw.choice([a, lambda v: a @ v])
    preconditioner = None
    if draw.chance(0.3):
        preconditioner = attempt(
            lambda: draw.choice(
                [
                    lambda: solvers.DiagonalPreconditioner(np.diag(a).copy(), max(damping, 0.0)),
                    lambda: solvers.NystromPreconditioner(a, draw.integer(1, n), max(damping, 0.0)),
                ]
            )()
        )
    start = draw.choice([None, None, draw.values(n)])
    with np.errstate(all="ignore"):
        result = attempt(
            lambda: core.conjugate_gradient(
                operator,
                b,
                x0=start,
                damping=damping,
                rtol=rtol,
                atol=atol,
                max_iterations=draw.choice([1, 5, 10, 50]),
                preconditioner=preconditioner,
                residual_replacement=draw.choice([50, 0, 3]),
                progress_tolerance=draw.choice([0.0, 1e-3]),
                scale_x0=draw.chance(0.3),
            )
        )
    if result is None:
        return "refused"
    check_solution(result, a, b, start, damping, rtol, atol)
    return result.status.name


def norm(x: np.ndarray) -> np.longdouble:
    return np.sqrt(np.square(x).sum())


def check_solution(result, a, b, start, damping, rtol, atol) -> None:
    """The residual, measured in more digits and a wider range than the core's."""
    x = result.x.astype(np.longdouble)
    holds(np.isfinite(result.x).all(), "x is not finite:", result)
    if not np.isfinite(a).all() or norm(b.astype(np.longdouble)) > LARGEST:
        return
    matrix = a.astype(np.longdouble) + np.longdouble(damping) * np.eye(len(b), dtype=np.longdouble)
    right = b.astype(np.longdouble)
    residual, length = norm(right - matrix @ x), norm(right)
    far = abs(x) if start is None else np.maximum(abs(x), abs(start))
    rounding = 32 * len(b) * np.finfo(float).eps * (norm(abs(matrix) @ far) + length)
    # Denormal numbers, of A or of x, have few digits.
    rounding += len(b) * np.finfo(float).smallest_subnormal * (norm(far) + norm(matrix)) + 1e-300
    if result.status.name == "CONVERGED" and residual < LARGEST:
        holds(residual <= max(rtol * length, atol) + rounding, "the residual is", residual, result)
        off = abs(residual - result.residual_norm)
        holds(off <= rounding + 1e-3 * residual, "the residual is", residual, result)
    if result.status.name == "ZERO_RHS":
        holds(not b.any() and not result.x.any(), "b is not zero:", result)


def direct_solve(draw: Draws) -> str:
    problem = a_problem(draw)
    if problem is None:
        return "refused"
    policy, batch = problem
    b, damping = draw.values(policy.parameters.size), draw.number(draw.choice([0.0, 0.1]))
    empirical = draw.chance(0.3)
    fisher = attempt(
        lambda: core.Fisher(
            policy,
            batch.observations,
            kind="empirical" if empirical else "exact",
            actions=batch.actions if empirical else None,
            weights=draw.choice([None, np.abs(draw.values(len(batch.advantages)))]),
            method=draw.choice(["auto", "passes", "adjoints"]),
        )
    )
    if fisher is None:
        return "refused"
    attempt(lambda: fisher @ b)
    solver = draw.choice(["direct", "linear_gaussian", "dense", "sample"])
    result = attempt(lambda: fisher.solve(b, damping, solver))
    if result is None:
        return "refused"
    holds(np.isfinite(result.x).all(), "x is not finite:", result)
    return result.status.name


def line_search(draw: Draws) -> str:
    offers = draw.values(64), np.abs(draw.values(64))
    tried = []

    def evaluate(fraction: float) -> tuple[float, float]:
        i = len(tried) % 64
        tried.append((fraction, float(offers[0][i]), float(offers[1][i])))
        return tried[-1][1:]

    expected, max_kl, ratio = draw.number(1.0), draw.number(0.01), draw.number(0.1)
    result = attempt(
        lambda: core.backtracking_line_search(
            evaluate, expected, max_kl, draw.number(0.8), draw.integer(0, 30), ratio
        )
    )
    if result is None:
        return "refused"
    holds(result.evaluations == len(tried), "evaluations", result)
    if result.status == core.LineSearchStatus.ACCEPTED:
        holds(
            (result.fraction, result.improvement, result.kl) == tried[-1], "not the last:", result
        )
        holds(np.isfinite(result.improvement) and 0 <= result.kl <= max_kl, "accepted:", result)
    return result.status.name


def distribution(draw: Draws) -> str:
    d = a_distribution(draw)
    n = draw.integer(1, 20)
    # Beyond, differences of parameters and products with deviations leave the range of doubles.
    outputs, old = (np.clip(draw.values(n, d.parameter_size), -1e100, 1e100) for _ in range(2))
    sampled = attempt(lambda: d.sample(outputs, core.Rng(draw.integer(0, 99))))
    if sampled is None:
        return "refused"
    actions = sampled
    if not d.discrete and draw.chance(0.3):
        actions = np.clip(draw.values(*sampled.shape), -1e100, 1e100)
    holds(np.isfinite(sampled).all(), "a sample is not finite")
    holds(np.isfinite(d.mode(outputs)).all(), "a mode is not finite")
    if isinstance(d, core.SquashedGaussian | core.Beta):
        inside = d.to_bounds(sampled)
        holds((inside >= d.low).all() and (inside <= d.high).all(), "an action is out of bounds")
    holds(not np.isnan(d.entropy(outputs)).any(), "the entropy is NaN")
    for name, call in (
        ("log_prob", lambda: d.log_prob(outputs, actions)),
        ("score", lambda: d.score(outputs, actions)),
        ("kl", lambda: d.kl(old, outputs)),
        ("fisher", lambda: d.fisher(outputs)),
        ("fisher_sqrt", lambda: d.fisher_sqrt(outputs)),
        ("fisher_product", lambda: d.fisher_product(outputs, draw.rng.normal(size=outputs.shape))),
    ):
        got = attempt(call)
        holds(got is None or not np.isnan(got).any(), name, "is NaN")
        if name == "kl" and got is not None:
            rounding = 1e-14 * max(1.0, np.abs(outputs).max(), np.abs(old).max())
            holds((got >= -rounding).all(), "a divergence is negative:", got.min())
    same = attempt(lambda: d.kl(outputs, outputs))
    holds(same is None or (same == 0).all(), "KL(p || p) is", same)
    return "finite"


def advantages(draw: Draws) -> str:
    shape = (
        (draw.integer(1, 12),) if draw.chance(0.5) else (draw.integer(1, 12), draw.integer(1, 3))
    )
    rewards, values, following = draw.values(*shape), draw.values(*shape), draw.values(*shape)
    terminated, truncated = draw.rng.random(shape) < 0.1, draw.rng.random(shape) < 0.1
    gamma, lam = draw.choice([0.99, 1.0, 0.0, draw.number(0.9)]), draw.choice([0.95, 1.0, 0.0])
    got = attempt(lambda: core.gae(rewards, values, following, terminated, truncated, gamma, lam))
    if got is None:
        return "refused"
    with np.errstate(all="ignore"):
        arrays = (rewards, values, following, terminated, truncated)
        want = oracle.gae(*(x.reshape(len(x), -1) for x in arrays), gamma, lam)
    for g, w in zip(got, want, strict=True):
        holds(np.isfinite(g).all(), "an advantage is not finite")
        rounding = 1.2e-13 * np.abs([rewards, values, following]).max()
        holds(
            np.allclose(g.reshape(w.shape), w, rtol=1e-12, atol=rounding),
            "off:",
            g,
            w,
        )
    return "finite"


@functools.cache
def a_checkpoint() -> tuple[natgrad.TRPO, bytes]:
    """An agent, and the file that it saves."""
    agent = natgrad.TRPO("CartPole-v1", batch_size=64, hidden=(4,), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder, "agent.npz"))
        return agent, Path(folder, "agent.npz").read_bytes()


def read_checkpoint(data: bytes) -> str:
    """A file is refused by name, or it is the agent that was saved."""
    agent, _ = a_checkpoint()
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        file.write(data)
        file.flush()
        try:
            loaded = natgrad.TRPO.load(file.name)
        except CheckpointError as error:
            holds(file.name in str(error), "the file is not named:", error)
            return "refused"
    same = loaded.policy.parameters.tobytes() == agent.policy.parameters.tobytes()
    holds(same, "damaged, but loaded")
    return "loaded"


def checkpoint(draw: Draws) -> str:
    data = bytearray(a_checkpoint()[1])
    for _ in range(draw.integer(1, 4)):
        at, length = draw.integer(0, len(data) - 1), draw.integer(1, 300)
        match draw.integer(0, 3):
            case 0:
                data[at] ^= 1 << draw.integer(0, 7)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = draw.rng.bytes(length)
            case 3:
                source = draw.integer(0, len(data) - 1)
                data[at : at + length] = data[source : source + length]
        if not data:
            break
    return read_checkpoint(bytes(data))


TRIALS: dict[str, Callable[[Draws], str]] = {
    "trust_region": trust_region,
    "policy_gradient": policy_gradient,
    "fit": fit,
    "linear_solve": linear_solve,
    "direct_solve": direct_solve,
    "line_search": line_search,
    "distribution": distribution,
    "advantages": advantages,
    "checkpoint": checkpoint,
}


def run(kind: str, seed: int) -> str:
    """How the trial ended; raises what it violated."""
    start = time.perf_counter()
    outcome = TRIALS[kind](Draws(seed))
    seconds = time.perf_counter() - start
    holds(seconds < SECONDS, "took", round(seconds, 1), "s")
    return outcome


# --------------------------------------------------------------------------------------------------
# the command


def work(kinds: list[str], seeds: range, at, pipe) -> None:
    """Runs trials; `at` says which one, for whoever finds this process hung or dead."""
    warnings.simplefilter("error")
    core.set_num_threads(1)
    outcomes: Counter[tuple[str, str]] = Counter()
    for seed in seeds:
        at.value = seed
        kind = kinds[seed % len(kinds)]
        try:
            outcomes[kind, run(kind, seed)] += 1
        except Exception as error:
            outcomes[kind, "violation"] += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            pipe.send(
                (
                    kind,
                    seed,
                    f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})",
                )
            )
    pipe.send(outcomes)


class Worker:
    def __init__(self, kinds: list[str], seeds: range) -> None:
        self.kinds, self.seeds = kinds, seeds
        self.at = multiprocessing.Value("q", seeds.start, lock=False)
        self.pipe, theirs = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.Process(
            target=work, args=(kinds, seeds, self.at, theirs), daemon=True
        )
        self.process.start()
        theirs.close()
        self.last, self.since = -1, time.monotonic()

    def done(self) -> int:
        return (self.at.value - self.seeds.start) // self.seeds.step

    def is_stuck(self) -> bool:
        if self.at.value != self.last:
            self.last, self.since = self.at.value, time.monotonic()
        return time.monotonic() - self.since > 3 * SECONDS

    def received(self):
        """What it has sent, and None at its end."""
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except EOFError:
            yield None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--only", choices=list(TRIALS), help="one kind of trial")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    kinds = [arguments.only] if arguments.only else list(TRIALS)
    end = arguments.seed + arguments.trials
    workers = [
        Worker(kinds, range(arguments.seed + w, end, arguments.workers))
        for w in range(min(arguments.workers, arguments.trials))
    ]
    outcomes: Counter[tuple[str, str]] = Counter()
    finished, violations = 0, 0
    start = time.monotonic()

    def report(kind: str, seed: int, what: str) -> None:
        nonlocal violations
        violations += 1
        bar.write(f"{what}\n    python tests/fuzz.py --only {kind} --seed {seed} --trials 1")

    with tqdm(total=arguments.trials, unit="trial", unit_scale=True) as bar:
        while workers:
            time.sleep(0.2)
            for worker in list(workers):
                ended = False
                for message in worker.received():
                    if isinstance(message, Counter):
                        outcomes += message
                        finished += len(worker.seeds)
                        workers.remove(worker)
                        ended = True
                        break
                    if message is None:
                        break
                    report(*message)
                if ended or (worker.process.is_alive() and not worker.is_stuck()):
                    continue
                seed = worker.at.value
                kind = kinds[seed % len(kinds)]
                if worker.process.is_alive():
                    what = f"{kind} did not return within {3 * SECONDS:.0f} s"
                    worker.process.kill()
                else:
                    what = f"{kind} ended the process: exit code {worker.process.exitcode}"
                worker.process.join()
                report(kind, seed, what)
                workers.remove(worker)
                finished += worker.done() + 1
                rest = range(seed + worker.seeds.step, end, worker.seeds.step)
                if len(rest):
                    workers.append(Worker(kinds, rest))
            bar.n = finished + sum(worker.done() for worker in workers)
            bar.refresh()
    for kind in kinds:
        ends = {end: n for (name, end), n in sorted(outcomes.items()) if name == kind}
        print(f"{kind:16s}", ", ".join(f"{end.lower()} {n}" for end, n in ends.items()))
    seconds = time.monotonic() - start
    print(f"{arguments.trials} trials in {seconds:.0f} s, {violations} violations")
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
