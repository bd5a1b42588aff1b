"""Ctrl-C without losing work: signals set a flag that the loop reads between two steps."""

import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """In a `with` block, the first SIGINT, SIGTERM or SIGHUP (a terminal that closed) only sets `requested`;
    a second acts as it did before.

    A signal that this process was started to ignore (nohup, a job in the background) stays ignored. Outside
    the main thread, where Python does not let signals be handled, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
            for number in [getattr(signal, name) for name in names if hasattr(signal, name)]:
                if signal.getsignal(number) is not signal.SIG_IGN:
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
