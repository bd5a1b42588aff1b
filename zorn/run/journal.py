"""The journal of a run: an append-only file with the few numbers that each step came down to.

    RUN/journal.jsonl    a line with the format, the step it begins after, and the SHA-256 of what makes the
                         run the run it is
                         a line for each step done, see `JournalEntry`; every line ends with its CRC-32

A step counts once its line is whole: it is written after the update of the weights and before anything else
of the step, so that a line of the log, an evaluation or a checkpoint never tells of a step that is not there.
With weights from before it, a run's seed or a checkpoint, the entries give the weights after any step again,
bit for bit. A process that dies loses nothing that was written, a machine that dies what was not yet forced
to the disk.

A line that a crash cut short can only be the last one, and is dropped. Damage with whole lines after it did
not come from a crash: it is an error that names the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from zorn.errors import JournalError
from zorn.run.files import write_whole
from zorn.run.journal_entry import JournalEntry, sealed, unsealed

FORMAT = 2


def run_identity(settings: Mapping[str, Any], model: nn.Module) -> bytes:
    """SHA-256 [32 bytes] of what makes a run the run it is: its settings, as JSON values, and the weights
    that it begins with.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> before = run_identity({"seed": 0}, model)
        >>> before == run_identity({"seed": 0}, model), before == run_identity({"seed": 1}, model)
        (True, False)
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Lines of a journal that are no entries.

    Args:
        step: the first step that is lost.
        last: the last one; None where nothing whole follows, as after a crash.
        start: where the damage begins, in bytes from the start of the file.
    """

    step: int
    last: int | None
    start: int


def _header(path: Path) -> dict[str, Any]:
    """The first line of a journal, and its length as "bytes".

    Raises:
        JournalError: there is no such file, it is no journal of this zorn, or the line is damaged.
    """
    try:
        with path.open("rb") as file:
            line = file.readline()
    except OSError as error:
        raise JournalError(
            f"the journal {path} cannot be read ({error.strerror}): name a run that keeps one"
        ) from error
    header = unsealed(line)
    if header is None:
        raise JournalError(
            f"{path} is no journal, or its header is damaged: restore it from a copy; without it zorn resume "
            "continues from the newest checkpoint, and begins a new one"
        )
    if header.get("format") != FORMAT:
        raise JournalError(
            f"{path} is of journal format {header.get('format')}, this zorn reads format {FORMAT}: read it "
            "with the zorn that wrote it"
        )
    return header | {"bytes": len(line)}


def base_step(path: Path) -> int:
    """The step that a journal begins after; 0: the run's seed is all that it needs.

    Raises:
        JournalError: there is no such file, it is no journal of this zorn, or its header is damaged.
    """
    return _header(path)["base_step"]


def check_identity(path: Path, identity: bytes) -> None:
    """Raise JournalError unless a journal is of the run with this identity, from `run_identity`."""
    found, expected = _header(path)["identity"], identity.hex()
    if found != expected:
        raise JournalError(
            f"{path} is the journal of another run: its settings, seed, text or first weights are not this "
            f"run's (got identity {found[:12]}…, expected {expected[:12]}…); put the right one back, or move "
            "it away to resume from the newest checkpoint"
        )


def journal_pieces(path: Path) -> Iterator[JournalEntry | Damage]:
    """All entries of a journal in order, and the damage between them.

    Raises JournalError as `base_step` does.
    """
    header = _header(path)
    step, place = header["base_step"], header["bytes"]
    damaged: int | None = None
    with path.open("rb") as file:
        file.seek(place)
        for line in file:
            entry = JournalEntry.decoded(line)
            if entry is None or entry.step <= step:
                damaged = place if damaged is None else damaged
            else:
                if damaged is not None or entry.step > step + 1:
                    start = place if damaged is None else damaged
                    yield Damage(step=step + 1, last=max(entry.step - 1, step + 1), start=start)
                yield entry
                step, damaged = entry.step, None
            place += len(line)
    if damaged is not None:
        yield Damage(step=step + 1, last=None, start=damaged)


def read_journal(path: Path, *, after: int = 0) -> Iterator[JournalEntry]:
    """The entries after a step, one at a time; one that a crash cut short at the end is passed over.

    Raises:
        JournalError: as `base_step`; or damage with whole entries after it, unless no step after `after` is
            lost. The message names the step.
    """
    for piece in journal_pieces(path):
        if isinstance(piece, JournalEntry):
            if piece.step > after:
                yield piece
        elif piece.last is not None and piece.last > after:
            raise JournalError(
                f"{path} is damaged at step {piece.step} (byte {piece.start}), and steps after "
                f"{piece.last} are whole: restore it from a copy; or move it away, to resume from "
                "the newest checkpoint"
            )


def last_step(path: Path) -> int:
    """The step of a journal's last whole entry, or what it begins after.

    Raises JournalError as `read_journal` does.
    """
    last = base_step(path)
    for entry in read_journal(path):
        last = entry.step
    return last


@final
class Journal:
    """A journal to write: made by `create`, continued by `open`; close it, or use it in a `with` block.

    Args:
        path: of the file.
        end: bytes of it that are whole; what comes after them is cut off.
        last_step: of its last entry, or what it begins after.
        sync_seconds: how long an entry may wait, at least 0, until it is forced to the disk; 0: not at all.
            None: for as long as the system likes.

    Attributes:
        last_step: of the last entry.
        dropped: what was cut off at the end, in words; None for nothing.

    Example:
        >>> import tempfile, zorn
        >>> from zorn.run.journal import Journal, JournalEntry, read_journal, run_identity
        >>> model, estimator = torch.nn.Linear(2, 1), zorn.CDRGE(population=4, epsilon=0.1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batch = zorn.Batch(torch.ones(4, 2), torch.ones(4, 1))
        >>> first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name) / "journal.jsonl"
        >>> with Journal.create(path, run_identity({}, model)) as journal:
        ...     for step in range(3):
        ...         estimate = estimator.estimate(model, batch, lambda y, t: (y - t).square().mean(-1))
        ...         optimizer.step()
        ...         journal.append(JournalEntry(step=step + 1, fold=estimate.fold))
        >>> last = model.weight.clone()
        >>> _ = model.load_state_dict(first)
        >>> for entry in read_journal(path):
        ...     norm = entry.fold.apply(estimator.perturbation.bind(model))
        ...     optimizer.step()
        >>> torch.equal(model.weight, last)
        True
        >>> folder.cleanup()
    """

    def __init__(self, path: Path, *, end: int, last_step: int, sync_seconds: float | None) -> None:
        self.path, self.last_step = path, last_step
        self.dropped: str | None = None
        self._sync_seconds = sync_seconds
        self._file = path.open("r+b", buffering=0)
        self._file.truncate(end)
        self._file.seek(end)
        self._synced_at = time.monotonic()

    @classmethod
    def create(
        cls, path: Path, identity: bytes, *, base_step: int = 0, sync_seconds: float | None = 1.0
    ) -> Journal:
        """A new journal in place of any that is there; its header is there whole or not at all.

        Args:
            identity: from `run_identity`.
            base_step: the step that it begins after.

        Raises:
            OSError: the disk refused.
        """
        header = sealed({"format": FORMAT, "base_step": base_step, "identity": identity.hex()})
        write_whole(path, header.decode())
        return cls(path, end=len(header), last_step=base_step, sync_seconds=sync_seconds)

    @classmethod
    def open(
        cls, path: Path, identity: bytes, *, last_step: int | None = None, sync_seconds: float | None = 1.0
    ) -> Journal:
        """Go on with a journal, after `last_step` or its last whole entry; what comes later is cut off.

        Raises:
            JournalError: it is missing, damaged but at its end, of another run, or ends before `last_step`.
            OSError: the disk refused.
        """
        check_identity(path, identity)
        header = _header(path)
        end = whole = header["bytes"]
        last = read = header["base_step"]
        for entry in read_journal(path):
            whole, read = whole + len(entry.encoded()), entry.step
            if last_step is None or entry.step <= last_step:
                end, last = whole, entry.step
        if last_step is not None and last != last_step:
            raise JournalError(
                f"{path} has no step {last_step}, its last one is {last}: resume from an earlier checkpoint"
            )
        cut, dropped = path.stat().st_size - whole, []
        if cut > 0:
            dropped.append(f"its last {cut} bytes were no whole line, as after a crash, and were dropped")
        if read > last:
            again = f"step {read} is" if read == last + 1 else f"steps {last + 1} to {read} are"
            dropped.append(f"{again} taken again, as checkpoints alone hold the states that they began with")
        journal = cls(path, end=end, last_step=last, sync_seconds=sync_seconds)
        if dropped:
            journal.dropped = f"{path}: {'; '.join(dropped)}: the journal continues after step {last}"
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, entry: JournalEntry) -> None:
        """Write the next step's entry; it is there whole or, where the disk refuses, not at all.

        Raises:
            JournalError: it is not the step after `last_step`.
            OSError: the disk refused; the journal is as it was.
        """
        if entry.step != self.last_step + 1:
            raise JournalError(
                f"{self.path}: got the entry of step {entry.step}, expected step {self.last_step + 1}: "
                "append every step once, in order"
            )
        waiting, end = memoryview(entry.encoded()), self._file.tell()
        try:
            while waiting:
                waiting = waiting[self._file.write(waiting) :]
        except OSError:
            self._file.truncate(end)
            self._file.seek(end)
            raise
        self.last_step = entry.step
        if self._sync_seconds is not None and time.monotonic() - self._synced_at >= self._sync_seconds:
            self.sync()

    def sync(self) -> None:
        """Force all entries to the disk. Raises OSError when it refuses."""
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Close the file; entries that are not forced to the disk yet are left to the system."""
        self._file.close()
