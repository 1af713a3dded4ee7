"""Option values as text: `AdaptiveDamping(0.1, low=1e-4)`, the constructor of a class of the core.

The command line, config.json, checkpoints and presets spell them so. Text is parsed and never
evaluated: it can name the classes below and give them literals.
"""

import ast
from typing import Any

import numpy as np

from natgrad import _core

__all__ = ["CLASSES", "parse", "text_of"]

CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        _core.FixedDamping,
        _core.TraceDamping,
        _core.AdaptiveDamping,
        _core.ConjugateGradient,
        _core.Progress,
        _core.KFac,
        _core.Subsample,
        _core.LineSearch,
    )
}


def parse(text: str) -> Any:
    """The value that a constructor in text makes.

    Raises:
        ValueError: the text is not the constructor of a known class, or its arguments are not
            literals, unknown to the class or out of range.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Call):
            return _built(node)
    except (SyntaxError, RecursionError, MemoryError):
        pass
    raise ValueError(f"{text!r} is not the constructor of one of {', '.join(CLASSES)}")


def text_of(value: Any) -> str:
    """The constructor of a value with every argument; `parse` takes it back."""
    fields = {name: getattr(value, name) for name in _fields(type(value))}
    arguments = (f"{name}={_literal(field)}" for name, field in fields.items())
    return f"{type(value).__name__}({', '.join(arguments)})"


def _built(node: ast.Call) -> Any:
    name = ast.unparse(node.func)
    if name not in CLASSES:
        raise ValueError(f"{name} is unknown; known are {', '.join(CLASSES)}")
    try:
        positional = [_argument(argument) for argument in node.args]
        named = {str(keyword.arg): _argument(keyword.value) for keyword in node.keywords}
        return CLASSES[name](*positional, **named)
    except TypeError as error:  # whose text has every signature
        wanted = text_of(CLASSES[name]())
        raise ValueError(f"{ast.unparse(node)} has other arguments than {wanted}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _argument(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        return _built(node)
    try:
        return ast.literal_eval(node)
    except (TypeError, ValueError):
        raise ValueError(f"{ast.unparse(node)} is not a literal") from None


def _literal(field: Any) -> str:
    if type(field) in CLASSES.values():
        return text_of(field)
    return repr(field.tolist() if isinstance(field, np.ndarray) else field)


def _fields(cls: type) -> list[str]:
    """The arguments of the constructor in order: `repr` of a value of the core writes them all."""
    call = ast.parse(repr(cls()), mode="eval").body
    assert isinstance(call, ast.Call)
    return [str(keyword.arg) for keyword in call.keywords]
