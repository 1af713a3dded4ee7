"""Learning curves of the hosts' algorithms and of the drop-in classes: do they overlap?

    pip install 'natgrad[sb3,tianshou,mujoco,plot]' scipy
    python -m benchmarks.hosts.curves_versus_hosts --picture curves.png

Five seeds each of CartPole-v1, Pendulum-v1 and HalfCheetah-v5, equal seeds and settings on both
sides: sb3-contrib's defaults; for tianshou those of its MuJoCo examples, with four environments,
2048 steps an update and observations as they are. A curve is the mean return of the episodes that
ended in each tenth of the training.

The test: for each seed the area under the curve; Welch's two-sided t test on the five areas of
either side. The curves of a row overlap unless p < 0.05 / 9: nine comparisons, and one chance in
twenty that any of nine equal pairs is called different. The table has the 95 % interval of the
difference too, because five seeds show only differences of about its width.

Everything runs on one thread. Every training adds a row to the CSV file, and what has a row is not
trained again.
"""

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

import natgrad
from benchmarks import harness, pictures

with harness.needs("natgrad[sb3,tianshou,mujoco,plot,optimize]"):
    import sb3_contrib
    import torch
    from scipy import stats
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from tianshou import algorithm as tianshou
    from tianshou.algorithm.algorithm_base import policy_within_training_step
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
    from torch import nn
    from torch.distributions import Categorical, Independent, Normal

    import natgrad.sb3
    import natgrad.tianshou

STEPS = {"CartPole-v1": 50_000, "Pendulum-v1": 100_000, "HalfCheetah-v5": 100_000}
PARTS = 10
ALGORITHMS = {
    "sb3-contrib TRPO": (sb3_contrib.TRPO, natgrad.sb3.TRPO),
    "tianshou TRPO": (tianshou.TRPO, natgrad.tianshou.TRPO),
    "tianshou NPG": (tianshou.NPG, natgrad.tianshou.NPG),
}
SIDES = ("host", "natgrad")
KEYS = ("task", "algorithm", "side", "seed")
COLUMNS = [f"part_{k}" for k in range(PARTS)]
Episodes = list[tuple[int, float]]  # steps so far, return


class Returns(BaseCallback):  # type: ignore[misc]
    """Steps and returns at the ends of episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: Episodes = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes.append((self.num_timesteps, float(info["episode"]["r"])))
        return True


def train_sb3(cls: Any, task: str, steps: int, seed: int) -> Episodes:
    """One training of sb3-contrib's class or ours."""
    record = Returns()
    model = cls("MlpPolicy", make_vec_env(task, seed=seed), seed=seed, device="cpu")
    model.learn(steps, callback=record)
    return record.episodes


def tianshou_algorithm(cls: Any, env: Any) -> Any:
    """As tianshou's MuJoCo examples build it."""

    def net() -> Any:
        return Net(
            state_shape=env.observation_space.shape, hidden_sizes=(64, 64), activation=nn.Tanh
        )

    if isinstance(env.action_space, spaces.Discrete):
        actor = DiscreteActor(
            preprocess_net=net(), action_shape=env.action_space.n, softmax_output=False
        )
        critic: Any = DiscreteCritic(preprocess_net=net())
        options = {
            "dist_fn": lambda logits: Categorical(logits=logits),
            "action_scaling": False,
            "action_bound_method": None,
        }
    else:
        actor = ContinuousActorProbabilistic(
            preprocess_net=net(), action_shape=env.action_space.shape, unbounded=True
        )
        critic = ContinuousCritic(preprocess_net=net())
        nn.init.constant_(actor.sigma_param, -0.5)
        options = {
            "dist_fn": lambda loc_scale: Independent(Normal(*loc_scale), 1),
            "action_scaling": True,
            "action_bound_method": "clip",
        }
    for layer in [*actor.modules(), *critic.modules()]:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=np.sqrt(2))
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        [layer for layer in actor.modules() if isinstance(layer, nn.Linear)][-1].weight.mul_(0.01)
    policy = ProbabilisticActorPolicy(actor=actor, action_space=env.action_space, **options)
    return cls(
        policy=policy,
        critic=critic,
        optim=AdamOptimizerFactory(lr=1e-3),
        gamma=0.99,
        gae_lambda=0.95,
        return_scaling=True,
        optim_critic_iters=20,
        **({"trust_region_size": 0.1} if "NPG" in cls.__name__ else {}),
    )


def train_tianshou(cls: Any, task: str, steps: int, seed: int) -> Episodes:
    """One training of tianshou's class or ours."""
    copies, batch, episodes = 4, 2048, Episodes()
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # tianshou's generator
    envs = DummyVectorEnv([lambda: gymnasium.make(task)] * copies)
    envs.seed([1000 * seed + i for i in range(copies)])
    algorithm = tianshou_algorithm(cls, gymnasium.make(task))
    collector = Collector(algorithm, envs, VectorReplayBuffer(batch, copies))
    collector.reset()
    for done in range(batch, steps + batch, batch):
        with policy_within_training_step(algorithm.policy):
            collected = collector.collect(n_step=batch)
            algorithm.update(collector.buffer, batch_size=None, repeat=1)
        collector.reset_buffer(keep_statistics=True)
        episodes += [(done, float(value)) for value in collected.returns]
    return episodes


def curve(episodes: Episodes, steps: int) -> list[float]:
    """(PARTS,) mean returns; a part in which no episode ended lies between its neighbours."""
    ends, returns = np.array(episodes).T
    part = np.minimum((ends - 1) * PARTS // steps, PARTS - 1)
    found = np.unique(part)
    means = [float(returns[part == k].mean()) for k in found]
    return [float(mean) for mean in np.interp(range(PARTS), found, means)]


def train(job: tuple[str, str, str, int], length: float) -> list[harness.Row]:
    """The row of one training."""
    task, algorithm, side, seed = job
    run: Callable[..., Episodes] = train_sb3 if algorithm.startswith("sb3") else train_tianshou
    steps = int(length * STEPS[task])
    means = curve(run(ALGORITHMS[algorithm][SIDES.index(side)], task, steps, seed), steps)
    parts = {name: f"{mean:.2f}" for name, mean in zip(COLUMNS, means, strict=True)}
    return [dict(zip(KEYS, job, strict=True)) | parts]


def runs(rows: list[harness.Row], task: str, algorithm: str, side: str) -> NDArray[np.float64]:
    """(seeds, PARTS) mean returns."""
    mine = [r for r in rows if (r["task"], r["algorithm"], r["side"]) == (task, algorithm, side)]
    mine.sort(key=lambda row: int(row["seed"]))
    return np.array([[float(row[name]) for name in COLUMNS] for row in mine])


def compare(rows: list[harness.Row]) -> None:
    """Prints the table of verdicts."""
    pairs = sorted({(row["task"], row["algorithm"]) for row in rows})
    print("| task | algorithm | seeds | host | natgrad | difference (95 %) | p | curves |")
    print("|---" * 8 + "|")
    for task, algorithm in pairs:
        host, ours = (runs(rows, task, algorithm, side).mean(axis=1) for side in SIDES)
        test = stats.ttest_ind(ours, host, equal_var=False)
        low, high = test.confidence_interval(0.95)
        verdict = "overlap" if test.pvalue >= 0.05 / len(pairs) else "differ"
        print(
            f"| {task} | {algorithm} | {len(host)} | {host.mean():.0f} | {ours.mean():.0f} | "
            f"{low:+.0f} to {high:+.0f} | {test.pvalue:.2f} | {verdict} |"
        )


def draw(rows: list[harness.Row], path: Path) -> None:
    """Draws a panel for each task and algorithm."""
    figure = pictures.figure(11, 8)
    grid = figure.subplots(len(ALGORITHMS), len(STEPS), sharex="col", sharey="col")
    for line, algorithm in zip(grid, ALGORITHMS, strict=True):
        for axis, (task, steps) in zip(line, STEPS.items(), strict=True):
            for color, side in enumerate(SIDES):
                curves = runs(rows, task, algorithm, side)
                if len(curves):
                    pictures.learning_curve(axis, steps, list(curves), f"C{color}", side)
            pictures.finish_curves(axis, f"{algorithm}, {task}")
        line[0].set_ylabel("return of episodes")
    for axis in grid[-1]:
        axis.set_xlabel("environment steps")
    grid[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Trains what is missing, then compares and draws."""
    parser = harness.parser(
        __doc__,
        seeds=5,
        length=1.0,
        output=harness.RESULTS / "curves_versus_hosts.csv",
        picture=None,
    )
    parser.add_argument(
        "--task", nargs="+", choices=STEPS, default=list(STEPS), help="environments"
    )
    parser.add_argument(
        "--algorithm", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS), metavar="NAME",
        help=f"of {', '.join(ALGORITHMS)}",
    )  # fmt: skip
    quick = {"seeds": 2, "length": 0.1, "output": None, "task": ["CartPole-v1"]}
    options = harness.parse(parser, quick)
    torch.set_num_threads(1)
    natgrad.set_num_threads(1)
    warnings.simplefilter("ignore")
    study = harness.Study(options.output, KEYS, COLUMNS)
    jobs = itertools.product(range(options.seeds), options.task, options.algorithm, SIDES)
    todo = study.missing((task, algorithm, side, seed) for seed, task, algorithm, side in jobs)
    study.run(todo, partial(train, length=options.length))
    compare(study.rows)
    if options.picture is not None:
        draw(study.rows, options.picture)


if __name__ == "__main__":
    main()
