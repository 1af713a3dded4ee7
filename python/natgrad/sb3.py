"""`natgrad.hosts.sb3` by its short name."""

from natgrad.hosts.sb3 import *  # noqa: F403
