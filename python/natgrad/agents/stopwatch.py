"""Times of the named parts of a piece of work."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stopwatch"]


class Stopwatch:
    """Starts when it is made; the time of a part that is entered several times adds up.

    Attributes:
        seconds: wall time of each part.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to this part."""
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin

    @property
    def total(self) -> float:
        """Seconds since the start, parts or not."""
        return time.perf_counter() - self._start
