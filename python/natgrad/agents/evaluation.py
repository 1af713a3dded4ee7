"""How well an agent does, measured on episodes of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from natgrad import _core
from natgrad.rollouts.environments import Purpose, derive_seed, environment_maker

__all__ = ["Evaluation", "Predictor", "evaluate"]


class Predictor(Protocol):
    """Something that acts."""

    def predict(self, obs: Any, deterministic: bool = True, *, rng: _core.Rng | None = None) -> Any:
        """The action for one observation."""

    def make_env(self, **options: Any) -> gymnasium.Env[Any, Any]:
        """A new environment of the kind it was trained on."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of complete episodes.

    Attributes:
        returns: (episodes,) float64, undiscounted sums of rewards.
        lengths: (episodes,) int64, steps.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns between episodes."""
        return float(self.returns.std())

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f} over {len(self.returns)} episodes"


def evaluate(
    agent: Predictor,
    env: str | Callable[[], gymnasium.Env[Any, Any]] | gymnasium.Env[Any, Any] | None = None,
    episodes: int = 10,
    *,
    seed: int = 0,
    deterministic: bool = True,
    on_step: Callable[[gymnasium.Env[Any, Any]], None] | None = None,
) -> Evaluation:
    """Runs complete episodes with an agent that does not learn meanwhile.

    Args:
        agent: acts.
        env: id, function that makes an environment, or one environment, which is left open;
            None makes one of the kind that the agent was trained on.
        episodes: at least 1.
        seed: episode k starts with a seed derived from (seed, k), independent of those of training.
        deterministic: act with the mode of the policy rather than with samples.
        on_step: called with the environment after every reset and step (to take pictures).

    Raises:
        ValueError: `episodes` below 1, or gymnasium cannot make the environment.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; wanted at least 1")
    own = not isinstance(env, gymnasium.Env)
    if isinstance(env, gymnasium.Env):
        environment = env
    else:
        environment = agent.make_env() if env is None else environment_maker(env)()
    rng = _core.Rng(derive_seed(seed, Purpose.PREDICTION))
    returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
    try:
        for k in range(episodes):
            observation, _ = environment.reset(seed=derive_seed(seed, Purpose.EVALUATION, k))
            done = False
            while not done:
                if on_step is not None:
                    on_step(environment)
                action = agent.predict(observation, deterministic, rng=rng)
                observation, reward, terminated, truncated, _ = environment.step(action)
                returns[k] += float(reward)
                lengths[k] += 1
                done = terminated or truncated
    finally:
        if own:
            environment.close()
    return Evaluation(returns, lengths)
