"""The journal's file: what is written comes back, damage is found wherever it is, and a disk that refuses
leaves it whole."""

import json
import math
import os
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
    FORMAT,
    Damage,
    Journal,
    base_step,
    journal_pieces,
    last_step,
    read_journal,
    run_identity,
)
from zorn.run.journal_entry import JournalEntry, sealed

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


@pytest.mark.parametrize(("options", "dtype"), [({}, torch.float32), ({"wide": True}, torch.float64)])
def test_an_entry_comes_back_with_every_bit(tmp_path, options, dtype):
    written = entry(1, members=5, **options)
    assert written.fold.coded.dtype == dtype
    with Journal.create(tmp_path / "journal.jsonl", IDENTITY) as made:
        made.append(written)
    (found,) = read_journal(tmp_path / "journal.jsonl")
    assert found.fold.coded.dtype == dtype
    assert torch.equal(found.fold.coded, written.fold.coded)
    assert torch.equal(found.fold.weights, written.fold.weights)
    assert found.fold.draw == written.fold.draw
    assert (found.fold.origin, found.fold.draws) == (None, 1)
    assert found.encoded() == written.encoded()
    for name in ("step", "rate_factor", "loss", "gradient_norm", "forward_passes", "dropped", "seconds"):
        assert getattr(found, name) == getattr(written, name)


def test_the_layout_is_the_one_that_is_documented():
    """JSON that any tool reads; a change here needs a new format number."""
    draw = Draw(seed=2**64 - 1, step=6, epsilon=0.1)
    fold = Fold(draw=draw, coded=torch.tensor([1.0, -0.5]), origin=4, draws=3)
    assert JournalEntry(step=7, fold=fold, loss=-2.5).encoded() == (
        b'{"step": 7, "rate_factor": 1.0, "loss": -2.5, "gradient_norm": 0.0, "forward_passes": 0, '
        b'"dropped": 0, "seconds": 0.0, "draw": {"seed": 18446744073709551615, "step": 6, "epsilon": 0.1}, '
        b'"origin": 4, "draws": 3, "coded": "AACAPwAAAL8=", "dtype": "float32", "crc32": "cae42cf7"}\n'
    )
    text, tail = entry(7).encoded().split(b', "crc32"')
    assert json.loads("{" + '"crc32"' + tail.decode()) == {"crc32": f"{zlib.crc32(text):08x}"}
    assert FORMAT == 2


def test_any_flipped_byte_is_detected(tmp_path):
    """Over all positions and several flips: the file is never read as if it were whole."""
    path = journal(tmp_path / "journal.jsonl", 3)
    data = path.read_bytes()
    starts = [sum(map(len, data.splitlines(keepends=True)[:line])) for line in range(5)]
    assert starts[4] == len(data)
    for position in range(len(data)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            path.write_bytes(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
            if position < starts[1]:
                with pytest.raises(JournalError, match="is no journal, or its header is damaged"):
                    list(read_journal(path))
                continue
            first = next(step for step in (1, 2, 3) if position < starts[step + 1])
            last = min(first + (position == starts[first + 1] - 1), 3)  # an end of a line: two lines are one
            lost = range(first, last + 1)
            pieces = list(journal_pieces(path))
            damage = Damage(step=first, last=None if last == 3 else last, start=starts[first])
            assert [piece for piece in pieces if isinstance(piece, Damage)] == [damage]
            assert [each.step for each in pieces if isinstance(each, JournalEntry)] == [
                step for step in (1, 2, 3) if step not in lost
            ]
            if last < 3:
                with pytest.raises(JournalError, match=f"damaged at step {first} .*move it away"):
                    list(read_journal(path))
                assert steps(path, after=last) == list(range(last + 1, 4))
            else:
                assert steps(path) == list(range(1, first))


def test_an_entry_that_was_cut_short_is_dropped_at_any_length(tmp_path):
    path = journal(tmp_path / "journal.jsonl", 3)
    data = path.read_bytes()
    end = len(data) - len(entry(3).encoded())
    for length in range(end, len(data)):
        path.write_bytes(data[:length])
        assert steps(path) == [1, 2]
        with Journal.open(path, IDENTITY) as made:
            assert made.last_step == 2
            assert (made.dropped is None) == (length == end)
            if made.dropped:
                assert f"its last {length - end} bytes were no whole line" in made.dropped
            made.append(entry(3))
        assert path.read_bytes() == data


def test_a_file_that_ends_in_zeros_goes_on_before_them(tmp_path):
    """As a machine leaves it that dies when the length is on the disk and the bytes are not."""
    path = journal(tmp_path / "journal.jsonl", 2)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(4096))
    with Journal.open(path, IDENTITY) as made:
        assert "its last 4096 bytes were no whole line" in (made.dropped or "")
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([1, 4, 5], r"damaged at step 2 .* and steps after 3 are whole"),
        ([1, 2, 2, 3], r"damaged at step 3 .* and steps after 3 are whole"),
    ],
)
def test_a_step_that_is_missing_or_there_twice_is_damage(tmp_path, written, message):
    path = journal(tmp_path / "journal.jsonl", 0)
    path.write_bytes(path.read_bytes() + b"".join(entry(step).encoded() for step in written))
    with pytest.raises(JournalError, match=message):
        list(read_journal(path))


def test_steps_are_appended_once_and_in_order(tmp_path):
    with Journal.create(tmp_path / "journal.jsonl", IDENTITY, base_step=4) as made:
        made.append(entry(5))
        for wrong in (5, 7):
            with pytest.raises(JournalError, match=f"got the entry of step {wrong}, expected step 6: append"):
                made.append(entry(wrong))
        made.append(entry(6))
    assert steps(tmp_path / "journal.jsonl") == [5, 6]
    assert last_step(tmp_path / "journal.jsonl") == 6
    with pytest.raises(ConfigError, match="step: got 0, expected the steps done, at least 1"):
        entry(1).__class__(step=0, fold=entry(1).fold)


def test_a_journal_goes_on_after_any_of_its_steps(tmp_path):
    path = journal(tmp_path / "journal.jsonl", 5)
    with Journal.open(path, IDENTITY, last_step=3) as made:
        assert "steps 4 to 5 are taken again" in (made.dropped or "")
        made.append(entry(4))
    assert steps(path) == [1, 2, 3, 4]
    with pytest.raises(JournalError, match="has no step 9, its last one is 4: resume from"):
        Journal.open(path, IDENTITY, last_step=9)


def test_what_is_no_journal_of_this_run_is_refused(tmp_path):
    path = journal(tmp_path / "journal.jsonl", 2)
    with pytest.raises(JournalError, match=r"is the journal of another run: .* move it away"):
        Journal.open(path, bytes(32))
    with pytest.raises(JournalError, match="cannot be read"):
        base_step(tmp_path / "absent.jsonl")
    for text in (b"", b"ZORNJRNL", b"\0" * 500, b'{"format": 2}\n'):
        path.write_bytes(text)
        with pytest.raises(JournalError, match="is no journal, or its header is damaged: restore"):
            list(read_journal(path))
    path.write_bytes(sealed({"format": 9, "base_step": 0, "identity": IDENTITY.hex()}))
    with pytest.raises(JournalError, match="is of journal format 9, this zorn reads format 2: read it with"):
        base_step(path)


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
    made = Journal.create(tmp_path / "journal.jsonl", IDENTITY, sync_seconds=sync_seconds)
    forced = []
    monkeypatch.setattr(os, "fsync", forced.append)
    with made:
        for step in (1, 2):
            made.append(entry(step))
        assert len(forced) == (2 if sync_seconds == 0 else 0)
        assert steps(tmp_path / "journal.jsonl") == [1, 2], "a process that dies loses nothing"
        made.sync()
        assert len(forced) == (3 if sync_seconds == 0 else 1)


def test_a_disk_that_refuses_an_entry_leaves_the_journal_whole(tmp_path):
    """The system refuses files beyond a size in the middle of the third entry: a real refusal."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[2]); import test_journal as t\n"
        "from pathlib import Path\n"
        "journal = t.Journal.create(Path(sys.argv[1]), t.IDENTITY)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), 10**6))\n"
        "journal.append(t.entry(1)); journal.append(t.entry(2))\n"
        "for attempt in range(2):\n"
        "    try:\n"
        "        journal.append(t.entry(3))\n"
        "    except OSError as error:\n"
        "        print(error.errno, journal.last_step)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "journal.append(t.entry(3))\n"
    )
    path = tmp_path / "journal.jsonl"
    two = sum(len(entry(step).encoded()) for step in (1, 2))
    header = len(journal(path, 0).read_bytes())
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), here, str(header + two + 50)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.stdout, done.stderr) == ("27 2\n27 2\n", "")
    assert steps(path) == [1, 2, 3]
    assert path.stat().st_size == header + two + len(entry(3).encoded())
