"""A run that is killed again and again ends where an undisturbed one does, bit for bit.

    python -m benchmarks.learning.kill_and_resume [ENV] [--steps 5e6] [--kills 20] [--folder DIR]

Trains once without disturbance, then once more with the same seed in a process that SIGKILL ends at
random moments, uniformly distributed over the time that the first run took; `natgrad train
--resume` follows each. Compares every array of the two last checkpoints and every line of both
monitor.csv files except for wall-clock times, and prints the resident memory of the first run at a
quarter of its time and at its end. Exits with 1 if anything differs or memory has grown by a tenth.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import harness
from natgrad.agents import checkpoint, runs


def command(*arguments: object) -> list[str]:
    """natgrad's command line with this interpreter."""
    return [sys.executable, "-W", "ignore", "-m", "natgrad.cli", "train", *map(str, arguments)]


def resident(pid: int) -> int:
    """Kilobytes in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


def undisturbed(arguments: list[object]) -> tuple[float, list[int]]:
    """Seconds of a whole run, and its memory every half second."""
    began, memory = time.perf_counter(), []
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        memory.append(resident(process.pid))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"the undisturbed run ended with code {process.returncode}")
    return time.perf_counter() - began, [kilobytes for kilobytes in memory if kilobytes]


def disturbed(arguments: list[object], folder: Path, pauses: list[float]) -> int:
    """Kills the run after each of these times and resumes it; returns how often, until it ends."""
    kills = 0
    start = command(*arguments)
    for pause in tqdm(pauses, unit="kill", disable=None):
        process = subprocess.Popen(start, stdout=subprocess.DEVNULL)
        try:
            if process.wait(pause):
                raise SystemExit(f"the disturbed run ended with code {process.returncode}")
            return kills
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        if runs.has_config(folder):
            start = command("--resume", folder)
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
    return kills


def progress(path: Path) -> dict[str, Any]:
    """The progress in a checkpoint, without the times on a clock."""
    found: dict[str, Any] = checkpoint.read_metadata(path)["progress"]
    del found["seconds"]
    found["recent_episodes"] = [episode[:2] for episode in found["recent_episodes"]]
    return found


def differences(first: Path, second: Path) -> list[str]:
    """Names of what differs between two finished runs."""
    ends = [runs.checkpoints(run)[-1] for run in (first, second)]
    found = [] if progress(ends[0]) == progress(ends[1]) else ["progress"]
    with np.load(ends[0]) as ours, np.load(ends[1]) as theirs:
        if sorted(ours) != sorted(theirs):
            found.append("names of the arrays")
        arrays = [name for name in ours if name != "metadata" and name in theirs]
        found += [name for name in arrays if ours[name].tobytes() != theirs[name].tobytes()]
    episodes = [
        [line.rsplit(",", 1)[0] for line in (run / "monitor.csv").read_text().splitlines()[1:]]
        for run in (first, second)
    ]
    if episodes[0] != episodes[1]:
        found.append("monitor.csv")
    print(f"compared {len(arrays)} arrays and {len(episodes[0])} episodes")
    return found


def main() -> int:
    """Runs both and says what differs."""
    parser = harness.parser(__doc__)
    parser.add_argument("env", nargs="?", default="HalfCheetah-v5", help="environment")
    parser.add_argument("--steps", type=float, default=5e6, help="environment steps of a run")
    parser.add_argument("--kills", type=int, default=20, help="how often the second run is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    options = harness.parse(parser, {"env": "CartPole-v1", "steps": 2e5, "kills": 2})
    harness.announce()
    with tempfile.TemporaryDirectory() as temporary:
        parent = options.folder or Path(temporary)
        whole, broken = parent / "whole", parent / "broken"
        arguments: list[object] = [options.env, "--steps", int(options.steps)]
        seconds, memory = undisturbed([*arguments, "--run-dir", whole])
        quarter, end = (megabytes_at(memory, part) for part in (0.25, 1.0))
        print(f"undisturbed: {seconds:.0f} s, {quarter} MB at a quarter, {end} MB at the end")
        rng = random.Random(options.seed)
        moments = sorted(rng.uniform(0, seconds) for _ in range(options.kills))
        pauses = [later - sooner for sooner, later in zip([0.0, *moments], moments, strict=False)]
        kills = disturbed([*arguments, "--run-dir", broken], broken, pauses)
        found = differences(whole, broken)
    print(f"killed {kills} times: ", end="")
    print(f"different: {', '.join(found)}" if found else "the same, bit for bit")
    return 1 if found or end > 1.1 * quarter else 0


def megabytes_at(memory: list[int], part: float) -> int:
    """Megabytes around a part of the time."""
    last = max(1, round(part * len(memory)))
    return max(memory[max(0, last - 4) : last]) // 1000


if __name__ == "__main__":
    raise SystemExit(main())
