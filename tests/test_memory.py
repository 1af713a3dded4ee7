"""An update needs the memory that its layout says, and no more the second time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads it from /proc"),
    pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="has memory of its own"),
]

INPUTS, HIDDEN, ACTIONS = 348, (256, 256), 17  # the problem S3 of natgrad bench
FLOAT, DOUBLE = 4, 8

# A process of its own, so that the peak is that of the update. VmHWM is the peak of this program
# alone, where ru_maxrss may be that of the one which started it.
PROGRAM = f"""
import json, sys
import numpy as np
import natgrad

def resident(name):
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(name))

rows, more = int(sys.argv[1]), int(sys.argv[2])
natgrad.set_num_threads(2)
rng = np.random.default_rng(0)
policy = natgrad.Policy({INPUTS}, natgrad.DiagonalGaussian({ACTIONS}), hidden={HIDDEN})
observations = rng.standard_normal((rows, {INPUTS}), dtype=np.float32)
actions, log_probs = policy.sample(observations, natgrad.Rng(0))
batch = natgrad.Batch(observations, actions, rng.standard_normal(rows), log_probs)
update = natgrad.TrustRegionUpdate(cg_iterations=2)  # memory does not depend on their number
before = resident("VmRSS")
statuses = [update(policy, batch).status.name]
after, peak = resident("VmRSS"), resident("VmHWM")
statuses += [update(policy, batch).status.name for _ in range(more)]
assert set(statuses) == {{"ACCEPTED"}}, statuses
print(json.dumps([policy.parameters.size, before, after, peak, resident("VmRSS")]))
"""


def measure(rows: int, more: int) -> list[int]:
    """P; bytes resident before and after the first update, at its peak, and after `more`."""
    command = [sys.executable, "-c", PROGRAM, str(rows), str(more)]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def padded(columns: int) -> int:
    """Floats from row to row: whole lanes of 64 bytes, and not a multiple of 1 KiB."""
    lanes = -(-columns // 16) * 16
    return lanes + 16 if lanes * FLOAT % 1024 == 0 else lanes


def shards(rows: int, parameters: int) -> int:
    """A power of two up to 32, of at least 256 rows each, or 512 for gradients above 256 KiB."""
    least = 512 if parameters * FLOAT > 256 * 1024 else 256
    count = 1
    while 2 * count <= 32 and 2 * count * least <= rows:
        count *= 2
    return count


def test_an_update_on_fifty_thousand_observations_stays_below_400_megabytes():
    """The whole process: Python, NumPy, the batch and the update."""
    _, _, _, peak, _ = measure(50_000, more=0)
    assert peak < 400e6, f"{peak / 1e6:.1f} MB"


@pytest.mark.parametrize("rows", [4096, 16_384])
def test_an_update_needs_its_activations_a_gradient_per_shard_and_eight_vectors(rows):
    outputs = 2 * ACTIONS  # mean and log_std
    activations = rows * sum(map(padded, (INPUTS, *HIDDEN, outputs))) * FLOAT
    # For each observation also the curvature of its distribution, and five numbers: advantage,
    # log probability, ratio, size of its score and weight. Here 5 % of the activations.
    others = rows * (outputs * FLOAT + 5 * DOUBLE)
    scratch = 6_000_000  # of two threads (0.8 MB each), padding of gradients, pages of code
    parameters, before, after, peak, end = measure(rows, more=10)
    bound = shards(rows, parameters) * parameters * FLOAT + 8 * parameters * DOUBLE
    bound += activations + others + scratch
    assert peak - before <= bound, f"{(peak - before) / 1e6:.1f} MB, bound {bound / 1e6:.1f} MB"
    assert peak - before > activations, "nothing was measured"
    assert end - after <= 500_000, f"ten more updates added {(end - after) / 1e6:.1f} MB"
