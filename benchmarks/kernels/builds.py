"""Builds of the core with a line of its sources edited, and programs that run with such a build."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import harness

__all__ = ["Edit", "build", "run"]


@dataclass(frozen=True)
class Edit:
    """A replacement in the sources of the core.

    Attributes:
        files: patterns of their paths, below the root; at least one file has a match.
        pattern: the regular expression.
        replacement: as in `re.sub`.
    """

    files: tuple[str, ...]
    pattern: str
    replacement: str

    def apply(self, root: Path) -> None:
        """Edits the files below a folder.

        Raises:
            RuntimeError: nothing matches.
        """
        matches = 0
        for path in (path for files in self.files for path in root.glob(files)):
            text, found = re.subn(self.pattern, self.replacement, path.read_text())
            if found:
                path.write_text(text)
            matches += found
        if not matches:
            raise RuntimeError(f"{', '.join(self.files)}: nothing matches {self.pattern}")


def build(folder: Path, edit: Edit | None = None) -> Path:
    """Installs the core, with an edit, into a folder of its own; returns what is to be imported."""
    source, target = folder / "source", folder / "site"
    leave_out = shutil.ignore_patterns("build", ".git", ".venv", "venv", "__pycache__", "_core*.so")
    shutil.copytree(harness.ROOT, source, ignore=leave_out)
    if edit is not None:
        edit.apply(source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def run(site: Path, program: str, arguments: Sequence[str]) -> str:
    """The output of a Python program, in a process of its own that imports that build."""
    # The finder of an editable install would come before the path.
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__]\n"
        f"import natgrad\nassert natgrad.__file__.startswith({str(site)!r}), natgrad.__file__\n"
        f"{program}"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
