"""Distributions and the distances between them."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from natgrad.families import Gaussian
from natgrad.gallery import Picture, Tables

# Figure 1: near and far -------------------------------------------------------------------------

BLUE = np.array([0.0, 1.0])  # mu, sigma
DISTANCE = 0.75
DIRECTIONS = np.deg2rad([0, 90, 180 + 45, 270])


def near_and_far() -> Tables:
    """A Gaussian and four others that are equally far from it in (mu, sigma)."""
    family = Gaussian()
    directions = np.stack([np.cos(DIRECTIONS), np.sin(DIRECTIONS)], axis=1).round(12)
    oranges = BLUE + DISTANCE * directions
    parameters = np.vstack([BLUE, oranges])
    x = np.linspace(-5, 8, 651)
    densities = {f"p{i}": np.exp(family.log_prob(theta, x)) for i, theta in enumerate(parameters)}

    # Around other Gaussians: the circle of one parameter distance, and of one divergence.
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rings: dict[str, list[NDArray[np.float64]]] = {"mu0": [], "sigma0": [], "mu": [], "sigma": []}
    for sigma in (0.5, 1.0, 2.0, 4.0):
        center = np.array([0.0, sigma])
        root = np.linalg.inv(np.linalg.cholesky(family.fisher(center)))
        ring = center + RING_RADIUS * circle @ root
        for name, column in zip(rings, (0 * angle, 0 * angle + sigma, *ring.T), strict=True):
            rings[name].append(column)
    return {
        "gaussians": {
            "mu": parameters[:, 0],
            "sigma": parameters[:, 1],
            "distance": np.linalg.norm(parameters - BLUE, axis=1),
            "kl": np.array([family.kl(BLUE, theta) for theta in parameters]),
        },
        "densities": {"x": x, **densities},
        "rings": {name: np.concatenate(columns) for name, columns in rings.items()},
    }


RING_RADIUS = 0.25  # in the Fisher metric: a divergence of about 0.03 nats


def draw_near_and_far(tables: Tables, figure: Figure) -> None:
    """Densities on the left, the parameter plane on the right."""
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    gaussians, densities, rings = (tables[k] for k in ("gaussians", "densities", "rings"))
    shades = ("C0", "#ff7f0e", "#d95f02", "#ffb45c", "#a34700")
    for i, color in enumerate(shades):
        mu, sigma, kl = (gaussians[k][i] for k in ("mu", "sigma", "kl"))
        text = f"N({mu:.2f}, {sigma:.2f}²)" + (f", {kl:.2f} nats from blue" if i else "")
        left.plot(densities["x"], densities[f"p{i}"], color=color, label=text)
        right.plot(mu, sigma, "o", color=color)
    left.set(xlabel="x", ylabel="density", ylim=(0, None))
    left.legend(frameon=False, fontsize="small")
    angle = np.linspace(0, 2 * np.pi, 181)
    right.plot(
        BLUE[0] + DISTANCE * np.cos(angle), BLUE[1] + DISTANCE * np.sin(angle),
        "--", color="0.6", label="one Euclidean distance from blue",
    )  # fmt: skip
    for i, sigma in enumerate(np.unique(rings["sigma0"])):
        ring = rings["sigma0"] == sigma
        right.plot(
            rings["mu"][ring], rings["sigma"][ring], color="C2",
            label=None if i else f"Fisher distance {RING_RADIUS} from the centre",
        )  # fmt: skip
    right.set(xlabel="μ", ylabel="σ", aspect="equal", xlim=(-2.6, 2.6), ylim=(0, 6.2))
    right.legend(frameon=False, fontsize="small", loc="upper center")


PICTURES = (
    Picture(
        name="figure-1",
        title="Equally far in parameters, near and far as distributions",
        source="the paper, Figure 1",
        shows=(
            "Each orange Gaussian has the same Euclidean distance from the blue one in (μ, σ), and "
            "they differ from it by very different divergences: the one whose σ shrinks towards 0 "
            "most. On the right, a given Fisher distance is a long way where σ is large and a "
            "short one where it is small: the green ellipses grow with σ."
        ),
        settings=(
            f"Blue is N(0, 1); the others lie {DISTANCE} from it in (μ, σ), to the right, above, "
            "towards the lower left, and below. Divergences are KL(blue || orange). The ellipses "
            f"have the Fisher radius {RING_RADIUS} around μ = 0 and σ = 0.5, 1, 2, 4."
        ),
        deviation=(
            "The paper's picture and its parameters are missing from its text; these are ours, and "
            "so is the right half."
        ),
        data=near_and_far,
        draw=draw_near_and_far,
    ),
)
