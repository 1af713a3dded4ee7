"""Natural policy gradients with an analytic Fisher matrix.

Here is what one meets first: agents, policies, and the pieces of an update with their options. The
rest is one level down:

- `natgrad.agents`: the base class, configurations, callbacks, checkpoints;
- `natgrad.rollouts`: environments and how experience is collected from them;
- `natgrad.solvers`: preconditioners, the line search as a function, results of conjugate gradients;
- `natgrad.theory`: natural gradients of any function, and small worlds that are solved exactly;
- `natgrad.hosts`: the core in stable-baselines3, tianshou and torch.

Every name is imported when it is first used, so that the numerics need no Gymnasium.
"""

from typing import TYPE_CHECKING

from natgrad._lazy import attach

try:
    from natgrad._core import __version__ as __version__
except ModuleNotFoundError as error:
    if error.name != "natgrad._core":
        raise
    raise ImportError(
        "the compiled core of natgrad is missing. From a source tree, install the package with "
        "`pip install .` (or `pip install --no-build-isolation -e .` to work on it); it needs a "
        "C++20 compiler."
    ) from error

if TYPE_CHECKING:
    from natgrad import agents as agents
    from natgrad import hosts as hosts
    from natgrad import rollouts as rollouts
    from natgrad import solvers as solvers
    from natgrad import theory as theory
    from natgrad._core import AdamFit as AdamFit
    from natgrad._core import AdaptiveDamping as AdaptiveDamping
    from natgrad._core import Bernoulli as Bernoulli
    from natgrad._core import Beta as Beta
    from natgrad._core import Categorical as Categorical
    from natgrad._core import CgStatus as CgStatus
    from natgrad._core import ConjugateGradient as ConjugateGradient
    from natgrad._core import DiagonalGaussian as DiagonalGaussian
    from natgrad._core import Distribution as Distribution
    from natgrad._core import Fisher as Fisher
    from natgrad._core import FitReport as FitReport
    from natgrad._core import FixedDamping as FixedDamping
    from natgrad._core import GaussNewtonFit as GaussNewtonFit
    from natgrad._core import KFac as KFac
    from natgrad._core import LineSearch as LineSearch
    from natgrad._core import MultiCategorical as MultiCategorical
    from natgrad._core import PolicyGradientUpdate as PolicyGradientUpdate
    from natgrad._core import Progress as Progress
    from natgrad._core import Rng as Rng
    from natgrad._core import SquashedGaussian as SquashedGaussian
    from natgrad._core import Subsample as Subsample
    from natgrad._core import TraceDamping as TraceDamping
    from natgrad._core import TrustRegionUpdate as TrustRegionUpdate
    from natgrad._core import UpdateReport as UpdateReport
    from natgrad._core import UpdateStatus as UpdateStatus
    from natgrad._core import conjugate_gradient as conjugate_gradient
    from natgrad._core import gae as gae
    from natgrad._core import get_num_threads as get_num_threads
    from natgrad._core import set_num_threads as set_num_threads
    from natgrad._core import show_config as show_config
    from natgrad.agents.agent import NPG as NPG
    from natgrad.agents.agent import REINFORCE as REINFORCE
    from natgrad.agents.agent import TRPO as TRPO
    from natgrad.agents.evaluation import evaluate as evaluate
    from natgrad.batch import Batch as Batch
    from natgrad.policy import Policy as Policy
    from natgrad.policy import ValueFunction as ValueFunction
    from natgrad.theory.minimize import minimize as minimize
else:
    __getattr__, __dir__ = attach(__name__, __file__)
