"""Settings that an environment starts from, read from presets.toml."""

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from natgrad.agents.config import AgentConfig, REINFORCEConfig

__all__ = ["names", "options", "steps"]


def names() -> list[str]:
    """The environments that have settings of their own."""
    return list(_table())


def options(env_id: str, config_class: type[AgentConfig]) -> dict[str, Any]:
    """Options of an agent for an environment, empty where it has no settings of its own.

    They were found with trust regions: an agent without one keeps its defaults. An option that
    `config_class` lacks (NPG has no line search) is left out.
    """
    if issubclass(config_class, REINFORCEConfig):
        return {}
    known = config_class.__dataclass_fields__
    return {name: value for name, value in _table().get(env_id, {}).items() if name in known}


def steps(env_id: str) -> int | None:
    """Environment steps of a whole training, or None where nothing is said."""
    value = _table().get(env_id, {}).get("steps")
    return None if value is None else int(value)


@functools.cache
def _table() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads((resources.files("natgrad.agents") / "presets.toml").read_text("utf-8"))
