"""Real policies for the solver benchmarks: trained, saved, and loaded with a batch of their own.

    python benchmarks/snapshots.py

trains each task with the defaults of `natgrad.TRPO` and writes benchmarks/results/snapshots/*.npz,
a checkpoint after about 60 000 and one after 300 000 steps (10 minutes, mostly Humanoid-v5).
Policies at initialisation need no file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import natgrad

FOLDER = Path(__file__).parent / "results" / "snapshots"
STAGES = (0, 60_000, 300_000)
TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {},
    "Hopper-v5": {},
    "HalfCheetah-v5": {},
    "Humanoid-v5": {"hidden": (256, 256), "critic_hidden": (256, 256), "batch_size": 5000},
}

# As the peers train: ten plain products.
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
        return natgrad.TRPO(task, natgrad.TRPOConfig(**TRAINED, **TASKS[task]))
    path = FOLDER / f"{task}-{stage // 1000}k.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run python benchmarks/snapshots.py")
    return natgrad.TRPO.load(path)


def _standardised(advantages: Any) -> Any:
    return (advantages - advantages.mean()) / advantages.std()


def load(task: str, stage: int) -> Snapshot:
    """The policy of a stage; its batch is collected anew, the same at every call.

    Raises:
        FileNotFoundError: the checkpoint is not there.
    """
    agent = _agent(task, stage)
    steps = agent.config.batch_size
    rollout = natgrad.collect(agent.policy, agent._environments, steps, natgrad.Rng(1))
    advantages, _ = agent._advantages(rollout)
    agent.close()
    batch = natgrad.Batch(
        rollout.observations[:-1, 0],
        rollout.actions[:, 0],
        _standardised(advantages).ravel(),
    )
    return Snapshot(task, stage, agent.policy, batch)


def consecutive(task: str, stage: int, count: int) -> list[Snapshot]:
    """Policies and batches of the next updates of the run, one after the other."""
    agent = _agent(task, stage)
    update, taken = agent._update, []

    class Recorder:
        """The agent's update, which notes what it is given."""

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
    FOLDER.mkdir(parents=True, exist_ok=True)
    for task, options in TASKS.items():
        agent = natgrad.TRPO(task, natgrad.TRPOConfig(**TRAINED, **options))
        for stage in tqdm([stage for stage in STAGES if stage > 0], task):
            agent.learn(stage - agent.num_timesteps)
            agent.save(FOLDER / f"{task}-{stage // 1000}k.npz")
        agent.close()


if __name__ == "__main__":
    main()
