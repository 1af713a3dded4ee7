"""A change of coordinates changes gradients, but not natural gradients.

The examples are the fit of Figure 2 and a small policy network, each in two sets of coordinates.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from natgrad import _core
from natgrad.policy import Policy
from natgrad.theory import metrics
from natgrad.theory.families import GaussianFamily, NegativeLogLikelihood
from natgrad.theory.gallery import Picture, Tables
from natgrad.theory.gallery.descent import DATA, FAMILY, MEAN_LOSS, columns, descend, draw_loss
from natgrad.theory.minimize import FixedStep, TrustRegionStep

Doubles = NDArray[np.float64]

BEGIN = np.array([3.0, 7.0])  # mu, sigma

# Linear maps -------------------------------------------------------------------------------------

A = np.array([[2.0, 0.5], [-0.8, 1.0]])  # theta = A phi + b
B = np.array([1.0, 4.0])
NATURAL_STEP = 0.2
GRADIENT_STEP = 1.0
LINEAR_ITERATIONS = 40


def linear() -> Tables:
    """The same descents in theta and in phi; all iterates are given in theta."""

    def theta(phi: Doubles) -> Doubles:
        return np.asarray(phi @ A.T + B)

    def carried(phi: Doubles) -> Doubles:
        return np.asarray(A.T @ FAMILY.fisher(theta(phi)) @ A)

    begin = np.linalg.solve(A, BEGIN - B)
    tables = {}
    for name, metric, phi_metric, size in (
        ("natural", FAMILY.fisher, carried, NATURAL_STEP),
        ("gradient", metrics.euclidean, metrics.euclidean, GRADIENT_STEP),
    ):
        step, count = FixedStep(size), LINEAR_ITERATIONS
        here = descend(MEAN_LOSS, BEGIN, MEAN_LOSS.jac, metric, step, count)
        there = theta(
            descend(
                lambda phi: MEAN_LOSS(theta(phi)), begin,
                lambda phi: A.T @ MEAN_LOSS.jac(theta(phi)), phi_metric, step, count,
            )
        )  # fmt: skip
        tables[name] = {
            **columns(here, "mu", "sigma"),
            "mapped_mu": there[:, 0],
            "mapped_sigma": there[:, 1],
            "gap": np.linalg.norm(there - here, axis=1),
        }
    return tables


def draw_linear(tables: Tables, figure: Figure) -> None:
    """Natural gradients on the left, gradients on the right."""
    axes = figure.subplots(1, 2)
    for color, (axis, (name, table)) in enumerate(zip(axes, tables.items(), strict=True)):
        draw_loss(axis, (0, 16), (1, 10))
        axis.plot(
            table["mu"], table["sigma"], "o", color=f"C{1 - color}", fillstyle="none",
            markersize=9, label="in θ = (μ, σ)",
        )  # fmt: skip
        axis.plot(
            table["mapped_mu"], table["mapped_sigma"], ".-", color=f"C{3 - color}", linewidth=0.7,
            label="in φ, mapped by θ = Aφ + b",
        )  # fmt: skip
        axis.set_title(f"{name}: largest gap {table['gap'].max():.1g}", fontsize="medium")
        axis.legend(frameon=False, fontsize="small", loc="upper right")


# Nonlinear maps ----------------------------------------------------------------------------------

LOG_FAMILY = GaussianFamily(log_diagonal=True)
LOG_LOSS = NegativeLogLikelihood(LOG_FAMILY, DATA)
RADII: Doubles = np.array([0.8 / 2**k for k in range(8)])
SHOWN_RADIUS = 0.2
SHOWN_GRADIENT_STEP = 0.3


def nonlinear() -> Tables:
    """Steps in (mu, sigma) and in (mu, log sigma), compared in (mu, sigma)."""

    def both(natural: bool, radius: float, count: int) -> tuple[Doubles, Doubles]:
        step = TrustRegionStep(radius=radius) if natural else FixedStep(radius)
        metric, log_metric = (
            (FAMILY.fisher, LOG_FAMILY.fisher) if natural else (metrics.euclidean,) * 2
        )
        start = np.array([BEGIN[0], np.log(BEGIN[1])])
        log = descend(LOG_LOSS, start, LOG_LOSS.jac, log_metric, step, count)
        back = np.stack([log[:, 0], np.exp(log[:, 1])], axis=1)
        return descend(MEAN_LOSS, BEGIN, MEAN_LOSS.jac, metric, step, count), back

    gaps: dict[str, list[float]] = {"natural": [], "gradient": []}
    for radius in RADII:
        for name, column in gaps.items():
            one, other = both(name == "natural", radius, 1)
            column.append(float(np.linalg.norm(one[1] - other[1])))
    tables: dict[str, dict[str, NDArray[np.float64]]] = {
        "gap": {"radius": RADII, **{name: np.array(column) for name, column in gaps.items()}}
    }
    for name, size, count in (("natural", SHOWN_RADIUS, 8), ("gradient", SHOWN_GRADIENT_STEP, 80)):
        here, there = both(name == "natural", size, count)
        tables[name] = {
            **columns(here, "mu", "sigma"),
            "mapped_mu": there[:, 0],
            "mapped_sigma": there[:, 1],
        }
    return tables


def draw_nonlinear(tables: Tables, figure: Figure) -> None:
    """Paths on the left, the gap of one step on the right."""
    left, right = figure.subplots(1, 2)
    draw_loss(left, (0, 16), (1, 10))
    for name, color, other in (("gradient", "C0", "C2"), ("natural", "C1", "C3")):
        table = tables[name]
        left.plot(
            table["mu"], table["sigma"], "o", color=color, fillstyle="none", markersize=7,
            label=f"{name} in (μ, σ)",
        )  # fmt: skip
        left.plot(
            table["mapped_mu"], table["mapped_sigma"], ".-", color=other, linewidth=0.7,
            label=f"{name} in (μ, log σ)",
        )  # fmt: skip
    left.legend(frameon=False, fontsize="small", loc="upper right")
    gap = tables["gap"]
    for name, color, power in (("natural", "C1", 2), ("gradient", "C0", 1)):
        right.loglog(gap["radius"], gap[name], "o-", color=color, label=f"{name} step")
        slope = gap[name][-1] * (gap["radius"] / gap["radius"][-1]) ** power
        right.loglog(gap["radius"], slope, "k:", linewidth=0.8)
        right.text(gap["radius"][2], 0.45 * slope[2], f"slope {power}", fontsize="small")
    right.set(xlabel="length of the step", ylabel="distance of its ends in (μ, σ)")
    right.legend(frameon=False)


# Damping -----------------------------------------------------------------------------------------

DAMPINGS = np.geomspace(1e-5, 10, 25)
CG_PRODUCTS = 10


def damping() -> Tables:
    """One natural step of a small policy, in its parameters and in other coordinates."""
    random = np.random.default_rng(0)
    policy = Policy(2, _core.DiagonalGaussian(1), hidden=(4,), dtype="float64", seed=0)
    size = policy.parameters.size
    policy.parameters = random.normal(size=size) * 0.7
    observations = random.normal(size=(400, 2))
    actions, _ = policy.sample(observations, _core.Rng(0))
    advantages = -((actions[:, 0] - observations.sum(axis=1)) ** 2)
    F = _core.Fisher(policy, observations).to_dense()
    g = np.asarray(policy.score(observations, actions, advantages - advantages.mean()), np.float64)
    # theta = A phi is well conditioned, so that only damping can make a difference.
    orthogonal = np.linalg.qr(random.normal(size=(size, size)))[0]
    A: Doubles = np.asarray(orthogonal * np.geomspace(0.1, 10, size), np.float64)
    F_phi, g_phi = A.T @ F @ A, A.T @ g

    def gap(step: NDArray[Any], step_phi: NDArray[Any]) -> float:
        """Difference between the steps in phi and theta, relative, in the Fisher norm."""
        away = A @ step_phi - step
        return float(np.sqrt((away @ F @ away) / (step @ F @ step)))

    rows = []
    for x in DAMPINGS:
        step = np.linalg.solve(F + x * np.eye(size), g)
        identity = np.linalg.solve(F_phi + x * np.eye(size), g_phi)
        carried = np.linalg.solve(F_phi + x * A.T @ A, g_phi)
        few = _core.conjugate_gradient(F + x * np.eye(size), g, max_iterations=CG_PRODUCTS).x
        few_phi = _core.conjugate_gradient(F_phi + x * A.T @ A, g_phi, max_iterations=CG_PRODUCTS).x
        rows.append([gap(step, identity), gap(step, carried), gap(few, few_phi)])
    undamped = gap(np.linalg.solve(F, g), np.linalg.solve(F_phi, g_phi))
    identity_gap, carried_gap, cg_gap = np.array(rows).T
    return {
        "gap": {
            "damping": DAMPINGS,
            "identity": identity_gap,
            "carried": carried_gap,
            "ten_products": cg_gap,
        },
        "undamped": {"gap": np.array([undamped]), "condition": np.array([np.linalg.cond(F)])},
    }


def draw_damping(tables: Tables, figure: Figure) -> None:
    """Three gaps against the damping."""
    axis = figure.subplots()
    gap = tables["gap"]
    for name, label in (
        ("identity", "damping λI in both"),
        ("ten_products", f"λI and λA'A, {CG_PRODUCTS} products of conjugate gradients"),
        ("carried", "λI and λA'A, solved exactly"),
    ):
        axis.loglog(gap["damping"], gap[name], ".-", label=label)
    undamped = tables["undamped"]["gap"][0]
    axis.axhline(undamped, color="0.5", linestyle=":", label="no damping, solved exactly")
    axis.set(xlabel="λ", ylabel="relative difference of the steps", ylim=(1e-16, 10))
    axis.legend(frameon=False, fontsize="small", loc=(0.3, 0.45))
    axis.grid(alpha=0.3)


PICTURES = (
    Picture(
        name="invariance-linear",
        title="Natural steps do not depend on linear coordinates",
        source="the slides, on reparameterisation; the note; the article",
        shows=(
            "The same descent in θ = (μ, σ) and in φ with θ = Aφ + b, all in the plane of θ. The "
            "natural gradient's iterates coincide. The gradient's do not: a step in φ is AA' times "
            "the one in θ."
        ),
        settings=(
            f"The mean loss of Figure 2's data from {tuple(BEGIN.tolist())}; A = {A.tolist()}, "
            f"b = {B.tolist()}; {LINEAR_ITERATIONS} steps of {NATURAL_STEP} for the natural "
            f"gradient and of {GRADIENT_STEP} for the gradient."
        ),
        deviation=(
            "The note claims invariance for any two parameterisations of the same power; it is "
            "exact for linear maps only (see the next picture)."
        ),
        data=linear,
        draw=draw_linear,
    ),
    Picture(
        name="invariance-nonlinear",
        title="Nonlinear coordinates matter by the square of a step",
        source="the article, on invariance; the note",
        shows=(
            "(μ, σ) against (μ, log σ). The end points of one natural step differ by the square of "
            "its length: half the step, a quarter of the gap. For the gradient the gap is "
            "proportional to the step, because the directions differ. Paths of natural steps of "
            f"{SHOWN_RADIUS} stay close (left); those of gradients diverge at once."
        ),
        settings=(
            f"The mean loss of Figure 2's data from {tuple(BEGIN.tolist())}. Natural steps have a "
            "given Fisher length; gradient steps have a given size, "
            f"{SHOWN_GRADIENT_STEP} on the left."
        ),
        deviation=(
            "The article and the note say that the update is the same in every parameterisation; "
            "for a nonlinear one that is the limit of small steps."
        ),
        data=nonlinear,
        draw=draw_nonlinear,
    ),
    Picture(
        name="invariance-damping",
        title="Damping breaks invariance, unless it is carried along",
        source="the slides' summary, on invariance",
        shows=(
            "A natural step of a policy network in its parameters θ and in φ with θ = Aφ. With λI "
            "added to the Fisher matrix in both coordinates the steps differ, by 4 to 11 percent "
            "for λ from 0.001 to 0.1 and by more beyond. With λA'A in φ, which is λI carried "
            "there, they agree to rounding. Conjugate gradients that are stopped early break it "
            "again: they need the preconditioner that goes with the coordinates."
        ),
        settings=(
            "A Gaussian policy 2-4-1 with tanh, 400 observations, advantages -(a - s₁ - s₂)², all "
            "in float64; A is orthogonal times a diagonal from 0.1 to 10. Differences are in the "
            "Fisher norm, relative to the step in θ."
        ),
        deviation="The documents do not mention damping, without which few networks can be solved.",
        data=damping,
        draw=draw_damping,
        size=(7.5, 4.5),
    ),
)
