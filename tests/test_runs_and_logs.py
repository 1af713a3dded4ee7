"""Folders of runs: every number is there once, in the formats that others read."""

import csv
import functools
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from environments import SMALL, Counting, Random, contents, kill, popen, run

import natgrad
from natgrad.agents import runs
from natgrad.agents.logger import CsvSink, Monitor, TensorBoardSink
from natgrad.rollouts.rollout import Episode

COLUMNS = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "time/fps",
    "time/iterations",
    "time/time_elapsed",
    "time/total_timesteps",
    "train/n_updates",
    "train/is_line_search_success",
    "train/policy_objective",
    "train/kl_divergence_loss",
    "train/value_loss",
    "train/explained_variance",
    "train/std",
}  # as sb3-contrib's TRPO names them


def learn(folder, updates=4, env=Random, **options):
    return natgrad.TRPO(env, **{**SMALL, **options}).learn(64 * updates, run_dir=folder)


def progress(folder):
    with (folder / "progress.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {len(rows[0])}
    return rows[0], [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def monitor(folder):
    """Header and episodes, read as stable-baselines3's `load_results` reads them."""
    first, second, *rows = (folder / "monitor.csv").read_text().splitlines()
    assert first[0] == "#"
    assert second == "r,l,t"
    return json.loads(first[1:]), [tuple(float(x) for x in row.split(",")) for row in rows]


# What a run writes -----------------------------------------------------------------------------


def test_a_run_writes_its_files_and_no_others(tmp_path):
    learn(tmp_path / "deep" / "run")
    names = {path.name.partition(".tfevents")[0] for path in (tmp_path / "deep" / "run").iterdir()}
    assert names == {"config.json", "progress.csv", "monitor.csv", "checkpoints", "events.out"}
    files = sorted(path.name for path in (tmp_path / "deep" / "run" / "checkpoints").iterdir())
    assert files == ["checkpoint-000000000.npz", "checkpoint-000000004.npz"]


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    natgrad.TRPO(Random, **SMALL).learn(128)
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_says_what_was_trained(tmp_path):
    agent = learn(tmp_path, env="CartPole-v1", seed=7, max_kl=0.02, hidden=(8, 4))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["algorithm"] == "trpo"
    assert config["env_id"] == "CartPole-v1"
    assert config["total_timesteps"] == 256
    assert natgrad.agents.TRPOConfig.from_options(config["config"]) == agent.config
    assert config["policy"]["hidden"] in ([8, 4], (8, 4))
    assert runs.read_config(tmp_path) == config


def test_progress_has_one_complete_row_per_update(tmp_path):
    learn(tmp_path, updates=6, env=functools.partial(Counting, (40,), ("terminated",)), hidden=(5,))
    columns, rows = progress(tmp_path)
    assert len(set(columns)) == len(columns)
    assert set(columns) >= COLUMNS - {"train/std"}
    assert [row["time/iterations"] for row in rows] == [str(k) for k in range(1, 7)]
    assert [row["time/total_timesteps"] for row in rows] == [str(64 * k) for k in range(1, 7)]
    for row in rows:
        empty = {key for key, value in row.items() if value == ""}
        assert empty <= {"train/message"}
        for key in COLUMNS - {"train/std"}:
            assert np.isfinite(float(row[key])), key


def test_the_names_of_the_columns_are_those_of_stable_baselines3(tmp_path):
    learn(tmp_path)
    assert set(progress(tmp_path)[0]) >= COLUMNS


def test_a_column_that_comes_late_is_empty_before(tmp_path):
    """No episode ends in the first update, and the evaluation comes every third."""
    agent = natgrad.TRPO(functools.partial(Counting, (100,), ("truncated",)), **SMALL)
    agent.learn(64 * 4, natgrad.agents.EvalCallback(3, 1), run_dir=tmp_path)
    _, rows = progress(tmp_path)
    assert [row["rollout/ep_len_mean"] for row in rows] == ["", "100.0", "100.0", "100.0"]
    assert [row["eval/mean_ep_length"] for row in rows] == ["", "", "100.0", ""]


def test_the_monitor_has_every_episode_in_the_format_of_stable_baselines3(tmp_path):
    started = time.time()
    make = functools.partial(Counting, (3, 2), ("terminated", "truncated"))
    natgrad.TRPO(make, **SMALL, n_envs=2).learn(128, run_dir=tmp_path)
    header, rows = monitor(tmp_path)
    assert header["env_id"] is None
    assert started <= header["t_start"] <= time.time()
    assert [row[:2] for row in rows[:6]] == [(6, 3), (6, 3), (3, 2), (3, 2), (6, 3), (6, 3)]
    assert len(rows) == 2 * 25  # five steps, two episodes
    times = [row[2] for row in rows]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= time.time() - started
    learn(tmp_path / "named", env="CartPole-v1")
    assert monitor(tmp_path / "named")[0]["env_id"] == "CartPole-v1"


def events(folder):
    """Tag -> [(step, value)] as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder), purge_orphaned_data=True).Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def test_tensorboard_reads_the_numbers_of_every_update(tmp_path):
    learn(tmp_path, updates=5)
    found = events(tmp_path)
    _, rows = progress(tmp_path)
    assert set(found) >= COLUMNS
    assert "train/status" not in found
    for key, points in found.items():
        want = [(int(r["time/total_timesteps"]), float(r[key])) for r in rows if r[key]]
        np.testing.assert_allclose(points, want, rtol=1e-6, err_msg=key)


def test_events_are_on_disk_before_the_checkpoint_that_counts_on_them(tmp_path):
    seen = []

    class Look(natgrad.agents.Callback):
        def on_update_end(self, agent, log):
            seen.append(len(events(tmp_path).get("train/n_updates", [])))

    learner = natgrad.TRPO(Random, **SMALL)
    learner.learn(64 * 4, callback=Look(), run_dir=tmp_path)
    assert seen == [0, 1, 2, 3]


# Going on --------------------------------------------------------------------------------------


def check_complete(folder, updates):
    """Every update is recorded once everywhere, and every episode."""
    steps = [64 * k for k in range(1, updates + 1)]
    _, rows = progress(folder)
    assert [int(row["time/total_timesteps"]) for row in rows] == steps
    assert [step for step, _ in events(folder)["train/n_updates"]] == steps
    agent = natgrad.agents.Agent.load(folder, Random)
    assert agent.num_updates == updates
    _, episodes = monitor(folder)
    assert len(episodes) == agent.num_episodes
    mean = np.mean([row[0] for row in episodes[-100:]])
    assert float(rows[-1]["rollout/ep_rew_mean"]) == pytest.approx(mean, abs=1e-6)
    assert sum(row[1] for row in episodes) <= 64 * updates
    times = [row[2] for row in episodes]
    assert times == sorted(times)
    return episodes


def test_a_run_is_continued_without_duplicates_or_gaps(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    learn(whole, 9)
    agent = learn(parts, 3)
    agent.learn(64 * 2, run_dir=parts)
    natgrad.TRPO.load(parts, Random).learn(64 * 4, run_dir=parts)
    episodes = [check_complete(folder, 9) for folder in (whole, parts)]
    assert [e[:2] for e in episodes[0]] == [e[:2] for e in episodes[1]]
    assert json.loads((parts / "config.json").read_text())["total_timesteps"] == 64 * 9


def test_updates_after_the_checkpoint_are_dropped_and_made_again(tmp_path):
    agent = natgrad.TRPO(Random, **SMALL)
    agent.learn(64 * 7, run_dir=tmp_path, checkpoint_every=3)
    (tmp_path / "checkpoints" / "checkpoint-000000007.npz").unlink()  # as if it had been killed
    first = check_complete_rows(tmp_path)
    resumed = natgrad.TRPO.load(tmp_path, Random)
    assert resumed.num_updates == 6
    resumed.learn(64 * 3, run_dir=tmp_path)
    check_complete(tmp_path, 9)
    assert [r[:2] for r in check_complete_rows(tmp_path)[: len(first)]] == [r[:2] for r in first]


def check_complete_rows(folder):
    return monitor(folder)[1]


@pytest.mark.slow
def test_a_killed_run_is_continued_without_duplicates_or_gaps(tmp_path):
    code = (
        "import sys, natgrad; from environments import *\n"
        "natgrad.TRPO(Random, **SMALL).learn(10**8, run_dir=sys.argv[1], checkpoint_every=4)"
    )
    process = popen("-c", code, tmp_path)
    try:
        while len(runs.checkpoints(tmp_path)) < 3 and process.poll() is None:
            time.sleep(0.01)
    finally:
        kill(process, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert errors == ""
    time.sleep(1)  # TensorBoard orders files by the second in which they were made
    resumed = natgrad.TRPO.load(tmp_path, Random)
    resumed.learn(64 * 5, run_dir=tmp_path)
    check_complete(tmp_path, resumed.num_updates)


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    agent = learn(whole, 2)
    learn(broken, 2)
    for path in broken.rglob("*"):
        if path.is_file() and path.name != "config.json":
            path.unlink()
    resumed = natgrad.TRPO.load(broken, Random)
    assert resumed.num_timesteps == 0
    resumed.learn(agent.num_timesteps, run_dir=broken)
    check_complete(broken, 2)
    assert contents(resumed) == contents(agent)
    (broken / "checkpoints").rename(broken / "elsewhere")
    with pytest.raises(natgrad.agents.CheckpointError, match="an agent of TRPO, not of REINFORCE"):
        natgrad.REINFORCE.load(broken, Random)


def test_a_row_that_was_cut_off_is_dropped(tmp_path):
    agent = learn(tmp_path, 3)
    for name, text in (("progress.csv", "1.5,2"), ("monitor.csv", "-1.2,3")):
        with (tmp_path / name).open("a") as file:
            file.write(text)
    agent.learn(64 * 2, run_dir=tmp_path)
    check_complete(tmp_path, 5)


def test_an_added_column_keeps_the_rows_before(tmp_path):
    agent = learn(tmp_path, 2)
    agent.learn(64, callback=lambda _, log: log.update({"mine/x": 1}), run_dir=tmp_path)
    agent.learn(64, run_dir=tmp_path)
    _, rows = progress(tmp_path)
    assert [row["mine/x"] for row in rows] == ["", "", "1", ""]
    assert [row["time/iterations"] for row in rows] == ["1", "2", "3", "4"]


# Folders ---------------------------------------------------------------------------------------


def test_two_runs_never_share_a_folder(tmp_path):
    agent = learn(tmp_path, 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    copy = natgrad.TRPO.load(runs.checkpoints(tmp_path)[-1], Random)
    for other in (natgrad.TRPO(Random, **SMALL), natgrad.NPG(Random, **SMALL), copy):
        with pytest.raises(ValueError, match=r"run_dir .* holds another run; wanted a new folder"):
            other.learn(64, run_dir=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    agent.learn(64, run_dir=os.fspath(tmp_path))
    check_complete(tmp_path, 3)


def test_fresh_folders_have_fresh_names(tmp_path):
    names = [runs.fresh_folder("ALE/Pong-v5", "trpo", 3, tmp_path).name for _ in range(3)]
    assert names == [f"ALE-Pong-v5_trpo_3_{n}" for n in (1, 2, 3)]
    assert runs.fresh_folder(None, "npg", 0, tmp_path / "new" / "deep").name == "custom_npg_0_1"
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: runs.fresh_folder("X-v0", "npg", 0, tmp_path), range(40)))
    assert len(set(folders)) == 40


@pytest.mark.parametrize("where", ["below a file", "/proc/natgrad"])
def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path, where):
    (tmp_path / "below a file").write_text("")
    folder = tmp_path / where / "run"
    agent = natgrad.TRPO(Random, **SMALL)
    with pytest.raises(ValueError, match=r"run_dir .* cannot be written"):
        agent.learn(64, run_dir=folder)
    with pytest.raises(ValueError, match="cannot be made"):
        runs.fresh_folder("X-v0", "npg", 0, folder)
    assert agent.num_updates == 0
    assert agent.learn(64).num_updates == 1


def test_a_folder_for_checkpoints_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    agent = natgrad.TRPO(Random, **SMALL)
    with pytest.raises(
        natgrad.agents.CheckpointError, match=r"folder .*checkpoints' cannot be made"
    ):
        agent.learn(64, run_dir=tmp_path)
    assert agent.num_updates == 0


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"algorithm": "trpo"}', "\x00"])
def test_a_folder_without_a_run_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"is no folder of a run: cannot read .*config\.json"):
        runs.read_config(tmp_path)


# Sinks alone -----------------------------------------------------------------------------------


def test_a_csv_keeps_values_that_need_quotes(tmp_path):
    sink = CsvSink(tmp_path / "a.csv", "step", 0)
    sink.write({"step": 1, "text": 'a, "b"\nc'}, 1)
    sink.write({"step": 2, "text": "", "late": 0.1}, 2)
    sink.close()
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"step": "1", "text": 'a, "b"\nc', "late": ""},
        {"step": "2", "text": "", "late": "0.1"},
    ]


def test_a_damaged_monitor_is_named(tmp_path):
    for text in ("", "r,l,t\n", "#{\nr,l,t\n", "#[]\nr,l,t\n"):
        (tmp_path / "monitor.csv").write_text(text)
        with pytest.raises(ValueError, match=r"monitor\.csv"):
            Monitor(tmp_path / "monitor.csv", None, 0)


def test_a_monitor_keeps_the_episodes_it_is_told_to(tmp_path):
    path = tmp_path / "monitor.csv"
    for kept, new in ((0, [1, 2, 3]), (2, [4]), (3, [])):
        sink = Monitor(path, "X-v0", kept)
        sink.write([Episode(float(r), 10 * r, time.time()) for r in new])
        sink.close()
    assert [row[:2] for row in monitor(tmp_path)[1]] == [(1, 10), (2, 20), (4, 40)]


FULL_DISK = """
import resource, sys
from pathlib import Path
from natgrad.agents.logger import rewrite
path = Path(sys.argv[1]) / "a.txt"
rewrite(path, "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    rewrite(path, "new" * 1000)
except OSError as error:
    print(error.strerror, path.read_text(), [p.name for p in path.parent.iterdir()])
"""


def test_a_text_file_that_cannot_be_replaced_is_kept(tmp_path):
    code, output, errors = run("-c", FULL_DISK, tmp_path)
    assert (code, output, errors) == (0, "File too large old ['a.txt']\n", "")


# Extras ----------------------------------------------------------------------------------------

WITHOUT = """
import sys
missing = sys.argv.pop(1)
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == missing else found(name, *more)
"""


def test_without_tensorboard_runs_have_no_events_and_the_sink_names_the_extra(tmp_path):
    code, output, errors = run(
        "-c",
        WITHOUT + "from environments import *; from pathlib import Path\n"
        "import natgrad; from natgrad.agents.logger import TensorBoardSink\n"
        "natgrad.TRPO(Random, **SMALL).learn(128, run_dir=sys.argv[1])\n"
        "try: TensorBoardSink(Path(sys.argv[1]), 0)\n"
        "except ImportError as error: print(error)\n",
        "tensorboard",
        tmp_path,
    )
    assert (code, errors) == (0, "")
    assert "pip install 'natgrad[tensorboard]'" in output
    assert not list(tmp_path.glob("events*"))
    assert len(progress(tmp_path)[1]) == 2


def test_the_tensorboard_sink_is_one_of_tensorboards_own_files(tmp_path):
    sink = TensorBoardSink(tmp_path, 0)
    sink.write({"a/b": 1.5, "a/text": "no number"}, 10)
    sink.close()
    assert events(tmp_path) == {"a/b": [(10, 1.5)]}


def test_without_matplotlib_plots_name_the_extra(tmp_path):
    learn(tmp_path, env="CartPole-v1")
    code, output, errors = run(
        "-c",
        WITHOUT + "from natgrad.cli import main; sys.exit(main(sys.argv[1:]))",
        *("matplotlib", "plot", tmp_path, "-o", tmp_path / "a.png"),
    )
    assert (code, output) == (2, "")
    assert errors == "natgrad: error: plots need matplotlib: pip install 'natgrad[plot]'\n"


@pytest.mark.parametrize(
    ("missing", "name"), [("PIL", "natgrad[render]"), ("pygame", "pygame is not installed")]
)
def test_without_a_library_for_pictures_enjoy_names_it(tmp_path, missing, name):
    learn(tmp_path, env="CartPole-v1")
    code, output, errors = run(
        "-c",
        WITHOUT + "from natgrad.cli import main; sys.exit(main(sys.argv[1:]))",
        *(missing, "enjoy", tmp_path, "--gif", tmp_path / "a.gif"),
    )
    assert (code, output) == (2, "")
    assert errors.startswith("natgrad: error: ")
    assert name in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "a.gif").exists()


def test_importing_natgrad_imports_no_extra():
    code, output, errors = run(
        "-c",
        "import sys, natgrad, natgrad.agents.agent, natgrad.cli\n"
        "print([m for m in ('torch', 'matplotlib', 'tensorboard', 'PIL', 'pygame') "
        "if m in sys.modules])",
    )
    assert (code, output, errors) == (0, "[]\n", "")
