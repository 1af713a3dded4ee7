"""Policies in small worlds with closed forms: the line, two states, a linear system."""

import itertools
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import integrate

from natgrad._core import Categorical, DiagonalGaussian, TrustRegionUpdate
from natgrad.batch import Batch
from natgrad.policy import Policy
from natgrad.theory.gallery import Picture, Tables
from natgrad.theory.mdp import MDP, PolicyEvaluation, minorise_maximise
from natgrad.theory.worlds import LinearQuadratic, LineWorld, two_state

Doubles = NDArray[np.float64]

# Figure 4: the line ------------------------------------------------------------------------------

LINE = LineWorld(horizon=10)
LINE_STEP = 0.075
LINE_UPDATES = 400
AGENTS = 10
EPISODES = 20  # per update
MEAN, STD = 10.0, 14.0
LEAST_STD = 0.05
LINE_METHODS = {
    "gradient": "policy gradient",
    "natural": "natural policy gradient",
    "trust-region": f"natgrad's update within {LINE_STEP} nats",
}


def line_agent(method: str, seed: int, updates: int = LINE_UPDATES, standardized: bool = True
               ) -> Doubles:  # fmt: skip
    """(updates + 1, 2): mean and standard deviation of the moves, before and after each update."""
    rng = np.random.default_rng(seed)
    policy = Policy(1, DiagonalGaussian(1), hidden=(), dtype="float64")
    update = TrustRegionUpdate(max_kl=LINE_STEP, damping=0.0, line_search=None)
    mean, std = MEAN, STD
    path = [(mean, std)]
    for _ in range(updates):
        noise = rng.normal(size=(EPISODES, LINE.horizon))
        moves = mean + std * noise
        places = np.cumsum(moves, axis=1) - moves
        returns = -(places**2 + moves**2).sum(axis=1)
        if standardized:
            returns = (returns - returns.mean()) / returns.std()
        if method == "trust-region":
            policy.parameters = [0.0, mean, np.log(std)]  # a weight of the observation, 0, and
            batch = Batch(
                np.zeros((moves.size, 1)), moves.reshape(-1, 1), returns.repeat(LINE.horizon)
            )
            update(policy, batch)
            mean, std = policy.parameters[1], np.exp(policy.parameters[2])
        else:
            scores = np.stack([noise.sum(axis=1), (noise**2 - 1).sum(axis=1)]) / std
            step = LINE_STEP * (scores * returns).mean(axis=1)
            if method == "natural":  # with the Fisher matrix of a decision (eq. 14.2)
                step *= [std**2, std**2 / 2]
            mean, std = mean + step[0], std + step[1]
        std = max(std, LEAST_STD)
        path.append((mean, std))
    return np.array(path)


def line() -> Tables:
    """Expected returns of ten agents for each method, and the means of their parameters."""
    tables = {}
    parameters = {"update": np.arange(LINE_UPDATES + 1)}
    for method in LINE_METHODS:
        paths = np.array([line_agent(method, seed) for seed in range(AGENTS)])
        returns = np.array([[LINE.expected_return(*row) for row in path] for path in paths])
        tables[method] = {
            "update": np.arange(LINE_UPDATES + 1),
            "mean": returns.mean(axis=0),
            **{f"agent{i}": column for i, column in enumerate(returns)},
        }
        parameters[f"{method}-mu"], parameters[f"{method}-sigma"] = paths.mean(axis=0).T
    return {**tables, "parameters": parameters}


def draw_line(tables: Tables, figure: Figure) -> None:
    """Returns on the left; mu and sigma on the right."""
    grid = figure.add_gridspec(2, 2, width_ratios=(1.6, 1))
    left = figure.add_subplot(grid[:, 0])
    for color, (method, text) in enumerate(LINE_METHODS.items()):
        table = tables[method]
        for i in range(AGENTS):
            left.plot(table["update"], table[f"agent{i}"], color=f"C{color}", lw=0.5, alpha=0.5)
        left.plot(table["update"], table["mean"], color=f"C{color}", lw=2.5, label=text)
    left.set(xlabel="updates", ylabel="expected return")
    left.legend(frameon=False, loc="lower right")
    for row, name in enumerate(("mu", "sigma")):
        axis = figure.add_subplot(grid[row, 1])
        for color, method in enumerate(LINE_METHODS):
            axis.plot(tables["parameters"][f"{method}-{name}"], color=f"C{color}")
        axis.set(xlabel="updates" if row else None, ylabel={"mu": "μ", "sigma": "σ"}[name])


# Kakade's plateau --------------------------------------------------------------------------------

STAY = np.array([0.8, 0.1])  # initial probabilities of staying
GOAL = 1.99


def stay(theta: Doubles) -> Doubles:
    """(2, 2) table of a policy that stays in state i with probability sigmoid(theta_i)."""
    return np.stack([1 / (1 + np.exp(-theta)), 1 / (1 + np.exp(theta))], axis=1)


def plateau_flow(natural: bool, begin: Doubles = STAY) -> tuple[Doubles, Doubles]:
    """Times (n,) and parameters (n, 2) along a gradient until the average reward is 1.99."""
    mdp = two_state()

    def flow(_: float, theta: Doubles) -> Doubles:
        at = mdp.evaluate(stay(theta))
        better = at.advantages[0, :, 0] - at.advantages[0, :, 1]
        return better if natural else at.visits * at.probabilities.prod(axis=1) * better

    def short_of_goal(_: float, theta: Doubles) -> float:
        return mdp.evaluate(stay(theta)).value - GOAL

    short_of_goal.terminal = True  # type: ignore[attr-defined]
    begin_theta = np.log(begin / (1 - begin))
    path = integrate.solve_ivp(
        flow, (0, 1e12), begin_theta, "LSODA", events=short_of_goal, rtol=1e-8, atol=1e-10
    )
    return path.t, path.y.T


def plateau_constant(theta: Doubles) -> float:
    """K, which the gradient flow does not change (eq. 14.1)."""
    return float(theta @ [1, 1] + np.exp(-theta) @ [-4, 2])


def plateau() -> Tables:
    """Both flows with the average reward and the probability of the second state."""
    tables = {}
    for name, natural in (("gradient", False), ("natural", True)):
        time, theta = plateau_flow(natural)
        evaluations = [two_state().evaluate(stay(row)) for row in theta]
        tables[name] = {
            "time": time,
            "theta1": theta[:, 0],
            "theta2": theta[:, 1],
            "reward": np.array([at.value for at in evaluations]),
            "second": np.array([at.state_distribution[1] for at in evaluations]),
        }
    return tables


def draw_plateau(tables: Tables, figure: Figure) -> None:
    """Average reward, probability of the second state, and the path of the parameters."""
    reward, second, plane = figure.subplots(1, 3)
    for color, (name, table) in enumerate(tables.items()):
        time = table["time"][1:]
        text = {"gradient": "gradient", "natural": "natural gradient"}[name]
        reward.plot(time, table["reward"][1:], color=f"C{color}", label=text)
        second.plot(time, table["second"][1:], color=f"C{color}")
        plane.plot(table["theta1"], table["theta2"], color=f"C{color}")
    length = np.exp(plateau_constant(np.log(STAY / (1 - STAY)))) / 4
    reward.axvline(length, color="0.6", ls="--", label=f"$e^K/4$ = {length:.3g}")
    reward.set(xscale="log", xlim=(1e-2, 1e7), xlabel="time", ylabel="average reward")
    reward.legend(frameon=False, fontsize="small")
    second.set(xscale="log", yscale="log", xlim=(1e-2, 1e7), xlabel="time",
               ylabel="probability of the second state")  # fmt: skip
    plane.plot(tables["gradient"]["theta1"][0], tables["gradient"]["theta2"][0], "ko")
    plane.set(xlabel="θ₁, to stay in the first", ylabel="θ₂, to stay in the second")


# The linear system at three scales ---------------------------------------------------------------

SYSTEM = LinearQuadratic()
SCALES = ((1.0, 1.0), (10.0, 1.0), (1.0, 10.0))
SYSTEM_RATE = 0.01
SYSTEM_STEPS = 20_000
SYSTEM_BEGIN = (-0.8, -0.8)  # of the products of scale and parameter


def gain_and_std(products: Doubles) -> tuple[float, float, Doubles]:
    """Of u ~ N(gain x, std^2) proportional to exp(a u^2 + b x u), and their Jacobian by (a, b)."""
    a, b = products.tolist()
    gain, std = -b / (2 * a), (-2 * a) ** -0.5
    return gain, std, np.array([[b / (2 * a * a), -1 / (2 * a)], [std**3, 0.0]])


def system_steps(
    scale: tuple[float, float], natural: bool, steps: int = SYSTEM_STEPS, rate: float = SYSTEM_RATE
) -> Doubles:
    """(steps + 1, 2): scale times parameters, which determine the policy, after each step."""
    theta: Doubles = np.array(SYSTEM_BEGIN) / np.array(scale)
    path = np.empty((steps + 1, 2))
    path[0] = SYSTEM_BEGIN
    for step in range(steps):
        gain, std, jacobian = gain_and_std(path[step])
        jacobian = jacobian * scale
        direction: Any = jacobian.T @ SYSTEM.gradient(gain, std) / SYSTEM.horizon
        if natural:
            fisher = jacobian.T @ SYSTEM.fisher(gain, std) @ jacobian
            direction = np.linalg.solve(fisher, direction)
        theta += rate * direction
        path[step + 1] = theta * scale
    return path


def system() -> Tables:
    """Costs and policies at steps that are evenly spaced in their logarithm."""
    kept = np.unique(np.geomspace(1, SYSTEM_STEPS + 1, 200).astype(int) - 1)
    tables = {}
    for natural, scale in itertools.product((False, True), SCALES):
        path = system_steps(scale, natural)[kept]
        policies = [gain_and_std(row)[:2] for row in path]
        cost = np.array([-SYSTEM.expected_return(*policy) for policy in policies])
        gain, std = np.array(policies).T
        name = f"{'natural' if natural else 'gradient'}-{scale[0]:g}-{scale[1]:g}"
        tables[name] = {"step": kept, "cost": cost, "gain": gain, "std": std}
    return tables


def draw_system(tables: Tables, figure: Figure) -> None:
    """Costs on the left, policies on the right."""
    left, right = figure.subplots(1, 2)
    for i, (name, table) in enumerate(tables.items()):
        kind, first, second = name.split("-")
        style = {
            "color": f"C{0 if kind == 'gradient' else 1}",
            "ls": ("-", "--", ":")[i % 3],
            "lw": 1.5 + i % 3 if kind == "natural" else 1.5,
        }
        text = f"{'natural ' if kind == 'natural' else ''}gradient, scales {first} and {second}"
        left.plot(table["step"] + 1, table["cost"], label=text, **style)
        right.plot(table["gain"], table["std"], **style)
    left.axhline(20, color="0.6", lw=0.8)
    left.set(xscale="log", xlabel="steps + 1", ylabel="expected cost of 20 steps")
    left.legend(frameon=False, fontsize="small")
    right.plot(-0.7, 0, "k*", ms=10)
    right.set(xlabel="gain", ylabel="standard deviation", ylim=(-0.02, None))


# Minorise-maximise -------------------------------------------------------------------------------

BOUNDED = two_state(discount=0.9)
BOUND_UPDATES = 1000
BOUND_KL = 0.01
UNIFORM = np.full((2, 2), 0.5)


def bounds() -> Tables:
    """The return and its bounds along the line through the bound's maximiser, and iterations."""
    at = BOUNDED.evaluate(UNIFORM)
    best = at.maximise_lower_bound()
    minorised = itertools.islice(minorise_maximise(BOUNDED, UNIFORM), BOUND_UPDATES + 1)

    def along(steps: Doubles) -> dict[str, Doubles]:
        policies = [UNIFORM * (best / UNIFORM) ** step for step in steps]
        policies = [policy / policy.sum(axis=1, keepdims=True) for policy in policies]
        return {
            "step": steps,
            "return": np.array([BOUNDED.evaluate(policy).value for policy in policies]),
            "surrogate": np.array([at.surrogate(policy) for policy in policies]),
            "mean_bound": np.array([at.mean_lower_bound(policy) for policy in policies]),
            "bound": np.array([at.lower_bound(policy) for policy in policies]),
        }

    return {
        "far": along(np.linspace(-60, 120, 181)),
        "near": along(np.linspace(-1, 3, 81)),
        "iterations": {
            "update": np.arange(BOUND_UPDATES + 1),
            "minorise_maximise": np.array([at.value for at in minorised]),
            "trust_region": trust_region_returns(BOUNDED, BOUND_KL, BOUND_UPDATES),
        },
    }


def trust_region_returns(mdp: MDP, max_kl: float, updates: int) -> Doubles:
    """(updates + 1,) returns of TRPO from the uniform policy with exact gradients and matrices."""
    states, actions = mdp.rewards.shape
    policy = Policy(states, Categorical(actions), hidden=(), dtype="float64")
    policy.parameters[:] = 0.0
    update = TrustRegionUpdate(max_kl=max_kl, damping=0.0)
    returns = []
    for _ in range(updates + 1):
        at, begin = mdp.evaluate(policy), policy.parameters.copy()
        returns.append(at.value)

        def evaluate(
            step: Doubles, at: PolicyEvaluation = at, begin: Any = begin
        ) -> tuple[float, float]:
            policy.parameters = begin + step
            kl = at.trajectory_kl(policy) / at.decisions
            return at.surrogate(policy) - at.value, kl

        if not update.step(mdp.gradient(policy), mdp.fisher(policy), evaluate).accepted:
            policy.parameters = begin
    return np.array(returns)


def draw_bounds(tables: Tables, figure: Figure) -> None:
    """One step at a large and at a small scale, and all steps."""
    far, near, right = figure.subplots(1, 3)
    value = tables["iterations"]["minorise_maximise"][0]
    for axis, name in ((far, "far"), (near, "near")):
        for column, color, text in (
            ("return", "C0", "return J"),
            ("surrogate", "C2", "surrogate L"),
            ("mean_bound", "C3", "L - mean variation's penalty"),
            ("bound", "C1", "L - C max KL"),
        ):
            axis.plot(tables[name]["step"], tables[name][column], color=color, label=text)
        axis.plot(0, value, "ko", ms=4)
        axis.set(xlabel="step; 1 is the maximiser of L - C max KL")
    far.set(ylim=(0, 20))
    far.legend(frameon=False, fontsize="small", loc="upper left")
    near.axvline(1, color="0.6", ls="--", lw=0.8)
    near.set(ylim=(value - 0.12, value + 0.12))
    table = tables["iterations"]
    right.plot(table["update"] + 1, table["trust_region"], color="C0",
               label=f"natural steps of {BOUND_KL} nats")  # fmt: skip
    right.plot(table["update"] + 1, table["minorise_maximise"], color="C1",
               label="minorise-maximise")  # fmt: skip
    right.axhline(18, color="0.6", lw=0.8)
    right.set(xscale="log", xlabel="updates + 1", ylabel="return")
    right.legend(frameon=False, fontsize="small", loc="lower right")


# Divergences of trajectories ---------------------------------------------------------------------

HORIZONS = np.arange(1, 51)
TRAJECTORY_HORIZON = 20


def ring(horizon: int) -> MDP:
    """Five states in a ring with fixed random rewards: a step forward, back, or none."""
    rng = np.random.default_rng(0)
    moves = np.stack([np.roll(np.eye(5), k, axis=1) for k in (1, -1, 0)], axis=1)
    return MDP(
        0.8 * moves + 0.04, rng.normal(size=(5, 3)), np.eye(5)[0], horizon, None,
        rng.normal(size=(5, 2)),
    )  # fmt: skip


def trajectories() -> Tables:
    """Divergences against the horizon for one change, and against its length for one horizon."""
    policy = Policy(2, Categorical(3), hidden=(8,), dtype="float64", output_scale=1.0)
    begin = policy.parameters.copy()
    direction = np.random.default_rng(1).normal(size=begin.size)
    changed = policy.copy()
    changed.parameters = begin + 0.1 * direction
    of_trajectory = np.array(
        [ring(h).evaluate(policy).trajectory_kl(changed) for h in HORIZONS.tolist()]
    )

    mdp = ring(TRAJECTORY_HORIZON)
    at, fisher = mdp.evaluate(policy), mdp.fisher(policy)
    lengths = np.geomspace(1e-3, 1, 31)
    rows = []
    for length in lengths:
        changed.parameters = begin + length * direction
        old_new = at.trajectory_kl(changed) / at.decisions
        new_old = mdp.evaluate(changed).trajectory_kl(policy) / at.decisions
        quadratic = length**2 * (direction @ (fisher @ direction))
        rows.append((old_new, new_old, 0.5 * quadratic, abs(old_new - 0.5 * quadratic)))
    names = ("old_new", "new_old", "half_quadratic", "difference")
    return {
        "horizons": {
            "horizon": HORIZONS,
            "trajectory": of_trajectory,
            "per_decision": of_trajectory / HORIZONS,
        },
        "lengths": {"length": lengths, **dict(zip(names, np.array(rows).T, strict=True))},
    }


def draw_trajectories(tables: Tables, figure: Figure) -> None:
    """Horizons on the left, lengths on the right."""
    left, right = figure.subplots(1, 2)
    table = tables["horizons"]
    left.plot(table["horizon"], table["trajectory"], "C0", label="of a trajectory")
    left.plot(table["horizon"], table["per_decision"], "C1", label="of a trajectory, times 1/H")
    left.set(xlabel="horizon H", ylabel="KL in nats", yscale="log")
    left.legend(frameon=False)
    table = tables["lengths"]
    for name, style, text in (
        ("old_new", "C1-", "KL(old || new) / H"),
        ("new_old", "C3--", "KL(new || old) / H"),
        ("half_quadratic", "k:", "½ d'Fd"),
        ("difference", "C2-", "|KL(old || new) / H - ½ d'Fd|"),
    ):
        right.plot(table["length"], table[name], style, label=text)
    right.set(xscale="log", yscale="log", xlabel="length of d", ylabel="nats")
    right.legend(frameon=False, fontsize="small")


PICTURES = (
    Picture(
        name="figure-4",
        title="Learning to stand still on a line",
        source="the paper, Figure 4",
        shows=(
            "The natural policy gradient reaches the best return within some forty updates, while "
            "the policy gradient has hardly moved. A natural step is the gradient times σ² for μ "
            "and σ²/2 for σ, so it is long while σ is large; the gradient's component along σ is "
            "small, so σ stays large, and returns noisy, for a long time. Thin lines are agents, "
            "bold ones their means."
        ),
        settings=(
            f"Ten agents each from μ = {MEAN:g}, σ = {STD:g}; {EPISODES} episodes of "
            f"{LINE.horizon} decisions an update; step {LINE_STEP}; gradients of the whole "
            "trajectory's score with standardised returns, the Fisher matrix of one decision; "
            f"σ at least {LEAST_STD}. Returns are expected ones, in closed form (eq. 14.2). "
            f"Green: natgrad.TrustRegionUpdate with max_kl = {LINE_STEP}, in (μ, log σ)."
        ),
        deviation=(
            "The paper gives neither horizon nor batch, and with raw returns its natural step "
            "overshoots: the first one from here puts μ some 80 000 away, in the median. "
            "Standardised returns, or a trust region of that size, show what it describes. "
            "Nothing in its update keeps σ positive; here there is a floor."
        ),
        data=line,
        draw=draw_line,
        size=(10.0, 4.5),
    ),
    Picture(
        name="plateau",
        title="Kakade's plateau",
        source="named by the slides; Kakade 2002, figures 1B to 1D",
        shows=(
            "Staying is worth 1 in the first state and 2 in the second. The gradient weighs what "
            "it learns in a state by the time spent there. It learns to stay in the first, so it "
            "is hardly ever in the second, whose probability falls to 1.3e-6, so it cannot learn "
            "to stay there, and the reward stands at 1 for a time of e^K/4, whose exponent is a "
            "constant of the flow (eq. 14.1). The natural gradient has no such weights; it arrives "
            "a million times earlier, and is never in the second state for less than 0.058 of "
            "the time."
        ),
        settings=(
            "Average reward; one parameter per state, probability of staying 1/(1 + exp(-θ)), "
            f"{STAY[0]:g} and {STAY[1]:g} to begin with. Gradient flows, the limit of short steps, "
            "integrated by LSODA over exact gradients, up to a reward of 1.99. Time is the number "
            "of steps times their size."
        ),
        deviation=(
            "The slides only name the paper, whose axis counts tens of millions of steps of a "
            "size not stated. The length depends exponentially on the start: staying in the "
            "second state with 0.09 instead of 0.1 to begin with makes it eight times as long."
        ),
        data=plateau,
        draw=draw_plateau,
        size=(12.0, 4.0),
    ),
    Picture(
        name="linear-quadratic",
        title="A linear system, its parameters in three units",
        source="named by the slides; Kakade 2002, figure 1A",
        shows=(
            "Three natural gradients are one line, drawn in three widths: scaling the parameters "
            "changes nothing. Gradients take another way through the policies for each scale, and "
            "jump where one is large; they need at least eighteen times as many steps to a cost "
            "of 22, and ever more below."
        ),
        settings=(
            "x' = 0.7 x + u + noise of unit variance, cost x², 20 steps, from x of unit variance; "
            "u is drawn from exp(s₁θ₁u² + s₂θ₂xu) with s₁θ₁ = s₂θ₂ = -0.8 to begin with. Exact "
            f"gradients of the mean reward and Fisher matrices per decision (eq. 14.3 to 14.5), "
            f"{SYSTEM_STEPS} steps of size {SYSTEM_RATE}. The best cost is 20, that of the noise; "
            "the star is the policy that has it, u = -0.7 x."
        ),
        deviation=(
            "The slides only name the paper. The reading of its exponent, the start of x and the "
            "size of the steps are our choice."
        ),
        data=system,
        draw=draw_system,
        size=(10.0, 4.5),
    ),
    Picture(
        name="minorise-maximise",
        title="Minorise-maximise: a bound that touches, and what it costs",
        source="the article; Schulman et al. 2015, equation 9; Achiam et al. 2017, corollary 1",
        shows=(
            "The surrogate touches the return with its slope; the bound by the largest divergence "
            "touches and lies below, so that its maximiser returns more, and the next bound "
            "starts there. No update lowers the return, as the theory promises. But it is far too "
            "careful: on the scale of the return's curvature the bound is a needle. Natural steps "
            "in a trust region reach a return of 17 some twenty times earlier, without any "
            "promise. The bound by the mean total variation allows a step that is not much longer."
        ),
        settings=(
            "The two states with a discount of 0.9, from the uniform policy, towards the maximiser "
            "of the bound, at 1, and beyond; at two scales. Right: exact maximisers of the "
            f"bound (eq. 13.7), and natural steps of {BOUND_KL} nats with exact gradients, Fisher "
            "matrices and line searches (eq. 5.2). The best return is 18."
        ),
        deviation=(
            "The article's formulas are missing from its text. It says that the step is "
            "guaranteed to improve; that holds for this penalty, not for the trust region that "
            "replaces it."
        ),
        data=bounds,
        draw=draw_bounds,
        size=(12.0, 4.0),
    ),
    Picture(
        name="trajectories",
        title="A trajectory's divergence is that of a decision, H times",
        source="the slides, the expansion of the divergence between trajectories",
        shows=(
            "Left: with the horizon the divergence of a trajectory grows, and 1/H of it settles "
            "at the mean divergence of a decision, as the states visited become those of the "
            "stationary distribution. Right: both orders of the divergence approach ½ d'Fd with "
            "the Fisher matrix per decision, and the difference falls with the third power of the "
            "length, where the divergence falls with the second."
        ),
        settings=(
            "Five states in a ring, three actions, a network with eight hidden units over two "
            f"features. Left: a change of fixed length. Right: horizon {TRAJECTORY_HORIZON}. All "
            "numbers are exact (eq. 12.6, 12.7)."
        ),
        deviation=(
            "The slides' summary drops the half and the 1/H that their derivation has; without "
            "the half the dotted line would lie twice as high, without 1/H the matrix would be "
            f"that of a trajectory, {TRAJECTORY_HORIZON} times as large."
        ),
        data=trajectories,
        draw=draw_trajectories,
        size=(10.0, 4.0),
    ),
)
