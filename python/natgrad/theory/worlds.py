"""Small environments that are understood completely, with their closed forms.

Importing this module registers them with Gymnasium; agents import it when they are asked for one:
`natgrad/LineWorld-v0`, `natgrad/TwoState-v0`, `natgrad/LinearQuadratic-v0`. Equations are those of
docs/math.md.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from natgrad.theory.mdp import MDP

__all__ = ["FiniteWorld", "LineWorld", "LinearQuadratic", "TwoState", "two_state"]

Floats: TypeAlias = NDArray[np.float64]
Info: TypeAlias = dict[str, Any]


class FiniteWorld(gymnasium.Env[np.int64, np.int64]):
    """An `MDP` as an environment, whose observation is the number of the state.

    Rewards are the expected ones of the MDP. An episode ends after the horizon, if there is one.
    """

    def __init__(self, mdp: MDP) -> None:
        self.mdp = mdp
        states, actions = mdp.rewards.shape
        self.observation_space = spaces.Discrete(states)
        self.action_space = spaces.Discrete(actions)

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[np.int64, Info]:
        """Draws the first state."""
        super().reset(seed=seed)
        self._decisions = 0
        self._state = self._draw(self.mdp.start)
        return self._state, {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, Info]:
        """Draws the next state; the reward is that of state and action."""
        reward = float(self.mdp.rewards[self._state, action])
        self._state = self._draw(self.mdp.transitions[self._state, action])
        self._decisions += 1
        return self._state, reward, self._decisions == self.mdp.horizon, False, {}

    def _draw(self, probabilities: Floats) -> np.int64:
        return np.int64(self.np_random.choice(len(probabilities), p=probabilities))


def two_state(horizon: int | None = None, discount: float | None = None) -> MDP:
    """Kakade's two states (2002, figure 1B): action 0 stays in a state, action 1 leaves it.

    Staying is rewarded with 1 in the first state and 2 in the second; leaving is not rewarded.
    Episodes start in the first state. By default the return is the average reward.
    """
    return MDP(
        transitions=[[[1, 0], [0, 1]], [[0, 1], [1, 0]]],
        rewards=[[1, 0], [2, 0]],
        start=[1, 0],
        horizon=horizon,
        discount=discount,
    )


class TwoState(FiniteWorld):
    """`two_state` as an environment, `natgrad/TwoState-v0`: cut off after 100 steps."""

    def __init__(self) -> None:
        super().__init__(two_state())


class _OneDimensional(gymnasium.Env[Floats, Floats], ABC):
    """A number that actions push up and down for `horizon` decisions."""

    def __init__(self, horizon: int, action_scale: float, bound: float) -> None:
        if horizon != int(horizon) or horizon < 1:
            raise ValueError(f"horizon is {horizon}; wanted an integer >= 1")
        if not (action_scale > 0 and math.isfinite(action_scale)):
            raise ValueError(f"action_scale is {action_scale}; wanted a number > 0")
        self.horizon = int(horizon)
        self.action_scale = float(action_scale)
        self.observation_space = spaces.Box(-bound, bound, (1,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Floats, Info]:
        """Goes back to the start."""
        super().reset(seed=seed)
        self._decisions = 0
        self._state = self._first()
        return np.array([self._state]), {}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, Info]:
        """Pushes by `action_scale` times the action, which is clipped to -1 and 1."""
        push = self.action_scale * min(max(float(action[0]), -1.0), 1.0)
        reward, self._state = self._follow(self._state, push)
        self._decisions += 1
        return np.array([self._state]), reward, self._decisions == self.horizon, False, {}

    @abstractmethod
    def _first(self) -> float:
        """The first state."""

    @abstractmethod
    def _follow(self, state: float, push: float) -> tuple[float, float]:
        """The reward of a push, and the next state."""


class LineWorld(_OneDimensional):
    """A line on which it is best to stand still, `natgrad/LineWorld-v0`.

    Starting from s = 0, a move a leads to s + a and is rewarded with -s^2 - a^2, where s is the
    state before it. An action of 1 is a move by `action_scale` units, the largest one.

    Args:
        horizon: decisions of an episode, H.
        action_scale: units of the line per unit of the action.
    """

    def __init__(self, horizon: int = 10, action_scale: float = 100.0) -> None:
        super().__init__(horizon, action_scale, horizon * action_scale)

    def _first(self) -> float:
        return 0.0

    def _follow(self, state: float, push: float) -> tuple[float, float]:
        return -state * state - push * push, state + push

    def expected_return(self, mean: float, std: float) -> float:
        """J of unclipped moves from N(mean, std^2) in every state (eq. 14.2)."""
        squares, ones = self._coefficients()
        return -(squares * mean**2 + ones * std**2)

    def gradient(self, mean: float, std: float) -> Floats:
        """(2,) derivatives of `expected_return` by mean and std."""
        squares, ones = self._coefficients()
        return np.array([-2 * squares * mean, -2 * ones * std])

    def _coefficients(self) -> tuple[float, float]:
        H = self.horizon
        return (H - 1) * H * (2 * H - 1) / 6 + H, (H - 1) * H / 2 + H


class LinearQuadratic(_OneDimensional):
    """A linear system with quadratic cost in one dimension, `natgrad/LinearQuadratic-v0`.

    x' = decay x + u + noise, rewarded with -x^2 - action_cost u^2; the first x is distributed like
    the noise. The defaults are those of Kakade (2002, section 5), where control costs nothing. An
    action of 1 is u = `action_scale`, the largest one, and x is clipped to +-1000, which does not
    affect a policy that keeps it small.

    Args:
        decay: factor by which x shrinks.
        noise: standard deviation of the noise, and of the first x.
        action_cost: cost of u^2.
        horizon: decisions of an episode, H.
        action_scale: units of u per unit of the action.
    """

    LIMIT = 1000.0

    def __init__(
        self,
        decay: float = 0.7,
        noise: float = 1.0,
        action_cost: float = 0.0,
        horizon: int = 20,
        action_scale: float = 10.0,
    ) -> None:
        super().__init__(horizon, action_scale, self.LIMIT)
        for name, value in (("noise", noise), ("action_cost", action_cost)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; wanted a number >= 0")
        if not math.isfinite(decay):
            raise ValueError(f"decay is {decay}; wanted a finite number")
        self.decay, self.noise, self.action_cost = float(decay), float(noise), float(action_cost)

    def _first(self) -> float:
        return self._within(self.noise * self.np_random.normal())

    def _follow(self, state: float, push: float) -> tuple[float, float]:
        following = self.decay * state + push + self.noise * self.np_random.normal()
        return -state * state - self.action_cost * push * push, self._within(following)

    def _within(self, state: float) -> float:
        return min(max(state, -self.LIMIT), self.LIMIT)

    def second_moments(self, gain: float, std: float) -> Floats:
        """(H,) E x_t^2 under u ~ N(gain x, std^2), unclipped (eq. 14.3)."""
        moments: Floats = self._moments(gain, std)[0]
        return moments

    def expected_return(self, gain: float, std: float) -> float:
        """J under u ~ N(gain x, std^2), unclipped (eq. 14.4)."""
        m = self.second_moments(gain, std)
        return -float((m + self.action_cost * (gain**2 * m + std**2)).sum())

    def gradient(self, gain: float, std: float) -> Floats:
        """(2,) derivatives of `expected_return` by gain and std."""
        m, by_gain, by_std = self._moments(gain, std)
        c = self.action_cost
        factor = 1 + c * gain**2
        return -np.array(
            [
                (factor * by_gain + 2 * c * gain * m).sum(),
                (factor * by_std + 2 * c * std).sum(),
            ]
        )

    def fisher(self, gain: float, std: float) -> Floats:
        """(2, 2) Fisher matrix per decision of u ~ N(gain x, std^2) in (gain, std) (eq. 14.5)."""
        return np.diag([self.second_moments(gain, std).mean() / std**2, 2 / std**2])

    def _moments(self, gain: float, std: float) -> Floats:
        """E x_t^2 and its derivatives by gain and std, (3, H)."""
        kept = self.decay + gain
        rows = [(self.noise**2, 0.0, 0.0)]
        for _ in range(self.horizon - 1):
            m, by_gain, by_std = rows[-1]
            rows.append(
                (
                    kept**2 * m + std**2 + self.noise**2,
                    kept**2 * by_gain + 2 * kept * m,
                    kept**2 * by_std + 2 * std,
                )
            )
        return np.array(rows).T


gymnasium.register("natgrad/LineWorld-v0", "natgrad.theory.worlds:LineWorld")
gymnasium.register("natgrad/TwoState-v0", "natgrad.theory.worlds:TwoState", max_episode_steps=100)
gymnasium.register("natgrad/LinearQuadratic-v0", "natgrad.theory.worlds:LinearQuadratic")
