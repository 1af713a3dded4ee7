"""SIGINT and SIGTERM are noted when they come and handled between two steps."""

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, Self

__all__ = ["Signals"]


class Signals(AbstractContextManager["Signals"]):
    """Notes SIGINT and SIGTERM for as long as it is entered; a second one interrupts at once.

    Attributes:
        received: the first one, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
