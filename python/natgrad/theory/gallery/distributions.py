"""Distributions and the distances between them."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from natgrad import _core
from natgrad.policy import Policy
from natgrad.theory import metrics
from natgrad.theory.families import GaussianFamily
from natgrad.theory.gallery import Picture, Tables
from natgrad.theory.gallery.descent import DATA, FAMILY, MEAN_LOSS, OPTIMUM

# Figure 1: near and far -------------------------------------------------------------------------

BLUE = np.array([0.0, 1.0])  # mu, sigma
DISTANCE = 0.75
DIRECTIONS = np.deg2rad([0, 90, 180 + 45, 270])


def near_and_far() -> Tables:
    """A Gaussian and four others that are equally far from it in (mu, sigma)."""
    family = GaussianFamily()
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


# The empirical Fisher matrix ---------------------------------------------------------------------

COUNTS = np.array([30, 100, 300, 1000, 3000, 10_000, 30_000])


def empirical_fisher() -> Tables:
    """Natural gradients with the true and the empirical matrix, and the error of the latter."""
    mu, sigma = (g.ravel() for g in np.meshgrid(np.arange(0.0, 25, 2), np.arange(1.0, 10)))
    points = np.stack([mu, sigma], axis=1)
    empirical = metrics.empirical_fisher(FAMILY, DATA)
    grid = {"mu": mu, "sigma": sigma}
    for name, metric in (("true", FAMILY.fisher), ("empirical", empirical)):
        arrows = np.array([-np.linalg.solve(metric(p), MEAN_LOSS.jac(p)) for p in points])
        grid |= {f"{name}_mu": arrows[:, 0], f"{name}_sigma": arrows[:, 1]}

    # A policy network on observations, with its own actions and with those of another policy.
    random = np.random.default_rng(0)
    policy = Policy(4, _core.Categorical(3), hidden=(8,), dtype="float64", seed=0)
    policy.parameters = 0.5 * random.normal(size=policy.parameters.size)
    observations = random.normal(size=(COUNTS[-1], 4))
    own, _ = policy.sample(observations, _core.Rng(0))
    others = np.argmax(observations[:, :3], axis=1)
    errors: dict[str, list[float]] = {"own": [], "others": []}
    for n in COUNTS:
        exact = _core.Fisher(policy, observations[:n]).to_dense()
        for name, actions in (("own", own), ("others", others)):
            given = _core.Fisher(
                policy, observations[:n], kind="empirical", actions=actions[:n]
            ).to_dense()
            errors[name].append(float(np.linalg.norm(given - exact) / np.linalg.norm(exact)))
    return {
        "grid": grid,
        "error": {"n": COUNTS, **{name: np.array(column) for name, column in errors.items()}},
    }


def draw_empirical_fisher(tables: Tables, figure: Figure) -> None:
    """Two fields, and the error against the number of samples."""
    *panels, right = figure.subplots(1, 3)
    grid, error = tables["grid"], tables["error"]
    for color, axis, name in zip(("C1", "C3"), panels, ("true", "empirical"), strict=True):
        arrows = grid[f"{name}_mu"], grid[f"{name}_sigma"]
        axis.quiver(grid["mu"], grid["sigma"], *arrows, color=color, angles="xy", width=0.005)
        axis.plot(*OPTIMUM, "k*", markersize=10)
        lengths = np.hypot(*arrows)
        axis.set_title(
            f"{name}: longest {lengths.max():.3g}, median {np.median(lengths):.2g}",
            fontsize="medium",
        )
        axis.set(xlabel="μ", ylabel="σ", xlim=(-2, 26), ylim=(0.5, 10.5))
    right.loglog(error["n"], error["others"], "s-", color="C3", label="actions of another policy")
    right.loglog(error["n"], error["own"], "o-", color="C1", label="actions of the policy")
    right.loglog(
        error["n"], error["own"][0] * np.sqrt(error["n"][0] / error["n"]), "k:", label="∝ 1/√N"
    )
    right.set(xlabel="observations", ylabel="error relative to the exact matrix")
    right.set_title("outer products of a policy's scores", fontsize="medium")
    right.legend(frameon=False, fontsize="small")
    right.grid(alpha=0.3)


PICTURES = (
    Picture(
        name="figure-1",
        title="Equally far in parameters, near and far as distributions",
        source="the paper, Figure 1",
        shows=(
            "Each orange Gaussian has the same Euclidean distance from the blue one in (μ, σ), and "
            "a very different divergence; it is largest where σ shrinks towards 0. On the right, "
            "the same Fisher distance is long where σ is large and short where it is small: the "
            "green ellipses grow with σ."
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
    Picture(
        name="empirical-fisher",
        title="The empirical Fisher matrix is another one",
        source="the paper, Algorithm 2 and its reference to Kunstner et al.",
        shows=(
            "Left and middle: the steepest descent of Figure 3's loss in the Fisher metric and in "
            "the empirical one, which takes the scores of the data instead of the model's own "
            "samples. Where the model does not fit, the empirical matrix grows with the gradient, "
            "and steps are shortest where they should be longest, some of them in another "
            "direction. Right: for a policy network the outer products of scores approach the "
            "exact matrix as 1/√N if its own actions are scored, and do not if those of another "
            "policy are, however many."
        ),
        settings=(
            "The data of Figure 2, each field to its own scale. A softmax policy 4-8-3 with tanh; "
            "the other actions are the largest of the first three observed numbers. Errors in the "
            "Frobenius norm."
        ),
        deviation="The paper cites this without a figure; the example is ours.",
        data=empirical_fisher,
        draw=draw_empirical_fisher,
        size=(12.0, 3.8),
    ),
)
