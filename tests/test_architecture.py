"""Includes and imports point down, never up: the tables below are the architecture."""

import ast
import importlib
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What a folder of the core may include besides itself. Two towers meet in the update: the solvers
# know vectors and operators, the models know no solver.
CPP_LAYERS = {
    "base": set(),
    "kernels": {"base"},
    "solvers": {"base", "kernels"},
    "model": {"base", "kernels"},
    "fisher": {"base", "kernels", "solvers", "model"},
    "update": {"base", "kernels", "solvers", "model", "fisher"},
    "face": {"base", "kernels", "solvers", "model", "fisher", "update"},  # natgrad.hpp
}

# What a package or module of natgrad may import besides itself. Packages fetch their names with
# _lazy when they are asked for them.
MODEL = {"_core", "_lazy", "batch", "policy", "spaces"}
PYTHON_LAYERS = {
    "_lazy": set(),
    "batch": {"_core"},
    "spaces": {"_core"},
    "solvers": {"_core"},
    "policy": {"_core", "spaces"},
    "hosts": MODEL,
    "theory": MODEL,
    "rollouts": MODEL,
    "agents": {*MODEL, "rollouts"},
    "bench": MODEL,
    "__init__": {*MODEL, "solvers", "theory", "hosts", "rollouts", "agents"},
    "cli": {"__init__", *MODEL, "theory", "rollouts", "agents", "bench"},
    # short names of modules in the packages
    **{name: {"hosts"} for name in ("torch", "sb3", "tianshou", "tianshou_highlevel")},
    "mdp": {"theory"},
}

CPP_FILES = sorted(
    p for p in (ROOT / "cpp").rglob("*") if p.suffix in {".hpp", ".cpp", ".h", ".inl"}
)
PYTHON_FILES = sorted((ROOT / "python" / "natgrad").rglob("*.py"))


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def cpp_layer(path: str) -> str:
    return path.split("/")[0] if "/" in path else "face"


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A circle in the graph, or nothing."""
    done: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in graph.get(node, ()):
            if found := search(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in graph if (found := search(node, []))), [])


def test_a_circle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_there_is_something_to_look_at():
    assert len(CPP_FILES) > 10
    assert len(PYTHON_FILES) > 5


@pytest.mark.parametrize("path", CPP_FILES, ids=lambda p: p.relative_to(ROOT / "cpp").as_posix())
def test_no_include_points_up(path):
    layer = cpp_layer(path.relative_to(ROOT / "cpp" / "natgrad").as_posix())
    for include in includes(path):
        if not include.startswith("natgrad/"):
            assert not (ROOT / "cpp" / "natgrad" / include).exists(), f"write natgrad/{include}"
            continue
        other = cpp_layer(include.removeprefix("natgrad/"))
        assert other == layer or other in CPP_LAYERS[layer], f"{layer} may not include {include}"


def test_no_includes_run_in_a_circle():
    graph = {
        path.relative_to(ROOT / "cpp").as_posix(): {i for i in includes(path) if "natgrad/" in i}
        for path in CPP_FILES
    }
    assert not cycle(graph)


def test_the_tables_name_no_room_that_is_gone():
    assert set(CPP_LAYERS) == {
        cpp_layer(p.relative_to(ROOT / "cpp" / "natgrad").as_posix()) for p in CPP_FILES
    }
    assert set(PYTHON_LAYERS) == {python_room(path) for path in PYTHON_FILES}


def test_the_numerics_know_nothing_of_python():
    for path in CPP_FILES:
        for include in includes(path):
            assert not re.match(r"pybind11|Python\.h|numpy", include), f"{path.name}: {include}"
        assert "pybind11" not in re.sub(r"//.*", "", path.read_text()), path.name


def test_kernels_hold_raw_pointers_only():
    """They are compiled once per instruction set, and inline templates would merge across those."""
    allowed = re.compile(
        r"natgrad/(kernels/|base/index\.hpp$)|c(std|math|float)\w*$|std(int|def)\.h$|\w*intrin\.h$"
    )
    for path in (ROOT / "cpp" / "natgrad" / "kernels").iterdir():
        if path.stem == "dispatch":  # compiled once, for the baseline
            continue
        for include in includes(path):
            assert allowed.match(include), f"kernels/{path.name} includes {include}"


def test_bindings_include_the_core_and_not_the_other_way_round():
    bindings = {p.name for p in (ROOT / "bindings").iterdir()}
    for path in CPP_FILES:
        assert not {Path(i).name for i in includes(path) if not i.startswith("natgrad/")} & bindings


def python_room(path: Path) -> str:
    """The package of natgrad that a module is in, or the module itself."""
    return path.relative_to(ROOT / "python" / "natgrad").parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """The modules of natgrad that a file imports anywhere in it, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.add(inner if is_module(inner) else module)
    return {
        name.removeprefix("natgrad.") if name != "natgrad" else "__init__"
        for name in found
        if name.split(".")[0] == "natgrad"
    }


def is_module(name: str) -> bool:
    path = ROOT.joinpath("python", *name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists() or path.with_suffix(".pyi").exists()


@pytest.mark.parametrize(
    "path", PYTHON_FILES, ids=lambda p: p.relative_to(ROOT / "python").as_posix()
)
def test_no_import_points_up(path):
    room = python_room(path)
    for module in imported_modules(path):
        other = module.split(".")[0]
        assert other == room or other in PYTHON_LAYERS[room], f"{room} may not import {module}"


def test_no_imports_run_in_a_circle():
    graph = {}
    for path in PYTHON_FILES:
        parts = path.relative_to(ROOT / "python" / "natgrad").with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        graph[name] = imported_modules(path) - {name}
    assert not cycle(graph)


FACES = ("", ".agents", ".rollouts", ".solvers", ".theory")


@pytest.mark.parametrize("package", FACES)
def test_every_name_of_a_face_can_be_imported_and_is_listed(package):
    module = importlib.import_module(f"natgrad{package}")
    names = [name for name in dir(module) if not name.startswith("_")]
    assert len(names) > 5
    for name in names:
        assert getattr(module, name) is not None
    star = {}
    exec(f"from natgrad{package} import *", star)
    assert star.keys() <= {*names, "__builtins__"}
    with pytest.raises(AttributeError, match=f"natgrad{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_training_imports_small_worlds_only_when_it_is_asked_for_one():
    program = (
        "import sys, natgrad; natgrad.TRPO('CartPole-v1', batch_size=64).learn(64);"
        "before = [m for m in sys.modules if 'theory' in m];"
        "natgrad.TRPO('natgrad/TwoState-v0', batch_size=64).learn(64);"
        "print(before, 'natgrad.theory.worlds' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert printed == "[] True\n"


@pytest.mark.alone
def test_importing_natgrad_is_quick_and_brings_no_heavy_package():
    program = (
        "import time; begin = time.process_time(); import natgrad;"
        "took = time.process_time() - begin; import sys;"
        "heavy = ['torch', 'matplotlib', 'gymnasium', 'tensorboard', 'tianshou', 'ray'];"
        "heavy += ['jax', 'envpool', 'stable_baselines3', 'scipy'];"
        "print(took, *[m for m in heavy if m in sys.modules])"
    )
    seconds = []
    for _ in range(5):
        printed = subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            env=dict(os.environ),
        ).stdout.split()
        assert not printed[1:], f"imported: {printed[1:]}"
        seconds.append(float(printed[0]))
    assert statistics.median(seconds) < 0.3, seconds
