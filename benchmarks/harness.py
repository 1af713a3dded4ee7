"""What the benchmarks share: arguments, the machine, turns, and studies that resume.

A script builds its command line with `parser` and reads it with `parse`, prints the machine with
`announce`, measures with `take_turns`, and keeps the rows of a long study in a `Study`.
"""

import argparse
import contextlib
import csv
import importlib.metadata
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

import natgrad
from natgrad import _core, bench

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAUSE = 0.05  # seconds before a turn, in which idle OpenMP threads of torch stop spinning

Row = dict[str, Any]
T = TypeVar("T")
K = TypeVar("K")
Job = TypeVar("Job")


# Arguments ---------------------------------------------------------------------------------------

_OPTIONS: dict[str, dict[str, Any]] = {
    "threads": {"type": int, "metavar": "N", "help": "number of threads, the same for everybody"},
    "dtype": {"choices": ("float32", "float64"), "help": "type of the networks' parameters"},
    "rounds": {"type": int, "metavar": "N", "help": "number of rounds, each a turn of everybody"},
    "seconds": {"type": float, "metavar": "X", "help": "time to spend on each row"},
    "seeds": {"type": int, "metavar": "N", "help": "number of seeds: 0, 1, ..., N - 1"},
    "jobs": {"type": int, "metavar": "N", "help": "number of runs at a time"},
    "length": {"type": float, "metavar": "X", "help": "fraction of the full length of a run"},
    "output": {"type": Path, "metavar": "FILE", "help": "CSV file for the rows"},
    "picture": {"type": Path, "metavar": "FILE", "help": "PNG file to draw"},
}  # fmt: skip


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and adds the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        shown = action.default
        if isinstance(shown, list | tuple):
            return f"{action.help} (default: {' '.join(map(str, shown))})".replace("%", "%%")
        return super()._get_help_string(action)


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with those of the standard options that are given a default.

    Args:
        description: the script's docstring.
        defaults: by option: threads (None: as many as natgrad uses), dtype, rounds, seconds, seeds,
            jobs, length, output and picture.
    """
    specification = sys.modules["__main__"].__spec__
    found = argparse.ArgumentParser(
        prog=f"python -m {specification.name}" if specification else None,
        description=description,
        formatter_class=_Help,
    )
    for name, default in defaults.items():
        if name == "threads" and default is None:
            default = natgrad.get_num_threads()
        found.add_argument(f"--{name}", default=default, **_OPTIONS[name])
    return found


def parse(
    parser: argparse.ArgumentParser, quick: Mapping[str, Any], argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Reads the command line and gives natgrad the number of threads.

    Args:
        parser: from `parser`, with the script's own options added.
        quick: the defaults that hold with --quick, which is added here: the smallest setting that
            still runs every line that matters.
        argv: arguments; those of the process when None.
    """
    parser.add_argument(
        "--quick", action="store_true", help="use the smallest setting, to try the script out"
    )
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(**quick)
    options = parser.parse_args(argv)
    if "threads" in options:
        natgrad.set_num_threads(options.threads)
    return options


@contextlib.contextmanager
def needs(requirement: str) -> Iterator[None]:
    """Ends the program with the command that installs what the imports inside do not find."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: pip install '{requirement}'") from None


def limit_threads(threads: int) -> None:
    """Restricts this process, and every library that it will load, to so many processors.

    JAX and OpenMP size their thread pools when they start, by the processors they may use.

    Raises:
        ValueError: fewer processors than that are available.
        RuntimeError: a library with a thread pool of its own is already loaded.
    """
    for name in ("jax", "torch"):
        if name in sys.modules:
            raise RuntimeError(f"{name} is loaded already, with a number of threads of its own")
    if hasattr(os, "sched_setaffinity"):
        available = sorted(os.sched_getaffinity(0))
        if len(available) < threads:
            raise ValueError(f"threads: want at most {len(available)} processors, got {threads}")
        os.sched_setaffinity(0, available[:threads])
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    # With one thread JAX has none beside the caller's; several are devices that share the batch.
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        if threads == 1
        else f"--xla_force_host_platform_device_count={threads}"
    )


# The machine -------------------------------------------------------------------------------------


def announce(dtype: "_core.DTypeName" = "float32", libraries: Sequence[str] = ()) -> dict[str, Any]:
    """Prints the machine, its peak and the versions, and returns them.

    Args:
        dtype: of what is measured.
        libraries: distributions whose versions matter as well, if they are installed.
    """
    about = bench.machine(dtype)
    for name in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            about[name] = importlib.metadata.version(name)
    versions = ["python", "numpy", *(name for name in libraries if name in about)]
    print(bench.headline(about))
    print(", ".join(f"{name} {about[name]}" for name in versions), flush=True)
    return about


# Turns -------------------------------------------------------------------------------------------


def timed(run: Callable[[], object], pause: float = 0.0) -> float:
    """Seconds of a call, after a pause of so many seconds."""
    time.sleep(pause)
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def take_turns(
    contenders: Mapping[K, Callable[[], T]], *, rounds: int, seconds: float = 0.0, warm: int = 0
) -> dict[K, list[T]]:
    """Lets everybody measure itself once a round, so that ratios compare neighbours in time.

    Rounds in which another process got our core are dropped, as long as `rounds` of them remain.

    Args:
        contenders: what each of them runs; it returns what it has measured.
        rounds: how many there are at least.
        seconds: how long the rounds go on at least.
        warm: rounds before these, which do not count.

    Returns:
        For each contender what it has returned, round by round.
    """
    for _ in range(warm):
        for run in contenders.values():
            run()
    taken: list[tuple[list[T], bool]] = []
    until = time.perf_counter() + seconds
    while len(taken) < rounds or time.perf_counter() < until:
        before = bench.preemptions()
        found = [run() for run in contenders.values()]
        taken.append((found, bench.preemptions() == before))
    kept = bench.undisturbed(taken, rounds)
    return {name: [found[i] for found in kept] for i, name in enumerate(contenders)}


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """The ratio in each round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The first and the last decile, as text."""
    _, low, high = bench.quantiles(values)
    return f"10 to 90 %: {low:.{digits}f} to {high:.{digits}f}"


# Rows --------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file, as text; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path | None, rows: Sequence[Row]) -> None:
    """Writes rows to a CSV file; nothing if the path is None. Keys that a row lacks stay empty."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


class Study:
    """The rows of a long study: each is written when it is known, and none is computed twice.

    Attributes:
        rows: those of the file, as text, and those added since.
    """

    def __init__(self, path: Path | None, keys: Sequence[str], columns: Sequence[str]) -> None:
        """Reads what the file has.

        Args:
            path: of the CSV file, which need not exist; None keeps the rows in memory only.
            keys: the columns that name a run.
            columns: the other ones.

        Raises:
            ValueError: the file has other columns.
        """
        self.path, self.keys, self.columns = path, tuple(keys), [*keys, *columns]
        self.rows: list[Row] = [] if path is None else read_rows(path)
        if self.rows and list(self.rows[0]) != self.columns:
            have, want = ", ".join(self.rows[0]), ", ".join(self.columns)
            raise ValueError(f"{path} has the columns {have}; wanted {want}")

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self.keys)

    def missing(self, runs: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Those runs, given by the values of their keys, that have no row yet."""
        done = {self._key(row) for row in self.rows}
        return [run for run in runs if tuple(map(str, run)) not in done]

    def add(self, row: Row) -> None:
        """Adds a row, and appends it to the file."""
        self.rows.append(row)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        if not self.path.exists() or not self.path.stat().st_size:
            writer.writeheader()
        writer.writerow(row)
        with self.path.open("a", newline="") as file:
            file.write(text.getvalue())  # in one piece: an interrupt leaves whole lines

    def run(
        self,
        jobs: Sequence[Job],
        work: Callable[[Job], Iterable[Row]],
        processes: int | None = None,
    ) -> None:
        """Runs jobs and adds their rows, with a progress bar.

        Args:
            jobs: what `work` is called with.
            work: returns the rows of a job.
            processes: how many jobs run at a time, each in a process of its own; None: one after
                the other, in this process.
        """
        with tqdm(total=len(jobs), unit="run", disable=None) as bar:
            for rows in self._results(jobs, work, processes):
                for row in rows:
                    self.add(row)
                bar.update()

    @staticmethod
    def _results(
        jobs: Sequence[Job], work: Callable[[Job], Iterable[Row]], processes: int | None
    ) -> Iterator[Iterable[Row]]:
        if processes is None:
            yield from map(work, jobs)
            return
        context = get_context("spawn")
        with ProcessPoolExecutor(processes, context, max_tasks_per_child=1) as pool:
            for future in as_completed([pool.submit(work, job) for job in jobs]):
                yield future.result()
