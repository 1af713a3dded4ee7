"""Packages whose names are imported when they are first asked for."""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["attach"]


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that writes its names down once.

    Type checkers and editors read the imports that the package's `__init__.py` has under
    `if TYPE_CHECKING:`; so does this function, which carries each of them out when its name is
    asked for.

    Args:
        package: `__name__` of the package.
        file: its `__file__`.
    """
    homes = {
        alias.name: node.module
        for block in ast.parse(Path(file).read_text("utf-8")).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name == "__all__":  # for `from package import *`, which leaves out the modules
            return [name for name, home in homes.items() if home != package]
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        if home == package:
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes)
