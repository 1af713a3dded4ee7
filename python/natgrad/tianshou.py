"""`natgrad.hosts.tianshou` by its short name."""

from natgrad.hosts.tianshou import *  # noqa: F403
