"""Stopping a command, early, twice, by either signal; and a reader of its output that goes away."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zorn.cli.process import Output
from zorn.run import latest_checkpoint
from zorn.run.lock import locked
from zorn.run.loggers import read_metrics

TRAIN = ["train", "--task", "copy", "--batch", "4", "--population", "4", "--hidden-size", "4", "--out", "run"]


def start(words, folder):
    """`python -m zorn` with some words, once it handles its signals; SIGINT is not ignored, as it is in a
    shell's background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "zorn", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    signal.signal(signal.SIGINT, before)
    await_(lambda: catches(process, signal.SIGTERM))
    return process


def catches(process, number):
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def await_(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@linux
@pytest.mark.parametrize(
    ("delay", "number"), [(0.0, signal.SIGINT), (0.2, signal.SIGTERM), (0.4, signal.SIGINT)]
)
def test_a_signal_while_torch_loads_is_one_line(tmp_path, delay, number):
    process = start([*TRAIN, "--seconds", "600"], tmp_path)
    time.sleep(delay)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert error == "zorn: stopped\n"
    assert "stopped after" not in out
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_long_step_at_once_with_one_line(tmp_path, number):
    words = [*TRAIN, "--seconds", "6000", "--population", "10000000", "--hidden-size", "32"]
    process = start(words, tmp_path)
    await_(lambda: read_metrics(tmp_path / "run" / "metrics.jsonl"))  # evaluated
    time.sleep(1.0)  # in the endless first step, also on a busy machine: before it, one signal would do
    process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None, "the first one lets the step end"
    while process.poll() is None:  # again, where a busy machine took two signals as one
        process.send_signal(number)
        time.sleep(0.3)
    out, error = process.communicate(timeout=60)
    assert error == "zorn: stopped\n"
    assert "stopped after" not in out
    assert process.returncode == 130
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-00000000"
    with locked(tmp_path / "run"):
        pass


@linux
def test_sigterm_saves_and_says_what_is_saved(tmp_path):
    process = start([*TRAIN, "--seconds", "600"], tmp_path)
    assert process.stdout is not None
    chosen = iter(process.stdout.readline, "")
    assert any(line.startswith("step 1 ") for line in chosen)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    step = int(latest_checkpoint(tmp_path / "run" / "checkpoints").name.removeprefix("step-"))
    assert (out, error) == (f"stopped after step {step}; resume with: zorn resume run\n", "")
    assert process.returncode == 130


@linux
def test_a_reader_that_goes_away_ends_no_run(tmp_path):
    """`zorn train | head -1`."""
    process = start([*TRAIN, "--steps", "300"], tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=60) == (None, "")
    assert process.returncode == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 300


def test_output_is_dropped_only_when_its_reader_is_gone():
    reading, writing = os.pipe()
    stream = io.TextIOWrapper(io.BufferedWriter(Output(writing, "wb")))
    print("one", file=stream, flush=True)
    assert os.read(reading, 100) == b"one\n"
    os.close(reading)
    for line in ("two", "three"):
        print(line, file=stream, flush=True)
    stream.close()
    if Path("/dev/full").exists():
        with Output("/dev/full", "wb") as full:
            with pytest.raises(OSError, match="No space left"):
                full.write(b"four")
            full.write(b"four")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_is_refused_is_one_line(tmp_path):
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "zorn", "train", "--help"]
        done = subprocess.run(words, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "zorn: [Errno 28] No space left on device\n")


def test_the_commands_are_found_before_torch_is_loaded():
    code = "import sys, zorn.cli.entry; print({'torch', 'numpy', 'tyro'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
