"""A host's own tests against the drop-in class, with nothing changed but the import.

    git clone https://github.com/Stable-Baselines-Team/stable-baselines3-contrib
    python -m benchmarks.hosts.host_tests sb3 stable-baselines3-contrib
    git clone https://github.com/thu-ml/tianshou
    python -m benchmarks.hosts.host_tests tianshou tianshou

The tests are copied to a temporary folder; after the import of the host's class a line is added
that imports natgrad's class of the same name, and pytest runs the tests that mention the class.
`--host` leaves the imports alone, for comparison. The checkout should be of the version that is
installed, and so must be what these tests import (tensorboard, pygame, ...). Further arguments go
to pytest.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import harness


@dataclass(frozen=True)
class Host:
    """Where a host keeps its tests, and which lines are added to them.

    Attributes:
        folder: within the checkout.
        edits: for each file the import of the host's class (a regular expression) and ours.
        select: the expression for pytest's -k.
    """

    folder: str
    edits: dict[str, tuple[str, str]]
    select: str


_SB3 = (r"^from sb3_contrib import .*\bTRPO\b.*$", "from natgrad.sb3 import TRPO")
_SB3_FILES = ("run", "save_load", "identity", "cnn", "dict_env", "utils")
HOSTS = {
    "sb3": Host(
        "tests",
        {f"test_{name}.py": _SB3 for name in _SB3_FILES},
        "trpo or TRPO",
    ),
    "tianshou": Host(
        "test",
        {
            "continuous/test_npg.py": (
                r"^from tianshou\.algorithm import NPG$",
                "from natgrad.tianshou import NPG",
            ),
            "continuous/test_trpo.py": (
                r"^from tianshou\.algorithm import TRPO$",
                "from natgrad.tianshou import TRPO",
            ),
            "highlevel/test_experiment_builder.py": (
                r"^from tianshou\.highlevel\.experiment import \([^)]*\)$",
                "from natgrad.tianshou_highlevel import TRPOExperimentBuilder",
            ),
        },
        "npg or trpo or TRPO",
    ),
}


def main() -> int:
    """Copies, edits and runs; returns pytest's exit status."""
    parser = harness.parser(__doc__)
    parser.add_argument("name", choices=HOSTS, help="the host")
    parser.add_argument("checkout", type=Path, help="folder of the host's repository")
    parser.add_argument("--host", action="store_true", help="test its own classes, for comparison")
    options, rest = parser.parse_known_args()
    host = HOSTS[options.name]
    with tempfile.TemporaryDirectory() as temporary:
        tests = Path(temporary) / host.folder
        shutil.copytree(options.checkout / host.folder, tests)
        for name, (pattern, ours) in host.edits.items():
            text = (tests / name).read_text()
            edited, count = re.subn(pattern, rf"\g<0>\n{ours}", text, flags=re.MULTILINE)
            if count != 1:
                raise SystemExit(f"{name}: want one import like {pattern}, found {count}")
            if not options.host:
                (tests / name).write_text(edited)
        files = [str(tests / name) for name in host.edits]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["--rootdir", temporary, "-k", host.select, *rest, *files]
        path = os.pathsep.join([temporary, os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            command, cwd=temporary, env={**os.environ, "PYTHONPATH": path}
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
