"""The journal's file: what is written comes back, damage is found wherever it is, and a disk that refuses
leaves it whole."""

import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

from zorn.errors import ConfigError, JournalError
from zorn.estimators.fold import Fold
from zorn.noise import Draw
from zorn.run.journal import (
    HEADER_BYTES,
    Damage,
    Journal,
    journal_pieces,
    last_step,
    read_header,
    read_journal,
    run_identity,
    write_journal,
)
from zorn.run.journal_entry import HEAD_BYTES, JournalEntry

IDENTITY = bytes(range(32))


def entry(step, members=3, **options):
    weights = torch.randn(members, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    draw = Draw(seed=2**64 - 1, step=step - 1, epsilon=0.1 / step)
    return JournalEntry(
        step=step,
        fold=Fold.of(draw, weights, **options),
        rate_factor=1 / step,
        loss=-math.pi,
        gradient_norm=1e-300,
        forward_passes=2**40 + step,
        dropped=step,
        seconds=1.5,
    )


def journal(path, steps, **options):
    with Journal.create(path, IDENTITY, **options) as made:
        for step in range(made.last_step + 1, made.last_step + 1 + steps):
            made.append(entry(step))
    return path


def steps(path, **options):
    return [each.step for each in read_journal(path, **options)]


@pytest.mark.parametrize(
    ("options", "dtype", "width"),
    [
        ({}, torch.float32, 4),
        ({"wide": True}, torch.float64, 8),
    ],
)
def test_an_entry_comes_back_with_every_bit(tmp_path, options, dtype, width):
    written = entry(1, members=5, **options)
    assert written.fold.coded.dtype == dtype
    assert len(written.encoded()) == written.nbytes == HEAD_BYTES + 5 * width == 100 + 5 * width
    with Journal.create(tmp_path / "journal.bin", IDENTITY) as made:
        made.append(written)
    (found,) = read_journal(tmp_path / "journal.bin")
    assert found.fold.coded.dtype == dtype
    assert torch.equal(found.fold.coded, written.fold.coded)
    assert torch.equal(found.fold.weights, written.fold.weights)
    assert found.fold.draw == written.fold.draw
    assert (found.fold.origin, found.fold.draws) == (found.fold.draw.step, 1)
    for name in ("step", "rate_factor", "loss", "gradient_norm", "forward_passes", "dropped", "seconds"):
        assert getattr(found, name) == getattr(written, name)


def test_the_layout_is_the_one_that_is_documented():
    data = entry(7).encoded()
    assert data[:4] == b"STEP"
    assert struct.unpack_from("<QQIII", data, 4) == (7, 2**64 - 1, 6, 6, 1)
    assert struct.unpack_from("<ddd", data, 32) == (0.1 / 7, 1 / 7, -math.pi)
    assert struct.unpack_from("<I", data, 92) == (zlib.crc32(data[100:]),)
    assert struct.unpack_from("<I", data, 96) == (zlib.crc32(data[:96]),)
    assert struct.unpack_from("<3f", data, 100) == tuple(entry(7).fold.coded.tolist())


def test_any_flipped_byte_is_detected(tmp_path):
    """Over all positions and several flips: the file is never read as if it were whole."""
    path = journal(tmp_path / "journal.bin", 3)
    data = path.read_bytes()
    assert len(data) == HEADER_BYTES + 3 * (HEAD_BYTES + 12)
    starts = [HEADER_BYTES + step * (HEAD_BYTES + 12) for step in range(4)]
    for position in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            path.write_bytes(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
            if position < HEADER_BYTES:
                with pytest.raises(JournalError, match="is no journal, or its header is damaged"):
                    list(read_journal(path))
                continue
            lost = next(step for step in (1, 2, 3) if position < starts[step])
            pieces = list(journal_pieces(path))
            assert Damage(step=lost, last=None if lost == 3 else lost, start=starts[lost - 1]) in pieces
            assert [each.step for each in pieces if isinstance(each, JournalEntry)] == [
                step for step in (1, 2, 3) if step != lost
            ]
            if lost < 3:
                with pytest.raises(JournalError, match=f"damaged at step {lost} .*move it away"):
                    list(read_journal(path))
                assert steps(path, after=lost) == list(range(lost + 1, 4))
            else:
                assert steps(path) == [1, 2]


def test_an_entry_that_was_cut_short_is_dropped_at_any_length(tmp_path):
    path = journal(tmp_path / "journal.bin", 3)
    data = path.read_bytes()
    end = len(data) - HEAD_BYTES - 12
    for length in range(end, len(data)):
        path.write_bytes(data[:length])
        assert steps(path) == [1, 2]
        with Journal.open(path, IDENTITY) as made:
            assert made.last_step == 2
            assert (made.dropped is None) == (length == end)
            if made.dropped:
                assert f"its last {length - end} bytes were no whole entry" in made.dropped
            made.append(entry(3))
        assert path.read_bytes() == data


def test_a_marker_among_the_coefficients_is_no_entry(tmp_path):
    """And damage is found past the pieces in which a file is searched."""
    path, members = tmp_path / "journal.bin", 400_000
    weights = torch.zeros(members, dtype=torch.float64)
    weights[::10_000] = struct.unpack("<f", b"STEP")[0]
    fold = Fold.of(Draw(seed=0, step=0, epsilon=1.0), weights)
    with Journal.create(path, IDENTITY) as made:
        made.append(JournalEntry(step=1, fold=fold))
        made.append(entry(2))
    assert steps(path) == [1, 2]
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + 50)
        file.write(b"?")
    assert [piece.step for piece in journal_pieces(path)] == [1, 2]
    assert steps(path, after=1) == [2]


def test_a_step_that_is_missing_is_damage(tmp_path):
    path = tmp_path / "journal.bin"
    write_journal(path, IDENTITY, 0, iter([entry(1), entry(4), entry(5)]))
    with pytest.raises(JournalError, match=r"damaged at step 2 .* and steps after 3 are whole"):
        list(read_journal(path))


def test_steps_are_appended_once_and_in_order(tmp_path):
    with Journal.create(tmp_path / "journal.bin", IDENTITY, base_step=4) as made:
        made.append(entry(5))
        for wrong in (5, 7):
            with pytest.raises(JournalError, match=f"got the entry of step {wrong}, expected step 6: append"):
                made.append(entry(wrong))
        made.append(entry(6))
    assert steps(tmp_path / "journal.bin") == [5, 6]
    assert last_step(tmp_path / "journal.bin") == 6
    with pytest.raises(ConfigError, match="step: got 0, expected the steps done, at least 1"):
        entry(1).__class__(step=0, fold=entry(1).fold)


def test_a_journal_goes_on_after_any_of_its_steps(tmp_path):
    path = journal(tmp_path / "journal.bin", 5)
    with Journal.open(path, IDENTITY, last_step=3) as made:
        assert "steps 4 to 5 are taken again" in (made.dropped or "")
        made.append(entry(4))
    assert steps(path) == [1, 2, 3, 4]
    with pytest.raises(JournalError, match="has no step 9, its last one is 4: resume from"):
        Journal.open(path, IDENTITY, last_step=9)


def test_what_is_no_journal_of_this_run_is_refused(tmp_path):
    path = journal(tmp_path / "journal.bin", 2)
    with pytest.raises(JournalError, match=r"is the journal of another run: .* move it away"):
        Journal.open(path, bytes(32))
    with pytest.raises(JournalError, match="cannot be read"):
        read_header(tmp_path / "absent.bin")
    for text in (b"", b"ZORNJRNL", b"\0" * 500):
        path.write_bytes(text)
        with pytest.raises(JournalError, match="is no journal, or its header is damaged: restore"):
            list(read_journal(path))
    header = struct.pack("<8sIQ32s", b"ZORNJRNL", 9, 0, IDENTITY)
    path.write_bytes(header + struct.pack("<I", zlib.crc32(header)))
    with pytest.raises(
        JournalError, match=r"format .* 9, expected .* 1: read it with the zorn that wrote it"
    ):
        read_header(path)


def test_the_identity_is_that_of_settings_and_weights():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).bfloat16()
    before = run_identity({"a": 1, "b": 2}, model)
    assert before == run_identity({"b": 2, "a": 1}, model)
    assert before != run_identity({"a": 1, "b": 3}, model)
    with torch.no_grad():
        model[0].bias[1].add_(0.5)
    assert before != run_identity({"a": 1, "b": 2}, model)


@pytest.mark.parametrize("sync_seconds", [0.0, 1000.0, None])
def test_entries_are_forced_to_the_disk_when_it_is_time(tmp_path, sync_seconds, monkeypatch):
    made = Journal.create(tmp_path / "journal.bin", IDENTITY, sync_seconds=sync_seconds)
    forced = []
    monkeypatch.setattr(os, "fsync", forced.append)
    with made:
        for step in (1, 2):
            made.append(entry(step))
        assert len(forced) == (2 if sync_seconds == 0 else 0)
        assert steps(tmp_path / "journal.bin") == [1, 2], "a process that dies loses nothing"
        made.sync()
        assert len(forced) == (3 if sync_seconds == 0 else 1)


def test_a_disk_that_refuses_an_entry_leaves_the_journal_whole(tmp_path):
    """The system refuses files beyond a size in the middle of the third entry: a real refusal."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[2]); import test_journal as t\n"
        "from pathlib import Path\n"
        "journal = t.Journal.create(Path(sys.argv[1]), t.IDENTITY)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (56 + 2 * 112 + 50, 10**6))\n"
        "journal.append(t.entry(1)); journal.append(t.entry(2))\n"
        "for attempt in range(2):\n"
        "    try:\n"
        "        journal.append(t.entry(3))\n"
        "    except OSError as error:\n"
        "        print(error.errno, journal.last_step)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "journal.append(t.entry(3))\n"
    )
    path = tmp_path / "journal.bin"
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), here], capture_output=True, text=True, timeout=240
    )
    assert (done.stdout, done.stderr) == ("27 2\n27 2\n", "")
    assert steps(path) == [1, 2, 3]
    assert path.stat().st_size == 56 + 3 * 112
