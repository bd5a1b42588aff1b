"""`zorn journal`."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from zorn.cli.parsing import parse
from zorn.errors import CheckpointError
from zorn.run.folder import RunFolder
from zorn.run.journal import Damage, base_step, journal_pieces, read_journal
from zorn.run.journal_entry import JournalEntry
from zorn.training.replay import check_journal_of

SHOWN = 10
"""Entries that are shown: the last ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """Look at or check the journal of a run.

    show: what it holds, and its last steps. verify: read every byte, and compare whose journal it is with the
    run; the exit code is 2 where something is damaged or cut short, or where it is another run's.
    """

    action: tyro.conf.Positional[Literal["show", "verify"]]
    """The action."""
    run: tyro.conf.Positional[Path]
    """The run's folder."""


def command(words: Sequence[str]) -> int:
    """Do something with a journal, from command-line words; returns the exit code."""
    asked = parse(Journal, words, prog="zorn journal")
    folder, console = RunFolder(asked.run), Console()
    folder.read_config()
    if asked.action == "show":
        _show(folder.journal, console)
        return 0
    code = _verify(folder.journal, console)
    try:
        check_journal_of(asked.run)
    except CheckpointError as error:
        _say(console, f"{folder.journal}: whose journal it is cannot be told: {error}")
        return 2
    return code


def _show(path: Path, console: Console) -> None:
    base, latest = base_step(path), deque[JournalEntry](maxlen=SHOWN)
    count = 0
    lowest, highest = float("inf"), float("-inf")
    for entry in read_journal(path):
        count += 1
        lowest, highest = min(lowest, entry.loss), max(highest, entry.loss)
        latest.append(entry)
    if not count:
        _say(console, f"{path}: no step after step {base}")
        return
    size = path.stat().st_size
    _say(console, f"{path}: {size:,} bytes, steps {base + 1} to {base + count}")
    _say(console, f"{size / count:,.0f} bytes a step; loss from {lowest:.4f} to {highest:.4f}")
    table = Table()
    for name in ("step", "members", "bytes", "epsilon", "rate", "loss", "gradient", "dropped", "seconds"):
        table.add_column(name, justify="right")
    for entry in latest:
        table.add_row(*_cells(entry))
    console.print(table)


def _cells(entry: JournalEntry) -> Iterator[str]:
    """The columns of a step; the rate is a share of the first learning rate."""
    yield from (str(entry.step), str(len(entry.fold.coded)), str(len(entry.encoded())))
    yield from (f"{entry.fold.draw.epsilon:.4g}", f"{entry.rate_factor:.4g}", f"{entry.loss:.4f}")
    yield from (f"{entry.gradient_norm:.4g}", str(entry.dropped), f"{entry.seconds:.1f}")


def _verify(path: Path, console: Console) -> int:
    base, steps, damaged = base_step(path), 0, False
    for piece in journal_pieces(path):
        if isinstance(piece, Damage):
            damaged = True
            _say(console, f"{path}: byte {piece.start}: {_told(piece)}")
        else:
            steps += 1
    _say(console, f"{path}: {steps} whole steps after step {base}")
    return 2 if damaged else 0


def _told(damage: Damage) -> str:
    if damage.last is None:
        return f"step {damage.step} is cut short, as by a crash; zorn resume drops it"
    lost = f"step {damage.step}" if damage.last == damage.step else f"steps {damage.step} to {damage.last}"
    return f"{lost} damaged: restore the file from a copy, or move it away"


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
