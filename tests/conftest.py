"""Shared problems, and the bookkeeping of how exact the core turned out to be."""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

# The oracle's matrices are small: threads of NumPy's BLAS would spend most of their time waiting.
# They read the variable when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import numpy as np
import oracle
import pytest

from natgrad import _core as core

hypothesis.settings.register_profile("suite", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("suite")

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}

DISTRIBUTIONS = {
    "categorical": (lambda: core.Categorical(4), oracle.Categorical(4)),
    "gaussian": (lambda: core.DiagonalGaussian(3), oracle.DiagonalGaussian(3)),
    "gaussian-state-std": (
        lambda: core.DiagonalGaussian(3, state_dependent_std=True),
        oracle.DiagonalGaussian(3, state_dependent_std=True),
    ),
    "multi-categorical": (
        lambda: core.MultiCategorical((3, 2)),
        oracle.MultiCategorical((3, 2)),
    ),
    "bernoulli": (lambda: core.Bernoulli(3), oracle.Bernoulli(3)),
    "squashed": (
        lambda: core.SquashedGaussian(3, low=-2.0, high=0.5),
        oracle.SquashedGaussian(3, low=-2.0, high=0.5),
    ),
    "squashed-state-std": (
        lambda: core.SquashedGaussian(2, state_dependent_std=True),
        oracle.SquashedGaussian(2, state_dependent_std=True),
    ),
    "beta": (lambda: core.Beta(2, low=-2.0, high=0.5), oracle.Beta(2, low=-2.0, high=0.5)),
}
ACTIVATIONS = tuple(oracle.ACTIVATIONS)
DTYPES = ("float64", "float32")


def core_options(
    damping=0.1,
    damping_metric=None,
    cg_iterations=10,
    cg_rtol=1e-10,
    cg_atol=0.0,
    or_direct=True,
    **others,
):
    """The oracle's flat keywords as the core's values."""
    solver = core.ConjugateGradient(cg_iterations, cg_rtol, cg_atol, or_direct=or_direct)
    if others.pop("damped_step", False):
        others["step_scale"] = "damped"
    if (size := others.pop("step_size", None)) is not None:
        others["step_scale"] = size
    return {"damping": core.FixedDamping(damping, damping_metric), "solver": solver, **others}


def id_of(value) -> str:
    """The name of a parametrised test, the same in each worker: without addresses of functions."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def relative_error(got, want) -> float:
    """||got - want|| / ||want||, with 0 for two zeros."""
    got, want = np.asarray(got, dtype=float), np.asarray(want, dtype=float)
    assert got.shape == want.shape, f"shape {got.shape}, want {want.shape}"
    assert np.all(np.isfinite(got)), "not finite"
    scale = np.linalg.norm(want)
    error = np.linalg.norm(got - want)
    return float(error / scale) if scale > 0 else float(error)


@dataclass
class Problem:
    """A policy of the core, the oracle's twin of it, and a batch; the twin sees rounded numbers."""

    core: core.Policy
    oracle: oracle.Policy
    theta: np.ndarray  # what the policy holds, in float64
    old_theta: np.ndarray
    observations: np.ndarray
    actions: np.ndarray
    weights: np.ndarray
    advantages: np.ndarray

    @property
    def batch(self) -> SimpleNamespace:
        return SimpleNamespace(
            observations=self.observations,
            actions=self.actions,
            advantages=self.advantages,
            log_probs=None,
        )


def make_problem(
    distribution: str = "categorical",
    *,
    observation_size: int = 4,
    hidden: tuple[int, ...] = (7, 5),
    activation: str = "tanh",
    dtype: str = "float64",
    count: int = 50,
    normalized: bool = False,
    seed: int = 0,
) -> Problem:
    rng = np.random.default_rng(seed)
    make, twin_distribution = DISTRIBUTIONS[distribution]
    policy = core.Policy(
        observation_size, make(), hidden=hidden, activation=activation, dtype=dtype, seed=seed
    )
    normalizer = None
    if normalized:
        mean = rng.normal(size=observation_size)
        std = rng.uniform(0.5, 2.0, observation_size)
        normalizer = (mean, std, 1.5)
        policy.set_normalizer(*normalizer)
    twin = oracle.Policy(observation_size, twin_distribution, hidden, activation, normalizer)

    sizes = twin.network.sizes
    pieces = []
    for n, m in itertools.pairwise(sizes):
        pieces += [rng.normal(size=m * n) / np.sqrt(n), 0.3 * rng.normal(size=m)]
    pieces.append(rng.uniform(-0.7, 0.7, twin_distribution.own_parameters))
    theta = np.concatenate(pieces).astype(dtype)
    old = (theta + 0.5 * rng.normal(size=theta.size) / np.sqrt(sizes[-2])).astype(dtype)
    observations = rng.normal(size=(count, observation_size)).astype(dtype)
    actions = twin_distribution.random_actions(rng, count)
    if actions.dtype.kind == "f":
        actions = actions.astype(dtype)
    policy.parameters = theta
    return Problem(
        policy,
        twin,
        theta.astype(float),
        old.astype(float),
        observations,
        actions,
        rng.uniform(0.0, 2.0, count).astype(dtype).astype(float),
        rng.normal(size=count).astype(dtype).astype(float),
    )


def hard_problem(dtype="float64"):
    """Inputs of very different scales, as unnormalised observations have them."""
    problem = make_problem("gaussian", hidden=(16, 16), count=400, dtype=dtype)
    scales = np.array([0.05, 0.5, 2.0, 10.0], dtype)
    return replace(problem, observations=problem.observations * scales)


def degenerate_problem(case, dtype):
    """A problem, and its observations."""
    count = 1 if case == "one observation" else 64
    hidden = () if case == "smallest" else (7, 5)
    activation = "relu" if case == "dead layer" else "tanh"
    name = "categorical" if case != "smallest" else "bernoulli"
    problem = make_problem(
        name, hidden=hidden, observation_size=1 if case == "smallest" else 4, dtype=dtype,
        activation=activation, count=count,
    )  # fmt: skip
    observations = problem.observations
    if case == "duplicates":
        observations = np.repeat(observations[:1], count, axis=0)
    if case == "dead layer":  # the first layer's activations are all zero: nothing is learned below
        for block in problem.core.layout[:2]:
            values = np.zeros(block.size) if "weight" in block.name else np.full(block.size, -1.0)
            problem.core.parameters[block.offset : block.offset + block.size] = values
    return problem, observations


def dense_matrix(preconditioner):
    """The matrix of an operator, column by column."""
    n = preconditioner.shape[0]
    return np.column_stack([preconditioner @ e for e in np.eye(n)])


@pytest.fixture(scope="session")
def locks(tmp_path_factory, request) -> tuple[Path, Path] | None:
    """The files by which the workers of pytest-xdist agree, or None where there is one process."""
    if not hasattr(request.config, "workerinput"):
        return None
    shared = tmp_path_factory.getbasetemp().parent
    return shared / "next", shared / "running"


@pytest.fixture(autouse=True)
def _alone_where_marked(request, locks):
    """No worker runs a test beside one that is marked `alone`."""
    if locks is None:
        yield
        return
    fcntl = pytest.importorskip("fcntl")
    alone = request.node.get_closest_marker("alone") is not None
    with locks[0].open("a") as following, locks[1].open("a") as running:
        # Whoever waits for `running` holds `next`, so that a test that runs alone gets its turn.
        fcntl.flock(following, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(following, fcntl.LOCK_UN)
        yield


_measured: dict[tuple[str, str], float] = defaultdict(float)


class Exactness:
    """Compares with the oracle at the tolerance that the issue states, and remembers the worst."""

    def __call__(self, quantity: str, dtype: str, got, want) -> None:
        error = relative_error(got, want)
        _measured[dtype, quantity] = max(_measured[dtype, quantity], error)
        assert error <= TOLERANCE[dtype], f"{quantity} in {dtype}: relative error {error:.2e}"


@pytest.fixture
def exact() -> Exactness:
    return Exactness()


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a worker's; the summary is written elsewhere
        measured = [[*key, error] for key, error in _measured.items()]
        session.config.workeroutput["measured"] = measured


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for dtype, quantity, error in getattr(node, "workeroutput", {}).get("measured", []):
        _measured[dtype, quantity] = max(_measured[dtype, quantity], error)


def pytest_terminal_summary(terminalreporter):
    if not _measured or terminalreporter.verbosity < 1:
        return
    terminalreporter.section("largest relative error against the oracle")
    for quantity in sorted({quantity for _, quantity in _measured}):
        numbers = "".join(f"  {d} {_measured.get((d, quantity), 0):.1e}" for d in DTYPES)
        terminalreporter.write_line(f"{quantity:<42}{numbers}")
