"""The command line: what it prints, writes and returns, and one line for whatever is wrong."""

import dataclasses
import os
import re
import signal
import sys
import time

import numpy as np
import pytest
from environments import Painted, contents, kill, popen, read_checkpoint, run

import natgrad
from natgrad import cli
from natgrad.agents import runs, values
from natgrad.agents.plot import learning_curve

COMMANDS = ("train", "eval", "enjoy", "plot", "bench", "gallery")
SHORT = ("--batch-size", "128", "--hidden", "8", "--critic-hidden", "8", "--steps", "512")


def natgrad_command(*arguments, **keywords):
    """Runs the command in a process of its own."""
    return run("-m", "natgrad.cli", *arguments, **keywords)


def main(capsys, *arguments):
    """Runs the command in this process; returns exit code, stdout and stderr."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run, which tests read only."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert cli.main(["train", "CartPole-v1", "--run-dir", str(folder), *SHORT]) == 0
    return folder


# train -----------------------------------------------------------------------------------------


def test_training_says_how_it_went_and_where_it_is(tmp_path):
    code, output, errors = natgrad_command(
        "train", "CartPole-v1", *SHORT, "--seed", 3, "--evaluate", 2, cwd=tmp_path
    )
    assert (code, errors) == (0, "")
    assert re.fullmatch(
        r"mean return of the last \d+ episodes \d+\.\d\d \| 512 steps \| \d+\.\d s, \d+ steps/s "
        r"\| runs/CartPole-v1_trpo_3_1\nevaluation: \d+\.\d\d ± \d+\.\d\d over 2 episodes\n",
        output,
    )
    agent = natgrad.TRPO.load(tmp_path / "runs" / "CartPole-v1_trpo_3_1")
    options = {"batch_size": 128, "hidden": (8,), "critic_hidden": (8,), "seed": 3}
    assert contents(agent) == contents(natgrad.TRPO("CartPole-v1", **options).learn(512))


def test_a_second_run_gets_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for n in (1, 2):
        code, output, _ = main(
            capsys, "train", "Pendulum-v1", *SHORT, "--n-envs", 1, "--algo", "npg"
        )
        assert code == 0
        assert output.endswith(f"runs/Pendulum-v1_npg_0_{n}\n")
    assert "mean return of the last 2 episodes" in output


@pytest.mark.parametrize("distribution", ["beta", "squashed"])
def test_a_policy_within_bounds_is_trained_and_evaluated(tmp_path, capsys, distribution):
    run = tmp_path / "run"
    given = ("--n-envs", 1, "--distribution", distribution, "--run-dir", run)
    assert main(capsys, "train", "Pendulum-v1", *SHORT, *given)[0] == 0
    agent = natgrad.TRPO.load(run)
    assert agent.config.distribution == distribution
    assert type(agent.policy.distribution).__name__.lower().startswith(distribution)
    code, output, _ = main(capsys, "eval", run, "--episodes", 1)
    assert (code, output[:7]) == (0, "return ")


def option_texts():
    """Every option with a value other than its default, as text, and what config.json says then."""
    texts = {
        int: ("3", 3),
        float: ("0.5", 0.5),
        tuple: ("5,4", [5, 4]),
        dict: ('{"max_episode_steps": 9}', {"max_episode_steps": 9}),
        natgrad.LineSearch: ("LineSearch(0.5)", values.text_of(natgrad.LineSearch(0.5))),
    }
    for config in cli.CONFIGS.values():
        for field in dataclasses.fields(config):
            default = getattr(config(), field.name)
            flag = f"--{field.name.replace('_', '-')}"
            if isinstance(default, bool):
                yield config, field.name, (flag.replace("--", "--no-"),), False
            elif isinstance(default, str):
                choice = re.search(r"Literal\[[^\]]*'(\w+)'\]", str(field.type))[1]
                yield config, field.name, (flag, choice), choice
            else:
                text, value = texts[type(default)]
                yield config, field.name, (flag, text), value
    for name, text in (
        ("damping", "AdaptiveDamping(initial=0.2, low=0.001, high=10.0, metric=None)"),
        ("preconditioner", "KFac(every=5, all_columns=False)"),
    ):
        yield natgrad.agents.NPGConfig, name, (f"--{name}", text), text


@pytest.mark.parametrize(
    ("config", "name", "arguments", "value"),
    [*option_texts()],
    ids=lambda x: x if isinstance(x, str) else getattr(x, "__name__", ""),
)
def test_every_option_reaches_the_agent(config, name, arguments, value):
    parsed = vars(cli._parser().parse_args(["train", "CartPole-v1", *arguments]))
    given = {key: parsed[key] for key in parsed if key in config.__dataclass_fields__}
    assert list(given) == [name]
    assert value != config().to_json()[name]
    assert config.from_options(given).to_json()[name] == value


def test_options_that_are_not_given_are_those_of_the_class():
    parsed = vars(cli._parser().parse_args(["train", "CartPole-v1"]))
    names = {f.name for config in cli.CONFIGS.values() for f in dataclasses.fields(config)}
    assert not names & parsed.keys()


def test_a_linear_policy_can_be_asked_for(tmp_path, capsys):
    folder = tmp_path / "run"
    code, _, _ = main(
        capsys, "train", "CartPole-v1", *SHORT, "--hidden", "none", "--run-dir", folder
    )
    assert code == 0
    assert natgrad.agents.Agent.load(folder).policy.hidden == ()


def test_training_stops_at_the_target_return(tmp_path, capsys):
    code, output, _ = main(
        capsys, "train", "CartPole-v1", "--target-return", 40, "--batch-size", 256, "--steps",
        "1e6", "--run-dir", tmp_path / "run",
    )  # fmt: skip
    assert code == 0
    mean, steps = re.search(r"episodes ([\d.]+) \| (\d+) steps", output).groups()
    assert 40 <= float(mean) < 100
    assert int(steps) < 50_000


def test_a_finished_run_can_be_made_longer(tmp_path, capsys):
    short, whole = tmp_path / "short", tmp_path / "whole"
    assert main(capsys, "train", "CartPole-v1", *SHORT, "--run-dir", short)[0] == 0
    code, output, errors = main(capsys, "train", "--resume", short)
    assert (code, errors) == (0, "")
    assert "| 512 steps | 0.0 s, 0 steps/s" in output
    assert main(capsys, "train", "--resume", short, "--steps", 1024)[0] == 0
    assert main(capsys, "train", "CartPole-v1", *SHORT, "--steps", 1024, "--run-dir", whole)[0] == 0
    assert contents(natgrad.agents.Agent.load(short)) == contents(natgrad.agents.Agent.load(whole))
    assert runs.read_config(short) == runs.read_config(whole)


def test_progress_and_tables_are_shown_on_request(tmp_path, capsys):
    code, output, errors = main(
        capsys, "train", "CartPole-v1", *SHORT, "--progress", "--verbose", "--run-dir",
        tmp_path / "a",
    )  # fmt: skip
    assert code == 0
    assert "512/512" in errors
    assert output.count("| train/") == 4
    code, output, errors = main(
        capsys, "train", "CartPole-v1", *SHORT, "--no-progress", "--run-dir", tmp_path / "b"
    )
    assert errors == ""
    assert output.count("\n") == 1


def wait_for(condition, process):
    deadline = time.monotonic() + 30
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_interrupt_saves_says_where_and_how_to_go_on(tmp_path, number, vectorization):
    folder = tmp_path / "run"
    process = popen(
        "-m", "natgrad.cli", "train", "CartPole-v1", *SHORT, "--steps", 10**8, "--run-dir", folder,
        "--n-envs", 2, "--vectorization", vectorization, "--checkpoint-every", 2,
    )  # fmt: skip
    try:
        wait_for(lambda: len(runs.checkpoints(folder)) > 2, process)
        kill(process, number)  # as a terminal does, to the whole group
        output, errors = process.communicate(timeout=30)
    finally:
        kill(process)
    assert (process.returncode, output) == (130, "")
    steps, saved, rest = re.fullmatch(
        rf"interrupted by {number.name} after (\d+) steps; saved to (\S+); (.*)\n", errors
    ).groups()
    assert rest == f"to go on: natgrad train --resume {folder}"
    metadata, _ = read_checkpoint(saved)
    assert metadata["progress"]["num_timesteps"] == int(steps)
    goal = int(steps) + 128
    code, output, errors = natgrad_command("train", "--resume", folder, "--steps", goal)
    assert (code, errors) == (0, "")
    assert f"| {goal} steps |" in output


def test_an_environment_that_fails_is_one_line_and_the_run_can_go_on(tmp_path):
    code = (
        "import sys, gymnasium, natgrad.cli\n"
        "from environments import Painted\n"
        "class Broken(Painted):\n"
        "    def step(self, action):\n"
        "        if self._step > 10: raise OSError('no signal')\n"
        "        return super().step(action)\n"
        "gymnasium.register('Broken-v0', Broken)\n"
        "sys.exit(natgrad.cli.main(sys.argv[1:]))"
    )
    code, output, errors = run("-c", code, "train", "Broken-v0", "--run-dir", tmp_path / "run")
    assert (code, output) == (1, "")
    assert re.fullmatch(
        r"natgrad: EnvironmentFault: environment 0 failed in step\(\) of episode 0, step 12: "
        r"OSError: no signal; to go on: natgrad train --resume .*run\n",
        errors,
    )
    assert natgrad.agents.Agent.load(tmp_path / "run", Painted).num_updates == 0


# eval, enjoy, plot -----------------------------------------------------------------------------


def test_evaluation_takes_a_folder_or_a_file_and_a_seed(trained, capsys):
    outputs = []
    for arguments in (
        (trained,),
        (runs.checkpoints(trained)[-1],),
        (trained, "--seed", 1),
        (trained, "--stochastic"),
    ):
        code, output, errors = main(capsys, "eval", *arguments, "--episodes", 5)
        assert (code, errors) == (0, "")
        assert re.fullmatch(r"return [\d.]+ ± [\d.]+ over 5 episodes; mean length [\d.]+\n", output)
        outputs.append(output)
    assert outputs[0] == outputs[1]
    assert len(set(outputs)) == 3
    result = natgrad.evaluate(natgrad.agents.Agent.load(trained), episodes=5)
    assert outputs[0].startswith(f"return {result}")
    code, output, _ = main(capsys, "eval", trained)
    assert "over 100 episodes" in output


def pictures(path):
    """Number, size and duration in milliseconds of the pictures of an animation."""
    image = pytest.importorskip("PIL.Image").open(path)
    with image:
        image.verify()
    with pytest.importorskip("PIL.Image").open(path) as image:
        count = image.n_frames
        durations = set()
        for k in range(count):
            image.seek(k)
            image.load()
            durations.add(image.info["duration"])
        return count, image.size, durations


def test_an_animation_has_every_frame_at_its_own_pace(tmp_path, capsys):
    folder, gif = tmp_path / "run", tmp_path / "a.gif"
    assert main(capsys, "train", "Painted-v0", *SHORT, "--run-dir", folder)[0] == 0
    code, output, errors = main(capsys, "enjoy", folder, "--gif", gif, "--episodes", 2)
    assert (code, errors) == (0, "")
    assert output.startswith(f"40 frames in {gif}\nreturn ")
    count, size, durations = pictures(gif)
    assert size == (40, 40)
    assert durations <= {40, 80, 120, 160, 200}  # equal neighbours are merged
    assert 20 <= count <= 40
    code, output, _ = main(capsys, "enjoy", folder, "--gif", gif, "--max-frames", 7)
    assert output.startswith(f"7 frames in {gif}\n")
    assert pictures(gif)[0] <= 7


def test_cartpole_can_be_watched_as_an_animation(trained, tmp_path):
    pytest.importorskip("pygame", reason="pygame draws CartPole: natgrad[render]")
    gif = tmp_path / "a.gif"
    # pygame warns of its own use of pkg_resources
    code, _, errors = natgrad_command(
        *("enjoy", trained, "--gif", gif, "--max-frames", 30), env={"PYTHONWARNINGS": "default"}
    )
    assert code == 0, errors
    count, size, _ = pictures(gif)
    assert size == (600, 400)
    assert count > 5


def test_learning_curves_are_a_picture_of_sensible_size(trained, tmp_path, capsys):
    other, another = tmp_path / "other", tmp_path / "another"
    for folder, env in ((other, "CartPole-v1"), (another, "Painted-v0")):
        main(capsys, "train", env, *SHORT, "--seed", 1, "--run-dir", folder)
    png = tmp_path / "curves.png"
    widths = []
    for folders in ((trained,), (trained, other), (trained, other, another)):
        code, output, errors = main(
            capsys, "plot", *folders, "-o", png, "--window", 10, "--title", "Läufe"
        )
        assert (code, output, errors) == (0, f"{png}\n", "")
        with pytest.importorskip("PIL.Image").open(png) as image:
            assert image.format == "PNG"
            widths.append(image.size[0])
            assert 500 <= image.size[1] <= 1500
            pixels = np.asarray(image.convert("L"))
            assert 0.001 < (pixels < 128).mean() < 0.3, "neither empty nor full"
    assert 800 <= widths[0] <= 1500
    assert widths[1] == widths[0]
    assert widths[2] > 1.8 * widths[0], "a panel for each environment"


def test_the_learning_curve_is_the_running_mean_over_steps(trained):
    steps, means = learning_curve(trained, window=3)
    rows = np.loadtxt(trained / "monitor.csv", delimiter=",", skiprows=2)
    np.testing.assert_array_equal(steps, np.cumsum(rows[:, 1]))
    want = [rows[max(0, k - 2) : k + 1, 0].mean() for k in range(len(rows))]
    np.testing.assert_allclose(means, want, rtol=1e-12)


@pytest.mark.parametrize("ending", ["pdf", "svg"])
def test_the_ending_of_the_file_chooses_the_format(trained, tmp_path, capsys, ending):
    path = tmp_path / f"curves.{ending}"
    assert main(capsys, "plot", trained, "-o", path)[0] == 0
    assert path.read_bytes()[:5] in (b"%PDF-", b"<?xml")


# Help ------------------------------------------------------------------------------------------


def test_help_lists_the_commands(capsys):
    code, output, errors = main(capsys, "--help")
    assert (code, errors) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^ +{command} ", output, re.MULTILINE)
    assert main(capsys, "--version")[1] == f"natgrad {natgrad.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_within_the_width_of_a_terminal(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, output, errors = main(capsys, command, "--help")
    assert (code, errors) == (0, "")
    assert output.startswith("usage: natgrad ")
    assert max(map(len, output.splitlines())) <= 80
    for flag in re.findall(r"^  (?:-\w, )?(--[\w-]+)", output, re.MULTILINE):
        assert re.search(rf"{flag}\b.*\n?.*\w", output)


def test_the_help_of_train_explains_every_option_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, output, _ = main(capsys, "train", "--help")
    text = " ".join(output.split())
    for config in cli.CONFIGS.values():
        for field in dataclasses.fields(config):
            flag = f"--{field.name.replace('_', '-')}"
            assert flag in text
            shown = cli._shown(field)
            if field.name == "max_kl":
                shown = "0.03 for trpo, 0.01 for npg"
            words = re.escape(field.metadata["help"])
            assert re.search(rf"{words} \(([^;]*; )?default: {re.escape(shown)}", text), flag
    for group in ("policy gradient (reinforce only)", "trust region (trpo, npg only)"):
        assert group in text
    assert "(a number >= 0, FixedDamping(...), TraceDamping(...) or AdaptiveDamping(...)" in text
    for cls in values.CLASSES:
        assert f"{cls}(...)" in text or f"{cls}(" in text.partition("A VALUE is")[2]


# Bad input -------------------------------------------------------------------------------------

BAD = {
    "unknown environment": ("train CartPole-v9", "gymnasium cannot make 'CartPole-v9'"),
    "no environment": ("train", "train needs an environment"),
    "no such module": ("train nothing:CartPole-v1", "gymnasium cannot make 'nothing:CartPole"),
    "value out of range": ("train CartPole-v1 --gamma 2", "gamma is 2.0; wanted a number >= 0"),
    "unknown value": (
        "train CartPole-v1 --damping Adaptive(0.1)",
        "known are FixedDamping, TraceDamping, AdaptiveDamping",
    ),
    "unknown argument of a value": (
        "train CartPole-v1 --line-search LineSearch(factor=0.5)",
        "has other arguments than LineSearch(shrink=0.8, max_backtracks=10, accept_ratio=0.0)",
    ),
    "argument of a value out of range": (
        "train CartPole-v1 --damping AdaptiveDamping(low=-1)",
        "AdaptiveDamping: low: want float > 0",
    ),
    "value of another option": (
        "train CartPole-v1 --damping KFac(2)",
        "damping is KFac(every=2, all_columns=False); wanted a number >= 0, FixedDamping(...)",
    ),
    "batch too small": ("train CartPole-v1 --n-envs 9 --batch-size 4", "batch_size is 4; wanted"),
    "option of another algorithm": (
        "train CartPole-v1 --algo reinforce --max-kl 0.1",
        "'max_kl' is not an option of REINFORCE",
    ),
    "option of the environment": (
        'train CartPole-v1 --env-options {"nonsense":1}',
        "gymnasium cannot make 'CartPole-v1'",
    ),
    "unsupported space": ("train Textual-v0", "space Text is not supported"),
    "folder below a file": ("train CartPole-v1 --run-dir {file}/run", "cannot be written"),
    "folder in proc": ("train CartPole-v1 --run-dir /proc/natgrad", "cannot be written"),
    "folder of another run": ("train CartPole-v1 --run-dir {run}", "holds another run"),
    "resume nothing": ("train --resume {empty}/nothing", "is no folder of a run"),
    "resume an empty folder": ("train --resume {empty}", "is no folder of a run"),
    "resume with options": ("train --resume {run} --gamma 0.9", "drop gamma"),
    "resume with an environment": ("train CartPole-v1 --resume {run}", "drop env"),
    "resume a damaged run": ("train --resume {damaged}", "has no sound checkpoint"),
    "evaluate nothing": ("eval {empty}/nothing", "does not exist; wanted the folder of a run"),
    "evaluate an empty folder": ("eval {empty}", "has no sound checkpoint"),
    "evaluate a damaged run": ("eval {damaged}", "has no sound checkpoint"),
    "evaluate a text": ("eval {file}", "it is damaged or no checkpoint at all"),
    "enjoy nothing": ("enjoy {empty}/nothing --gif a.gif", "does not exist"),
    "enjoy into no folder": ("enjoy {painted} --gif {empty}/no/a.gif", "cannot write"),
    "enjoy what cannot be drawn": ("enjoy {run} --gif a.gif", "cannot show"),
    "plot nothing": ("plot {empty} -o {empty}/a.png", "is no folder of a run"),
    "plot without episodes": ("plot {eventless} -o {empty}/a.png", "no episode has finished"),
    "plot into no folder": ("plot {run} -o {empty}/no/a.png", "cannot write"),
    "plot in no format": ("plot {run} -o {empty}/a.xyz", "xyz"),
}
BAD_SYNTAX = {
    "no command": ("", "required: COMMAND"),
    "unknown command": ("trian CartPole-v1", "invalid choice: 'trian'"),
    "unknown option": ("train CartPole-v1 --gama 0.9", "unrecognized arguments: --gama"),
    "unknown choice": ("train CartPole-v1 --critic sgd", "invalid choice: 'sgd'"),
    "unknown algorithm": ("train CartPole-v1 --algo ppo", "invalid choice: 'ppo'"),
    "text for a number": ("train CartPole-v1 --gamma high", "invalid float value: 'high'"),
    "half a step": ("train CartPole-v1 --steps 0.5", "'0.5' is not an integer >= 1"),
    "no steps": ("train CartPole-v1 --steps 0", "'0' is not an integer >= 1"),
    "endless steps": ("train CartPole-v1 --steps inf", "'inf' is not an integer >= 1"),
    "bad layers": ("train CartPole-v1 --hidden 64x64", "integers separated by commas"),
    "bad JSON": ("train CartPole-v1 --env-options [1]", "is not a JSON object"),
    "no run": ("eval", "required: RUN"),
    "no episodes": ("eval {run} --episodes 0", "'0' is not an integer >= 1"),
}


@pytest.fixture(scope="module")
def places(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "file").write_text("no run")
    for name, env in (("damaged", "CartPole-v1"), ("painted", "Painted-v0")):
        assert cli.main(["train", env, *SHORT, "--run-dir", str(folder / name)]) == 0
    for path in runs.checkpoints(folder / "damaged"):
        path.write_bytes(path.read_bytes()[:-50])
    (folder / "eventless").mkdir()
    (folder / "eventless" / "config.json").write_text((trained / "config.json").read_text())
    (folder / "eventless" / "monitor.csv").write_text('#{"t_start": 0}\nr,l,t\n')
    names = ("empty", "file", "damaged", "painted", "eventless")
    return {"run": trained, **{name: folder / name for name in names}}


def check_refusal(code, output, errors, message):
    assert (code, output) == (2, "")
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.filterwarnings("default:.*trying the one before:UserWarning")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, places, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, message = BAD[case]
    if case == "enjoy what cannot be drawn":
        monkeypatch.setitem(sys.modules, "pygame", None)
    before = {path: path.stat().st_mtime_ns for path in places["run"].rglob("*")}
    arguments = [word.format_map(places) if "{" in word and '"' not in word else word
                 for word in command.split()]  # fmt: skip
    code, output, errors = main(capsys, *arguments)
    check_refusal(code, output, errors, message)
    *others, last = errors.splitlines()
    assert last.startswith("natgrad: error: ")
    assert all(line.startswith("natgrad: warning: ") for line in others)
    assert {path: path.stat().st_mtime_ns for path in places["run"].rglob("*")} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", BAD_SYNTAX)
def test_bad_syntax_shows_the_usage_and_exit_code_2(case, places, capsys):
    command, message = BAD_SYNTAX[case]
    arguments = [word.format_map(places) for word in command.split()]
    code, output, errors = main(capsys, *arguments)
    check_refusal(code, output, errors, message)
    assert errors.startswith("usage: natgrad")


def test_bad_input_in_a_process_leaves_no_traceback(tmp_path):
    code, output, errors = natgrad_command("train", "CartPole-v9", cwd=tmp_path)
    check_refusal(code, output, errors, "CartPole-v9")
    assert errors.count("\n") == 1
    assert os.listdir(tmp_path) == []  # noqa: PTH208


FULL_DISK = """
import resource, sys
from natgrad import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_line_and_exit_code_2(tmp_path):
    code, output, errors = run(
        "-c", FULL_DISK, "train", "CartPole-v1", "--steps", 4096, "--run-dir", tmp_path / "run"
    )
    check_refusal(code, output, errors, "File too large; what was there before is unchanged")
    assert errors.count("\n") == 1
