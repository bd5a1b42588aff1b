"""Signals and closed pipes: the end of a process of the command line.

Light to import: Ctrl-C may come while torch loads.
"""

import errno
import io
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn, final

STOPPED = 130
"""Exit code after Ctrl-C, SIGTERM or SIGHUP."""


def prepare() -> None:
    """Set up signals and standard output for a process that does one command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop_at_once)
    if sys.stdout is None:  # started with a closed standard output
        return
    sys.stdout.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(Output(sys.stdout.fileno(), "wb", closefd=False)),
        encoding=sys.stdout.encoding,
        errors="replace",  # what the terminal's encoding lacks must not end a run
        line_buffering=sys.stdout.isatty(),
    )


def stop_at_once(_number: int, _frame: FrameType | None) -> NoReturn:
    """Say so in one line and end, without unwinding: an exception might come where an import or a finaliser
    swallows it. The files of a run are whole at every moment, as they must be for SIGKILL."""
    try:
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\n")  # the progress bar hides the cursor
        os.write(2, b"zorn: stopped\n")
    finally:
        os._exit(STOPPED)


@final
class Output(io.FileIO):
    """Standard output whose reader may go away (`zorn train | head`, a terminal that closed).

    From then on all output is dropped, and the work continues.
    """

    def write(self, data: Any, /) -> int:
        """Write bytes, or drop them; returns how many. Raises OSError for all but a reader that is gone."""
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise  # once: what is tried again at the exit is dropped
            return super().write(data)
