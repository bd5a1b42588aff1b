"""`zorn journal`."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from zorn.cli.output import console
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
    folder, out = RunFolder(asked.run), console()
    folder.read_config()
    if asked.action == "show":
        _show(folder.journal, out)
        return 0
    whole = _verify(folder.journal, out)
    try:
        check_journal_of(asked.run)
    except CheckpointError as error:
        out.print(f"{folder.journal}: whose journal it is cannot be told: {error}")
        return 2
    return 0 if whole else 2


def _show(path: Path, out: Console) -> None:
    base, latest = base_step(path), deque[JournalEntry](maxlen=SHOWN)
    count, lowest, highest = 0, float("inf"), float("-inf")
    for entry in read_journal(path):
        count += 1
        lowest, highest = min(lowest, entry.loss), max(highest, entry.loss)
        latest.append(entry)
    if not count:
        out.print(f"{path}: no step after step {base}")
        return
    size = path.stat().st_size
    out.print(f"{path}: {size:,} bytes, steps {base + 1} to {base + count}")
    out.print(f"{size / count:,.0f} bytes a step; loss from {lowest:.4f} to {highest:.4f}")
    table = Table()
    for name in ("step", "members", "bytes", "epsilon", "rate", "loss", "gradient", "dropped", "seconds"):
        table.add_column(name, justify="right")
    for entry in latest:  # the rate is a share of the first learning rate
        cells = [str(entry.step), str(len(entry.fold.coded)), str(len(entry.encoded()))]
        cells += [f"{entry.fold.draw.epsilon:.4g}", f"{entry.rate_factor:.4g}", f"{entry.loss:.4f}"]
        cells += [f"{entry.gradient_norm:.4g}", str(entry.dropped), f"{entry.seconds:.1f}"]
        table.add_row(*cells)
    out.print(table)


def _verify(path: Path, out: Console) -> bool:
    """Report every damage and the whole steps; returns True where nothing is damaged."""
    steps, whole = 0, True
    base = base_step(path)
    for piece in journal_pieces(path):
        if isinstance(piece, Damage):
            whole = False
            out.print(f"{path}: byte {piece.start}: {_told(piece)}")
        else:
            steps += 1
    out.print(f"{path}: {steps} whole steps after step {base}")
    return whole


def _told(damage: Damage) -> str:
    if damage.last is None:
        return f"step {damage.step} is cut short, as by a crash; zorn resume drops it"
    lost = f"step {damage.step}" if damage.last == damage.step else f"steps {damage.step} to {damage.last}"
    return f"{lost} damaged: restore the file from a copy, or move it away"
