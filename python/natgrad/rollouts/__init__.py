"""Experience: environments, how they are stepped, and rollouts; nothing here learns."""

from typing import TYPE_CHECKING

from natgrad._lazy import attach

if TYPE_CHECKING:
    from natgrad.rollouts.environments import EnvironmentFault as EnvironmentFault
    from natgrad.rollouts.environments import Environments as Environments
    from natgrad.rollouts.rollout import Episode as Episode
    from natgrad.rollouts.rollout import Rollout as Rollout
    from natgrad.rollouts.rollout import RolloutInterrupted as RolloutInterrupted
    from natgrad.rollouts.rollout import collect as collect
else:
    __getattr__, __dir__ = attach(__name__, __file__)
