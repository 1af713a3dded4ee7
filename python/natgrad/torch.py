"""`natgrad.hosts.torch` by its short name."""

from natgrad.hosts.torch import *  # noqa: F403
