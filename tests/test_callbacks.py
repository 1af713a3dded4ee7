"""Callbacks: they stop, save, evaluate and show, in an order that nothing upsets."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios

import gymnasium
import numpy as np
import pytest
from environments import SMALL, Discrete, Random, contents, history, popen

import natgrad


class Recorder(natgrad.agents.Callback):
    def __init__(self, name="", events=None, fail_at=None):
        self.name, self.events, self.fail_at = name, [] if events is None else events, fail_at

    def _note(self, event):
        self.events.append(self.name + event)
        if event == self.fail_at:
            raise ZeroDivisionError(event)

    def on_training_start(self, agent):
        self._note("start")

    def on_update_end(self, agent, log):
        self._note("update")

    def on_training_end(self, agent):
        self._note("end")


def test_callbacks_are_called_in_order_and_ended_in_reverse():
    events = []
    agent = natgrad.TRPO(Random, **SMALL)
    agent.learn(128, callback=[Recorder("a ", events), Recorder("b ", events)])
    updates = ["a update", "b update"] * 2
    assert events == ["a start", "b start", *updates, "b end", "a end"]


@pytest.mark.parametrize("where", ["start", "update", "end"])
@pytest.mark.parametrize("first", [True, False])
def test_a_callback_that_fails_does_not_keep_others_from_ending(tmp_path, where, first):
    good, bad = Recorder(), Recorder(fail_at=where)
    agent = natgrad.TRPO(Random, **SMALL)
    with pytest.raises(ZeroDivisionError, match=where):
        agent.learn(
            64, callback=[good, bad] if first else [bad, good], progress_bar=True, run_dir=tmp_path
        )
    assert good.events[-1] == bad.events[-1] == "end"
    assert agent.num_updates == (0 if where == "start" else 1)
    assert agent.learn(64).num_updates >= 1


def test_a_function_can_stop_training_and_add_to_the_log(tmp_path):
    agent = natgrad.TRPO(Random, **SMALL)

    def third(agent, log):
        log["mine/number"] = 7 * agent.num_updates
        return agent.num_updates < 3

    agent.learn(6400, callback=third, run_dir=tmp_path)
    assert agent.num_updates == 3
    last = (tmp_path / "progress.csv").read_text().splitlines()
    assert "mine/number" in last[0]
    assert ",21" in last[-1] or last[-1].startswith("21,")


@pytest.mark.parametrize("answer", [None, True, 0, np.False_])
def test_only_false_stops(answer):
    agent = natgrad.TRPO(Random, **SMALL)
    agent.learn(128, callback=lambda agent, log: answer)
    assert agent.num_updates == (1 if answer is np.False_ else 2)


@pytest.mark.parametrize("callback", [5, "stop", [5], [None]])
def test_what_is_no_callback_is_refused(callback):
    with pytest.raises(TypeError, match=r"callback is .*; wanted a Callback or a function"):
        natgrad.TRPO(Random, **SMALL).learn(64, callback=callback)


def test_training_stops_at_the_wanted_return():
    agent = natgrad.TRPO("CartPole-v1", batch_size=512)
    logs = history(agent, 512)
    agent.learn(200_000, callback=natgrad.agents.StopOnReturn(60))
    assert len(agent.recent_episodes) >= 20
    mean = np.mean([episode.total_reward for episode in agent.recent_episodes])
    assert 60 <= mean < 120
    assert logs[0]["rollout/ep_rew_mean"] < 60
    patient = natgrad.TRPO("CartPole-v1", batch_size=512)
    patient.learn(512, callback=natgrad.agents.StopOnReturn(1, episodes=10**6))
    assert patient.learn(1024, natgrad.agents.StopOnReturn(1, episodes=10**6)).num_updates == 3


def test_an_evaluation_callback_logs_and_keeps_the_best(tmp_path):
    callback = natgrad.agents.EvalCallback(2, 3, best_path=tmp_path / "best.npz")
    agent = natgrad.TRPO("CartPole-v1", batch_size=256)
    logs = []
    agent.learn(256 * 7, callback=[callback, lambda _, log: logs.append(log.copy())])
    means = [log["eval/mean_reward"] for log in logs if "eval/mean_reward" in log]
    assert [("eval/mean_reward" in log) for log in logs] == [False, True] * 3 + [False]
    assert callback.best.mean == max(means)
    best = natgrad.TRPO.load(tmp_path / "best.npz")
    assert natgrad.evaluate(best, episodes=3).mean == max(means)
    assert best.num_updates == 2 * (1 + means.index(max(means)))
    assert {"eval/std_reward", "eval/mean_ep_length"} <= logs[1].keys()
    with pytest.raises(ValueError, match="every is 0"):
        natgrad.agents.EvalCallback(0)


def test_a_resumed_training_keeps_the_best_agent_of_the_one_before(tmp_path):
    path = tmp_path / "best.npz"
    agent = natgrad.TRPO("CartPole-v1", batch_size=256)
    agent.learn(256 * 6, callback=natgrad.agents.EvalCallback(6, 3, best_path=path))
    good = natgrad.evaluate(agent, episodes=3).mean

    bad = natgrad.TRPO("CartPole-v1", batch_size=256).learn(256)
    before = path.read_bytes()
    callback = natgrad.agents.EvalCallback(1, 3, best_path=path)
    bad.learn(256, callback=callback)
    assert callback.best.mean == good > natgrad.evaluate(bad, episodes=3).mean
    assert path.read_bytes() == before

    fresh = natgrad.agents.EvalCallback(1, 3, best_path=path)  # a training of its own starts over
    natgrad.TRPO("CartPole-v1", batch_size=256).learn(256, callback=fresh)
    assert fresh.best.mean < good
    assert path.read_bytes() != before

    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="the search for the best agent starts over"):
        bad.learn(256, callback=(callback := natgrad.agents.EvalCallback(1, 3, best_path=path)))
    assert natgrad.evaluate(natgrad.TRPO.load(path), episodes=3).mean == callback.best.mean


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("CartPole-v1", {"env_options": {"sutton_barto_reward": True}}),
        (Random, {}),  # has no id
        (lambda: gymnasium.wrappers.TimeLimit(gymnasium.make("CartPole-v1"), 7), {}),
    ],
    ids=["options", "class", "wrapped"],
)
def test_the_best_agent_is_evaluated_where_the_others_are(tmp_path, env, options):
    path = tmp_path / "best.npz"
    agent = natgrad.TRPO(env, batch_size=64, **options)
    agent.learn(64, callback=(first := natgrad.agents.EvalCallback(1, 3, best_path=path)))
    second = natgrad.agents.EvalCallback(10**6, 3, best_path=path)
    agent.learn(64, callback=second)
    np.testing.assert_array_equal(second.best.returns, first.best.returns)


def test_a_checkpoint_callback_keeps_the_newest_files(tmp_path):
    callback = natgrad.agents.CheckpointCallback(tmp_path / "deep" / "folder", every=2, keep=2)
    agent = natgrad.TRPO(Random, **SMALL).learn(64 * 9, callback=callback)
    files = sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir())
    assert files == ["checkpoint-000000008.npz", "checkpoint-000000009.npz"]
    newest = natgrad.TRPO.load(tmp_path / "deep" / "folder" / files[-1], Random)
    assert contents(newest) == contents(agent)
    for bad in ({"every": 0}, {"keep": 0}):
        with pytest.raises(ValueError, match="wanted at least 1"):
            natgrad.agents.CheckpointCallback(tmp_path, **bad)


def test_the_progress_bar_is_on_stderr_and_reaches_its_end(capfd):
    natgrad.TRPO(Random, **SMALL).learn(256, progress_bar=True)
    output, errors = capfd.readouterr()
    assert output == ""
    last = errors.rpartition("\r")[2]
    assert "256/256" in last
    for part in ("return ", " kl ", " cg ", "/s ", " left"):
        assert part in last


def test_the_progress_bar_fits_into_80_columns():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    code = "natgrad.TRPO(Random, **SMALL).learn(1000, progress_bar=True)"
    process = popen("-c", f"import natgrad; from environments import *; {code}", stderr=theirs)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # what a terminal says when nobody is left
        while part := os.read(ours, 4096):
            text += part
    os.close(ours)
    process.communicate()
    assert process.returncode == 0
    lines = [line for line in re.split("[\r\n]+", text.decode()) if line.strip()]
    assert all(len(line) <= 80 for line in lines), lines
    assert "1.00k/1.00k" in lines[-1]  # the last update goes beyond, the bar does not
    assert "█" in lines[-1]


def test_the_table_is_on_stdout_with_every_number(capfd):
    agent = natgrad.TRPO(Random, **SMALL)
    logs = history(agent, 128, log=True)
    output, errors = capfd.readouterr()
    assert errors == ""
    assert output.count("| train/") == 2
    for key in logs[0]:
        assert output.count(f"   {key.rpartition('/')[2]} ") >= 2, key
    widths = {len(line) for line in output.splitlines()[: len(output.splitlines()) // 2]}
    assert len(widths) == 1


def test_silence_is_the_default(capfd):
    natgrad.TRPO(Random, **SMALL).learn(128)
    assert capfd.readouterr() == ("", "")


def test_the_log_agrees_with_the_agent():
    agent = natgrad.TRPO("CartPole-v1", **SMALL, n_envs=2)
    for k, log in enumerate(history(agent, 64 * 5), start=1):
        assert log["time/iterations"] == log["train/n_updates"] == k
        assert log["time/total_timesteps"] == 64 * k
        assert 0 < log["time/rollout"] + log["time/update"] < log["time/time_elapsed"]
    assert log["rollout/ep_rew_mean"] == pytest.approx(
        np.mean([episode.total_reward for episode in agent.recent_episodes])
    )
    assert agent.num_episodes == len(agent.recent_episodes)
    assert log["train/status"] == "ACCEPTED"
    assert 0 < log["train/entropy"] <= np.log(2) + 1e-6


def test_the_log_of_a_gaussian_has_its_standard_deviation():
    agent = natgrad.TRPO(Random, **SMALL, log_std_init=-0.5)
    log = history(agent, 64)[-1]
    assert log["train/std"] == pytest.approx(np.exp(agent.policy.parameters[-2:]).mean())
    assert "train/std" not in history(natgrad.TRPO(Discrete, **SMALL), 64)[-1]
    squashed = natgrad.TRPO(Random, **SMALL, log_std_init=-0.5, distribution="squashed")
    assert "train/std" in history(squashed, 64)[-1]
