"""The folder of a run: config.json, progress.csv, monitor.csv, TensorBoard events, checkpoints."""

import itertools
import json
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from natgrad.agents.callbacks import Callback, CheckpointCallback
from natgrad.agents.logger import CsvSink, Monitor, Scalar, Sink, TensorBoardSink, rewrite

__all__ = ["RunFolder", "checkpoints", "fresh_folder", "has_config", "read_config"]


def fresh_folder(
    env_id: str | None, algorithm: str, seed: int, parent: str | os.PathLike[str] = "runs"
) -> Path:
    """Makes and returns the first folder `<env>_<algorithm>_<seed>_<n>` that does not exist yet."""
    name = re.sub(r"[^\w.-]+", "-", env_id or "custom")
    for n in itertools.count(1):
        folder = Path(parent) / f"{name}_{algorithm}_{seed}_{n}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(f"folder {str(folder)!r} cannot be made: {error.strerror}") from error
        return folder
    raise AssertionError("there is always another number")


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return CheckpointCallback.files(Path(folder) / "checkpoints")


def has_config(folder: str | os.PathLike[str]) -> bool:
    """Whether a run has begun in this folder."""
    return (Path(folder) / "config.json").exists()


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What config.json says: algorithm, env_id, total_timesteps, config.

    Raises:
        ValueError: the folder holds no run.
    """
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or not {"algorithm", "env_id", "config"} <= set(content):
            raise ValueError("it lacks algorithm, env_id or config")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(folder)!r} is no folder of a run: cannot read {str(path)!r} ({error})"
        ) from error
    return content


class RunFolder(Callback):
    """Records the training of one agent in a folder.

    A run is continued by an agent that comes from it: rows of updates after its checkpoint are
    dropped, because they are about to be made again.

    Args:
        path: is made if it does not exist.
        identity: what goes into config.json, see `read_config`.
        continues: whether the agent comes from this folder.
        num_timesteps: its environment steps so far.
        num_episodes: episodes that it has finished.
        checkpoint_every: updates between checkpoints.

    Raises:
        ValueError: the folder holds another run, or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        identity: Mapping[str, Any],
        *,
        continues: bool,
        num_timesteps: int,
        num_episodes: int,
        checkpoint_every: int,
    ) -> None:
        self.path = Path(path)
        config = self.path / "config.json"
        if config.exists() and not continues:
            raise ValueError(
                f"run_dir {str(path)!r} holds another run; wanted a new folder, or an agent loaded "
                "from this one"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            rewrite(config, json.dumps(dict(identity), indent=2) + "\n")
            self.checkpoints = CheckpointCallback(self.path / "checkpoints", checkpoint_every)
            self._monitor = Monitor(self.path / "monitor.csv", identity["env_id"], num_episodes)
            self._sinks: list[Sink] = [
                CsvSink(self.path / "progress.csv", "time/total_timesteps", num_timesteps)
            ]
            if find_spec("tensorboard") is not None:
                self._sinks.append(TensorBoardSink(self.path, num_timesteps))
        except OSError as error:
            raise ValueError(f"run_dir {str(path)!r} cannot be written: {error}") from error

    def on_training_start(self, agent: Any) -> None:
        """Writes the first checkpoint, from which even a run that dies at once can be resumed."""
        self.checkpoints.on_training_start(agent)

    def on_update_end(self, agent: Any, log: dict[str, Scalar]) -> None:
        """Records one update, and only then the checkpoint that counts on it."""
        self._monitor.write(agent.last_episodes)
        for sink in self._sinks:
            sink.write(log, agent.num_timesteps)
        self.checkpoints.on_update_end(agent, log)

    def on_training_end(self, agent: Any) -> None:
        """Writes the last checkpoint and closes all files."""
        try:
            self.checkpoints.on_training_end(agent)
        finally:
            self._monitor.close()
            for sink in self._sinks:
                sink.close()
