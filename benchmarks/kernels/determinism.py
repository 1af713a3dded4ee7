"""What it costs that results do not depend on the number of threads: at most 3 % of an update.

    python -m benchmarks.kernels.determinism [--rounds 8]

Builds the core twice (about a minute each; needs what CONTRIBUTING.md lists for an editable
install): as it is, and with one shard for the whole batch, which has no accumulators to clear and
sum but could use one thread only. Times whole updates on one thread, the two in turn, each in a
process of its own, after comparing the steps that they take.
"""

import functools
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.kernels.builds import Edit, build, run

ONE_SHARD = Edit(("cpp/natgrad/model/*.?pp",), r"(constexpr \w+ kMaxShards =) \d+;", r"\1 1;")
UPDATE = """
import json, time
import numpy as np
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


def update(site: Path, problem: str) -> tuple[float, list[float]]:
    """Median seconds of an update, and its step."""
    seconds, step = json.loads(run(site, UPDATE, [problem]))
    return seconds, step


def main() -> int:
    """Prints a line for each problem; fails above 3 %."""
    options = harness.parse(harness.parser(__doc__, rounds=8), {"rounds": 1})
    harness.announce()
    within = True
    with tempfile.TemporaryDirectory() as folder:
        sites = {
            "shards": build(Path(folder) / "shards"),
            "one": build(Path(folder) / "one", ONE_SHARD),
        }
        for problem in ("S1", "S2"):
            turns = {name: functools.partial(update, site, problem) for name, site in sites.items()}
            found = harness.take_turns(turns, rounds=options.rounds)
            for (_, ours), (_, one_step) in zip(found["shards"], found["one"], strict=True):
                apart = max(abs(a - b) for a, b in zip(ours, one_step, strict=True))
                assert 0 < apart < 1e-3 * max(map(abs, ours)), "rounding differs, and nothing else"
            shards, one = ([seconds for seconds, _ in found[name]] for name in sites)
            costs = [ratio - 1 for ratio in harness.ratios(shards, one)]
            cost = statistics.median(costs)
            within = within and cost <= 0.03
            print(
                f"{problem}, N = 2048, float32, one thread: {statistics.median(shards) * 1e3:.3f} "
                f"ms with shards, {statistics.median(one) * 1e3:.3f} ms with one; cost {cost:.1%} "
                f"(from {min(costs):.1%} to {max(costs):.1%})"
            )
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
