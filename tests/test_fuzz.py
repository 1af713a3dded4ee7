"""Some hundreds of random inputs of each kind; `python tests/fuzz.py` tries as many as you like."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import fuzz
import pytest

TRIALS = 400


@pytest.mark.parametrize("kind", fuzz.TRIALS)
def test_random_inputs_keep_every_promise(kind):
    outcomes = Counter()
    for seed in range(TRIALS):
        try:
            outcomes[fuzz.run(kind, seed)] += 1
        except Exception as error:
            pytest.fail(
                f"{error!r}\n    python tests/fuzz.py --only {kind} --seed {seed} --trials 1"
            )
    refused = outcomes["refused"]
    assert len(outcomes) > 1
    assert refused < 0.6 * TRIALS or kind == "checkpoint"  # most inputs get somewhere


def test_a_broken_promise_is_noticed(monkeypatch):
    """By the trial itself: a report with another divergence, a policy that moved, a NaN."""

    class Lie:
        def __init__(self, report):
            self.report = report

        def __getattr__(self, name):
            value = getattr(self.report, name)
            return value + 1.0 if name == "kl" else value

    check = fuzz.check_report
    lies = []

    def lying(policy, batch, options, report, before):
        lies.append(report.accepted)
        check(policy, batch, options, Lie(report), before)

    monkeypatch.setattr(fuzz, "check_report", lying)
    caught = 0
    for seed in range(50):
        try:
            fuzz.run("trust_region", seed)
        except fuzz.ViolationError:
            caught += 1
    assert caught > 0
    assert caught <= sum(lies)
    before = iter([b"a", b"b"])
    with pytest.raises(fuzz.ViolationError, match="refused, but changed"):
        fuzz.attempt(lambda: int("x"), lambda: next(before))
    with pytest.raises(fuzz.ViolationError, match="no argument is named"):
        fuzz.attempt(lambda: fuzz.core.Rng("x", "y", "z"))


def test_the_command_counts_its_trials_and_repeats_one_from_its_seed():
    script = Path(fuzz.__file__)
    command = [sys.executable, str(script), "--trials", "60", "--workers", "2", "--seed", "9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "60 trials in" in done.stdout
    assert "0 violations" in done.stdout
    assert fuzz.run("linear_solve", 12) == fuzz.run("linear_solve", 12)
