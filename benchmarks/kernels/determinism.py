"""What it costs that results do not depend on the number of threads: at most 3 % of an update.

    python benchmarks/determinism.py [--rounds 8]

Builds the core twice (about a minute each; needs what CONTRIBUTING.md lists for an editable
install): as it is, and with one shard for the whole batch, which has no accumulators to clear and
sum but could use one thread only. Times whole updates on one thread, the two in turn, each in a
process of its own, after comparing the steps that they take.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ONE_SHARD = (
    "cpp/natgrad/model/network.cpp",
    re.compile(r"(constexpr Index kMaxShards =) \d+;"),
    r"\1 1;",
)

UPDATE = """
import json, sys, time
import numpy as np, natgrad
natgrad.set_num_threads(1)
size, distribution = {"S1": (4, natgrad.Categorical(2)), "S2": (17, natgrad.DiagonalGaussian(6))}[
    sys.argv[1]]
rng = np.random.default_rng(0)
policy = natgrad.Policy(size, distribution, output_scale=1.0)
observations = rng.normal(size=(2048, size)).astype(np.float32)
actions, log_probs = policy.sample(observations, natgrad.Rng(0))
batch = natgrad.Batch(observations, actions, rng.normal(size=2048), log_probs)
start, update, seconds = policy.parameters.copy(), natgrad.TrustRegionUpdate(), []
while sum(seconds) < 1:
    policy.parameters = start
    begin = time.perf_counter()
    report = update(policy, batch)
    seconds.append(time.perf_counter() - begin)
assert report.accepted
print(json.dumps([float(np.median(seconds)), (policy.parameters - start).tolist()]))
"""


def build(folder: Path, edit: tuple[str, re.Pattern[str], str] | None) -> Path:
    """Installs the core, with a source file edited, into a folder of its own and returns that."""
    source, target = folder / "source", folder / "site"
    leave_out = shutil.ignore_patterns("build", ".git", ".venv", "__pycache__", "_core*.so")
    shutil.copytree(ROOT, source, ignore=leave_out)
    if edit is not None:
        name, pattern, replacement = edit
        text, found = pattern.subn(replacement, (source / name).read_text())
        assert found, f"{name} has no {pattern.pattern}"
        (source / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def run(site: Path, problem: str) -> tuple[float, list[float]]:
    """Median seconds of an update, and its step."""
    # An editable install's finder would come before the path.
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__]\n"
        f"{UPDATE}assert natgrad.__file__.startswith({str(site)!r}), natgrad.__file__\n"
    )
    command = [sys.executable, "-c", program, problem]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, step = json.loads(printed)
    return seconds, step


def main() -> int:
    """Prints a line for each problem; fails above 3 %."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    within = True
    with tempfile.TemporaryDirectory() as folder:
        edits = {"shards": None, "one": ONE_SHARD}
        sites = [build(Path(folder) / name, edit) for name, edit in edits.items()]
        for problem in ("S1", "S2"):
            times: list[list[float]] = [[], []]
            for _ in range(rounds):
                results = [run(site, problem) for site in sites]
                steps = [step for _, step in results]
                scale = max(abs(x) for x in steps[0])
                apart = max(abs(a - b) for a, b in zip(*steps, strict=True))
                assert 0 < apart < 1e-3 * scale, "rounding differs, and nothing else"
                for kept, (seconds, _) in zip(times, results, strict=True):
                    kept.append(seconds)
            shards, one = (statistics.median(kept) for kept in times)
            ratios = [a / b for a, b in zip(*times, strict=True)]
            cost = statistics.median(ratios) - 1
            within = within and cost <= 0.03
            print(
                f"{problem}, N = 2048, float32, one thread: {shards * 1e3:.3f} ms with shards, "
                f"{one * 1e3:.3f} ms with one; cost {cost:.1%} "
                f"(from {min(ratios) - 1:.1%} to {max(ratios) - 1:.1%})"
            )
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
