"""Includes and imports point down, never up: the tables below are the architecture."""

import ast
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Low to high. A file may include its own header and anything of a strictly lower floor.
CPP_FLOORS = [
    {"types", "kernels/kernels", "kernels/vector_math"},
    {"kernels/lanes", "kernels/wide"},
    {
        "kernels/dense_layer",
        "kernels/adjoint",
        "kernels/rows",
        "kernels/bundles",
        "kernels/fma_peak",
        "kernels/dispatch",
        "parallel",
        "random",
    },
    {"special_functions"},
    {"network", "distribution", "cholesky"},
    {"linear_batch"},
    {"policy"},
    {"value_function", "linear_gaussian", "direct_solver"},
    # the solver tower, from conjugate_gradient on, knows no policy, see CPP_TOWER
    {"fisher", "conjugate_gradient"},
    {"preconditioner", "line_search", "adam", "advantage"},
    {"surrogate", "kfac"},
    {"natural_gradient", "value_fit"},
]
# Files that may look at nothing but these, wherever they stand.
CPP_TOWER = {
    "conjugate_gradient": {"types"},
    "preconditioner": {"types", "random", "conjugate_gradient"},
    "cholesky": {"types", "kernels/kernels", "parallel"},
    "line_search": {"types"},
    "adam": {"types"},
    "advantage": {"types"},
}

# Low to high. A module may import anything that stands before it.
PYTHON_FLOORS = [
    "_core",
    "batch",
    "spaces",
    "policy",
    "torch",
    "sb3",
    "tianshou",
    "tianshou_highlevel",
    "mdp",
    "worlds",
    "normalization",
    "pool",
    "environments",
    "rollout",
    "config",
    "presets",
    "checkpoint",
    "logger",
    "evaluation",
    "callbacks",
    "runs",
    "agent",
    "statistics",
    "plot",
    "bench",
    "peers",
    "families",
    "metrics",
    "optimize",
    "gallery",
    "__init__",
    "cli",
    "__main__",
]

CPP_FILES = sorted(
    p for p in (ROOT / "cpp").rglob("*") if p.suffix in {".hpp", ".cpp", ".h", ".inl"}
)
PYTHON_FILES = sorted((ROOT / "python" / "natgrad").rglob("*.py"))


def cpp_name(path: str) -> str:
    return path.rsplit(".", 1)[0]


def own_name(path: Path) -> str:
    return cpp_name(path.relative_to(ROOT / "cpp" / "natgrad").as_posix())


def floor_of(name: str) -> int:
    for number, floor in enumerate(CPP_FLOORS):
        if name in floor:
            return number
    pytest.fail(f"{name} stands on no floor: add it to CPP_FLOORS")


def python_name(path: Path) -> str:
    """A module's name; all modules of a subpackage have its name, and stand on one floor."""
    return path.relative_to(ROOT / "python" / "natgrad").parts[0].removesuffix(".py")


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def test_there_is_something_to_look_at():
    assert len(CPP_FILES) > 10
    assert len(PYTHON_FILES) > 5


@pytest.mark.parametrize("path", CPP_FILES, ids=lambda p: p.relative_to(ROOT / "cpp").as_posix())
def test_no_include_points_up(path):
    name = own_name(path)
    floor = floor_of(name)
    for include in includes(path):
        if not include.startswith("natgrad/"):
            assert (ROOT / "cpp" / "natgrad" / include).exists() is False, (
                f"{name} includes {include} by a relative path: write natgrad/..."
            )
            continue
        other = cpp_name(include.removeprefix("natgrad/"))
        if other == name:
            continue
        assert floor_of(other) < floor, f"{name} includes {other}, which is not below it"
        if name in CPP_TOWER:
            assert other in CPP_TOWER[name], f"{name} may not know {other}"


def test_the_table_names_no_file_that_is_gone():
    names = {own_name(path) for path in CPP_FILES}
    assert set().union(*CPP_FLOORS) <= names
    modules = {python_name(path) for path in PYTHON_FILES}
    assert set(PYTHON_FLOORS) - {"_core"} <= modules | {"__main__"}


def test_the_numerics_know_nothing_of_python():
    for path in CPP_FILES:
        for include in includes(path):
            assert not re.match(r"pybind11|Python\.h|numpy", include), f"{path.name}: {include}"
        assert "pybind11" not in re.sub(r"//.*", "", path.read_text()), path.name


def test_kernels_hold_raw_pointers_only():
    """They are compiled once per instruction set, and inline templates would merge across those."""
    allowed = re.compile(r"natgrad/kernels/|c(std|math|float)\w*$|std(int|def)\.h$|\w*intrin\.h$")
    for path in (ROOT / "cpp" / "natgrad" / "kernels").iterdir():
        if path.stem == "dispatch":  # compiled once, for the baseline
            continue
        for include in includes(path):
            assert allowed.match(include), f"kernels/{path.name} includes {include}"


def test_bindings_include_the_core_and_not_the_other_way_round():
    bindings = {p.name for p in (ROOT / "bindings").iterdir()}
    for path in CPP_FILES:
        assert not {Path(i).name for i in includes(path) if not i.startswith("natgrad/")} & bindings


def imported_modules(path: Path) -> set[str]:
    """The modules of natgrad that a file imports anywhere in it, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "natgrad" or alias.name.startswith("natgrad."):
                    found.add([*alias.name.split("."), "__init__"][1])
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = f"natgrad.{module}".rstrip(".")
            if module == "natgrad":
                for alias in node.names:
                    found.add(alias.name if alias.name in PYTHON_FLOORS else "__init__")
            elif module.startswith("natgrad."):
                found.add(module.split(".")[1])
    return found


@pytest.mark.parametrize(
    "path", PYTHON_FILES, ids=lambda p: p.relative_to(ROOT / "python").as_posix()
)
def test_no_import_points_up(path):
    name = python_name(path)
    assert name in PYTHON_FLOORS, f"{name} stands on no floor: add it to PYTHON_FLOORS"
    own = PYTHON_FLOORS.index(name)
    within = {name} if path.parent.name == name else set()  # modules of a subpackage know it
    for other in imported_modules(path) - within:
        assert other in PYTHON_FLOORS, f"{other} stands on no floor: add it to PYTHON_FLOORS"
        assert PYTHON_FLOORS.index(other) < own, f"{name} imports {other}, which is above it"


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
