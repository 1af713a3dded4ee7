"""The whole update against other implementations, in turn: the command `natgrad bench peers`.

Everybody gets the same parameters and the same batch: forward pass, gradient, ten iterations of
conjugate gradients, line search. Before anything is timed, each peer's Fisher product and its step
are compared with the core's. One round times everybody once, after a pause, so that a ratio
compares neighbours in time; medians and deciles are over rounds.

JAX is written as an expert would, in several ways, and the fastest one for the problem competes.
sb3-contrib and tianshou run their own code. Both divide by x'(F + damping I) x where natgrad
divides by x'Fx; their shorter step is accepted at once, which saves them a candidate.
"""

import functools
import importlib.metadata
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import harness
from benchmarks.peers import jax_peer, sb3_peer, tianshou_peer
from benchmarks.peers.peer import Peer
from natgrad import _core
from natgrad.bench import (
    CG_ITERATIONS,
    DAMPING,
    MAX_KL,
    PIECES,
    Problem,
    Shape,
    headline,
    machine,
    quantiles,
    require_close,
    save,
    spread_of_time,
    table,
    using_threads,
)

__all__ = ["PEERS", "bench_peers", "contenders", "missing", "take_turns"]

WARM = 0.06  # seconds of calls that are not counted: threads wake up and settle on their cores
TURN = 0.04  # seconds of calls that are, at least
SLOW = 0.5  # seconds of a call that needs no such preparation
MIN_ROUNDS = 3
PRODUCT_TOLERANCE = 1e-4  # relative, in the 2-norm, between float32 programs
STEP_TOLERANCE = 2e-2  # of steps, after ten iterations in float32 (ours: float64)

# For each library its module, what pip is to install, and the ways to write the update with it.
PEERS: dict[str, tuple[str, str, Callable[[Problem, int], Iterator[Peer]]]] = {
    "jax": ("jax", "jax", jax_peer.peers),
    "sb3-contrib": ("sb3_contrib", "sb3-contrib", sb3_peer.peers),
    "tianshou": ("tianshou", "'tianshou>=2'", tianshou_peer.peers),
}


def missing(names: Sequence[str] = tuple(PEERS)) -> dict[str, str]:
    """The libraries that are not installed, and the commands that install them."""
    return {
        name: f"pip install {PEERS[name][1]}"
        for name in names
        if importlib.util.find_spec(PEERS[name][0]) is None
    }


def _check(problem: Problem, peer: Peer) -> float:
    """The relative difference of the peer's step from ours."""
    step = problem.step
    if peer.damped:
        update = _core.TrustRegionUpdate(
            max_kl=MAX_KL,
            damping=DAMPING,
            solver=_core.ConjugateGradient(CG_ITERATIONS, rtol=0.0, or_direct=True),
            step_scale="damped",
        )
        problem.restore()
        update(problem.policy, problem.batch)
        step = (problem.policy.parameters - problem.start).astype(np.float64)
        problem.restore()
    return require_close(f"{peer.name}: step", peer.step(), step, STEP_TOLERANCE)


def contenders(
    problem: Problem,
    threads: int,
    names: Sequence[str] = tuple(PEERS),
    *,
    note: Callable[[str], object] = print,
    wanted: Callable[[Peer], bool] = lambda peer: True,
) -> list[tuple[Peer, float]]:
    """Natgrad and the fastest variant of each installed peer, checked, each with its difference.

    Args:
        problem: what is to be solved.
        threads: for libraries that are told only now.
        names: from `PEERS`; those that are not installed are left out.
        note: called with a line for each peer.
        wanted: chooses among the variants, to save the time of trying them all.

    Raises:
        WrongAnswerError: a peer's step or Fisher product is not ours.
    """
    ours = Peer(
        "natgrad",
        "TrustRegionUpdate",
        run=problem.update,
        prepare=problem.restore,
        step=lambda: problem.step,
        product=lambda v: _core.Fisher(problem.policy, problem.observations) @ v,
    )
    problem.restore()
    for piece in ("product", "update"):
        PIECES[piece](problem)  # checks them against NumPy
    direction, want = problem.direction, ours.product(problem.direction)
    found = [(ours, 0.0)]
    for name in names:
        if importlib.util.find_spec(PEERS[name][0]) is None:
            continue
        tried: list[tuple[float, Peer, float]] = []
        for peer in filter(wanted, PEERS[name][2](problem, threads)):
            difference = _check(problem, peer)
            tried.append((_turn(peer), peer, difference))
        _, best, difference = min(tried, key=lambda t: t[0])
        require_close(f"{name}: Fisher product", best.product(direction), want, PRODUCT_TOLERANCE)
        version = importlib.metadata.version(name)
        slowest = 1e3 * max(tried, key=lambda t: t[0])[0]
        among = f"; best of {len(tried)}, the slowest {slowest:.3g} ms" if len(tried) > 1 else ""
        note(f"{name} {version}: {best.detail}{among}")
        found.append((best, difference))
    return found


def _turn(peer: Peer) -> float:
    """The median time of a call, hot, after a pause."""
    time.sleep(harness.PAUSE)
    calls: list[float] = []
    counted, warming = 0.0, WARM
    while counted < TURN:
        peer.prepare()
        began = time.perf_counter()
        peer.run()
        took = time.perf_counter() - began
        if warming > 0 and took < SLOW:
            warming -= took
        else:
            calls.append(took)
            counted += took
    return float(np.median(calls))


def take_turns(
    peers: Sequence[Peer], seconds: float, min_rounds: int = MIN_ROUNDS
) -> dict[str, list[float]]:
    """Times everybody in turn, for at least so many seconds and rounds.

    A turn is a pause, 60 ms of calls that are not counted, and 40 ms of which the median counts; a
    call that takes half a second is made once.

    Returns:
        The seconds of an update, for each peer by name, round by round.
    """
    turns = {peer.name: functools.partial(_turn, peer) for peer in peers}
    return harness.take_turns(turns, rounds=min_rounds, seconds=seconds)


_COLUMNS = ("", "time", "10 - 90 %", "GFLOP/s", "/ natgrad", "10 - 90 %", "difference")


def bench_peers(
    shapes: Sequence[Shape],
    names: Sequence[str] = tuple(PEERS),
    *,
    threads: int | None = None,
    seconds: float = 6.0,
    json_file: str | os.PathLike[str] | None = None,
    csv_file: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Times whole updates, in float32, against other libraries and prints a table for each problem.

    Restricts the process to as many processors as there are threads, for good.

    Args:
        shapes: the problems.
        names: peers, from `PEERS`; those that are not installed are named.
        threads: of everybody; as many as the core uses when None.
        seconds: to spend on each problem, three rounds at least.
        json_file: to write machine and rows to.
        csv_file: to write rows to.
        progress: whether to show a bar on stderr; when None, if it is a terminal.

    Returns:
        A row for each shape and library: seconds of an update, the ratio to natgrad's in the same
        round, both with deciles; GFLOP/s by our count of operations; the step's difference to ours.

    Raises:
        WrongAnswerError: a peer's step or Fisher product is not ours.
    """
    threads = _core.get_num_threads() if threads is None else threads
    harness.limit_threads(threads)
    rows: list[dict[str, Any]] = []
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    with using_threads(threads):
        about = machine()
        print(headline(about))
        print(
            f"whole updates: gradient, {CG_ITERATIONS} products, two candidates; in turn, each hot "
            f"after a pause of {1e3 * harness.PAUSE:.0f} ms"
        )
        absent = missing(names)
        for name, command in absent.items():
            print(f"not installed: {name} ({command})")
        with tqdm(total=len(shapes), disable=hidden, leave=False, unit="shape") as bar:
            for shape in shapes:
                bar.set_postfix_str(shape.name)
                problem = Problem(shape)
                notes: list[str] = []
                checked = contenders(problem, threads, names, note=notes.append)
                turns = take_turns([peer for peer, _ in checked], seconds)
                lines = []
                for peer, difference in checked:
                    times = quantiles(turns[peer.name])
                    ratios = quantiles(harness.ratios(turns[peer.name], turns["natgrad"]))
                    rows.append(
                        {
                            "shape": shape.name,
                            "library": peer.name,
                            "detail": peer.detail,
                            **dict(
                                zip(("seconds", "seconds_10", "seconds_90"), times, strict=True)
                            ),
                            **dict(zip(("ratio", "ratio_10", "ratio_90"), ratios, strict=True)),
                            "gflops": problem.update_operations / times[0] * 1e-9,
                            "difference": difference,
                            "rounds": len(turns[peer.name]),
                        }
                    )
                    ours = peer.name == "natgrad"
                    lines.append(
                        [
                            peer.name,
                            *spread_of_time(*times),
                            f"{rows[-1]['gflops']:.0f}",
                            "" if ours else f"{ratios[0]:.2f}",
                            "" if ours else f"{ratios[1]:.2f} - {ratios[2]:.2f}",
                            "" if ours else f"{difference:.0e}",
                        ]
                    )
                bar.update()
                with bar.external_write_mode():
                    print(f"\n{shape}, P = {problem.start.size}")
                    print(table(_COLUMNS, lines))
                    print("\n".join(f"  {note}" for note in notes), flush=True)
    save(about, rows, json_file, csv_file)
    return rows
