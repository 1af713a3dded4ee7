"""Finite Markov decision processes, solved exactly: no samples, linear algebra in float64.

An `MDP` evaluates a policy once; the `PolicyEvaluation` has its return, where it goes and what its
actions are worth, and bounds on the return of other policies. Equations are those of docs/math.md.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from natgrad import _core
from natgrad.policy import Policy

__all__ = ["MDP", "PolicyEvaluation", "minorise_maximise"]

Floats: TypeAlias = NDArray[np.float64]
PolicyLike: TypeAlias = Policy | ArrayLike

_ROUNDING = 1e-14  # of advantages, relative to returns and rewards
_NEGLIGIBLE_KL = 1e-24  # a policy that would move by no more is at its optimum
_LEAST = 1e-300  # the least probability that an action may fall to
_ROOT_STEPS = 200
_ROOT_TOLERANCE = 1e-9  # of a step in the logarithm; the next error is about its square


class MDP:
    """A finite Markov decision process.

    The return of a policy is the expected sum of `horizon` rewards, the discounted sum of all
    rewards, or, with neither horizon nor discount, the average reward of a step (eq. 12.1).

    A policy is a table (S, A) of probabilities, or a `natgrad.Policy` with `Categorical(A)` that
    observes the features of a state.

    Args:
        transitions: (S, A, S), probabilities of the next state.
        rewards: (S, A), expected.
        start: (S,), probabilities of the first state.
        horizon: decisions of an episode, at least 1, or None.
        discount: within [0, 1), or None.
        features: (S, k), what a network sees of each state; one-hot unless given.

    Attributes: the same, arrays in float64.

    Raises:
        ValueError: shapes do not fit, probabilities do not add up to 1, or both horizon and
            discount are given.
    """

    def __init__(
        self,
        transitions: ArrayLike,
        rewards: ArrayLike,
        start: ArrayLike,
        horizon: int | None = None,
        discount: float | None = None,
        features: ArrayLike | None = None,
    ) -> None:
        self.rewards = _array("rewards", rewards, (None, None))
        states, actions = self.rewards.shape
        self.transitions = _distributions("transitions", transitions, (states, actions, states))
        self.start = _distributions("start", start, (states,))
        self.features = _array(
            "features", np.eye(states) if features is None else features, (states, None)
        )
        if horizon is not None and discount is not None:
            raise ValueError(f"horizon is {horizon} and discount {discount}; wanted one at most")
        if horizon is not None and not (float(horizon).is_integer() and horizon >= 1):
            raise ValueError(f"horizon is {horizon}; wanted an integer >= 1")
        if discount is not None and not 0 <= discount < 1:
            raise ValueError(f"discount is {discount}; wanted a number >= 0 and < 1")
        self.horizon = None if horizon is None else int(horizon)
        self.discount = discount

    def probabilities(self, policy: PolicyLike) -> Floats:
        """(S, A), probabilities of a policy's actions in every state.

        Raises:
            ValueError: the table or policy does not fit.
        """
        if not isinstance(policy, _core.Policy):
            return _distributions("policy", policy, self.rewards.shape)
        self._check(policy)
        outputs = policy.outputs(self.features).astype(np.float64)
        table: Floats = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        table /= table.sum(axis=1, keepdims=True)
        return table

    def evaluate(self, policy: PolicyLike) -> "PolicyEvaluation":
        """What a policy returns, where it goes and what its actions are worth (eq. 12.1 to 12.3).

        Raises:
            ValueError: the policy does not fit; for the average reward, it leads to several classes
                of states that are never left.
        """
        table = self.probabilities(policy)
        chain = np.einsum("sa,sat->st", table, self.transitions)
        rewards = (table * self.rewards).sum(axis=1)
        unit = np.eye(len(chain))
        if self.horizon is not None:
            values = np.zeros((self.horizon + 1, len(chain)))
            for t in reversed(range(self.horizon)):
                values[t] = rewards + chain @ values[t + 1]
            occupancy = np.empty((self.horizon, len(chain)))
            occupancy[0] = self.start
            for t in range(1, self.horizon):
                occupancy[t] = occupancy[t - 1] @ chain
            following = np.arange(self.horizon)[::-1].astype(np.float64)
            value = float(self.start @ values[0])
            future, values = values[1:], values[:-1]
        elif self.discount is not None:
            system = unit - self.discount * chain
            occupancy = np.linalg.solve(system.T, self.start)[None]
            values = np.linalg.solve(system, rewards)[None]
            following = np.array([self.discount / (1 - self.discount)])
            value = float(self.start @ values[0])
            future = self.discount * values
        else:
            _check_unichain(chain)
            # Singular without the last term, which makes its solutions the normalised ones.
            system = unit - chain + 1 / len(chain)
            occupancy = np.linalg.solve(system.T, np.full(len(chain), 1 / len(chain)))[None]
            following = np.array([np.inf])
            value = float(occupancy[0] @ rewards)
            values = np.linalg.solve(system, rewards - value)[None]
            future = values
        occupancy = np.maximum(occupancy, 0.0)  # rounding, in states that are never visited
        worth = self.rewards + np.einsum("sau,tu->tsa", self.transitions, future)
        advantages = worth - (table * worth).sum(axis=2, keepdims=True)
        return PolicyEvaluation(self, table, value, values, occupancy, advantages, following)

    def gradient(self, policy: Policy) -> NDArray[Any]:
        """(P,) gradient of the return with respect to the parameters (eq. 12.5)."""
        at = self.evaluate(policy)
        states, actions = at.probabilities.shape
        return policy.score(
            np.repeat(self.features, actions, axis=0),
            np.tile(np.arange(actions), states),
            (states * actions * at.probabilities * at.credit).ravel(),
        )

    def fisher(self, policy: Policy, damping: float = 0.0) -> _core.Fisher:
        """Exact Fisher matrix per decision, (P, P), over the states that are visited (eq. 12.6).

        The Fisher matrix of a trajectory is `evaluate(policy).decisions` times as large.
        """
        weights = len(self.features) * self.evaluate(policy).state_distribution
        return _core.Fisher(policy, self.features, damping=damping, weights=weights)

    def _check(self, policy: _core.Policy) -> None:
        given, actions = policy.distribution, self.rewards.shape[1]
        if not isinstance(given, _core.Categorical) or given.parameter_size != actions:
            raise ValueError(f"policy has {given}; wanted Categorical({actions})")
        if policy.observation_size != self.features.shape[1]:
            raise ValueError(
                f"policy observes {policy.observation_size} numbers; wanted "
                f"{self.features.shape[1]}, the features of a state"
            )


@dataclass(frozen=True, eq=False)
class PolicyEvaluation:
    """What a policy is worth in an `MDP`, and how far another one may be trusted.

    T is the horizon, or 1 where nothing depends on the time.

    Attributes:
        mdp: the decision process.
        probabilities: (S, A), the policy.
        value: the return J.
        state_values: (T, S), return from each time and state on; for the average reward, the excess
            over the average, up to a constant.
        occupancy: (T, S), expected visits, each counted as its rewards are: 1, or the power of the
            discount; for the average reward the stationary distribution.
        advantages: (T, S, A), gain of an action over the policy's own choice.
        following: (T,), decisions after one at this time: H - 1 - t, discount / (1 - discount), or
            infinitely many.
    """

    mdp: MDP
    probabilities: Floats
    value: float
    state_values: Floats
    occupancy: Floats
    advantages: Floats
    following: Floats

    @cached_property
    def visits(self) -> Floats:
        """(S,) expected visits over all times."""
        total: Floats = self.occupancy.sum(axis=0)
        return total

    @property
    def decisions(self) -> float:
        """H: the horizon, 1 / (1 - discount), or 1."""
        return float(self.visits.sum())

    @property
    def state_distribution(self) -> Floats:
        """(S,) distribution of the state in which a decision is made."""
        return self.visits / self.decisions

    @cached_property
    def credit(self) -> Floats:
        """(S, A) advantages times occupancy: derivative of J in the probabilities of a table."""
        credit: Floats = np.einsum("ts,tsa->sa", self.occupancy, self.advantages)
        return credit

    def kl(self, policy: PolicyLike) -> Floats:
        """(S,) KL(this policy || the other) in nats in each state."""
        old, new = self.probabilities, self.mdp.probabilities(policy)
        taken = old > 0
        change = np.divide(new - old, old, where=taken, out=np.zeros_like(old))
        with np.errstate(divide="ignore"):
            ratio = np.log(np.divide(new, old, where=taken, out=np.ones_like(old)))
        # p log(p/q) + q - p, which sums to the same: no term is negative, little cancels.
        near = np.abs(change) < 0.5
        logs = np.where(near, np.log1p(change, where=near, out=np.zeros_like(old)), ratio)
        divergence: Floats = np.where(taken, old * (change - logs), new).sum(axis=1)
        return divergence

    def trajectory_kl(self, policy: PolicyLike) -> float:
        """KL between the distributions of trajectories: `decisions` times the mean KL (eq. 12.7).

        With a discount, an episode ends after each step with probability 1 - discount.
        """
        return float(self.visits @ self.kl(policy))

    def surrogate(self, policy: PolicyLike) -> float:
        """L: the return of the other policy if it visited the same states as this one (eq. 13.1).

        At this policy it has the value and gradient of the return.
        """
        return self.value + float((self.credit * self.mdp.probabilities(policy)).sum())

    @cached_property
    def penalty(self) -> float:
        """C in L - C max KL (eq. 13.4); Schulman et al. 2015, equation 9.

        Raises:
            ValueError: for the average reward, where there is no such bound.
        """
        self._check_bounded()
        delay = float(self.following @ self.occupancy.sum(axis=1))
        return 4 * delay * float(np.abs(self.advantages).max())

    def lower_bound(self, policy: PolicyLike) -> float:
        """L - C max KL: at most the other policy's return, and equal at this one (eq. 13.4)."""
        penalty = self.penalty * float(self.kl(policy).max()) if self.penalty else 0.0
        return self.surrogate(policy) - penalty

    def mean_lower_bound(self, policy: PolicyLike) -> float:
        """A bound by the mean total variation over the states of this policy (eq. 13.5).

        It is corollary 1 of Achiam et al. 2017.

        Raises:
            ValueError: for the average reward, where there is no such bound.
        """
        self._check_bounded()
        table = self.mdp.probabilities(policy)
        variation = 0.5 * np.abs(table - self.probabilities).sum(axis=1)
        gain = float(np.abs(np.einsum("sa,tsa->ts", table, self.advantages)).max())
        elsewhere = 2 * float(self.following @ self.occupancy @ variation)  # sum of |d' - d|
        return self.surrogate(policy) - gain * elsewhere

    def maximise_lower_bound(self) -> Floats:
        """(S, A), the table for which `lower_bound` is largest (eq. 13.7).

        It is this policy where no action is better, and deterministic where no decision follows.
        """
        table, taken = self.probabilities.copy(), self.probabilities > 0
        scale = np.abs(self.mdp.rewards).max() + np.abs(self.state_values).max()
        rounding = _ROUNDING * scale * self.visits
        if self.penalty == 0:  # nothing follows: the surrogate is the return
            moved = self.credit.max(axis=1) > rounding
            table[moved] = np.eye(table.shape[1])[self.credit[moved].argmax(axis=1)]
            return table
        best = self.credit.max(axis=1, where=taken, initial=-np.inf, keepdims=True)
        behind = np.where(taken, best - self.credit, 0.0)
        gain = (table * behind).sum(axis=1)
        spread = np.sqrt((table * (behind - gain[:, None]) ** 2).sum(axis=1))
        moved = gain > rounding
        p, behind, spread = table[moved], behind[moved], spread[moved]

        def excess(log_kl: Floats) -> tuple[Any, Any]:
            """Of what all states gain per divergence over what it costs, as a logarithm."""
            _, multiplier, slope = _best_within(p, behind, spread, np.exp(log_kl))
            total = multiplier.sum()
            return np.log(total / self.penalty), np.exp(log_kl) * slope.sum() / total

        smallest = np.log(_NEGLIGIBLE_KL)
        if not moved.any() or excess(smallest)[0] < 0:
            return table
        largest = np.log(gain[moved].sum() / self.penalty)  # no multiplier exceeds gain / kl
        log_kl = _decreasing_root(excess, smallest, largest)
        table[moved], _, _ = _best_within(p, behind, spread, np.exp(log_kl))
        return table

    def _check_bounded(self) -> None:
        if np.isinf(self.following).any():
            raise ValueError("the bounds need an mdp with a horizon or a discount")


def minorise_maximise(mdp: MDP, policy: PolicyLike) -> Iterator[PolicyEvaluation]:
    """Yields a policy's evaluation, then those of its successors, whose returns never fall.

    The successor of a table is the maximiser of its lower bound (eq. 13.7). A network moves along
    its natural gradient; the last step is doubled or halved as long as the bound grows. The
    parameters of `policy` are then those of the last evaluation.

    Raises:
        ValueError: the policy does not fit, or the mdp has neither horizon nor discount.
    """
    at = mdp.evaluate(policy)
    length = 1.0
    while True:
        yield at
        if isinstance(policy, Policy):
            length = _step_within_bound(mdp, at, policy, length)
            at = mdp.evaluate(policy)
        else:
            at = mdp.evaluate(at.maximise_lower_bound())


def _step_within_bound(mdp: MDP, at: PolicyEvaluation, policy: Policy, length: float) -> float:
    gradient, start = mdp.gradient(policy), policy.parameters.copy()
    # F is singular, for a softmax has a null direction; conjugate gradients still converge.
    direction = _core.conjugate_gradient(
        mdp.fisher(policy), gradient, max_iterations=gradient.size
    ).x

    def bound(length: float) -> float:
        policy.parameters = start + length * direction
        return at.lower_bound(policy)

    for factor in (0.5, 2.0):
        while bound(factor * length) > bound(length):
            length *= factor
    if not bound(length) > at.value:
        policy.parameters = start
    return length


def _best_within(
    p: Floats, behind: Floats, spread: Floats, divergence: Any
) -> tuple[Floats, Floats, Floats]:
    """The tables with the largest gain within a divergence from p in every state (eq. 13.6).

    Args:
        p: (S, A) probabilities.
        behind: (S, A), shortfall of an action against the best.
        spread: (S,), its standard deviation under p, positive.
        divergence: KL(p || new) of each state.

    Returns:
        new (S, A); the multiplier (S,), gain per divergence; its derivative (S,) in the divergence.
    """
    mean = (p * behind).sum(axis=1, keepdims=True)

    def tilted(log_lead: Floats) -> tuple[Floats, ...]:
        lead = np.exp(log_lead)[:, None]
        kept = lead / (lead + behind)  # of a probability, before all are scaled to add up to 1
        x = (behind - mean) / (lead + mean)  # relative to the average action, as sums of small
        second = (p * x * x * kept).sum(axis=1)  # terms are to be exact
        average = (lead / (lead + mean))[:, 0]
        left = average + second
        slope = -(p * (x * kept + second[:, None]) ** 2).sum(axis=1) / left  # of the divergence
        return x, kept, second / average, left, slope

    def excess(log_lead: Floats) -> tuple[Floats, Floats]:
        """Of the divergence over what is allowed, as a logarithm; its slope."""
        x, kept, more, left, slope = tilted(log_lead)
        near = np.abs(x) < 0.5
        logs = np.where(near, np.log1p(np.where(near, x, 0.0)),
                        np.log((left / (1 + more))[:, None] / kept))  # fmt: skip
        reached = np.maximum(np.log1p(more) + (p * (logs - x)).sum(axis=1), _LEAST)
        return np.log(reached / divergence), slope / reached

    # A lead of spread / sqrt(divergence) or more stays within the bound. If hardly any action but
    # the best has probability left, even the smallest lead stays within, and it is taken.
    log_spread = np.log(spread)
    log_lead = _decreasing_root(excess, log_spread - 500.0, log_spread - 0.5 * np.log(divergence))
    _, kept, _, left, slope = tilted(log_lead)
    new = np.where(p > 0, np.maximum(p * kept / left[:, None], _LEAST), 0.0)
    multiplier = np.exp(log_lead) / left
    return new, multiplier, multiplier * (p * kept**2).sum(axis=1) / left / slope


def _decreasing_root(
    f: Callable[[Floats], tuple[Floats, Floats]], low: ArrayLike, high: ArrayLike
) -> Floats:
    """Zeros of decreasing functions, one per element, by Newton's method within brackets.

    Args:
        f: values and slopes at x.
        low, high: brackets; without a root within, the result is their nearer end.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    x, moved = high, np.asarray(high - low)
    for _ in range(_ROOT_STEPS):
        value, slope = f(x)
        low, high = np.where(value > 0, x, low), np.where(value > 0, high, x)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = x - value / slope
        # Halve the bracket where Newton's step leaves it, or is no shorter than half the last one.
        good = (newton >= low) & (newton <= high) & (np.abs(newton - x) <= 0.5 * np.abs(moved))
        following = np.where(good, newton, 0.5 * (low + high))
        x, moved = following, following - x
        if np.abs(moved).max() <= _ROOT_TOLERANCE:
            break
    return x


def _array(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> Floats:
    array = np.array(value, np.float64)
    if array.ndim != len(shape) or any(
        n not in (None, m) for n, m in zip(shape, array.shape, strict=True)
    ):
        wanted = tuple("any" if n is None else n for n in shape)
        raise ValueError(f"{name} has shape {array.shape}; wanted {wanted}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    return array


def _distributions(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Floats:
    array = _array(name, value, shape)
    if (array < 0).any() or not np.allclose(array.sum(axis=-1), 1, rtol=0, atol=1e-8):
        raise ValueError(f"{name}: wanted probabilities that add up to 1 along the last axis")
    return array


def _check_unichain(chain: Floats) -> None:
    reached = np.eye(len(chain)) + chain > 0
    for _ in range(len(chain).bit_length()):  # twice as many steps each time
        reached = reached @ reached
    if not reached.all(axis=0).any():
        raise ValueError(
            "policy: its states fall into several classes that are never left, so the average "
            "reward depends on the start; wanted one class"
        )
