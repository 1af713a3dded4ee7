"""How fast every piece of the core is on this machine: the command `natgrad bench`.

Each piece is checked against a slow computation in NumPy, in float64, before it is timed. A timing
is a series of slots; a slot is a few calls of the piece between two measurements of the machine's
peak, the rate of independent fused multiply-adds in registers. The fraction of peak is the median
over slots of rate / peak, which a slower clock or a busy neighbour does not change, because they
slow both. Slots during which the system gave the core to another process are dropped, as long as
five remain.

Operations are counted by the model in docs/math.md, section "Operations": 2 N (in + 1) out for a
matrix product of a layer, nothing for activations, distributions and vectors.
"""

import contextlib
import csv
import functools
import importlib
import itertools
import json
import os
import platform
import resource
import statistics
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from natgrad import _core
from natgrad.batch import Batch
from natgrad.policy import Policy, ValueFunction

__all__ = [
    "CG_ITERATIONS",
    "DAMPING",
    "MAX_KL",
    "PIECES",
    "SHAPES",
    "Problem",
    "Shape",
    "WrongAnswerError",
    "bench",
    "digits",
    "headline",
    "machine",
    "peers",
    "preemptions",
    "quantiles",
    "require_close",
    "save",
    "spread_of_time",
    "table",
    "undisturbed",
    "using_threads",
]

Doubles = NDArray[np.float64]
T = TypeVar("T")

MAX_KL, DAMPING, CG_ITERATIONS = 0.01, 0.1, 10  # of every update that is timed
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}  # relative, in the 2-norm, against NumPy in float64
SLOT = 2e-3  # seconds that the calls of one slot take together, at least
PEAK_SLOT = 5e-4  # seconds that one measurement of the peak takes
MIN_SLOTS = 5


class WrongAnswerError(RuntimeError):
    """What was about to be timed computes something else."""


# Problems ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The sizes of a problem: a policy, and the number of observations in a batch."""

    name: str
    observation_size: int
    hidden: tuple[int, ...]
    distribution: _core.Distribution
    rows: int

    @property
    def outputs(self) -> int:
        """Columns of the last layer; the log_std of a Gaussian are no outputs of it."""
        return self.distribution.action_size if self.gaussian else self.distribution.parameter_size

    @property
    def gaussian(self) -> bool:
        """Whether actions are real numbers."""
        return isinstance(self.distribution, _core.DiagonalGaussian)

    def operations(self, first: float, others: float, outputs: int | None = None) -> float:
        """Floating point operations of so many matrix products in the first and in other layers."""
        widths = (self.observation_size, *self.hidden, outputs or self.outputs)
        sizes = [2.0 * self.rows * (n + 1) * m for n, m in itertools.pairwise(widths)]
        return first * sizes[0] + others * sum(sizes[1:])

    def update_operations(self, products: int, evaluations: int) -> float:
        """Operations of a whole update: forward, gradient, Fisher products, candidates."""
        once = self.operations(2, 3)
        return once + products * self.operations(2, 4) + evaluations * self.operations(1, 1)

    def __str__(self) -> str:
        widths = "-".join(map(str, (self.observation_size, *self.hidden)))
        kind = "Gaussian" if self.gaussian else "categorical"
        return f"{self.name}: {widths}, {kind} {self.outputs}, N = {self.rows}"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("S1", 4, (64, 64), _core.Categorical(2), 2048),
        Shape("S2", 17, (64, 64), _core.DiagonalGaussian(6), 2048),
        Shape("S2-25k", 17, (64, 64), _core.DiagonalGaussian(6), 25_000),
        Shape("S3", 348, (256, 256), _core.DiagonalGaussian(17), 5000),
        Shape("S4", 64, (1024, 1024), _core.DiagonalGaussian(16), 4096),
        Shape("S5", 17, (), _core.DiagonalGaussian(6), 10_000),
        Shape("odd", 11, (100, 50, 25), _core.DiagonalGaussian(3), 2048),
    )
}


class Problem:
    """A policy and a batch that it has sampled, ready for an update.

    The advantages are random, with the sign for which the full step exceeds the bound on the
    divergence by its third-order term: then the line search evaluates two candidates, 1 and 0.8.
    """

    def __init__(self, shape: Shape, dtype: "_core.DTypeName" = "float32") -> None:
        self.shape, self.dtype = shape, dtype
        generator = np.random.default_rng(0)
        self.policy = Policy(
            shape.observation_size, shape.distribution, hidden=shape.hidden,
            dtype=dtype, output_scale=1.0,
        )  # fmt: skip
        self.start = self.policy.parameters.copy()
        self.observations = generator.normal(size=(shape.rows, shape.observation_size))
        self.observations = self.observations.astype(self.policy.dtype)
        self.actions, self.log_probs = self.policy.sample(self.observations, _core.Rng(0))
        self.direction: Doubles = generator.normal(size=self.start.size)
        self.advantages: Doubles = generator.normal(size=shape.rows)
        self._update = _core.TrustRegionUpdate(
            max_kl=MAX_KL,
            damping=DAMPING,
            solver=_core.ConjugateGradient(CG_ITERATIONS, rtol=0.0, or_direct=True),
        )
        if self.update().backtracks == 0:
            self.advantages = -self.advantages
        report = self.update()
        if report.status is not _core.UpdateStatus.ACCEPTED:
            raise WrongAnswerError(f"update: {report.status.name}, {report.message}")
        self.report = report
        self.step: Doubles = (self.policy.parameters - self.start).astype(np.float64)
        self.restore()

    @property
    def tolerance(self) -> float:
        """Relative difference from NumPy's result that is allowed, in the 2-norm."""
        return TOLERANCE[self.dtype]

    @functools.cached_property
    def reference(self) -> "_Reference":
        """The same network in NumPy."""
        return _Reference(self)

    @property
    def batch(self) -> Batch:
        """Observations, actions, advantages and log probabilities."""
        return Batch(self.observations, self.actions, self.advantages, self.log_probs)

    @property
    def update_operations(self) -> float:
        """Operations of the whole update, with as many products and candidates as it took."""
        return self.shape.update_operations(self.report.cg.iterations, self.report.backtracks + 1)

    def restore(self) -> None:
        """Sets the parameters from which every update starts."""
        self.policy.parameters = self.start

    def update(self) -> _core.UpdateReport:
        """One whole update from those parameters."""
        self.restore()
        return self._update(self.policy, self.batch)


class _Reference:
    """The network of a problem in NumPy, float64 (eq. 1.1, 4.1, 4.2)."""

    def __init__(self, problem: Problem) -> None:
        shape = problem.shape
        self.distribution = shape.distribution
        self.rows = shape.rows
        self.free = shape.outputs if shape.gaussian else 0
        self.widths = (shape.observation_size, *shape.hidden, shape.outputs)
        self.observations = problem.observations.astype(np.float64)
        theta = problem.start.astype(np.float64)
        self.weights = [W for W, _ in self._layers(theta)]
        self.activations, self.outputs = self.forward(theta)

    def _layers(self, theta: Doubles) -> Iterator[tuple[Doubles, Doubles]]:
        offset = 0
        for n, m in itertools.pairwise(self.widths):
            middle, end = offset + n * m, offset + (n + 1) * m
            yield theta[offset:middle].reshape(m, n), theta[middle:end]
            offset = end

    def _with_free(self, outputs: Doubles, theta: Doubles) -> Doubles:
        if not self.free:
            return outputs
        return np.hstack([outputs, np.broadcast_to(theta[-self.free :], (self.rows, self.free))])

    def forward(self, theta: Doubles) -> tuple[list[Doubles], Doubles]:
        """Inputs of every layer, and the distribution's parameters."""
        inputs = [self.observations]
        for W, b in self._layers(theta):
            inputs.append(np.tanh(inputs[-1] @ W.T + b))
            last = inputs[-2] @ W.T + b
        return inputs[:-1], self._with_free(last, theta)

    def pull_back(self, d: Doubles) -> Doubles:
        """sum_n J_n' d_n."""
        free = [d[:, d.shape[1] - self.free :].sum(axis=0)]
        d = d[:, : d.shape[1] - self.free]
        found: list[Doubles] = []
        for layer in reversed(range(len(self.weights))):
            h = self.activations[layer]
            found[:0] = [(d.T @ h).ravel(), d.sum(axis=0)]
            if layer:
                d = (d @ self.weights[layer]) * (1 - h * h)
        return np.concatenate(found + free)

    def gradient(self, problem: Problem) -> Doubles:
        """The gradient of the surrogate at the parameters that sampled the batch."""
        scores = self.distribution.score(self.outputs, problem.actions)
        return self.pull_back(scores * (problem.advantages[:, None] / self.rows))

    def product(self, v: Doubles) -> Doubles:
        """F v."""
        tangent = np.zeros_like(self.observations)
        parts = zip(self.activations, self.weights, self._layers(v), strict=True)
        for layer, (h, W, (dW, db)) in enumerate(parts):
            if layer:
                tangent = (1 - h * h) * tangent
            tangent = tangent @ W.T + h @ dW.T + db
        u = self._with_free(tangent, v)
        return self.pull_back(self.distribution.fisher_product(self.outputs, u) / self.rows)


def require_close(what: str, got: Any, want: Any, tolerance: float) -> float:
    """The relative difference in the 2-norm; `WrongAnswerError` if it is above the tolerance."""
    difference = np.linalg.norm(np.subtract(got, want, dtype=np.float64))
    error = float(difference / max(float(np.linalg.norm(want)), 1e-300))
    if not error <= tolerance:
        raise WrongAnswerError(
            f"{what}: relative error {error:.1e}, above {tolerance:.1e}; not timed"
        )
    return error


# Pieces ------------------------------------------------------------------------------------------

Piece = tuple[Callable[[], Any], float | None]  # what is timed, and its operations


def _forward(problem: Problem) -> Piece:
    policy, observations = problem.policy, problem.observations
    require_close(
        "forward", policy.outputs(observations), problem.reference.outputs, problem.tolerance
    )
    return lambda: policy.outputs(observations), problem.shape.operations(1, 1)


def _gradient(problem: Problem) -> Piece:
    arguments = problem.observations, problem.actions, problem.advantages
    want = problem.reference.gradient(problem)
    require_close("gradient", problem.policy.score(*arguments), want, problem.tolerance)
    return lambda: problem.policy.score(*arguments), problem.shape.operations(2, 3)


def _product(problem: Problem) -> Piece:
    fisher = _core.Fisher(problem.policy, problem.observations)
    want = problem.reference.product(problem.direction)
    require_close("Fisher product", fisher @ problem.direction, want, problem.tolerance)
    return lambda: fisher.matvec(problem.direction), problem.shape.operations(2, 4)


def _divergence(problem: Problem) -> Piece:
    policy, observations = problem.policy, problem.observations
    old = (problem.start + problem.step).astype(problem.start.dtype)
    _, old_outputs = problem.reference.forward(old.astype(np.float64))
    want = problem.shape.distribution.kl(old_outputs, problem.reference.outputs)
    # A divergence of 0.01 is the difference of numbers of size 1, so it has fewer correct digits.
    require_close("KL", policy.kl(observations, old), want, 100 * problem.tolerance)
    return lambda: policy.kl(observations, old), problem.shape.operations(2, 2)


def _solve(problem: Problem) -> Piece:
    fisher = _core.Fisher(problem.policy, problem.observations)
    score = problem.policy.score(problem.observations, problem.actions, problem.advantages)
    gradient = np.asarray(score, np.float64)

    def run() -> _core.CgResult:
        return _core.conjugate_gradient(
            fisher, gradient, damping=DAMPING, rtol=0.0, max_iterations=CG_ITERATIONS
        )

    result = run()
    # The residual that the solver reports must hold for the true matrix.
    want = gradient - problem.reference.product(result.x) - DAMPING * result.x
    apart = abs(float(np.linalg.norm(want)) - result.residual_norm)
    if not apart <= 10 * problem.tolerance * np.linalg.norm(gradient):
        raise WrongAnswerError(f"CG: its residual is off by {apart:.1e}; not timed")
    return run, result.iterations * problem.shape.operations(2, 4)


def _whole_update(problem: Problem) -> Piece:
    theta = problem.start.astype(np.float64) + problem.step
    _, outputs = problem.reference.forward(theta)
    divergence = problem.shape.distribution.kl(problem.reference.outputs, outputs).mean()
    require_close("KL of the update", problem.report.kl, divergence, 100 * problem.tolerance)
    rise = problem.reference.gradient(problem) @ problem.step / problem.report.step_fraction
    require_close(
        "linear model of the update", problem.report.expected_improvement, rise,
        100 * problem.tolerance,
    )  # fmt: skip
    if not problem.report.kl <= MAX_KL:
        raise WrongAnswerError(f"update: KL {problem.report.kl} above its bound; not timed")
    return problem.update, problem.update_operations


def _critic_fit(problem: Problem) -> Piece:
    shape, observations = problem.shape, problem.observations
    targets = np.sin(problem.reference.observations[:, 0]) + problem.reference.observations[:, 1]
    fitter, start = _core.GaussNewtonFit(), _core.GaussNewtonFit().state
    values = ValueFunction(shape.observation_size, shape.hidden, dtype=problem.dtype)
    theta, scale = values.parameters.copy(), values.target_scale

    def run() -> _core.FitReport:
        fitter.state, values.parameters, values.target_scale = start, theta, scale
        return fitter(values, observations, targets)

    report = run()
    residual = targets - values.predict(observations)
    explained = 1 - np.var(residual) / np.var(targets)
    require_close(
        "explained variance", report.explained_variance, explained, 100 * problem.tolerance
    )
    if not (report.accepted and report.explained_variance > report.explained_variance_before):
        raise WrongAnswerError(f"critic fit: {report.message}; not timed")
    # By default there are 4 steps of a gradient, 5 products and a candidate, which is linearised;
    # so are the start, the start after decay, and the point to which a refused candidate returns.
    passes = [shape.operations(*count, outputs=1) for count in ((1, 2), (2, 4), (1, 1))]
    each = passes[0] + 5 * passes[1] + passes[2]
    return run, 4 * each + (2 + 4 - report.steps) * passes[2]


def _gae(problem: Problem) -> Piece:
    n = problem.shape.rows
    rewards, values, following = np.random.default_rng(0).normal(size=(3, n))
    ends = np.arange(1, n + 1) % 100 == 0
    never = np.zeros(n, np.bool_)
    want, carry = np.empty(n), 0.0
    for i in reversed(range(n)):
        carry = 0.0 if ends[i] else carry
        now = rewards[i] + (0.0 if ends[i] else 0.99 * following[i]) - values[i]
        want[i] = carry = now + 0.99 * 0.95 * carry
    arguments = (rewards, values, following, ends, never, 0.99, 0.95)
    require_close("GAE", _core.gae(*arguments)[0], want, 1e-12)
    return lambda: _core.gae(*arguments), None


def _sample(rows: int) -> Callable[[Problem], Piece]:
    def piece(problem: Problem) -> Piece:
        policy, observations, rng = problem.policy, problem.observations[:rows], _core.Rng(1)
        actions, log_probs = policy.sample(observations, rng)
        want = problem.shape.distribution.log_prob(problem.reference.outputs[:rows], actions)
        require_close("sample", log_probs, want, 10 * problem.tolerance)
        operations = problem.shape.operations(1, 1) * rows / problem.shape.rows
        return lambda: policy.sample(observations, rng), operations

    return piece


PIECES: dict[str, Callable[[Problem], Piece]] = {
    "forward": _forward,
    "gradient": _gradient,
    "product": _product,
    "kl": _divergence,
    "cg": _solve,
    "update": _whole_update,
    "critic": _critic_fit,
    "gae": _gae,
    "sample-1": _sample(1),
    "sample-8": _sample(8),
}


# Timing ------------------------------------------------------------------------------------------


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, first and last decile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return statistics.median(values), deciles[0], deciles[-1]


def preemptions() -> int:
    """How often this process had to yield its core to another since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def undisturbed(rounds: Sequence[tuple[T, bool]], least: int) -> list[T]:
    """The rounds that no other process disturbed; all of them if fewer than `least` remain.

    Args:
        rounds: what each has measured, and whether it had its cores to itself.
        least: how many are needed.
    """
    kept = [found for found, alone in rounds if alone]
    return kept if len(kept) >= least else [found for found, _ in rounds]


@dataclass(frozen=True)
class _Slots:
    """Seconds of a call and the peak around it in GFLOP/s, slot by slot."""

    times: list[float]
    peaks: list[float]
    dropped: float  # fraction of the slots that were dropped


def _time(run: Callable[[], Any], dtype: "_core.DTypeName", seconds: float) -> _Slots:
    run()
    calls = 1
    while True:
        began = time.perf_counter()
        for _ in range(calls):
            run()
        taken = time.perf_counter() - began
        if taken >= SLOT:
            break
        calls = max(2 * calls, int(calls * 1.2 * SLOT / max(taken, 1e-7)))
    slots: list[tuple[tuple[float, float], bool]] = []
    before, switches = _core.fma_peak(dtype, PEAK_SLOT), preemptions()
    end = time.perf_counter() + seconds
    while len(slots) < MIN_SLOTS or time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(calls):
            run()
        took = (time.perf_counter() - began) / calls
        after, now = _core.fma_peak(dtype, PEAK_SLOT), preemptions()
        slots.append(((took, (before + after) / 2), now == switches))
        before, switches = after, now
    kept = undisturbed(slots, MIN_SLOTS)
    times, peaks = zip(*kept, strict=True)
    return _Slots(list(times), list(peaks), 1 - len(kept) / len(slots))


def machine(dtype: "_core.DTypeName" = "float32") -> dict[str, Any]:
    """The machine: processor, versions, threads, and the peak in GFLOP/s."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    config = _core.show_config()
    peak, low, high = quantiles(_time(lambda: None, dtype, 0.1).peaks)
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "natgrad": config["version"],
        "isa": config["isa"],
        "compiler": config["compiler"],
        "threads": _core.get_num_threads(),
        "dtype": dtype,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "peak": peak,
        "peak_10": low,
        "peak_90": high,
    }


# Showing -----------------------------------------------------------------------------------------

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def digits(value: float) -> str:
    """A number with three digits, without an exponent."""
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(max(abs(value), 1e-9)))))}f}"


def spread_of_time(median: float, low: float, high: float) -> tuple[str, str]:
    """'1.23 ms' and '1.20 - 1.31', in the unit of the median."""
    size, unit = next(u for u in _UNITS if median >= u[0] or u is _UNITS[-1])
    return f"{digits(median / size)} {unit}", f"{digits(low / size)} - {digits(high / size)}"


def headline(about: Mapping[str, Any]) -> str:
    """The machine in two lines."""
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    return (
        f"natgrad {about['natgrad']} (ISA level {about['isa']}), {threads}, {about['dtype']}, "
        f"on {about['cpu']}, {about['cores']} cores\n"
        f"FMA peak {about['peak']:.0f} GFLOP/s measured "
        f"(10 - 90 %: {about['peak_10']:.0f} - {about['peak_90']:.0f})"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns; the first to the left, the others to the right."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


@contextlib.contextmanager
def using_threads(threads: int | None) -> Iterator[None]:
    """Sets the number of threads of the core within a block."""
    before = _core.get_num_threads()
    _core.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        _core.set_num_threads(before)


def save(
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    json_file: str | os.PathLike[str] | None,
    csv_file: str | os.PathLike[str] | None,
) -> None:
    """Writes machine and rows as JSON, and rows with the machine in its last columns as CSV."""
    path = json_file
    try:
        if json_file is not None:
            Path(json_file).write_text(
                json.dumps({"machine": about, "rows": rows}, indent=1) + "\n"
            )
        path = csv_file
        if csv_file is not None:
            with Path(csv_file).open("w", newline="") as file:
                names = [*rows[0], "threads", "dtype", "cpu", "isa", "natgrad"]
                writer = csv.DictWriter(file, names, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(dict(about) | dict(row) for row in rows)
    except OSError as error:
        raise ValueError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def bench(
    shapes: Sequence[Shape],
    pieces: Sequence[str] = tuple(PIECES),
    *,
    dtype: "_core.DTypeName" = "float32",
    threads: int | None = None,
    seconds: float = 0.3,
    json_file: str | os.PathLike[str] | None = None,
    csv_file: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Times pieces on problems and prints a table for each problem.

    Args:
        shapes: the problems.
        pieces: names from `PIECES`.
        dtype: of policies and critics, 'float32' or 'float64'.
        threads: of the core; unchanged when None.
        seconds: to spend on each piece, five slots at least.
        json_file: to write machine and rows to.
        csv_file: to write rows to.
        progress: whether to show a bar on stderr; when None, if it is a terminal.

    Returns:
        A row for each shape and piece: seconds of a call, GFLOP/s and fraction of peak, with first
        and last deciles; the fraction is the median of the slots' own.

    Raises:
        WrongAnswerError: a piece does not agree with NumPy in float64.
    """
    rows: list[dict[str, Any]] = []
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    with using_threads(threads):
        about = machine(dtype)
        print(headline(about))
        with tqdm(
            total=len(shapes) * len(pieces), disable=hidden, leave=False, unit="piece"
        ) as bar:
            for shape in shapes:
                problem = Problem(shape, dtype)
                lines = []
                for name in pieces:
                    bar.set_postfix_str(f"{shape.name} {name}")
                    run, operations = PIECES[name](problem)
                    row = _row(operations, _time(run, dtype, seconds))
                    problem.restore()
                    rows.append({"shape": shape.name, "piece": name, **row})
                    lines.append([name, *_cells(row)])
                    bar.update()
                with bar.external_write_mode():
                    print(f"\n{shape}, P = {problem.start.size}")
                    print(table(_COLUMNS, lines), flush=True)
    save(about, rows, json_file, csv_file)
    return rows


_COLUMNS = ("piece", "time", "10 - 90 %", "GFLOP/s", "of peak", "10 - 90 %")


def _row(operations: float | None, slots: _Slots) -> dict[str, Any]:
    row: dict[str, Any] = dict(
        zip(("seconds", "seconds_10", "seconds_90"), quantiles(slots.times), strict=True)
    )
    row |= {"gflops": None, "of_peak": None, "of_peak_10": None, "of_peak_90": None}
    if operations is not None:
        fractions = quantiles(
            [operations / t * 1e-9 / p for t, p in zip(slots.times, slots.peaks, strict=True)]
        )
        row |= zip(("of_peak", "of_peak_10", "of_peak_90"), fractions, strict=True)
        row["gflops"] = operations / row["seconds"] * 1e-9
    return row | {"peak": quantiles(slots.peaks)[0], "slots": len(slots.times),
                  "dropped": slots.dropped}  # fmt: skip


def _cells(row: Mapping[str, Any]) -> list[str]:
    times = spread_of_time(row["seconds"], row["seconds_10"], row["seconds_90"])
    if row["gflops"] is None:
        return [*times, "", "", ""]
    low, high = row["of_peak_10"], row["of_peak_90"]
    return [*times, digits(row["gflops"]), f"{row['of_peak']:.3f}", f"{low:.3f} - {high:.3f}"]


# Peers -------------------------------------------------------------------------------------------


def peers(*folders: Path) -> ModuleType:
    """The comparison with other libraries, which is in the repository and not in this package.

    A checkout is a folder with `benchmarks/peers` and with a pyproject.toml that names natgrad. The
    search goes upwards, first from this package, for an editable install, and then from the working
    folder.

    Args:
        folders: where to start the search instead.

    Raises:
        ImportError: none of them is in a checkout.
    """
    for start in folders or (Path(__file__).resolve().parent, Path.cwd()):
        for folder in (start, *start.parents):
            if _is_checkout(folder):
                if str(folder) not in sys.path:
                    sys.path.insert(0, str(folder))
                return importlib.import_module("benchmarks.peers.comparison")
    raise ImportError(
        "the programs of the peers are not part of the installed package: clone natgrad's "
        "repository and run `natgrad bench peers` inside"
    )


def _is_checkout(folder: Path) -> bool:
    if not (folder / "benchmarks" / "peers").is_dir():
        return False
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text()).get("project", {})
    except (OSError, ValueError):
        return False
    return bool(project.get("name") == "natgrad")
