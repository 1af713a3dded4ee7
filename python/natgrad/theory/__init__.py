"""Natural gradients of any function, exactly solved small worlds, and pictures of the ideas."""

from typing import TYPE_CHECKING

from natgrad._lazy import attach

if TYPE_CHECKING:
    from natgrad.theory import families as families
    from natgrad.theory import gallery as gallery
    from natgrad.theory import mdp as mdp
    from natgrad.theory import metrics as metrics
    from natgrad.theory import worlds as worlds
    from natgrad.theory.minimize import BacktrackingStep as BacktrackingStep
    from natgrad.theory.minimize import ExactStep as ExactStep
    from natgrad.theory.minimize import FixedStep as FixedStep
    from natgrad.theory.minimize import MinimizeStatus as MinimizeStatus
    from natgrad.theory.minimize import TrustRegionStep as TrustRegionStep
else:
    __getattr__, __dir__ = attach(__name__, __file__)
