"""The numbers of a run, and the files they go to: progress.csv, TensorBoard events, monitor.csv."""

import csv
import importlib
import io
import json
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from natgrad import _core
from natgrad.rollouts.rollout import Episode

__all__ = [
    "CsvSink",
    "Monitor",
    "Scalar",
    "Sink",
    "TensorBoardSink",
    "episode_values",
    "rewrite",
    "update_values",
]

Scalar = float | int | str


def episode_values(episodes: Collection[Episode]) -> dict[str, Scalar]:
    """Means over episodes; nothing if there are none."""
    if not episodes:
        return {}
    rewards, lengths, _ = zip(*episodes, strict=True)
    return {
        "rollout/ep_rew_mean": sum(rewards) / len(rewards),
        "rollout/ep_len_mean": sum(lengths) / len(lengths),
    }


def update_values(report: _core.UpdateReport, fit: _core.FitReport) -> dict[str, Scalar]:
    """How an update of the policy went, and the fit of the critic after it."""
    taken = int(report.accepted)  # a candidate that was rejected changed nothing
    values: dict[str, Scalar] = {
        "train/status": report.status.name,
        "train/is_line_search_success": taken,
        "train/policy_objective": report.surrogate + taken * report.improvement,
        "train/policy_improvement": taken * report.improvement,
        "train/expected_improvement": report.expected_improvement,
        "train/kl_divergence_loss": taken * report.kl,
        "train/step_fraction": report.step_fraction,
        "train/gradient_norm": report.gradient_norm,
        "train/entropy": report.entropy,
        "train/cg_iterations": report.cg.iterations,
        "train/cg_products": report.cg.products,
        "train/cg_residual": report.cg.relative_residual,
        "train/cg_status": report.cg.status.name,
        "train/damping": report.damping,
        "train/reduction_ratio": report.reduction_ratio,
        "train/value_loss": fit.loss,
        "train/explained_variance": fit.explained_variance_before,
    }
    if not report.accepted:
        values["train/message"] = report.message
    return values


class Sink(Protocol):
    """Receives the numbers of every update."""

    def write(self, values: Mapping[str, Scalar], step: int) -> None:
        """Writes the values of one update, which ended after `step` environment steps."""

    def close(self) -> None:
        """Writes what is left."""


class CsvSink:
    """One row per update, flushed at once; a key seen for the first time adds a column.

    Args:
        path: the file; rows that it has already are kept.
        step_key: column with the number of environment steps.
        last_step: rows of later steps are dropped: they belong to updates that were lost.
    """

    def __init__(self, path: Path, step_key: str, last_step: int) -> None:
        self._path = path
        self._columns: list[str] = []
        rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if _at_most(row.get(step_key), last_step)]
                self._columns = list(reader.fieldnames or [])
        self._file = self._rewrite(rows)

    def write(self, values: Mapping[str, Scalar], step: int) -> None:
        """Appends a row."""
        new = [key for key in values if key not in self._columns]
        if new:
            self._file.close()
            with self._path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self._columns += new
            self._file = self._rewrite(rows)
        csv.DictWriter(self._file, self._columns).writerow(dict(values))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _rewrite(self, rows: Iterable[Mapping[str, Any]]) -> IO[str]:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        rewrite(self._path, text.getvalue())
        return self._path.open("a", newline="")


class TensorBoardSink:
    """Scalars as TensorBoard events, without torch.

    Args:
        folder: where the event file goes.
        last_step: TensorBoard is told to forget events of later steps.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, last_step: int) -> None:
        try:
            events = importlib.import_module("tensorboard.compat.proto.event_pb2")
            summaries = importlib.import_module("tensorboard.compat.proto.summary_pb2")
            writers = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        except ImportError as error:
            raise ImportError(
                "TensorBoard events need tensorboard: pip install 'natgrad[tensorboard]'"
            ) from error
        self._event = events.Event
        self._summary = summaries.Summary
        self._writer = writers.EventFileWriter(str(folder))
        if last_step:
            start = events.SessionLog(status=events.SessionLog.START)
            self._writer.add_event(
                self._event(wall_time=time.time(), step=last_step + 1, session_log=start)
            )

    def write(self, values: Mapping[str, Scalar], step: int) -> None:
        """Adds one event with all numbers, which is on its way to the disk on return."""
        scalars = [
            self._summary.Value(tag=key, simple_value=value)
            for key, value in values.items()
            if not isinstance(value, str)
        ]
        summary = self._summary(value=scalars)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()  # or a process that is killed would take the last ones with it

    def close(self) -> None:
        """Writes buffered events and closes the file."""
        self._writer.close()


class Monitor:
    """Episodes in the format of stable-baselines3: `#{json}`, then r,l,t per episode.

    Args:
        path: the file; episodes that it has already are kept.
        env_id: for the header.
        episodes: number of rows to keep: later ones belong to updates that were lost.
    """

    def __init__(self, path: Path, env_id: str | None, episodes: int) -> None:
        kept: list[str] = []
        self._start = time.time()
        if path.exists():
            try:
                header, *rows = path.read_text().splitlines()
                self._start = float(json.loads(header.removeprefix("#"))["t_start"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{str(path)!r} is damaged ({error}); wanted a line of JSON with t_start first"
                ) from error
            kept = rows[1 : episodes + 1]
        header = json.dumps({"t_start": self._start, "env_id": env_id})
        rewrite(path, "\n".join([f"#{header}", "r,l,t", *kept, ""]))
        self._file = path.open("a")

    def write(self, episodes: Sequence[Episode]) -> None:
        """Appends finished episodes."""
        self._file.writelines(
            f"{e.total_reward:.6f},{e.length},{e.time - self._start:.6f}\n" for e in episodes
        )
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def rewrite(path: Path, text: str) -> None:
    """Replaces a text file; whoever reads it sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", newline="") as file:
            file.write(text)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _at_most(text: str | None, limit: int) -> bool:
    try:
        return text is not None and math.floor(float(text)) <= limit
    except ValueError:
        return False  # a row that was cut off when the process died
