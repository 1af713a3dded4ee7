"""The command `natgrad`: train, presets, eval, enjoy, plot, bench, gallery."""

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
import textwrap
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from natgrad import __version__
from natgrad.agents import values
from natgrad.agents.config import AgentConfig, NPGConfig, REINFORCEConfig, TRPOConfig, range_of

if TYPE_CHECKING:
    from natgrad.agents.agent import Agent

__all__ = ["main"]

CONFIGS: dict[str, type[AgentConfig]] = {
    "trpo": TRPOConfig,
    "npg": NPGConfig,
    "reinforce": REINFORCEConfig,
}
DEFAULT_STEPS = 100_000
NOT_GIVEN = argparse.SUPPRESS  # so that the classes' own defaults hold


class UsageError(Exception):
    """Something is wrong with the command line: one line for the user, exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Returns:
        The exit code: 0, 1 if training failed, 2 for bad input, 130 after an interrupt.
    """
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            code: int = arguments.run(arguments)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 1
    except (UsageError, ValueError, TypeError, ImportError) as error:
        print(f"natgrad: error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(f"natgrad: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return code


def _train(arguments: argparse.Namespace) -> int:
    from natgrad.agents import Agent, Callback, StopOnReturn, evaluate, presets, runs
    from natgrad.agents.agent import ALGORITHMS

    names = {f.name for config in CONFIGS.values() for f in dataclasses.fields(config)}
    options = {name: value for name, value in vars(arguments).items() if name in names}
    if arguments.resume is not None:
        given = sorted(options) + [x for x in ("env", "algo", "run_dir") if getattr(arguments, x)]
        given += [] if arguments.preset else ["no_preset"]
        if given:
            raise UsageError(f"--resume takes a run as it is; drop {', '.join(given)}")
        folder = Path(arguments.resume)
        goal = arguments.steps or runs.read_config(folder).get("total_timesteps", DEFAULT_STEPS)
        agent = Agent.load(folder)
    else:
        if arguments.env is None:
            raise UsageError("train needs an environment, such as CartPole-v1, or --resume RUN")
        algorithm = ALGORITHMS[arguments.algo or "trpo"]
        if arguments.preset:
            agent = algorithm(arguments.env, **options)
            goal = arguments.steps or presets.steps(arguments.env) or DEFAULT_STEPS
        else:
            agent = algorithm(arguments.env, algorithm.config_class.from_options(options))
            goal = arguments.steps or DEFAULT_STEPS
        if arguments.run_dir is not None:
            folder = Path(arguments.run_dir)
        else:
            folder = runs.fresh_folder(agent.env_id, agent.algorithm, agent.config.seed)

    before = agent.num_timesteps
    callbacks: list[Callback] = []
    if arguments.target_return is not None:
        callbacks.append(StopOnReturn(arguments.target_return))
    seconds = agent.training_seconds
    if goal > before:
        show = arguments.progress if arguments.progress is not None else sys.stderr.isatty()
        try:
            agent.learn(
                goal - before,
                callbacks,
                progress_bar=show,
                log=arguments.verbose,
                run_dir=folder,
                checkpoint_every=arguments.checkpoint_every,
            )
        except (KeyboardInterrupt, RuntimeError) as error:
            reason = str(error) or "interrupted"
            error.args = (f"{reason}; to go on: natgrad train --resume {folder}",)
            raise
    seconds = agent.training_seconds - seconds
    steps = agent.num_timesteps - before
    episodes = agent.recent_episodes
    mean = sum(e.total_reward for e in episodes) / len(episodes) if episodes else float("nan")
    print(
        f"mean return of the last {len(episodes)} episodes {mean:.2f} | {agent.num_timesteps} "
        f"steps | {seconds:.1f} s, {steps / seconds if steps else 0:.0f} steps/s | {folder}"
    )
    if arguments.evaluate:
        print(f"evaluation: {evaluate(agent, episodes=arguments.evaluate)}")
    agent.close()
    return 0


def _presets(arguments: argparse.Namespace) -> int:
    from natgrad.agents import presets

    known = presets.names()
    for name in arguments.env or known:
        if name not in known:
            raise UsageError(f"no preset for {name!r}; there are {', '.join(known)}")
        options = presets.options(name, TRPOConfig)
        print(f"{name}  --steps {presets.steps(name)}")
        # A null keeps an option and its value on one line.
        words = (_argument(option, value).replace(" ", "\0") for option, value in options.items())
        for line in textwrap.wrap(" ".join(words), 76, break_on_hyphens=False):
            print("   ", line.replace("\0", " "))
    return 0


def _argument(option: str, value: Any) -> str:
    """An option as the command line takes it."""
    flag = option.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    if isinstance(value, list | tuple):
        return f"--{flag} {','.join(map(str, value)) or 'none'}"
    if isinstance(value, dict):
        return f"--{flag} '{json.dumps(value)}'"
    return f"--{flag} {shlex.quote(str(value))}"


def _eval(arguments: argparse.Namespace) -> int:
    from natgrad.agents.evaluation import evaluate

    result = evaluate(
        _loaded(arguments.path),
        episodes=arguments.episodes,
        seed=arguments.seed,
        deterministic=not arguments.stochastic,
    )
    print(f"return {result}; mean length {result.lengths.mean():.1f}")
    return 0


def _enjoy(arguments: argparse.Namespace) -> int:
    from natgrad.agents.evaluation import evaluate

    displays = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
    if arguments.gif is not None and not any(os.environ.get(name) for name in displays):
        os.environ["MUJOCO_GL"] = "egl"  # MuJoCo's default cannot draw without a display
    agent = _loaded(arguments.path)
    animation = _Animation(arguments.max_frames) if arguments.gif is not None else None
    try:
        env = agent.make_env(render_mode="human" if animation is None else "rgb_array")
        with env:
            result = evaluate(
                agent,
                env,
                episodes=arguments.episodes,
                seed=arguments.seed,
                deterministic=not arguments.stochastic,
                on_step=animation,
            )
    except Exception as error:  # whatever is missing for rendering fails in a way of its own
        raise UsageError(f"cannot show {agent.env_id}: {type(error).__name__}: {error}") from error
    if animation is not None:
        try:
            print(f"{animation.save(arguments.gif)} frames in {arguments.gif}")
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"cannot write {arguments.gif!r}: {reason}") from error
    print(f"return {result}")
    return 0


class _Animation:
    """Takes pictures of an environment, up to a number of them."""

    def __init__(self, limit: int) -> None:
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError("GIFs need pillow: pip install 'natgrad[render]'") from error
        self._image = Image
        self._limit = limit
        self._frames: list[Any] = []
        self._calls = 0
        self._stride, self._milliseconds = 1, 20

    def __call__(self, env: Any) -> None:
        # Viewers slow down pictures that last less than two hundredths of a second.
        rate = env.metadata.get("render_fps") or 30
        self._stride = max(1, round(rate / 50))
        self._milliseconds = max(20, round(100 * self._stride / rate) * 10)
        if self._calls % self._stride == 0 and len(self._frames) < self._limit:
            picture = self._image.fromarray(env.render())
            # With a palette at once, which is how a GIF stores it, in a third of the memory.
            self._frames.append(picture.convert("P", palette=self._image.Palette.ADAPTIVE))
        self._calls += 1

    def save(self, path: str) -> int:
        """Writes the GIF and returns its number of pictures."""
        first, *others = self._frames
        first.save(
            path, format="GIF", save_all=True, append_images=others, loop=0,
            duration=self._milliseconds,
        )  # fmt: skip
        return len(self._frames)


def _plot(arguments: argparse.Namespace) -> int:
    from natgrad.agents.plot import plot

    plot(arguments.runs, arguments.output, window=arguments.window, title=arguments.title)
    print(arguments.output)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from natgrad import bench

    comparison = bench.peers() if arguments.what == "peers" else None
    known = bench.PIECES if comparison is None else comparison.PEERS
    given = {"shape": bench.SHAPES, "piece": known, "peer": known}
    for option, other in (("piece", "peers"), ("dtype", "peers"), ("peer", "pieces")):
        if getattr(arguments, option) is not None and arguments.what == other:
            raise UsageError(f"--{option} is no option of `natgrad bench {other}`")
    for option, names in given.items():
        for name in getattr(arguments, option) or ():
            if name not in names:
                raise UsageError(f"--{option} {name}: want one of {', '.join(names)}")
    shapes = [bench.SHAPES[name] for name in arguments.shape or bench.SHAPES]
    keywords = {
        "threads": arguments.threads,
        "json_file": arguments.json,
        "csv_file": arguments.output,
        "progress": arguments.progress,
    }
    if arguments.seconds is not None:
        keywords["seconds"] = arguments.seconds
    if comparison is not None:
        comparison.bench_peers(shapes, arguments.peer or list(known), **keywords)
    else:
        dtype: Any = arguments.dtype or "float32"
        bench.bench(shapes, arguments.piece or list(known), dtype=dtype, **keywords)
    return 0


def _gallery(arguments: argparse.Namespace) -> int:
    from natgrad.theory import gallery

    if arguments.list:
        for name, picture in gallery.pictures().items():
            print(f"{name:<24}{picture.title}")
        return 0
    print(gallery.write(arguments.names, arguments.output, progress=arguments.progress))
    return 0


def _loaded(path: str) -> "Agent":
    from natgrad.agents.agent import Agent

    if not Path(path).exists():
        raise UsageError(f"{path!r} does not exist; wanted the folder of a run or a checkpoint")
    return Agent.load(path)


# The parser --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="natgrad",
        description="Natural policy gradients with an analytic Fisher matrix.",
        epilog="natgrad COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"natgrad {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = _command(
        commands,
        "train",
        _train,
        "train an agent",
        "Trains an agent and records the run in a folder: config.json, progress.csv, monitor.csv, "
        "checkpoints and, if tensorboard is installed, its events. Ctrl-C saves and stops; "
        "--resume goes on from there as if nothing had happened.",
    )
    train.usage = (
        "natgrad train ENV [options]\n       natgrad train --resume RUN [--steps N] [options]"
    )
    train.add_argument("env", nargs="?", metavar="ENV", help="id in Gymnasium, such as CartPole-v1")
    train.add_argument("--algo", choices=sorted(CONFIGS), help="update rule (default: trpo)")
    train.add_argument(
        "--steps", type=_count, metavar="N",
        help="environment steps of the whole run (default: of the preset, or "
        f"{DEFAULT_STEPS})",
    )  # fmt: skip
    train.add_argument(
        "--no-preset", dest="preset", action="store_false",
        help="start from the defaults below, not from the environment's preset",
    )  # fmt: skip
    train.add_argument(
        "--target-return", type=float, metavar="R",
        help="stop when the mean return of the last 100 episodes reaches this",
    )  # fmt: skip
    train.add_argument(
        "--run-dir", metavar="DIR", help="folder (default: a new one, runs/ENV_ALGO_SEED_N)"
    )
    train.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    train.add_argument(
        "--checkpoint-every", type=_count, default=10, metavar="N",
        help="updates between checkpoints (default: 10)",
    )  # fmt: skip
    train.add_argument(
        "--evaluate", type=_count, metavar="N", help="evaluate over N episodes at the end"
    )
    train.add_argument(
        "--progress", action=argparse.BooleanOptionalAction,
        help="progress bar (default: if stderr is a terminal)",
    )  # fmt: skip
    train.add_argument("-v", "--verbose", action="store_true", help="print a table per update")
    defaults = "; ".join(values.text_of(cls()) for cls in values.CLASSES.values())
    train.epilog = (
        "A VALUE is a number, a name, or how a value of natgrad is made, in quotes, such as "
        "'AdaptiveDamping(0.1, low=1e-4)'. What is left out is at its default: "
        f"{defaults}."
    )
    _add_options(train)

    presets = _command(
        commands,
        "presets",
        _presets,
        "list the settings that environments start from",
        "Prints the settings that `natgrad train` and the agents take for an environment, where "
        "nothing else is said, as options of `natgrad train`.",
    )
    presets.add_argument("env", nargs="*", metavar="ENV", help="(default: all that have one)")

    evaluation = _command(
        commands, "eval", _eval, "measure a trained agent", "Runs episodes with a trained agent."
    )
    enjoy = _command(
        commands, "enjoy", _enjoy, "watch a trained agent", "Shows a trained agent in a window."
    )
    for command, episodes in ((evaluation, 100), (enjoy, 1)):
        command.add_argument("path", metavar="RUN", help="folder of a run, or a checkpoint")
        command.add_argument(
            "--episodes", type=_count, default=episodes, metavar="N",
            help=f"episodes (default: {episodes})",
        )  # fmt: skip
        command.add_argument(
            "--seed", type=int, default=0, metavar="N", help="seed of the episodes (default: 0)"
        )
        command.add_argument(
            "--stochastic", action="store_true", help="sample actions instead of taking the mode"
        )
    enjoy.add_argument("--gif", metavar="FILE", help="write an animation instead of a window")
    enjoy.add_argument(
        "--max-frames", type=_count, default=1000, metavar="N",
        help="frames of the animation at most (default: 1000)",
    )  # fmt: skip

    plot = _command(
        commands,
        "plot",
        _plot,
        "draw learning curves",
        "Draws the learning curves of runs. Those of one environment and algorithm are shown by "
        "their interquartile mean, with a band of its 95 % bootstrap interval.",
    )
    plot.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    plot.add_argument("-o", "--output", default="learning_curves.png", metavar="FILE",
                      help="picture (default: learning_curves.png)")  # fmt: skip
    plot.add_argument("--window", type=_count, default=100, metavar="N",
                      help="episodes that a point averages (default: 100)")  # fmt: skip
    plot.add_argument("--title", metavar="TEXT", help="title of the picture")

    bench = _command(
        commands,
        "bench",
        _bench,
        "measure the speed of this machine's natgrad",
        "Times every piece of the core on problems of several shapes, as GFLOP/s and fraction of "
        "the measured peak. `natgrad bench peers`, in a checkout of the repository, times whole "
        "updates against other libraries, in turn. Answers are checked before they are timed.",
    )
    bench.add_argument("what", nargs="?", choices=("pieces", "peers"), default="pieces")
    bench.add_argument("--shape", nargs="+", metavar="NAME",
                       help="S1, S2, S2-25k, S3, S4, S5, odd (default: all)")  # fmt: skip
    bench.add_argument("--threads", type=_count, metavar="N",
                       help="threads of everybody (default: those of natgrad)")  # fmt: skip
    bench.add_argument("--seconds", type=float, metavar="X",
                       help="on each piece (default: 0.3), or with peers on each shape "
                       "(default: 6)")  # fmt: skip
    bench.add_argument("--json", metavar="FILE", help="write machine and rows as JSON")
    bench.add_argument("--output", metavar="FILE", help="write rows as CSV")
    bench.add_argument(
        "--progress", action=argparse.BooleanOptionalAction,
        help="progress bar (default: if stderr is a terminal)",
    )  # fmt: skip
    pieces = bench.add_argument_group("pieces")
    pieces.add_argument("--piece", nargs="+", metavar="NAME",
                        help="forward, gradient, product, kl, cg, update, critic, gae, sample-1, "
                        "sample-8 (default: all)")  # fmt: skip
    pieces.add_argument("--dtype", choices=("float32", "float64"), help="(default: float32)")
    peers = bench.add_argument_group("peers")
    peers.add_argument("--peer", nargs="+", metavar="NAME",
                       help="jax, sb3-contrib, tianshou (default: all installed)")  # fmt: skip

    gallery = _command(
        commands,
        "gallery",
        _gallery,
        "draw the ideas behind natural gradients",
        "Draws every picture as PNG, writes its data as CSV, and makes a page, index.html, which "
        "says what to see and how each was made.",
    )
    gallery.add_argument("names", nargs="*", metavar="NAME", help="of pictures (default: all)")
    gallery.add_argument("-o", "--output", default="gallery", metavar="DIR",
                         help="folder (default: gallery)")  # fmt: skip
    gallery.add_argument("--list", action="store_true", help="print names and titles, draw nothing")
    gallery.add_argument(
        "--progress", action=argparse.BooleanOptionalAction,
        help="progress bar (default: if stderr is a terminal)",
    )  # fmt: skip
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, more: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=more)
    parser.set_defaults(run=run)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    """One option per field of the configuration classes, grouped as they are."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    seen: set[str] = set()
    for config in CONFIGS.values():
        hints = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            if field.name in seen:
                continue
            seen.add(field.name)
            owners = [a for a, c in CONFIGS.items() if field.name in c.__dataclass_fields__]
            title = field.metadata["group"]
            if len(owners) < len(CONFIGS):
                title += f" ({', '.join(owners)} only)"
            group = groups.get(title) or parser.add_argument_group(title)
            groups[title] = group
            _add_option(group, field, hints[field.name], _default(field.name, owners))


def _default(name: str, owners: list[str]) -> str:
    """The default of an option; of each algorithm where they differ."""
    shown = {a: _shown(CONFIGS[a].__dataclass_fields__[name]) for a in owners}
    if len(set(shown.values())) == 1:
        return shown[owners[0]]
    return ", ".join(f"{value} for {a}" for a, value in shown.items())


def _add_option(group: Any, field: dataclasses.Field[Any], annotation: Any, default: str) -> None:
    flag = f"--{field.name.replace('_', '-')}"
    keywords: dict[str, Any] = {"default": NOT_GIVEN, "dest": field.name}
    wanted = range_of(field, annotation)
    if annotation is bool:
        keywords |= {"action": argparse.BooleanOptionalAction}
        wanted = ""  # which the flag says
    elif typing.get_origin(annotation) is Literal:
        keywords |= {"choices": typing.get_args(annotation)}
        wanted = ""
    elif typing.get_origin(annotation) is tuple:
        keywords |= {"type": _integers, "metavar": "N,N"}
        wanted = "integers separated by commas, or none"
    elif annotation in (int, float):
        keywords |= {"type": annotation, "metavar": "N" if annotation is int else "X"}
    elif annotation == Mapping[str, Any]:
        keywords |= {"type": _json_object, "metavar": "JSON"}
        wanted = ""
    else:
        keywords |= {"type": _number_or_text, "metavar": "VALUE"}
    source = field.metadata["source"]
    details = [wanted, f"default: {default}" + (f", {source}" if source else "")]
    text = f"{field.metadata['help']} ({'; '.join(filter(None, details))})"
    group.add_argument(flag, help=text.replace("%", "%%"), **keywords)


def _shown(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "none"
    if isinstance(field.default, tuple):
        return ",".join(map(str, field.default))
    return str(field.default)


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(item) for item in text.split(",")) if text != "none" else ()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither integers separated by commas, such as 64,64, nor none"
        ) from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object such as '{{\"key\": 1}}'")
    return value


def _count(text: str) -> int:
    try:
        value = float(text)  # so that 1e6 is understood
    except ValueError:
        value = 0.0
    if value < 1 or not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(value)


def _show_warning(message: Warning | str, *details: Any) -> None:
    print(f"natgrad: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
