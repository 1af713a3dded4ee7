"""`natgrad.hosts.tianshou_highlevel` by its short name."""

from natgrad.hosts.tianshou_highlevel import *  # noqa: F403
