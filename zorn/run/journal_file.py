"""The file of a journal: its header, its entries one after another, and the damage between them.

Written in `zorn.run.journal`, which says what is kept and why.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zorn.errors import JournalError
from zorn.run.journal_entry import HEAD_BYTES, MARKER, JournalEntry, is_whole, payload_bytes, step_of
from zorn.run.tensor_file import synchronise

FORMAT = 1
_MAGIC = b"ZORNJRNL"
_HEADER = struct.Struct("<8sIQ32s")
HEADER_BYTES = _HEADER.size + 4
_SEARCHED_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Bytes of a journal that are no entry.

    Args:
        step: the first step that is lost.
        last: the last one; None where nothing whole follows, as after a crash.
        start: where the bytes begin, counted from the start of the file.
    """

    step: int
    last: int | None
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalHeader:
    """The start of a journal.

    Args:
        identity: of the run, from `run_identity`.
        base_step: the step that it begins after; 0: the run's seed is all that it needs.
    """

    identity: bytes
    base_step: int


def read_header(path: Path) -> JournalHeader:
    """The header of a journal.

    Raises:
        JournalError: there is no such file, it is no journal of this zorn, or its header is damaged.
    """
    try:
        with path.open("rb") as file:
            data = file.read(HEADER_BYTES)
    except OSError as error:
        raise JournalError(
            f"the journal {path} cannot be read ({error.strerror}): name a run that keeps one"
        ) from error
    if len(data) < HEADER_BYTES or zlib.crc32(data[: _HEADER.size]) != int.from_bytes(data[-4:], "little"):
        raise JournalError(
            f"{path} is no journal, or its header is damaged: restore it from a copy; without it zorn resume "
            "continues from the newest checkpoint, and begins a new one"
        )
    magic, version, base_step, identity = _HEADER.unpack_from(data)
    if (magic, version) != (_MAGIC, FORMAT):
        raise JournalError(
            f"{path} is of format {magic!r} {version}, expected {_MAGIC!r} {FORMAT}: read it with the zorn "
            "that wrote it"
        )
    return JournalHeader(identity=identity, base_step=base_step)


def check_identity(path: Path, identity: bytes) -> None:
    """Raise JournalError unless a journal is of the run with this identity."""
    found = read_header(path).identity
    if found != identity:
        raise JournalError(
            f"{path} is the journal of another run: its settings, seed, text or first weights are not this "
            f"run's (got identity {found.hex()[:12]}…, expected {identity.hex()[:12]}…); put the right one "
            "back, or move it away to resume from the newest checkpoint"
        )


def read_journal(path: Path, *, after: int = 0) -> Iterator[JournalEntry]:
    """The entries after a step, one at a time; one that a crash cut short at the end is passed over.

    Raises:
        JournalError: as `read_header`; or damage with whole entries after it, unless no step after `after` is
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
    last = read_header(path).base_step
    for entry in read_journal(path):
        last = entry.step
    return last


def journal_pieces(path: Path) -> Iterator[JournalEntry | Damage]:
    """All entries of a journal in order, and the damage between them.

    Raises JournalError as `read_header` does.
    """
    step = read_header(path).base_step
    with path.open("rb") as file:
        start = HEADER_BYTES
        while head := _read(file, start, HEAD_BYTES):
            data = head + _read(file, start + HEAD_BYTES, payload_bytes(head) or 0)
            if is_whole(data) and step_of(head) == step + 1:
                yield JournalEntry.decoded(data)
                start, step = start + len(data), step + 1
                continue
            skipped = is_whole(data) and step_of(head) > step + 1
            found = start if skipped else _next_whole(file, start + 1)
            if found is None:
                yield Damage(step=step + 1, last=None, start=start)
                return
            last = max(step_of(_read(file, found, HEAD_BYTES)) - 1, step + 1)
            yield Damage(step=step + 1, last=last, start=start)
            start, step = found, last


def write_journal(path: Path, identity: bytes, base_step: int, entries: Iterator[JournalEntry]) -> None:
    """Write a whole journal in one move: the former one stays until the new one is on the disk.

    Raises OSError when the disk refuses.
    """
    header = _HEADER.pack(_MAGIC, FORMAT, base_step, identity)
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(header + zlib.crc32(header).to_bytes(4, "little"))
            file.writelines(entry.encoded() for entry in entries)
        synchronise(temporary)
        temporary.replace(path)
        synchronise(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _read(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


def _next_whole(file: BinaryIO, start: int) -> int | None:
    """Where the first whole entry from `start` on begins; None where there is none."""
    while data := _read(file, start, _SEARCHED_AT_ONCE):
        place = data.find(MARKER)
        while place >= 0:
            head = _read(file, start + place, HEAD_BYTES)
            numbers = payload_bytes(head)
            if numbers is not None and is_whole(head + _read(file, start + place + HEAD_BYTES, numbers)):
                return start + place
            place = data.find(MARKER, place + 1)
        if len(data) < _SEARCHED_AT_ONCE:
            return None
        start += len(data) - len(MARKER) + 1  # a marker may lie across two pieces
    return None
