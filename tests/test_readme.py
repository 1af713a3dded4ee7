"""What the README shows works as it is printed."""

import re
import shlex
from pathlib import Path

import pytest

import natgrad
from natgrad import cli

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_pieces_run_as_printed(capsys):
    (sample,) = [block for block in PYTHON if "Fisher" in block]
    names: dict[str, object] = {}
    exec(compile(sample, "README.md", "exec"), names)
    report = names["report"]
    assert isinstance(report, natgrad.UpdateReport)
    assert report.accepted
    assert "ACCEPTED" in capsys.readouterr().out


def test_the_agent_runs_as_printed_for_fewer_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (sample,) = [block for block in PYTHON if "agent.learn" in block]
    assert "300_000" in sample
    short = sample.replace("300_000", "2_048").replace("episodes=10", "episodes=1")
    exec(compile(short, "README.md", "exec"), {})
    assert float(capsys.readouterr().out)
    assert (tmp_path / "agent.npz").exists()


@pytest.mark.slow
def test_the_training_command_reaches_a_mean_return_of_500(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (line,) = [line for block in SHELL for line in block.splitlines() if "CartPole" in line]
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/natgrad ")
    arguments = shlex.split(line.split("&&")[-1])[1:]
    assert cli.main(arguments) in (None, 0)
    printed = capsys.readouterr().out
    assert float(re.search(r"evaluation: ([0-9.]+)", printed).group(1)) == 500.0
