"""Fails if an object holds an instruction that a processor of its level may lack.

    python tests/cpp/check_instructions.py {v2,v3,v4} OBJECT [OBJECT ...]

Disassembles with objdump. v2 may use nothing that is encoded with VEX or EVEX (AVX, FMA, BMI), nor
lzcnt, tzcnt and movbe; v3 nothing of AVX-512. In fma_peak, every chain must be there for both
dtypes, as one multiply-add (v2: one multiplication), or the peak comes out too high.
ctest runs this on the kernels of each level, and as v2 on everything else in the module.
"""

import re
import subprocess
import sys

AVX512 = re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]")
LATER = re.compile(
    r"(v[a-z]\w+|andn|bextr|bls(i|r|msk)|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|[lt]zcnt|movbe)"
    r"[lqw]?\s"
)
NOT_VECTOR = re.compile(r"\bver[rw]\b")
CHAINS = {  # of fma_peak.cpp
    "v2": (re.compile(r"mulp[sd]\s.*%xmm"), 12),
    "v3": (re.compile(r"vfmadd\d+p[sd]\s.*%ymm"), 12),
    "v4": (re.compile(r"vfmadd\d+p[sd]\s.*%zmm"), 24),
}


def offences(level: str, path: str) -> tuple[int, list[str]]:
    """The number of instructions in the object, and what is wrong with them."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "--no-addresses", path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    code = [line.strip() for line in listing.splitlines() if line.startswith("\t")]
    code = [line.split("#")[0].split("<")[0] for line in code]
    found = [line for line in code if level in ("v2", "v3") and AVX512.search(line)]
    if level == "v2":
        found += [line for line in code if LATER.match(line) and not NOT_VECTOR.match(line)]
        found += [line for line in code if "%ymm" in line]
    if "fma_peak" in path:
        multiply_add, chains = CHAINS[level]
        present = sum(bool(multiply_add.match(line)) for line in code)
        if present != 2 * chains:
            found.append(f"{present} multiply-adds in the chains, want {2 * chains}")
    return len(code), found


def main(level: str, objects: list[str]) -> int:
    """Prints the instructions that are wrong in each object."""
    total = failed = 0
    for path in objects:
        count, found = offences(level, path)
        total += count
        failed += len(found)
        for line in found[:5]:
            print(f"{path}: {line}")
    print(f"{level}: {len(objects)} objects, {total} instructions, {failed} wrong")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
