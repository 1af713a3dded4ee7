"""`natgrad.theory.mdp` by its short name."""

from natgrad.theory.mdp import *  # noqa: F403
