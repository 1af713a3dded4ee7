"""Natural policy gradients with an analytic Fisher matrix.

The numerics are a compiled core, whose names are imported here at once. The agents, which need
Gymnasium, are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

try:
    from natgrad import _core
except ModuleNotFoundError as error:
    if error.name != "natgrad._core":
        raise
    raise ImportError(
        "the compiled core of natgrad is missing. From a source tree, install the package with "
        "`pip install .` (or `pip install --no-build-isolation -e .` to work on it); it needs a "
        "C++17 compiler."
    ) from error

from natgrad._core import AdamFit as AdamFit
from natgrad._core import AdaptiveDamping as AdaptiveDamping
from natgrad._core import Bernoulli as Bernoulli
from natgrad._core import Beta as Beta
from natgrad._core import Categorical as Categorical
from natgrad._core import CgReport as CgReport
from natgrad._core import CgResult as CgResult
from natgrad._core import CgStatus as CgStatus
from natgrad._core import ConjugateGradient as ConjugateGradient
from natgrad._core import DiagonalGaussian as DiagonalGaussian
from natgrad._core import DiagonalPreconditioner as DiagonalPreconditioner
from natgrad._core import Distribution as Distribution
from natgrad._core import Fisher as Fisher
from natgrad._core import FitReport as FitReport
from natgrad._core import FixedDamping as FixedDamping
from natgrad._core import GaussNewtonFit as GaussNewtonFit
from natgrad._core import InnerSolver as InnerSolver
from natgrad._core import KFac as KFac
from natgrad._core import KroneckerFactors as KroneckerFactors
from natgrad._core import LineSearch as LineSearch
from natgrad._core import LineSearchResult as LineSearchResult
from natgrad._core import LineSearchStatus as LineSearchStatus
from natgrad._core import MultiCategorical as MultiCategorical
from natgrad._core import NystromPreconditioner as NystromPreconditioner
from natgrad._core import ParameterBlock as ParameterBlock
from natgrad._core import PolicyGradientUpdate as PolicyGradientUpdate
from natgrad._core import Preconditioner as Preconditioner
from natgrad._core import Progress as Progress
from natgrad._core import Rng as Rng
from natgrad._core import SquashedGaussian as SquashedGaussian
from natgrad._core import Subsample as Subsample
from natgrad._core import TraceDamping as TraceDamping
from natgrad._core import TrustRegionUpdate as TrustRegionUpdate
from natgrad._core import UpdateReport as UpdateReport
from natgrad._core import UpdateStatus as UpdateStatus
from natgrad._core import backtracking_line_search as backtracking_line_search
from natgrad._core import conjugate_gradient as conjugate_gradient
from natgrad._core import gae as gae
from natgrad._core import get_num_threads as get_num_threads
from natgrad._core import set_num_threads as set_num_threads
from natgrad._core import show_config as show_config
from natgrad.batch import Batch as Batch
from natgrad.policy import Policy as Policy
from natgrad.policy import ValueFunction as ValueFunction

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
    from natgrad.agents.config import NPGConfig as NPGConfig
    from natgrad.agents.config import REINFORCEConfig as REINFORCEConfig
    from natgrad.agents.config import TRPOConfig as TRPOConfig
    from natgrad.agents.evaluation import Evaluation as Evaluation
    from natgrad.agents.evaluation import evaluate as evaluate
    from natgrad.rollouts.environments import EnvironmentFault as EnvironmentFault
    from natgrad.rollouts.environments import Environments as Environments
    from natgrad.rollouts.rollout import Rollout as Rollout
    from natgrad.rollouts.rollout import collect as collect
    from natgrad.theory.minimize import Backtracking as Backtracking
    from natgrad.theory.minimize import ExactStep as ExactStep
    from natgrad.theory.minimize import FixedStep as FixedStep
    from natgrad.theory.minimize import MinimizeStatus as MinimizeStatus
    from natgrad.theory.minimize import TrustRegion as TrustRegion
    from natgrad.theory.minimize import minimize as minimize

__version__ = _core.__version__

_LAZY = {
    "agents.agent": ("Agent", "NPG", "REINFORCE", "TRPO", "TrainingInterrupted", "TrainingStalled"),
    "agents.callbacks": ("Callback", "CheckpointCallback", "EvalCallback", "StopOnReturn"),
    "agents.checkpoint": ("CheckpointError",),
    "agents.config": ("NPGConfig", "REINFORCEConfig", "TRPOConfig"),
    "rollouts.environments": ("EnvironmentFault", "Environments"),
    "agents.evaluation": ("Evaluation", "evaluate"),
    "theory.minimize": (
        "Backtracking",
        "ExactStep",
        "FixedStep",
        "MinimizeStatus",
        "TrustRegion",
        "minimize",
    ),
    "rollouts.rollout": ("Rollout", "collect"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "NPG",
    "REINFORCE",
    "TRPO",
    "AdamFit",
    "AdaptiveDamping",
    "Agent",
    "Backtracking",
    "Batch",
    "Bernoulli",
    "Beta",
    "Callback",
    "Categorical",
    "CgReport",
    "CgResult",
    "CgStatus",
    "CheckpointCallback",
    "CheckpointError",
    "ConjugateGradient",
    "DiagonalGaussian",
    "DiagonalPreconditioner",
    "Distribution",
    "EnvironmentFault",
    "Environments",
    "EvalCallback",
    "Evaluation",
    "ExactStep",
    "Fisher",
    "FitReport",
    "FixedDamping",
    "FixedStep",
    "GaussNewtonFit",
    "InnerSolver",
    "KFac",
    "KroneckerFactors",
    "LineSearch",
    "LineSearchResult",
    "LineSearchStatus",
    "MinimizeStatus",
    "MultiCategorical",
    "NPGConfig",
    "NystromPreconditioner",
    "ParameterBlock",
    "Policy",
    "PolicyGradientUpdate",
    "Preconditioner",
    "Progress",
    "REINFORCEConfig",
    "Rng",
    "Rollout",
    "SquashedGaussian",
    "StopOnReturn",
    "Subsample",
    "TRPOConfig",
    "TraceDamping",
    "TrainingInterrupted",
    "TrainingStalled",
    "TrustRegion",
    "TrustRegionUpdate",
    "UpdateReport",
    "UpdateStatus",
    "ValueFunction",
    "backtracking_line_search",
    "collect",
    "conjugate_gradient",
    "evaluate",
    "gae",
    "get_num_threads",
    "minimize",
    "set_num_threads",
    "show_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"natgrad.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
