"""The stub describes the module that was built, and its checker would notice otherwise."""

import enum
from types import ModuleType

import check_stub
import pytest

from natgrad import _core as core


def test_the_stub_and_the_built_module_agree():
    found = list(check_stub.differences(check_stub.STUB.read_text(), core))
    assert not found, "\n" + "\n".join(found)


STUB = """
import enum
from typing import Any, Protocol, TypeAlias, final
Alias: TypeAlias = int
__version__: str
class Status(enum.Enum):
    GOOD = ...
    BAD = ...
class Anything(Protocol):
    def matvec(self, v: Any, /) -> Any: ...
@final
class Search:
    def __init__(self, shrink: float = 0.8, tries: int = 10) -> None: ...
    @property
    def shrink(self) -> float: ...
    @property
    def tries(self) -> int: ...
    @tries.setter
    def tries(self, value: int) -> None: ...
    def run(self, x: float) -> float: ...
def solve(A: Any, b: Any = None, sizes: Any = (64, 64), search: Any = ...) -> float: ...
"""


def final(cls):
    """A class that looks like one of pybind11: not subclassable, signature in the docstring."""

    class Meta(type):
        __flags__ = 0

    return Meta(cls.__name__, (), {k: v for k, v in vars(cls).items() if k != "__dict__"})


def module(change=""):
    class Search:
        def __init__(self):
            """__init__(self: Search, shrink: Float = 0.8, tries: int = 10) -> None"""

        def run(self):
            """run(self: Search, x: float) -> float

            Runs.
            """

        shrink = property(lambda self: 0.8)
        tries = property(lambda self: 10, lambda self, value: None)

    def solve():
        """solve(A: object, b: object = None, sizes: list = [64, 64], search: S = <S at 0>) -> f"""

    class Status(enum.Enum):
        GOOD = 0
        BAD = 1

    m = ModuleType("m")
    m.__version__ = "1"
    if change == "name of an argument":
        Search.run.__doc__ = "run(self: Search, y: float) -> float"
    elif change == "default":
        Search.__init__.__doc__ = Search.__init__.__doc__.replace("0.8", "0.7")
    elif change == "missing argument":
        solve.__doc__ = "solve(A: object) -> float"
    elif change == "property that cannot be set":
        Search.tries = property(lambda self: 10)
    elif change == "method instead of a property":
        Search.shrink = lambda self: 0.8
    elif change == "missing method":
        del Search.run
    elif change == "additional method":
        Search.stop = lambda self: None
    elif change == "enum member":
        Status = enum.Enum("Status", ["GOOD", "UGLY"])
    m.Search = Search if change == "not final" else final(Search)
    m.Status = Status
    if change != "missing function":
        m.solve = solve
    if change == "additional function":
        m.extra = lambda: None
    return m


def test_no_difference_is_found_where_there_is_none():
    assert list(check_stub.differences(STUB, module())) == []


@pytest.mark.parametrize(
    "change",
    [
        "name of an argument",
        "default",
        "missing argument",
        "property that cannot be set",
        "method instead of a property",
        "missing method",
        "additional method",
        "enum member",
        "not final",
        "missing function",
        "additional function",
    ],
)
def test_every_kind_of_drift_is_found(change):
    assert list(check_stub.differences(STUB, module(change)))


def test_overloads_are_compared_with_any_of_them():
    function = ModuleType("f")
    function.__doc__ = (
        "solve(*args, **kwargs)\nOverloaded function.\n\n"
        "1. solve(x: int) -> float\n\n2. solve(A: object, b: object = 1) -> float\n"
    )
    signatures = list(check_stub._documented_signatures(function, "solve"))
    assert signatures == [[("x", None)], [("A", None), ("b", "1")]]
