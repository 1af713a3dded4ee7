"""Trained policies for the solver benchmarks, each with a batch of its own.

    python -m benchmarks.solvers.snapshots

trains each task with the defaults of `natgrad.TRPO` and writes benchmarks/results/snapshots/*.npz,
a checkpoint after about 60 000 and one after 300 000 steps (10 minutes, mostly Humanoid-v5).
Policies at initialisation need no file.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import natgrad
from benchmarks import harness
from natgrad.agents.agent import Agent
from natgrad.agents.config import TRPOConfig
from natgrad.rollouts.rollout import collect

FOLDER = harness.RESULTS / "snapshots"
STAGES = (0, 60_000, 300_000)
TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {},
    "Hopper-v5": {},
    "HalfCheetah-v5": {},
    "Humanoid-v5": {"hidden": (256, 256), "critic_hidden": (256, 256), "batch_size": 5000},
}

# The peers train with ten plain products as well.
TRAINED: dict[str, Any] = {"seed": 0, "preconditioner": "none", "cg_iterations": 10}


@dataclass(frozen=True)
class Snapshot:
    """A policy and the batch that its next update sees; advantages are standardised."""

    task: str
    stage: int
    policy: natgrad.Policy
    batch: natgrad.Batch

    @property
    def name(self) -> str:
        """Task and thousands of steps."""
        return f"{self.task} {self.stage // 1000}k"


def _agent(task: str, stage: int) -> natgrad.TRPO:
    if stage == 0:
        return natgrad.TRPO(task, TRPOConfig(**TRAINED, **TASKS[task]))
    path = FOLDER / f"{task}-{stage // 1000}k.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run python -m benchmarks.solvers.snapshots")
    return natgrad.TRPO.load(path)


def _standardised(advantages: Any) -> Any:
    return (advantages - advantages.mean()) / advantages.std()


def next_batch(agent: Agent) -> natgrad.Batch:
    """A batch that the agent's next update could see, with standardised advantages."""
    steps = agent.config.batch_size
    rollout = collect(agent.policy, agent._environments, steps, natgrad.Rng(1))
    advantages, _ = agent._advantages(rollout)
    return natgrad.Batch(
        rollout.observations[:-1, 0],
        rollout.actions[:, 0],
        _standardised(advantages).ravel(),
    )


def load(task: str, stage: int) -> Snapshot:
    """The policy of a stage with a batch, which is collected anew but the same at every call.

    Raises:
        FileNotFoundError: the checkpoint is not there.
    """
    agent = _agent(task, stage)
    batch = next_batch(agent)
    agent.close()
    return Snapshot(task, stage, agent.policy, batch)


def consecutive(task: str, stage: int, count: int) -> list[Snapshot]:
    """Policies and batches of the next `count` updates of the run."""
    agent = _agent(task, stage)
    update, taken = agent._update, []

    class Recorder:
        """Calls the agent's update, and keeps policy and batch."""

        state = property(lambda self: update.state)

        def __call__(self, policy: natgrad.Policy, batch: natgrad.Batch) -> natgrad.UpdateReport:
            copy = natgrad.Policy(**{**policy.config, "distribution": policy.distribution})
            copy.parameters[:] = policy.parameters
            copy.set_normalizer(*policy.normalizer)
            arrays = (batch.observations, batch.actions, _standardised(batch.advantages))
            taken.append(Snapshot(task, stage, copy, natgrad.Batch(*map(np.array, arrays))))
            return update(policy, batch)

    agent._update = Recorder()  # type: ignore[assignment]
    agent.learn(count * agent.config.batch_size)
    agent.close()
    return taken


def main() -> None:
    """Trains and saves."""
    parser = harness.parser(__doc__)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="tasks")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for the checkpoints")
    quick = {"task": ["CartPole-v1"], "folder": Path(tempfile.gettempdir())}
    options = harness.parse(parser, quick)
    options.folder.mkdir(parents=True, exist_ok=True)
    for task in options.task:
        agent = natgrad.TRPO(task, TRPOConfig(**TRAINED, **TASKS[task]))
        for stage in tqdm([stage for stage in STAGES if stage > 0], task, disable=None):
            agent.learn(stage - agent.num_timesteps)
            agent.save(options.folder / f"{task}-{stage // 1000}k.npz")
        agent.close()


if __name__ == "__main__":
    main()
