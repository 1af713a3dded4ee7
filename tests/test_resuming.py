"""Resuming: going on is never having stopped, whatever the interruption was."""

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from environments import (
    SMALL,
    Discrete,
    Random,
    contents,
    copy,
    kill,
    parameters,
    popen,
    read_checkpoint,
    run,
    with_checksum,
    write_checkpoint,
)
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import natgrad
from natgrad import (
    AdaptiveDamping,
    ConjugateGradient,
    FixedDamping,
    KFac,
    LineSearch,
    Progress,
    Subsample,
    TraceDamping,
)
from natgrad.agents import (
    CheckpointError,
    NPGConfig,
    REINFORCEConfig,
    TRPOConfig,
    flat_options,
    runs,
)

KINDS = {
    "trpo": (natgrad.TRPO, {}),
    "trpo in double": (natgrad.TRPO, {"dtype": "float64"}),
    "trpo with Adam critic": (natgrad.TRPO, {"critic": "adam"}),
    "trpo with Fourier features": (natgrad.TRPO, {"fourier_features": 6}),
    "npg": (natgrad.NPG, {"curvature_fraction": 0.5}),
    "npg with a warm start": (natgrad.NPG, {"solver": ConjugateGradient(warm_start=True)}),
    "trpo with adaptive damping": (natgrad.TRPO, {"damping": AdaptiveDamping()}),
    "trpo with K-FAC": (natgrad.TRPO, {"preconditioner": KFac(3), "solver": "cg"}),
    "trpo with inner iterations": (
        natgrad.TRPO,
        {"preconditioner": Subsample(3), "solver": "cg"},
    ),
    "npg with an automatic preconditioner": (
        natgrad.NPG,
        {"preconditioner": "auto", "solver": "cg"},
    ),
    "trpo with both, in double": (
        natgrad.TRPO,
        {
            "solver": ConjugateGradient(warm_start=True),
            "damping": AdaptiveDamping(),
            "dtype": "float64",
        },
    ),
    "reinforce with Adam": (natgrad.REINFORCE, {}),
    "reinforce with sgd": (natgrad.REINFORCE, {"optimizer": "sgd"}),
    "several environments": (natgrad.TRPO, {"n_envs": 3}),
    "processes": (natgrad.TRPO, {"n_envs": 2, "vectorization": "async"}),
    "linear": (natgrad.TRPO, {"hidden": (), "critic_hidden": ()}),
    "without normalisation": (natgrad.TRPO, {"normalize_observations": False}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


# Going on --------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("make", [Random, Discrete], ids=["Box", "Discrete"])
@pytest.mark.parametrize("updates", [0, 1, 3])
def test_going_on_from_a_file_is_never_having_stopped(tmp_path, kind, make, updates):
    algorithm, options = KINDS[kind]
    agent = algorithm(make, **{**SMALL, **options})
    if updates:
        agent.learn(64 * updates)
    resumed = copy(agent, tmp_path, make)
    assert type(resumed) is algorithm
    assert contents(resumed) == contents(agent)
    rows = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_array_equal(agent.predict(rows), resumed.predict(rows))
    agent.learn(192)
    resumed.learn(64)
    again = copy(resumed, tmp_path, make).learn(128)
    assert contents(again) == contents(agent)
    for a in (agent, resumed, again):
        a.close()


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "HalfCheetah-v5"])
def test_real_environments_go_on_in_the_middle_of_an_episode(tmp_path, env):
    agent = natgrad.TRPO(env, **SMALL, n_envs=2).learn(128)
    assert agent._environments.state.lengths.any()
    resumed = copy(agent, tmp_path)  # made by its id
    agent.learn(128)
    assert contents(resumed.learn(128)) == contents(agent)


@pytest.mark.parametrize("distribution", ["beta", "squashed"])
def test_agents_within_bounds_go_on_in_the_middle_of_an_episode(tmp_path, distribution):
    agent = natgrad.TRPO("Pendulum-v1", **SMALL, n_envs=2, distribution=distribution).learn(128)
    resumed = copy(agent, tmp_path)
    assert repr(resumed.policy.distribution) == repr(agent.policy.distribution)
    agent.learn(128)
    assert contents(resumed.learn(128)) == contents(agent)
    narrower = natgrad.TRPO(Random, **SMALL, distribution=distribution)
    narrower.save(tmp_path / "agent.npz")
    with pytest.raises(CheckpointError, match="the environment wants the policy"):
        natgrad.TRPO.load(tmp_path / "agent.npz", "Pendulum-v1")


def test_processes_can_be_left_and_entered_at_a_checkpoint(tmp_path):
    """Same numbers, another way to step: only the option in the file has to be edited."""
    agent = natgrad.TRPO(Random, **SMALL, n_envs=2).learn(128)
    agent.save(tmp_path / "agent.npz")
    metadata, arrays = read_checkpoint(tmp_path / "agent.npz")
    metadata["config"]["vectorization"] = "async"
    write_checkpoint(tmp_path / "async.npz", with_checksum(metadata, arrays), arrays)
    resumed = natgrad.TRPO.load(tmp_path / "async.npz", Random)
    assert parameters(resumed.learn(128)) == parameters(agent.learn(128))
    resumed.close()


def test_an_agent_is_loaded_by_its_algorithm_or_by_any_agents_class(tmp_path):
    natgrad.NPG("CartPole-v1", **SMALL).save(tmp_path / "npg.npz")
    assert type(natgrad.agents.Agent.load(tmp_path / "npg.npz")) is natgrad.NPG
    assert type(natgrad.NPG.load(str(tmp_path / "npg.npz"))) is natgrad.NPG
    for other in (natgrad.TRPO, natgrad.REINFORCE):
        with pytest.raises(CheckpointError, match=f"agent of NPG, not of {other.__name__}"):
            other.load(tmp_path / "npg.npz")


def test_saving_twice_gives_the_same_bytes(tmp_path):
    agent = natgrad.TRPO("CartPole-v1", **SMALL).learn(128)
    agent.save(tmp_path / "a.npz")
    natgrad.TRPO.load(tmp_path / "a.npz").save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_checkpoint_is_an_ordinary_npz_without_pickles(tmp_path):
    agent = natgrad.TRPO("CartPole-v1", **SMALL).learn(128)
    agent.save(tmp_path / "agent.npz")
    metadata, arrays = read_checkpoint(tmp_path / "agent.npz")
    assert metadata["format_version"] == 1
    assert metadata["natgrad_version"] == natgrad.__version__
    assert metadata["env_id"] == "CartPole-v1"
    assert TRPOConfig.from_options(metadata["config"]) == agent.config
    np.testing.assert_array_equal(arrays["policy/parameters"], agent.policy.parameters)


def test_a_checkpoint_of_another_number_of_environments_starts_new_episodes(tmp_path):
    agent = natgrad.TRPO(Random, **SMALL, n_envs=2).learn(128)
    agent.save(tmp_path / "agent.npz")
    env = SyncVectorEnv([Random] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.warns(UserWarning, match="the episodes in progress start again"):
        resumed = natgrad.TRPO.load(tmp_path / "agent.npz", env).learn(64)
    assert resumed.num_updates == 3
    env.close()


# Older files -------------------------------------------------------------------------------------

DATA = Path(__file__).parent / "data"  # two checkpoints of one run, before options were values


def test_a_run_from_before_options_were_values_goes_on(tmp_path):
    agent = natgrad.TRPO.load(DATA / "flat_options.npz")
    assert agent.config.damping == AdaptiveDamping(0.1, 1e-4, 10.0)
    assert agent.config.preconditioner == KFac(3)
    assert agent.config.line_search == LineSearch(0.7)
    assert agent.config.solver == ConjugateGradient(6, stop=Progress(0.02, 3), warm_start=True)
    metadata, arrays = read_checkpoint(DATA / "flat_options_later.npz")
    agent.learn(metadata["progress"]["num_timesteps"] - agent.num_timesteps)
    agent.save(tmp_path / "agent.npz")
    ours, found = read_checkpoint(tmp_path / "agent.npz")
    assert found.keys() == arrays.keys()
    assert ours.keys() == metadata.keys()
    assert ours["progress"].keys() == metadata["progress"].keys()
    for name, array in arrays.items():  # not to the bit: the machine may have other instructions
        np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-12, err_msg=name)


FLAT = {
    "damping": 0.3, "damping_mode": "fixed", "damping_min": 1e-5, "damping_max": 10.0,
    "cg_iterations": 10, "cg_rtol": 1e-10, "solver": "auto", "preconditioner": "auto",
    "kfac_every": 2, "kfac_refresh": 1, "kfac_decay": 0.0, "subsample_every": 6,
    "subsample_iterations": 4, "nystrom_rank": 20, "cg_last_residual": True,
    "cg_progress_tolerance": 0.0, "cg_progress_window": 3, "warm_start": False,
    "line_search_shrink": 0.8, "line_search_max_backtracks": 10, "line_search_accept_ratio": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("flat", "option", "value"),
    [
        ({}, "damping", 0.3),
        ({"damping_mode": "trace"}, "damping", TraceDamping(0.3)),
        ({"damping_mode": "adaptive", "damping_max": 2.0}, "damping", AdaptiveDamping(0.3, high=2)),
        ({}, "solver", ConjugateGradient(or_direct=True)),
        ({"solver": "cg", "cg_iterations": 4}, "solver", ConjugateGradient(4)),
        ({"solver": "direct", "cg_rtol": 0.5}, "solver", "direct"),
        ({"cg_rtol": 1e-4}, "solver", ConjugateGradient(rtol=1e-4, or_direct=True)),
        (
            {"cg_progress_tolerance": 0.1, "cg_last_residual": False, "warm_start": True},
            "solver",
            ConjugateGradient(
                stop=Progress(0.1), last_residual=False, warm_start=True, or_direct=True
            ),
        ),
        ({}, "preconditioner", "auto"),
        ({"preconditioner": "none", "kfac_every": 5}, "preconditioner", "none"),
        ({"preconditioner": "kfac", "kfac_every": 5}, "preconditioner", KFac(5)),
        ({"preconditioner": "subsample", "subsample_every": 9}, "preconditioner", Subsample(9, 4)),
        ({"line_search_accept_ratio": 0.1}, "line_search", LineSearch(accept_ratio=0.1)),
    ],
)
def test_flat_options_are_read_as_values(flat, option, value):
    options = flat_options.as_values({**FLAT, **flat})
    assert getattr(TRPOConfig(**options), option) == value
    without_search = {k: v for k, v in FLAT.items() if not k.startswith("line_search")}
    if option != "line_search":
        options = flat_options.as_values({**without_search, **flat})
        assert getattr(NPGConfig(**options), option) == value


@pytest.mark.parametrize(
    "missing", sorted(set(FLAT) - {"damping_mode", "damping", "cg_iterations"})
)
def test_a_run_from_before_an_option_was_added_has_its_default(missing):
    older = {name: value for name, value in FLAT.items() if name != missing}
    if missing.startswith("line_search"):  # the three came together
        older = {name: value for name, value in older.items() if not name.startswith("line_search")}
    assert TRPOConfig(**flat_options.as_values(older)) == TRPOConfig(**flat_options.as_values(FLAT))


SNAPSHOTS = sorted(
    (Path(__file__).parents[1] / "benchmarks" / "results").glob("snapshots/Cart*.npz")
)


@pytest.mark.skipif(not SNAPSHOTS, reason="an sdist has no snapshots")
def test_the_snapshots_of_an_older_version_load():
    for path in SNAPSHOTS:
        agent = natgrad.TRPO.load(path)
        assert agent.num_timesteps > 50_000
        agent.close()


def test_values_are_read_as_they_are():
    for config in (
        TRPOConfig(damping=FixedDamping()),
        REINFORCEConfig(),
    ):
        assert flat_options.as_values(config.to_json()) == config.to_json()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("kfac_refresh", 3),
        ("kfac_decay", 0.5),
        ("preconditioner", "nystrom"),
        ("preconditioner", "diagonal"),
        ("kfac_every", 4),  # beside preconditioner="auto"
    ],
)
def test_flat_options_that_are_gone_are_refused(tmp_path, option, value):
    metadata, arrays = read_checkpoint(DATA / "flat_options.npz")
    metadata["config"] |= {"preconditioner": "auto", "kfac_every": 2, option: value}
    write_checkpoint(tmp_path / "old.npz", with_checksum(metadata, arrays), arrays)
    with pytest.raises(CheckpointError, match=f"{option} is {value!r}, which updates no"):
        natgrad.TRPO.load(tmp_path / "old.npz")


# Walking back ----------------------------------------------------------------------------------


def test_a_run_is_resumed_from_the_newest_sound_checkpoint(tmp_path):
    agent = natgrad.TRPO("CartPole-v1", **SMALL)
    agent.learn(64 * 4, run_dir=tmp_path, checkpoint_every=1)
    files = sorted((tmp_path / "checkpoints").iterdir())
    assert len(files) == 3
    assert natgrad.TRPO.load(tmp_path).num_updates == 4
    files[2].write_bytes(files[2].read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"damaged.*; trying the one before"):
        resumed = natgrad.TRPO.load(tmp_path)
    assert resumed.num_updates == 3
    resumed.learn(64, run_dir=tmp_path)
    assert contents(resumed) == contents(agent)
    assert contents(natgrad.TRPO.load(tmp_path)) == contents(agent)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="trying"),
        pytest.raises(CheckpointError, match="no sound"),
    ):
        natgrad.TRPO.load(tmp_path)


# Killing ---------------------------------------------------------------------------------------


TRAINING = ("-m", "natgrad.cli", "train")
OPTIONS = ("--hidden", "16", "--critic-hidden", "16", "--batch-size", "256", "--checkpoint-every")
LONG = 256 * 150


def train_until_done(folder, rng, *options, signals):
    """Starts training, interrupts it again and again at random moments, and resumes it."""
    arguments = [*TRAINING, "CartPole-v1", "--run-dir", folder, "--steps", LONG, *OPTIONS, *options]
    config = folder / "config.json"

    def written():  # anew by every process, when it has started
        return config.stat().st_ino if runs.checkpoints(folder) else None

    for k in range(30):
        before = written()
        process = popen(*arguments)
        while process.poll() is None and written() == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        number = signals[k % len(signals)] if k < 4 else None
        if number is not None:
            kill(process, number)
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:
            return k
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL, errors
            assert errors == ""
        else:
            assert process.returncode == 130, errors
            assert re.fullmatch(
                r"interrupted by SIG\w+ after \d+ steps; saved to .*\.npz; "
                f"to go on: natgrad train --resume {re.escape(str(folder))}\n",
                errors,
            )
            saved = errors.partition("saved to ")[2].partition(";")[0]
            assert f"after {natgrad.agents.Agent.load(saved).num_timesteps} steps" in errors
        arguments = [*TRAINING, "--resume", folder, "--checkpoint-every", options[0]]
    raise AssertionError("it never ended")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "options"),
    [
        ((signal.SIGKILL,), ("1",)),
        ((signal.SIGKILL,), ("7", "--n-envs", "2", "--critic", "adam")),
        ((signal.SIGINT, signal.SIGTERM, signal.SIGKILL), ("3",)),
        (
            (signal.SIGINT, signal.SIGKILL),
            ("2", "--n-envs", "2", "--vectorization", "async", "--algo", "reinforce"),
        ),
    ],
    ids=["killed", "killed with Adam critic", "every signal", "in processes"],
)
def test_a_run_that_is_interrupted_again_and_again_ends_as_if_it_had_not_been(
    tmp_path, signals, options
):
    rng = np.random.default_rng(0)
    code, _, errors = run(
        *TRAINING, "CartPole-v1", "--run-dir", tmp_path / "whole", "--steps", LONG, *OPTIONS,
        *options,
    )  # fmt: skip
    assert code == 0, errors
    interruptions = train_until_done(tmp_path / "pieces", rng, *options, signals=signals)
    assert interruptions >= 2
    whole, pieces = (natgrad.agents.Agent.load(tmp_path / name) for name in ("whole", "pieces"))
    assert contents(whole) == contents(pieces)
    check_same_records(tmp_path / "whole", tmp_path / "pieces")
    leftovers = [path.name for path in (tmp_path / "pieces").rglob(".*")]
    assert leftovers == []


def check_same_records(whole, pieces):
    """The same rows in the same order: none lost, none twice. Times differ."""
    for name in ("progress.csv", "monitor.csv"):
        rows = [timeless((folder / name).read_text(), name) for folder in (whole, pieces)]
        assert rows[0] == rows[1], name


def timeless(text, name):
    header, *rows = text.splitlines()
    if name == "monitor.csv":
        return [row.split(",")[:2] for row in rows]
    keys = header.split(",")
    return [
        {k: v for k, v in zip(keys, row.split(","), strict=True) if not k.startswith("time/t")
         and k not in ("time/fps", "time/rollout", "time/update", "time/critic")}
        for row in rows
    ]  # fmt: skip
