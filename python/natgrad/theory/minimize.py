"""Natural gradient descent on any metric, for small problems, with SciPy's interface."""

import enum
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from natgrad import _core

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = [
    "BacktrackingStep",
    "ExactStep",
    "FixedStep",
    "MinimizeStatus",
    "Step",
    "TrustRegionStep",
    "minimize",
]

Doubles: TypeAlias = NDArray[np.float64]

# Steps of fixed length are taken to cycle when this many of them have brought no better value and
# a distance of no more than this part of their length: the diameter of two steps, and some more.
_CYCLE = 20
_CYCLE_PROGRESS = 0.15
_ROUNDING = float(np.finfo(np.float64).eps)


class MinimizeStatus(enum.IntEnum):
    """Why a minimisation ended; `success` is status 0."""

    CONVERGED = 0  # the natural gradient is no longer than tol
    MAX_ITERATIONS = 1
    LIMIT_CYCLE = 2  # steps of fixed length jump back and forth around a minimum
    LINE_SEARCH_FAILED = 3  # no fraction of the step decreases fun enough
    NON_FINITE = 4  # fun, its gradient or the metric is not finite
    NOT_POSITIVE_DEFINITE = 5  # the metric is not, in a direction that the gradient needs
    NOT_CONVEX = 6  # an exact step met no positive curvature
    NOT_QUADRATIC = 7  # an exact step did not reach the minimum along its way
    STOPPED = 99  # the callback asked for it; SciPy's number


class _Stop(Exception):  # noqa: N818 - no error: how a minimisation ends
    def __init__(self, status: MinimizeStatus, message: str) -> None:
        self.status, self.message = status, message


@dataclass(frozen=True)
class _Direction:
    """From an iterate x along -d, where d = (G + damping I)^-1 g is the natural gradient."""

    x: Doubles
    fun: float
    jac: Doubles
    d: Doubles
    slope: float  # g'd: how fast fun falls along -d
    norm: float  # sqrt(d'Gd)
    iteration: int
    objective: "_Objective"


# Steps -------------------------------------------------------------------------------------------


class _Step:
    """A rule for the length of a step, in multiples of the natural gradient."""

    def _length(self, direction: _Direction) -> float:
        raise NotImplementedError

    def _may_cycle(self) -> bool:
        """Whether steps may cycle around a minimum, because they do not get shorter."""
        return False

    def _check(self, direction: _Direction, jac: Doubles) -> None:
        """Looks at the gradient after the step; raises _Stop if it must not be taken."""


@dataclass(frozen=True)
class FixedStep(_Step):
    """x - size G^-1 g, with the same size in every step.

    Args:
        size: positive.
    """

    size: float

    def __post_init__(self) -> None:
        _positive(size=self.size)

    def _length(self, direction: _Direction) -> float:
        return self.size

    def _may_cycle(self) -> bool:
        return True


@dataclass(frozen=True)
class ExactStep(_Step):
    """A step to the minimum along the natural gradient, if `fun` is a convex quadratic.

    The curvature is computed from one more gradient, which is exact for a quadratic; the gradient
    after the step shows whether `fun` is one.
    """

    def _length(self, direction: _Direction) -> float:
        probe = direction.objective.jac(direction.x - direction.d)
        curvature = float(direction.d @ (direction.jac - probe))
        if not math.isfinite(curvature):
            raise _Stop(
                MinimizeStatus.NON_FINITE,
                "the gradient is not finite one natural gradient further, where curvature is taken",
            )
        if curvature <= 0:
            raise _Stop(
                MinimizeStatus.NOT_CONVEX,
                f"the curvature along the natural gradient is {curvature:.3g}: fun has no minimum "
                "that way",
            )
        return direction.slope / curvature

    def _check(self, direction: _Direction, jac: Doubles) -> None:
        left = float(jac @ direction.d)
        if abs(left) > 1e-3 * direction.slope:
            raise _Stop(
                MinimizeStatus.NOT_QUADRATIC,
                f"an exact step left a slope of {left:.3g} where it was {direction.slope:.3g}: fun "
                "is not quadratic",
            )


@dataclass(frozen=True)
class BacktrackingStep(_Step):
    """The first acceptable multiple of G^-1 g among initial, initial shrink, initial shrink², ...

    A step is acceptable if fun decreases by more than `decrease` times what the gradient promises
    (Armijo 1966). The defaults are those of Nocedal and Wright (2006), section 3.1.

    Args:
        initial: positive; 1 is Newton's step where the metric is the curvature.
        shrink: between 0 and 1.
        decrease: from 0 to less than 1.
        max_backtracks: candidates tried in all, at least 1.
    """

    initial: float = 1.0
    shrink: float = 0.5
    decrease: float = 1e-4
    max_backtracks: int = 50

    def __post_init__(self) -> None:
        _positive(initial=self.initial)
        # The core's search checks the others.
        _core.LineSearch(self.shrink, self.max_backtracks, self.decrease)

    def _length(self, direction: _Direction) -> float:
        def evaluate(fraction: float) -> tuple[float, float]:
            candidate = direction.x - fraction * self.initial * direction.d
            return direction.fun - direction.objective.fun(candidate), 0.0

        search = _core.backtracking_line_search(
            evaluate,
            self.initial * direction.slope,
            max_kl=1.0,  # the divergence is always 0 here
            shrink=self.shrink,
            max_backtracks=self.max_backtracks,
            accept_ratio=self.decrease,
        )
        if search.status is _core.LineSearchStatus.ACCEPTED:
            return self.initial * search.fraction
        if self.initial * direction.slope <= 100 * _ROUNDING * abs(direction.fun):
            raise _Stop(
                MinimizeStatus.CONVERGED,
                f"the decrease that is left, {self.initial * direction.slope:.3g}, is in the "
                f"rounding of fun, {direction.fun:.6g}",
            )
        raise _Stop(
            MinimizeStatus.LINE_SEARCH_FAILED,
            f"none of {search.evaluations} candidates decreases fun by {self.decrease:g} of what "
            f"the gradient promises, {direction.slope:.3g} times its length; is jac its gradient?",
        )


@dataclass(frozen=True)
class TrustRegionStep(_Step):
    """d = G^-1 g, scaled to a given length in the metric (docs/math.md, eq. 10.2).

    One of three arguments gives the length, since documents differ (docs/conventions.md):

    Args:
        epsilon: 1/2 d'Gd, which for a Fisher metric is about the divergence, in nats.
        delta: d'Gd, without the half.
        radius: sqrt(d'Gd).
        decay: the radius is divided by (1 + iteration)^decay. With 0 a minimisation cannot converge
            and ends in a limit cycle of about that radius; 1 is the most that can reach any point.
    """

    epsilon: float | None = None
    delta: float | None = None
    radius: float | None = None
    decay: float = 0.0

    def __post_init__(self) -> None:
        given = {
            k: v for k in ("epsilon", "delta", "radius") if (v := getattr(self, k)) is not None
        }
        if len(given) != 1:
            raise ValueError(
                f"TrustRegionStep has {sorted(given) or 'no length'}; wanted one of epsilon, "
                "delta and radius"
            )
        _positive(**given)
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is {self.decay!r}; wanted 0 to 1")

    def _may_cycle(self) -> bool:
        return self.decay == 0

    def _length(self, direction: _Direction) -> float:
        if self.radius is not None:
            radius = self.radius
        elif self.delta is not None:
            radius = math.sqrt(self.delta)
        else:
            assert self.epsilon is not None
            radius = math.sqrt(2 * self.epsilon)
        if direction.norm == 0:
            raise _Stop(
                MinimizeStatus.NOT_POSITIVE_DEFINITE,
                "the metric is zero along the step, which may be of any length",
            )
        return float(radius / (1 + direction.iteration) ** self.decay / direction.norm)


Step: TypeAlias = FixedStep | ExactStep | BacktrackingStep | TrustRegionStep


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value!r}; wanted a finite number above 0")


# Minimisation ------------------------------------------------------------------------------------


def minimize(
    fun: Callable[..., Any],
    x0: ArrayLike,
    jac: Callable[[Doubles], ArrayLike] | bool,
    metric: Any,
    *,
    step: Step = BacktrackingStep(),
    damping: float = 0.0,
    tol: float = 1e-6,
    max_iterations: int = 1000,
    cg_iterations: int | None = None,
    callback: Callable[["OptimizeResult"], object] | None = None,
) -> "OptimizeResult":
    """Natural gradient descent: x - beta G(x)^-1 grad fun(x) (docs/math.md, eq. 10.1).

    Args:
        fun: function of x (P,) to minimise; returns a number, infinite where x is out of bounds.
        x0: (P,), the first iterate.
        jac: gradient of fun, (P,); or True if fun returns both.
        metric: G, symmetric and positive semidefinite, as a matrix (P, P), as an operator with
            `matvec` (`natgrad.Fisher`, of SciPy), or as a function of x that returns one of these;
            ready-made ones are in `natgrad.theory.metrics` and `natgrad.theory.families`.
            Operators are solved by conjugate gradients. For a singular matrix the solution is the
            shortest one, in units in which its diagonal is 1.
        step: how far to go: FixedStep, ExactStep, BacktrackingStep or TrustRegionStep.
        damping: added to G's diagonal for the solution, but not for lengths.
        tol: converged when sqrt(g'G^-1 g) is at most this. It is the length of the natural gradient
            in the metric, which does not depend on coordinates; half its square is the possible
            decrease where the metric is the curvature.
        max_iterations: maximal number of steps.
        cg_iterations: maximal number of products with an operator per solution; 2 P when None.
        callback: called with an OptimizeResult (x, fun, jac, decrement, nit) for x0 and after each
            step; may raise StopIteration.

    Returns:
        SciPy's OptimizeResult: x, fun, jac, success, status (`MinimizeStatus`), message, nit, nfev,
        njev, and decrement, the natural gradient's length at the last iterate, infinite if there is
        none. x is the last iterate at which everything was finite; after LIMIT_CYCLE, the best of
        the cycle.

    Raises:
        ImportError: SciPy is not installed.
        TypeError, ValueError: an argument, or the result of a function, is not as above.
    """
    try:
        from scipy.optimize import OptimizeResult
    except ImportError as error:
        raise ImportError(
            "minimize returns SciPy's OptimizeResult: pip install 'natgrad[optimize]'"
        ) from error
    x = np.atleast_1d(np.array(x0, np.float64))
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"x0 is {x0!r}; wanted a vector of finite numbers")
    given: dict[str, Any] = {"fun": fun, "jac": jac}
    for name, function in given.items():
        if not callable(function) and (name, function) != ("jac", True):
            raise TypeError(f"{name} is {function!r}; wanted a function, or jac=True")
    if not isinstance(step, Step):
        names = "FixedStep, ExactStep, BacktrackingStep or TrustRegionStep"
        raise TypeError(f"step is {step!r}; wanted a {names}")
    if cg_iterations is None:
        cg_iterations = 2 * x.size
    for name, number, least in (
        ("damping", damping, 0),
        ("tol", tol, 0),
        ("max_iterations", max_iterations, 0),
        ("cg_iterations", cg_iterations, 1),
    ):
        if not (number >= least and math.isfinite(number)):
            raise ValueError(f"{name} is {number!r}; wanted a finite number of at least {least}")
    function_of_x = callable(metric) and not hasattr(metric, "matvec")
    if not function_of_x and not hasattr(metric, "matvec"):
        metric = _matrix(metric, x.size)
        if not np.isfinite(metric).all():
            raise ValueError("metric has entries that are not finite")

    objective = _Objective(fun, jac)
    value, gradient = objective(x)
    decrement = math.inf
    visited: deque[tuple[float, Doubles]] = deque(maxlen=_CYCLE + 1)
    best = math.inf
    iteration = 0
    try:
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            raise _Stop(MinimizeStatus.NON_FINITE, f"fun is {value} with gradient {gradient} at x0")
        while True:
            G = metric(x) if function_of_x else metric
            d, norm = _natural_gradient(G, gradient, damping, tol, cg_iterations)
            slope = float(gradient @ d)
            decrement = math.sqrt(max(slope, 0.0))
            if callback is not None:
                now = OptimizeResult(
                    x=x.copy(), fun=value, jac=gradient, decrement=decrement, nit=iteration
                )
                try:
                    callback(now)
                except StopIteration:
                    raise _Stop(MinimizeStatus.STOPPED, "the callback asked for it") from None
            if decrement <= tol:
                raise _Stop(
                    MinimizeStatus.CONVERGED,
                    f"the natural gradient's length, {decrement:.3g}, is at most {tol:g}",
                )
            if len(visited) > _CYCLE and step._may_cycle():
                _check_for_a_cycle(G, visited, best)
            if iteration == max_iterations:
                raise _Stop(
                    MinimizeStatus.MAX_ITERATIONS,
                    f"the natural gradient's length is {decrement:.3g} after {iteration} steps, "
                    f"more than {tol:g}",
                )
            direction = _Direction(x, value, gradient, d, slope, norm, iteration, objective)
            candidate = x - step._length(direction) * d
            candidate_value, candidate_gradient = objective(candidate)
            if not (math.isfinite(candidate_value) and np.isfinite(candidate_gradient).all()):
                raise _Stop(
                    MinimizeStatus.NON_FINITE,
                    f"fun is {candidate_value} with gradient {candidate_gradient} at "
                    f"{candidate}, one step further",
                )
            step._check(direction, candidate_gradient)
            if len(visited) > _CYCLE:
                best = min(best, visited[0][0])
            x, value, gradient = candidate, candidate_value, candidate_gradient
            visited.append((value, x))
            iteration += 1
    except _Stop as stop:
        status, message = stop.status, stop.message
    if status is MinimizeStatus.LIMIT_CYCLE:
        value, x = min(visited, key=lambda point: point[0])
        gradient = objective.jac(x)
    return OptimizeResult(
        x=x,
        fun=value,
        jac=gradient,
        success=status is MinimizeStatus.CONVERGED,
        status=status,
        message=f"{status.name}: {message}",
        nit=iteration,
        nfev=objective.nfev,
        njev=objective.njev,
        decrement=decrement,
    )


class _Objective:
    """fun and jac, checked and counted."""

    def __init__(self, fun: Callable[..., Any], jac: Callable[..., Any] | bool) -> None:
        self._fun, self._jac = fun, jac if callable(jac) else None
        self._at: tuple[bytes, Any] = (b"", None)  # the last result of fun, if it returns both
        self.nfev = self.njev = 0

    def __call__(self, x: Doubles) -> tuple[float, Doubles]:
        """Value and gradient; the gradient is not computed where the value is not finite."""
        value = self.fun(x)
        return value, self.jac(x) if math.isfinite(value) else np.full(x.shape, np.inf)

    def fun(self, x: Doubles) -> float:
        self.nfev += 1
        value = self._both(x)[0] if self._jac is None else self._fun(x.copy())
        number = np.asarray(value, np.float64)
        if number.size != 1:
            raise ValueError(f"fun returned the shape {number.shape}; wanted a number")
        return float(number.item())

    def jac(self, x: Doubles) -> Doubles:
        self.njev += 1
        value = self._both(x)[1] if self._jac is None else self._jac(x.copy())
        gradient = np.array(value, np.float64, ndmin=1)
        if gradient.shape != x.shape:
            raise ValueError(f"jac returned the shape {gradient.shape}; wanted {x.shape}")
        return gradient

    def _both(self, x: Doubles) -> Any:
        if self._at[0] != x.tobytes():
            both = self._fun(x.copy())
            if not isinstance(both, tuple) or len(both) != 2:
                raise TypeError(f"fun returned {both!r}; with jac=True, wanted a pair")
            self._at = (x.tobytes(), both)
        return self._at[1]


def _matrix(metric: Any, size: int) -> Doubles:
    G = np.asarray(metric, np.float64)
    if G.shape != (size, size):
        raise ValueError(f"metric has the shape {G.shape}; wanted ({size}, {size})")
    if np.isfinite(G).all() and np.abs(G - G.T).max() > 1e-8 * np.abs(G).max():
        raise ValueError("metric is not symmetric")
    return G


def _natural_gradient(
    metric: Any, g: Doubles, damping: float, tol: float, cg_iterations: int
) -> tuple[Doubles, float]:
    """d = (G + damping I)^-1 g and sqrt(d'Gd)."""
    if hasattr(metric, "matvec"):
        solution = _core.conjugate_gradient(
            metric, g, damping=damping, rtol=1e-12, max_iterations=cg_iterations
        )
        if solution.status is _core.CgStatus.INDEFINITE:
            raise _Stop(MinimizeStatus.NOT_POSITIVE_DEFINITE, f"the metric: {solution.message}")
        return solution.x, math.sqrt(max(solution.quadratic_form, 0.0))
    G = _matrix(metric, g.size)
    if not np.isfinite(G).all():
        raise _Stop(MinimizeStatus.NON_FINITE, "the metric has entries that are not finite")
    # The diagonal is scaled to 1, so that the scale of a coordinate cannot look like rank.
    diagonal = G.diagonal() + damping
    units = np.where(diagonal > 0, diagonal, np.inf) ** -0.5  # 0 where G is
    eigenvalues, V = np.linalg.eigh((G + damping * np.eye(g.size)) * np.outer(units, units))
    rounding = 10 * g.size * _ROUNDING
    if eigenvalues[0] < -rounding or (diagonal < 0).any():
        raise _Stop(
            MinimizeStatus.NOT_POSITIVE_DEFINITE,
            f"the metric's least eigenvalue is {eigenvalues[0]:.3g} of its diagonal",
        )
    kept = eigenvalues > rounding
    components = V.T @ (units * g)
    lost = float(np.hypot(np.linalg.norm(components[~kept]), np.linalg.norm(g[units == 0])))
    if lost > max(tol, 1e-6 * float(np.linalg.norm(components))):
        raise _Stop(
            MinimizeStatus.NOT_POSITIVE_DEFINITE,
            f"the metric has the rank {kept.sum()} of {g.size}, and {lost:.3g} of the gradient is "
            "where it is zero: there is no natural gradient without damping",
        )
    d = units * (V[:, kept] @ (components[kept] / eigenvalues[kept]))
    return d, math.sqrt(max(float(d @ g - damping * (d @ d)), 0.0))


def _check_for_a_cycle(metric: Any, visited: deque[tuple[float, Doubles]], best: float) -> None:
    """Ends the minimisation if the last iterates make no progress in distance or in value."""
    values = [value for value, _ in visited]
    # Both ends of a cycle may have the same value, and then differ by rounding alone.
    noise = 1e-6 * (max(values) - min(values)) + 1e4 * _ROUNDING * max(map(abs, values))
    if min(values) < min(best, values[0]) - noise:
        return
    points = np.array([x for _, x in visited])
    way = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    if np.linalg.norm(points[-1] - points[0]) > _CYCLE_PROGRESS * way:
        return
    around = points - points[1:].mean(axis=0)
    product = metric.matvec if hasattr(metric, "matvec") else np.asarray(metric).__matmul__
    radius = max(math.sqrt(max(float(v @ product(v)), 0.0)) for v in around)
    raise _Stop(
        MinimizeStatus.LIMIT_CYCLE,
        f"{_CYCLE} steps have come back to where they began, within a radius of {radius:.3g} in "
        "the metric, and fun fell no further: shorten the steps, let the radius decay, or search",
    )
