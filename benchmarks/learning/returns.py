"""Returns on the tasks of docs/results.md: presets, defaults, sb3-contrib with RL Zoo's settings.

    python -m benchmarks.learning.returns [--task ...] [--side preset default zoo envpool]
    python -m benchmarks.learning.returns --report [--picture FILE]

Trains every task with every side and seed, each run in a process of its own with one thread, seed
by seed, so that a study that is ended early treats all tasks and sides alike. A row has the mean
return of the last 100 training episodes, which are stochastic; the mean return of 100 deterministic
episodes in environments whose seeds no training has seen; and the learning curve: for each of 50
equal parts of the training its mean return and the seconds so far. Seconds are the processor time
of the process, which is the time on a clock if the machine is idle. Runs that have a row in the
output are not made again.

--report only prints the tables: interquartile means over seeds with 95 % bootstrap intervals, and
the time to a return, which is the number of seconds until the mean training return of a fiftieth of
the run, averaged over seeds, first reaches that of sb3-contrib in the last tenth of its budget.

sb3-contrib's side needs natgrad[sb3]; its settings are those of RL Zoo's trpo.yml, observations and
rewards normalised where it says so. EnvPool's side needs natgrad[envpool]; the seconds of its
threads count as well.
"""

import itertools
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import natgrad
from benchmarks import harness, pictures
from benchmarks.harness import Row
from benchmarks.pictures import numbers
from natgrad.agents.agent import Agent
from natgrad.agents.config import TRPOConfig
from natgrad.agents.statistics import bootstrap_interval, interquartile_mean

# Environment steps, and the best published return of TRPO or NPG after as many steps.
TASKS: dict[str, tuple[int, float]] = {
    "CartPole-v1": (100_000, 500),
    "Pendulum-v1": (100_000, -174),
    "Acrobot-v1": (100_000, -83),
    "MountainCar-v0": (100_000, -107),
    "MountainCarContinuous-v0": (50_000, 92),
    "LunarLanderContinuous-v3": (200_000, 262),
    "InvertedDoublePendulum-v5": (1_000_000, 9243),
    "HalfCheetah-v5": (1_000_000, 4470),
    "Hopper-v5": (1_000_000, 3600),
    "Walker2d-v5": (1_000_000, 4900),
    "Ant-v5": (1_000_000, 4900),
    "Swimmer-v5": (1_000_000, 365),
    "Humanoid-v5": (1_000_000, 810),
    "Reacher-v5": (1_000_000, -4.5),
}
# RL Zoo's settings for sb3-contrib's TRPO (hyperparams/trpo.yml of 2026-04-23), without those that
# are sb3-contrib's defaults. Every task has two environments, which are stepped in turn.
MUJOCO = {"normalize": True, "n_steps": 1024, "batch_size": 128, "cg_max_steps": 25,
          "n_critic_updates": 20}  # fmt: skip
ZOO: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"n_steps": 512, "batch_size": 512, "cg_damping": 1e-3, "gae_lambda": 0.98,
                    "n_critic_updates": 20},
    "Pendulum-v1": {"n_steps": 1024, "gamma": 0.9, "n_critic_updates": 15, "use_sde": True,
                    "sde_sample_freq": 4},
    "Acrobot-v1": {"normalize": True, "n_steps": 1024},
    "MountainCar-v0": {"normalize": True, "n_steps": 1024, "n_critic_updates": 20},
    "MountainCarContinuous-v0": {"normalize": True, "use_sde": True, "sde_sample_freq": 4},
    "LunarLanderContinuous-v3": {"normalize": True, "n_steps": 1024, "n_critic_updates": 20},
    "HalfCheetah-v5": {**MUJOCO, "target_kl": 0.04},
    "Swimmer-v5": {**MUJOCO, "gamma": 0.9999},
}  # fmt: skip
LABELS = {"preset": "natgrad", "default": "natgrad, defaults", "zoo": "sb3-contrib, RL Zoo",
          "envpool": "natgrad on EnvPool"}  # fmt: skip
PARTS = 50
LAST = 5  # parts that are the end of a run
KEYS = ("task", "side", "seed")
COLUMNS = ("steps", "training", "evaluation", "evaluation_std", "seconds", "curve", "clock")
Run = tuple[str, str, int]
Episodes = list[tuple[int, float, float]]  # steps so far, seconds so far, return


def ours(task: str, steps: int, seed: int, agent: natgrad.TRPO) -> Row:
    """One run of natgrad."""
    episodes: Episodes = []
    began = time.process_time()

    def note(agent: Agent, log: Any) -> None:
        now = time.process_time() - began
        episodes.extend((agent.num_timesteps, now, e.total_reward) for e in agent.last_episodes)

    agent.learn(steps, callback=note)
    evaluation = natgrad.evaluate(agent, episodes=100, seed=10_000 + seed)
    agent.close()
    return summary(agent.num_timesteps, episodes, evaluation.returns)


def with_preset(task: str, steps: int, seed: int) -> Row:
    """One run of natgrad with its preset."""
    return ours(task, steps, seed, natgrad.TRPO(task, seed=seed))


def with_envpool(task: str, steps: int, seed: int) -> Row:
    """One run of natgrad with its preset, in environments that EnvPool steps."""
    return ours(task, steps, seed, natgrad.TRPO(task, seed=seed, stepper="envpool"))


def with_defaults(task: str, steps: int, seed: int) -> Row:
    """One run of natgrad with the defaults of TRPOConfig, without a preset."""
    return ours(task, steps, seed, natgrad.TRPO(task, TRPOConfig(seed=seed)))


def zoo(task: str, steps: int, seed: int) -> Row:
    """One run of sb3-contrib with RL Zoo's settings."""
    with harness.needs("natgrad[sb3]"):
        import torch
        from sb3_contrib import TRPO
        from stable_baselines3.common.callbacks import BaseCallback
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.evaluation import evaluate_policy
        from stable_baselines3.common.vec_env import VecNormalize

    class Note(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            now = time.process_time() - began
            for info in self.locals["infos"]:
                if "episode" in info:
                    episodes.append((self.num_timesteps, now, float(info["episode"]["r"])))
            return True

    torch.set_num_threads(1)
    options = dict(ZOO.get(task, MUJOCO))
    normalize = options.pop("normalize", False)
    environments, unseen = (
        make_vec_env(task, 2, seed=seed),
        make_vec_env(task, 1, seed=10_000 + seed),
    )
    if normalize:
        gamma = options.get("gamma", 0.99)
        environments = VecNormalize(environments, gamma=gamma)
        unseen = VecNormalize(unseen, gamma=gamma, training=False, norm_reward=False)
        unseen.obs_rms = environments.obs_rms
    episodes: Episodes = []
    model = TRPO("MlpPolicy", environments, seed=seed, device="cpu", **options)
    began = time.process_time()
    model.learn(steps, callback=Note())
    returns, _ = evaluate_policy(model, unseen, 100, return_episode_rewards=True)
    environments.close()
    unseen.close()
    return summary(model.num_timesteps, episodes, np.array(returns))


SIDES: dict[str, Callable[[str, int, int], Row]] = {
    "preset": with_preset,
    "default": with_defaults,
    "zoo": zoo,
    "envpool": with_envpool,
}


def summary(steps: int, episodes: Episodes, evaluation: NDArray[np.float64]) -> Row:
    """The numbers of one run."""
    at, seconds, returns = np.array(episodes).T
    part = np.minimum((at - 1) * PARTS // steps, PARTS - 1)
    parts = [part == k for k in range(PARTS)]
    curve = [returns[here].mean() if here.any() else np.nan for here in parts]
    clock = [seconds[here].max() if here.any() else np.nan for here in parts]
    return {
        "steps": steps,
        "training": round(float(returns[-100:].mean()), 2),
        "evaluation": round(float(evaluation.mean()), 2),
        "evaluation_std": round(float(evaluation.std()), 2),
        "seconds": round(float(seconds[-1]), 2),
        "curve": " ".join(f"{value:.4g}" for value in curve),
        "clock": " ".join(f"{value:.4g}" for value in clock),
    }


def run(job: Run, length: float) -> list[Row]:
    """The row of one run, in a process of its own."""
    warnings.simplefilter("ignore")
    natgrad.set_num_threads(1)
    task, side, seed = job
    found = SIDES[side](task, int(TASKS[task][0] * length), seed)
    return [dict(zip(KEYS, job, strict=True)) | found]


def smooth(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve without gaps: a part in which no episode ended is interpolated."""
    known = np.flatnonzero(np.isfinite(curve))
    return np.interp(np.arange(len(curve)), known, curve[known])


def seconds_to(rows: list[Row], target: float) -> float | None:
    """Seconds until the curve, averaged over seeds, reaches a return; None if it does not."""
    curve = np.mean([smooth(numbers(row, "curve")) for row in rows], axis=0)
    clock = np.mean([smooth(numbers(row, "clock")) for row in rows], axis=0)
    reached = np.flatnonzero(curve >= target)
    return float(clock[reached[0]]) if len(reached) else None


def report(rows: list[Row]) -> str:
    """The tables of docs/results.md, in Markdown."""

    def of(task: str, side: str) -> list[Row]:
        return [row for row in rows if (row["task"], row["side"]) == (task, side)]

    def cell(task: str, side: str, column: str) -> str:
        mine = of(task, side)
        if not mine:
            return "–"
        values = np.array([float(row[column]) for row in mine])
        low, high = bootstrap_interval([values])
        digits = 1 if abs(values.mean()) < 1000 else 0
        middle = interquartile_mean(values)
        return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    lines = ["| task | steps | wanted | training | evaluation | s | evaluation, defaults "
             "| evaluation, sb3-contrib | s |", "|---|" + "---:|" * 8]  # fmt: skip
    for task, (steps, wanted) in TASKS.items():
        seconds = [
            f"{statistics.median(float(row['seconds']) for row in of(task, side)):.1f}"
            if of(task, side) else "–"
            for side in ("preset", "zoo")
        ]  # fmt: skip
        lines.append(
            f"| {task} | {steps // 1000} k | {wanted:g} | {cell(task, 'preset', 'training')} "
            f"| {cell(task, 'preset', 'evaluation')} | {seconds[0]} "
            f"| {cell(task, 'default', 'evaluation')} | {cell(task, 'zoo', 'evaluation')} "
            f"| {seconds[1]} |"
        )
    lines += ["", "| task | return that sb3-contrib ends with | its seconds | natgrad's | ratio "
              "| on EnvPool | ratio |", "|---|" + "---:|" * 6]  # fmt: skip
    for task in TASKS:
        theirs = of(task, "zoo")
        if not theirs:
            continue
        target = float(np.mean([smooth(numbers(row, "curve"))[-LAST:] for row in theirs]))
        first = seconds_to(theirs, target)
        assert first is not None  # no mean exceeds all that it is of
        cells = [f"{target:.4g}", f"{first:.1f}"]
        for side in ("preset", "envpool"):
            mine = of(task, side)
            ours = seconds_to(mine, target) if mine else None
            if ours is not None:
                cells += [f"{ours:.2f}", f"{first / ours:.1f}"]
            else:
                cells += ["not reached" if mine else "–", ""]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Draws training returns against environment steps, a panel for each task."""
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    figure = pictures.figure(13, 2.6 * -(-len(tasks) // 4) + 0.4)
    panels = figure.subplots(-(-len(tasks) // 4), 4, squeeze=False).ravel()
    for axis in panels[len(tasks) :]:
        axis.set_axis_off()
    for axis, task in zip(panels, tasks, strict=False):
        for k, side in enumerate(SIDES):
            mine = [row for row in rows if (row["task"], row["side"]) == (task, side)]
            if mine:
                curves = [smooth(numbers(row, "curve")) for row in mine]
                steps = float(mine[0]["steps"])
                pictures.learning_curve(axis, steps, curves, f"C{k}", LABELS[side])
        axis.axhline(TASKS[task][1], color="gray", linewidth=0.8, linestyle="--")
        pictures.finish_curves(axis, task)
    labels = {
        label: line
        for axis in panels
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels, loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel("environment steps")
    figure.supylabel("return of training episodes")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Runs what is not in the output yet, then prints the tables."""
    parser = harness.parser(
        __doc__,
        seeds=5,
        jobs=os.cpu_count(),
        length=1.0,
        output=harness.RESULTS / "returns.csv",
        picture=None,
    )
    parser.add_argument(
        "--task", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME",
        help="environments",
    )  # fmt: skip
    parser.add_argument(
        "--side", nargs="+", choices=SIDES, default=["preset", "default"],
        help="who trains, and with which settings",
    )  # fmt: skip
    parser.add_argument("--report", action="store_true", help="only print the tables")
    quick = {"seeds": 1, "length": 0.05, "output": None, "task": ["CartPole-v1"]}
    options = harness.parse(parser, quick)
    study = harness.Study(options.output, KEYS, COLUMNS)
    jobs = itertools.product(range(options.seeds), options.task, options.side)
    if not options.report:
        todo = study.missing((task, side, seed) for seed, task, side in jobs)
        study.run(todo, partial(run, length=options.length), options.jobs)
    print(report(study.rows))
    if options.picture is not None:
        draw(study.rows, options.picture)


if __name__ == "__main__":
    main()
