"""Training: the loop and its update rules, options and presets, and what is kept of a run."""

from typing import TYPE_CHECKING

from natgrad._lazy import attach

if TYPE_CHECKING:
    from natgrad.agents.agent import NPG as NPG
    from natgrad.agents.agent import REINFORCE as REINFORCE
    from natgrad.agents.agent import TRPO as TRPO
    from natgrad.agents.agent import Agent as Agent
    from natgrad.agents.agent import TrainingInterrupted as TrainingInterrupted
    from natgrad.agents.agent import TrainingStalled as TrainingStalled
    from natgrad.agents.callbacks import Callback as Callback
    from natgrad.agents.callbacks import CheckpointCallback as CheckpointCallback
    from natgrad.agents.callbacks import EvalCallback as EvalCallback
    from natgrad.agents.callbacks import StopOnReturn as StopOnReturn
    from natgrad.agents.checkpoint import CheckpointError as CheckpointError
    from natgrad.agents.config import AgentConfig as AgentConfig
    from natgrad.agents.config import NPGConfig as NPGConfig
    from natgrad.agents.config import REINFORCEConfig as REINFORCEConfig
    from natgrad.agents.config import TRPOConfig as TRPOConfig
    from natgrad.agents.evaluation import Evaluation as Evaluation
    from natgrad.agents.evaluation import evaluate as evaluate
else:
    __getattr__, __dir__ = attach(__name__, __file__)
