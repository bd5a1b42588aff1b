"""The display of a run that trains: a live bar on a terminal, a plain line every few seconds elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from zorn.run.loggers import Record

PLAIN_SECONDS = 10.0
"""Seconds between two lines where the output is no terminal."""


class ProgressDisplay:
    """Shows step, loss, bits per byte, speed and time left; use it in a `with` block.

    `progress`, `step` and `forward_passes` are those that the session starts from, so that speed and time
    left are the session's own. `objective` is what is minimised.
    """

    def __init__(
        self,
        console: Console,
        *,
        progress: float,
        step: int,
        forward_passes: int,
        objective: str = "cross-entropy",
    ) -> None:
        self._console = console
        self._objective = objective
        self._start = (progress, step, forward_passes)
        self._started = time.perf_counter()
        self._printed = self._started - PLAIN_SECONDS
        self._validation = ""
        self._bar = RichProgress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[line]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=1.0, line="")

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def evaluated(self, record: Record) -> None:
        """Note an evaluation; its figure is shown from now on."""
        bits = record["bits_per_byte"]
        figure = f"{record['loss']:.3f}" if bits is None else f"{bits:.3f} bits/byte"
        if "objective" in record:
            figure = f"{record['objective']:.3f} {self._objective}, {figure}"
        self._validation = f"{record['split']} {figure}"

    def trained(self, record: Record, progress: float) -> None:
        """Show a training step's record; `progress` is the share of the budget used, 0 to 1."""
        now = time.perf_counter()
        if self._console.is_terminal:
            self._bar.update(self._task, completed=progress, line=self._line(record, progress, now))
        elif now - self._printed >= PLAIN_SECONDS or progress >= 1.0:
            self._printed = now
            self._console.print(self._line(record, progress, now), highlight=False, soft_wrap=True)

    def _line(self, record: Record, progress: float, now: float) -> str:
        first_progress, first_step, first_passes = self._start
        seconds = now - self._started
        left = seconds * (1.0 - progress) / max(progress - first_progress, 1e-9)
        parts = [
            f"step {record['step']}",
            f"loss {record['loss']:.3f}",
            self._validation,
            f"{record['dropped']} members dropped" if record["dropped"] else "",
            f"{(record['step'] - first_step) / seconds:.1f} steps/s",
            f"{shorten((record['forward_passes'] - first_passes) / seconds)} forward passes/s",
            f"{clock(left)} left",
        ]
        return "  ".join(part for part in parts if part)


def shorten(number: float | int) -> str:
    """A number in three digits and a unit prefix.

    >>> shorten(417), shorten(25_230), shorten(1.5e7)
    ('417', '25.2k', '15M')
    """
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{prefix}"
    return f"{number:.3g}"


def clock(seconds: float | int) -> str:
    """Seconds as minutes and seconds, with hours where there are some.

    >>> clock(92), clock(3723)
    ('1:32', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
