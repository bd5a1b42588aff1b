"""Ctrl-C without losing work: signals set a flag that the loop reads between two steps."""

import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """In a `with` block, the first SIGINT or SIGTERM only sets `requested`; a second acts as it did before.

    Outside the main thread, where Python does not let signals be handled, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
