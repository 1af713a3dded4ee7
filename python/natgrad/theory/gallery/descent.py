"""Descent with and without a metric: one fit seen from several sides, and two small spaces."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from natgrad.theory import metrics
from natgrad.theory.families import BernoulliFamily, GaussianFamily, NegativeLogLikelihood
from natgrad.theory.gallery import Picture, Table, Tables
from natgrad.theory.minimize import BacktrackingStep, FixedStep, Step, TrustRegionStep, minimize

Doubles = NDArray[np.float64]

# The fit of Figures 2 and 3: 1000 samples of N(12, 4²), from N(0, 1).
DATA = np.random.default_rng(1).normal(12, 4, size=1000)
FAMILY = GaussianFamily()
START = np.array([0.0, 1.0])
OPTIMUM = np.array([DATA.mean(), DATA.std()])
MEAN_LOSS = NegativeLogLikelihood(FAMILY, DATA)


def descend(
    fun: Callable[[Doubles], float],
    x0: Doubles,
    jac: Callable[[Doubles], Doubles],
    metric: Any,
    step: Step,
    max_iterations: int,
    tol: float = 1e-10,
) -> Doubles:
    """All iterates of a minimisation: (iterations + 1, P)."""
    path: list[Doubles] = []
    minimize(
        fun, x0, jac, metric, step=step, tol=tol, max_iterations=max_iterations,
        callback=lambda result: path.append(result.x),
    )  # fmt: skip
    return np.array(path)


def columns(path: Doubles, *names: str) -> dict[str, NDArray[Any]]:
    """A path as a table."""
    return {"iteration": np.arange(len(path)), **dict(zip(names, path.T, strict=True))}


def draw_loss(axis: Any, mu: tuple[float, float], sigma: tuple[float, float]) -> None:
    """Contours of the loss of the fit, and its minimum."""
    m, s = np.meshgrid(np.linspace(*mu, 150), np.linspace(*sigma, 150))
    loss = np.log(s) + (OPTIMUM[1] ** 2 + (OPTIMUM[0] - m) ** 2) / (2 * s**2)
    levels = loss.min() + np.geomspace(1e-3, 1e2, 16)
    axis.contour(m, s, loss, levels=levels, colors="0.85", linewidths=0.8)
    axis.plot(*OPTIMUM, "k*", markersize=10, label="maximum likelihood", zorder=5)
    axis.set(xlabel="μ", ylabel="σ", xlim=mu, ylim=sigma)


# Figure 2 ----------------------------------------------------------------------------------------

STEP = 1e-4
ITERATIONS = 1000


def maximum_likelihood() -> Tables:
    """Gradient and natural gradient descent on the summed loss, with one step size."""
    loss = NegativeLogLikelihood(FAMILY, DATA, reduction="sum")
    tables = {}
    for name, metric in (("gradient", metrics.euclidean), ("natural", FAMILY.fisher)):
        path = descend(loss, START, loss.jac, metric, FixedStep(STEP), ITERATIONS)
        values = np.array([loss(theta) for theta in path])
        excess = values - loss(OPTIMUM)
        tables[name] = {**columns(path, "mu", "sigma"), "loss": values, "excess": excess}
    return tables


def draw_maximum_likelihood(tables: Tables, figure: Figure) -> None:
    """Paths on the left, the excess of the loss over its minimum on the right."""
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    draw_loss(left, (-0.5, 14), (0.2, 18))
    for color, (name, table) in enumerate(tables.items()):
        label = f"{name} descent" if name == "gradient" else "natural gradient descent"
        style = {"color": f"C{color}", "label": label}
        left.plot(table["mu"], table["sigma"], ".-", markersize=4, linewidth=0.6, **style)
        shown = table["excess"] > 1e-6
        right.semilogy(table["iteration"][shown], table["excess"][shown], **style)
    left.annotate("start", START, xytext=(0.4, 0.5), fontsize="small")
    left.legend(frameon=False, loc="upper right")
    right.set(xlabel="iteration", ylabel="loss above its minimum, nats", xlim=(0, ITERATIONS))
    right.legend(frameon=False)
    right.grid(alpha=0.3)


# Figure 3 ----------------------------------------------------------------------------------------


def fields() -> Tables:
    """Steepest descent of the mean loss over (mu, sigma), without and with the Fisher metric."""
    mu, sigma = (grid.ravel() for grid in np.meshgrid(np.arange(0.0, 25, 2), np.arange(1.0, 10)))
    line = np.geomspace(0.1, 10, 41)
    return {
        "grid": field_columns(mu, sigma),
        "toward_zero": field_columns(np.full(line.shape, OPTIMUM[0]), line),
    }


def field_columns(mu: Doubles, sigma: Doubles) -> Table:
    """Descent directions at points, with their lengths."""
    points = np.stack([mu, sigma], axis=1)
    gradient = -np.array([MEAN_LOSS.jac(theta) for theta in points])
    natural = np.array(
        [np.linalg.solve(FAMILY.fisher(p), g) for p, g in zip(points, gradient, strict=True)]
    )
    return {
        "mu": points[:, 0],
        "sigma": points[:, 1],
        "gradient_mu": gradient[:, 0],
        "gradient_sigma": gradient[:, 1],
        "natural_mu": natural[:, 0],
        "natural_sigma": natural[:, 1],
        "gradient_length": np.linalg.norm(gradient, axis=1),
        "natural_length": np.linalg.norm(natural, axis=1),
    }


def draw_fields(tables: Tables, figure: Figure) -> None:
    """Both fields, each to its own scale, and lengths on the way to sigma = 0."""
    *panels, lengths = figure.subplots(1, 3)
    grid, line = tables["grid"], tables["toward_zero"]
    for color, (axis, name) in enumerate(zip(panels, ("gradient", "natural"), strict=True)):
        axis.quiver(
            grid["mu"], grid["sigma"], grid[f"{name}_mu"], grid[f"{name}_sigma"],
            color=f"C{color}", angles="xy", width=0.005,
        )  # fmt: skip
        axis.plot(*OPTIMUM, "k*", markersize=10)
        longest, shortest = grid[f"{name}_length"].max(), np.median(grid[f"{name}_length"])
        axis.set_title(f"{name}: longest {longest:.0f}, median {shortest:.2g}", fontsize="medium")
        axis.set(xlabel="μ", ylabel="σ", xlim=(-2, 26), ylim=(0.5, 10.5))
        lengths.loglog(line["sigma"], line[f"{name}_length"], color=f"C{color}", label=name)
    lengths.set(xlabel="σ, at the best μ", ylabel="length")
    lengths.set_title("on the way to σ = 0", fontsize="medium")
    lengths.legend(frameon=False)
    lengths.grid(alpha=0.3)


# A constant step length --------------------------------------------------------------------------

EPSILONS = (0.1, 0.01, 0.001)


def step_lengths() -> Tables:
    """Fisher distance from the optimum under steps of constant and of decaying length."""
    steps: dict[str, Step] = {f"epsilon_{e:g}": TrustRegionStep(epsilon=e) for e in EPSILONS}
    steps["decaying"] = TrustRegionStep(epsilon=EPSILONS[0], decay=0.75)
    steps["searched"] = BacktrackingStep()
    tables = {}
    for name, step in steps.items():
        path = descend(MEAN_LOSS, START, MEAN_LOSS.jac, FAMILY.fisher, step, 1000, tol=1e-8)
        away = path - OPTIMUM
        distance = np.sqrt(np.einsum("ti,ij,tj->t", away, FAMILY.fisher(OPTIMUM), away))
        tables[name] = {**columns(path, "mu", "sigma"), "distance": distance}
    return tables


def draw_step_lengths(tables: Tables, figure: Figure) -> None:
    """Distances, one curve for each rule."""
    axis = figure.subplots()
    for color, epsilon in enumerate(EPSILONS):
        table = tables[f"epsilon_{epsilon:g}"]
        axis.plot(
            table["iteration"] + 1, table["distance"], ".-", color=f"C{color}",
            markersize=2.5, linewidth=0.3,
            label=f"ε = {epsilon:g}: stopped as a limit cycle after {len(table['mu']) - 1} steps",
        )  # fmt: skip
        axis.axhline(np.sqrt(2 * epsilon), color=f"C{color}", linestyle=":", linewidth=0.8)
    for shade, name, style, label in (
        ("C3", "decaying", ".", f"ε = {EPSILONS[0]:g}, radius divided by (1 + t)^0.75"),
        ("C4", "searched", "-", "natural gradient with a line search"),
    ):
        t, distance = tables[name]["iteration"], tables[name]["distance"]
        axis.plot(t + 1, distance, style, markersize=1.5, color=shade, label=label)
    axis.set(xscale="log", yscale="log", xlabel="1 + iteration", ylim=(1e-4, 100))
    axis.set_ylabel("distance from the optimum, in its Fisher metric")
    axis.legend(frameon=False, fontsize="small", loc="lower left")


# A softmax that saturates ------------------------------------------------------------------------

SOFTMAX = BernoulliFamily()  # of one parameter
SOFTMAX_STEPS = 40
RATE = 0.5  # of all but the trust region
TRUST = 0.02


def softmax() -> Tables:
    """The Fisher information of one logit, and four ways of raising its probability."""
    theta = np.concatenate([np.arange(-20, 20, 0.5), np.arange(20, 801, 5)])
    paths: dict[str, NDArray[Any]] = {"iteration": np.arange(SOFTMAX_STEPS + 1)}
    ways: dict[str, tuple[Any, Step]] = {
        "gradient": (metrics.euclidean, FixedStep(RATE)),
        "normalised": (metrics.euclidean, TrustRegionStep(radius=RATE)),
        "natural": (SOFTMAX.fisher, FixedStep(RATE)),
        "trust_region": (SOFTMAX.fisher, TrustRegionStep(epsilon=TRUST)),
    }
    for name, (metric, step) in ways.items():
        path = descend(
            lambda t: -softmax_probability(t), np.zeros(1),
            lambda t: -softmax_probability(t) * SOFTMAX.score(t, [[1]])[0],
            metric, step, SOFTMAX_STEPS, tol=0.0,
        )[:, 0]  # fmt: skip
        # Once the probability is 1 to the last digit, the path ends; its last point is repeated.
        paths[name] = np.append(path, np.full(SOFTMAX_STEPS + 1 - len(path), path[-1]))
    return {
        "fisher": {
            "theta": theta,
            "probability": np.array([softmax_probability([t]) for t in theta]),
            "fisher": np.array([SOFTMAX.fisher([t])[0, 0] for t in theta]),
        },
        "paths": paths,
    }


def softmax_probability(theta: Any) -> float:
    """Of the action whose logit theta is, the other's being 0."""
    return float(np.exp(SOFTMAX.log_prob(theta, [[1]])[0]))


def draw_softmax(tables: Tables, figure: Figure) -> None:
    """The Fisher information on the left, the four paths on the right."""
    left, right = figure.subplots(1, 2)
    fisher, paths = tables["fisher"], tables["paths"]
    shown = fisher["fisher"] > 0
    left.semilogy(fisher["theta"][shown], fisher["fisher"][shown])
    left.axvline(709.8, color="0.6", linestyle=":")
    left.text(700, 1e-100, "exp(θ) overflows", rotation=90, ha="right", va="center", color="0.4")
    left.set(xlabel="θ", ylabel="Fisher information p (1 - p)", ylim=(1e-322, 1e10))
    for name, label in (
        ("gradient", f"gradient, step {RATE}"),
        ("normalised", f"normalised gradient, length {RATE}"),
        ("natural", f"natural gradient, step {RATE}"),
        ("trust_region", f"natural gradient, ε = {TRUST}"),
    ):
        style = "--" if name == "natural" else "-"
        right.plot(paths["iteration"], paths[name], style, label=label)
    right.set(xlabel="iteration", ylabel="θ")
    right.set_yscale("symlog", linthresh=25, linscale=2)
    right.legend(frameon=False, fontsize="small", loc=(0.3, 0.6))
    right.grid(alpha=0.3)


# Polar coordinates -------------------------------------------------------------------------------

TARGET = np.array([1.0, 0.5])
POLAR_START = np.array([3.0, 2.4])  # radius, angle
POLAR_STEP = 0.08
POLAR_STEPS = 60
TIME = 1.2  # step size times steps, in the comparison of step sizes


def plane(polar: Doubles) -> Doubles:
    """Cartesian coordinates of (radius, angle)."""
    r, angle = polar[..., :1], polar[..., 1:]
    return np.concatenate([r * np.cos(angle), r * np.sin(angle)], axis=-1)


def half_squared_distance(x: Doubles) -> float:
    """To the target."""
    return 0.5 * float((x - TARGET) @ (x - TARGET))


def polar_jac(polar: Doubles) -> Doubles:
    """Gradient of the same function in (radius, angle)."""
    r, angle = polar
    c, s = np.cos(angle), np.sin(angle)
    jacobian = np.array([[c, -r * s], [s, r * c]])
    return np.asarray(jacobian.T @ (plane(polar) - TARGET))


def polar() -> Tables:
    """Descent to a point of the plane, in Cartesian and in polar coordinates."""

    def in_polar(metric: Any, step: float, count: int) -> Doubles:
        fun = lambda x: half_squared_distance(plane(x))  # noqa: E731
        return plane(descend(fun, POLAR_START, polar_jac, metric, FixedStep(step), count))

    def cartesian(step: float, count: int) -> Doubles:
        return descend(
            half_squared_distance, plane(POLAR_START), lambda x: x - TARGET, metrics.euclidean,
            FixedStep(step), count,
        )  # fmt: skip

    sizes = TIME / np.array([6, 12, 24, 48, 96, 192])
    gaps = []
    for step in sizes:
        count = round(TIME / step)
        ends = [
            path[-1]
            for path in (
                cartesian(step, count),
                in_polar(metrics.polar, step, count),
                in_polar(metrics.euclidean, step, count),
            )
        ]
        gaps.append([np.linalg.norm(end - ends[0]) for end in ends[1:]])
    natural, plain = np.array(gaps).T
    return {
        "cartesian": columns(cartesian(POLAR_STEP, POLAR_STEPS), "x", "y"),
        "natural": columns(in_polar(metrics.polar, POLAR_STEP, POLAR_STEPS), "x", "y"),
        "plain": columns(in_polar(metrics.euclidean, POLAR_STEP, POLAR_STEPS), "x", "y"),
        "gap": {"step": sizes, "natural": natural, "plain": plain},
    }


def draw_polar(tables: Tables, figure: Figure) -> None:
    """Paths in the plane, and how far apart they are after the same time."""
    left, right = figure.subplots(1, 2)
    for r in (1, 2, 3):
        left.add_patch(Circle((0, 0), r, fill=False, color="0.85"))
    for name, style, label in (
        ("cartesian", "o", "gradient in (x, y)"),
        ("natural", ".-", "natural gradient in (r, angle)"),
        ("plain", ".-", "gradient in (r, angle)"),
    ):
        table = tables[name]
        left.plot(table["x"], table["y"], style, label=label, fillstyle="none", linewidth=0.8)
    left.plot(*TARGET, "k*", markersize=10, label="minimum", zorder=5)
    left.set(xlabel="x", ylabel="y", aspect="equal", xlim=(-3.2, 3.2), ylim=(-1.2, 3.2))
    left.legend(frameon=False, fontsize="small", loc="lower left")
    gap = tables["gap"]
    for color, name in (("C1", "natural"), ("C2", "plain")):
        right.loglog(gap["step"], gap[name], "o-", color=color, label=f"{name} gradient")
    right.loglog(
        gap["step"], gap["natural"][0] * gap["step"] / gap["step"][0], "k:", label="~ step"
    )
    right.set(xlabel="step size", ylabel="distance from the path in (x, y)")
    right.set_title(f"after the same time, {TIME:g}", fontsize="medium")
    right.legend(frameon=False)


PICTURES = (
    Picture(
        name="figure-2",
        title="Maximum likelihood with one step size",
        source="the paper, Figure 2",
        shows=(
            "Both begin with a jump at μ = 0, σ = 1, where the gradient is largest. Gradient "
            "descent is thrown up to a large σ; from there its points are so close that they look "
            "like a line, and after 1000 iterations it has not arrived. The natural gradient's "
            "first step is shorter, and it arrives within 200."
        ),
        settings=(
            f"1000 samples of N(12, 4²) (NumPy's default generator, seed 1), step {STEP:g} for "
            "both; the loss is the sum over the samples, and the metric the exact Fisher matrix of "
            "one sample."
        ),
        deviation=(
            "The paper does not say how many samples there are, nor that the loss is summed. With "
            "the mean loss a step of 1e-4 gets nowhere in either metric; with the sum over a "
            "thousand samples it behaves as described."
        ),
        data=maximum_likelihood,
        draw=draw_maximum_likelihood,
    ),
    Picture(
        name="figure-3",
        title="The gradients behind Figure 2",
        source="the paper, Figure 3",
        shows=(
            "Descent directions of the mean loss, each field to its own scale. The gradients near "
            "σ = 0 dwarf all others; the natural gradients are of comparable lengths. On the "
            "right: as σ goes to 0 at the best μ, the gradient grows as 1/σ³ and the natural "
            "gradient as 1/σ."
        ),
        settings="The data of Figure 2; arrows at μ = 0, 2, ..., 24 and σ = 1, 2, ..., 9.",
        deviation=(
            "The paper says that the gradient grows as the mean approaches 0; it is the standard "
            "deviation. It also says that the natural gradient does not: it does, as 1/σ."
        ),
        data=fields,
        draw=draw_fields,
        size=(12.0, 3.8),
    ),
    Picture(
        name="step-lengths",
        title="Steps of constant length never arrive",
        source="the paper, Algorithm 1",
        shows=(
            "With a constant ε every step has the Fisher length √(2ε) (dotted), so that the "
            "iterates end by jumping back and forth at about that distance, or half of it, from "
            "the optimum. `minimize` recognises the cycle and stops. With a decaying length the "
            "iterates keep approaching, and a line search converges."
        ),
        settings=(
            "The mean loss of Figure 2's data and its exact Fisher metric, from (0, 1); 1000 "
            "iterations at most."
        ),
        deviation=(
            "The paper's loop runs until convergence, with a constant ε: it never ends. The decay "
            "is ours."
        ),
        data=step_lengths,
        draw=draw_step_lengths,
        size=(7.5, 4.5),
    ),
    Picture(
        name="softmax",
        title="A softmax that saturates",
        source="the slides, on the second-order expansion of the KL divergence",
        shows=(
            "The Fisher information of a softmax of one parameter θ goes to 0 as θ grows, and so "
            "does the gradient of the probability p: the gradient's θ grows as a logarithm of "
            "time. The natural gradient of p is 1 everywhere, so θ grows steadily; with a trust "
            "region the same divergence is an ever longer step, and θ explodes, until p is 1 in "
            "every digit. All values stay finite, even where exp(θ) overflows."
        ),
        settings=(
            f"Maximising p = exp(θ) / (1 + exp(θ)) from θ = 0; steps as in the legend; "
            f"{SOFTMAX_STEPS} iterations."
        ),
        deviation=(
            "The slides say that plain gradient descent moves at constant speed. That holds for a "
            "linear loss, or for the normalised gradient, which is drawn as well."
        ),
        data=softmax,
        draw=draw_softmax,
    ),
    Picture(
        name="polar",
        title="Polar coordinates",
        source="the article, on metric tensors",
        shows=(
            "The gradient in (r, angle) is not the direction of steepest descent in the plane: far "
            "from the origin it turns too fast. With the metric diag(1, r²) the natural gradient "
            "in polar coordinates follows the gradient in (x, y), except for the curvature of "
            "the coordinates within a step, which vanishes with the step's size (right); the plain "
            "gradient's error stays."
        ),
        settings=(
            f"Half the squared distance to {tuple(TARGET.tolist())}, from r = 3 and angle 2.4; "
            f"{POLAR_STEPS} steps of {POLAR_STEP}; on the right the end points after the time "
            f"{TIME:g}."
        ),
        deviation=(
            "The article has the metric and one conversion; the example is ours. It calls the map "
            "between the coordinates a matrix, which it is for small steps only."
        ),
        data=polar,
        draw=draw_polar,
    ),
)
