"""Fails if the kernel objects of different instruction set levels share a symbol.

    python tests/cpp/check_symbols.py OBJECT [OBJECT ...]

The linker keeps one copy of a weak symbol. If an inline function outside a level's own namespace
were emitted by two objects, the copy with AVX-512 instructions could be the one that runs on an
older machine. ctest runs this.
"""

import subprocess
import sys
from collections import Counter

WEAK = "WVu"


def main(objects: list[str]) -> int:
    """Prints each defined weak symbol that several objects share."""
    seen: Counter[str] = Counter()
    for path in objects:
        lines = subprocess.run(
            ["nm", "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        defined = {name for _, kind, name in (line.split() for line in lines) if kind in WEAK}
        print(f"{path}: {len(lines)} symbols, {len(defined)} of them weak")
        seen.update(defined)
    shared = sorted(name for name, count in seen.items() if count > 1)
    for name in shared:
        print(f"shared: {name}")
    return 1 if shared or not seen else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
