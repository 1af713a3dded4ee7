"""Compares the stub of the compiled core with the module that was built.

Every public class, method, property (and whether it can be set), function and enum member must
exist on both sides; argument names, their order and their defaults are compared where the
docstring that pybind11 writes states them. Prints one line per difference; exits with 1 if there
are any.

    python tests/check_stub.py
"""

from __future__ import annotations

import ast
import enum
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

STUB = Path(__file__).parent.parent / "python" / "natgrad" / "_core.pyi"
BASETYPE = 1 << 10  # Py_TPFLAGS_BASETYPE: the class may be subclassed
Argument = tuple[str, str | None]  # name, source of the default or None

# Special methods that a stub declares when they mean something; all others come with the machinery.
SPECIAL = {"__init__", "__matmul__", "__call__"}


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in SPECIAL


def _decorators(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    return {ast.unparse(d) for d in node.decorator_list}


def _is_protocol(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).split("[")[0] == "Protocol" for base in node.bases)


def _arguments(node: ast.FunctionDef) -> list[Argument]:
    """Names and defaults in order, without `self`."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [
        (a.arg, None if default is None else ast.unparse(default))
        for a, default in pairs
        if a.arg != "self"
    ]


def _documented_signatures(function: object, name: str) -> Iterator[list[Argument]]:
    """The signatures in the docstring of a pybind11 function: one, or one per overload."""
    for line in (getattr(function, "__doc__", None) or "").splitlines():
        match = re.match(rf"(?:\d+\. )?{re.escape(name)}(\(.*\))\s*->", line)
        if match is None:
            continue
        source = re.sub(r"=\s*<[^<>]*(?:<[^<>]*>[^<>]*)*>", "= ...", match[1])  # = <object at 0x..>
        try:
            node = ast.parse(f"def f{source}: ...").body[0]
        except SyntaxError:
            continue
        if isinstance(node, ast.FunctionDef):
            yield _arguments(node)


def _same_default(stub: str | None, built: str | None) -> bool:
    if stub is None or built is None:
        return stub is built
    if "..." in (stub, built):
        return True
    try:
        left, right = ast.literal_eval(stub), ast.literal_eval(built)
    except ValueError:
        return stub == built
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return list(left) == list(right)
    return left == right and (
        type(left) is type(right) or {type(left), type(right)} == {int, float}
    )


def _show(arguments: list[Argument]) -> str:
    return "(" + ", ".join(n if d is None else f"{n}={d}" for n, d in arguments) + ")"


def _compare_signature(where: str, node: ast.FunctionDef, function: object) -> Iterator[str]:
    built = list(_documented_signatures(function, node.name))
    if not built:
        return
    stub = _arguments(node)
    if node.name in {"__matmul__"}:  # the names of operands are nobody's business
        stub = [("", d) for _, d in stub]
        built = [[("", d) for _, d in signature] for signature in built]
    for signature in built:
        if [n for n, _ in signature] == [n for n, _ in stub] and all(
            _same_default(s, b) for (_, s), (_, b) in zip(stub, signature, strict=True)
        ):
            return
    yield f"{where}: the stub says {_show(stub)}, the module {' or '.join(map(_show, built))}"


def _members(cls: type) -> set[str]:
    return {name for name in vars(cls) if _is_public(name)}


def _compare_enum(node: ast.ClassDef, cls: type) -> Iterator[str]:
    if not issubclass(cls, enum.Enum):
        yield f"{node.name}: an enum in the stub, {cls.__mro__[1].__name__} in the module"
        return
    stub = {
        target.id
        for statement in node.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    built = set(cls.__members__)
    for name in sorted(stub - built):
        yield f"{node.name}.{name}: in the stub only"
    for name in sorted(built - stub):
        yield f"{node.name}.{name}: in the module only"


def _compare_class(node: ast.ClassDef, cls: type) -> Iterator[str]:
    for base in node.bases:
        if ast.unparse(base) not in {b.__name__ for b in cls.__mro__[1:]}:
            yield f"{node.name}: {ast.unparse(base)} is a base in the stub only"
    if ("final" in _decorators(node)) == bool(cls.__flags__ & BASETYPE):
        yield f"{node.name}: final on one side only"
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    declared = {item.name for item in methods}
    setters = {item.name for item in methods if f"{item.name}.setter" in _decorators(item)}
    for item in methods:
        where = f"{node.name}.{item.name}"
        if f"{item.name}.setter" in _decorators(item):
            continue
        built = getattr(cls, item.name, None)
        if built is None or (item.name in SPECIAL and built is getattr(object, item.name, None)):
            yield f"{where}: in the stub only"
        elif "property" in _decorators(item):
            if not isinstance(built, property):
                yield f"{where}: a property in the stub, {type(built).__name__} in the module"
            elif (built.fset is not None) != (item.name in setters):
                yield f"{where}: can be set on one side only"
        elif isinstance(built, property) or not callable(built):
            yield f"{where}: a method in the stub, {type(built).__name__} in the module"
        else:
            yield from _compare_signature(where, item, built)
    # pybind11 gives every class an __init__; without a constructor it only raises.
    for name in sorted(_members(cls) - declared - {"__init__"}):
        yield f"{node.name}.{name}: in the module only"
    constructors = _documented_signatures(cls.__init__, "__init__")
    if "__init__" not in declared and next(constructors, None) is not None:
        yield f"{node.name}.__init__: in the module only"


def differences(stub: str, module: ModuleType) -> Iterator[str]:
    """One line for every way in which the source of a stub and a module differ."""
    declared = set()
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ClassDef):
            if _is_protocol(node):
                continue
            declared.add(node.name)
            built = getattr(module, node.name, None)
            if not isinstance(built, type):
                yield f"{node.name}: a class in the stub only"
            elif any(ast.unparse(base).endswith("Enum") for base in node.bases):
                yield from _compare_enum(node, built)
            else:
                yield from _compare_class(node, built)
        elif isinstance(node, ast.FunctionDef):
            declared.add(node.name)
            built = getattr(module, node.name, None)
            if not callable(built) or isinstance(built, type):
                yield f"{node.name}: a function in the stub only"
            else:
                yield from _compare_signature(node.name, node, built)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if ast.unparse(node.annotation) == "TypeAlias":
                continue
            declared.add(node.target.id)
            if not hasattr(module, node.target.id):
                yield f"{node.target.id}: in the stub only"
    for name, value in vars(module).items():
        if not name.startswith("_") and not isinstance(value, ModuleType) and name not in declared:
            yield f"{name}: in the module only"


def main() -> int:
    """Prints the differences and returns the exit status."""
    found = list(differences(STUB.read_text(), importlib.import_module("natgrad._core")))
    for line in found:
        print(line)
    print(f"{STUB.name}: {len(found) or 'no'} difference{'' if len(found) == 1 else 's'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
