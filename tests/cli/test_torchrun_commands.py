"""`zorn train` and `resume` as torchrun starts them, again and again, and with others."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from zorn.cli.entry import main
from zorn.run import latest_checkpoint
from zorn.run.loggers import read_metrics

TRAIN = [
    *("train", "--task", "copy", "--maximum-length", "2", "--batch", "4", "--hidden-size", "4"),
    *(
        "--estimator",
        "cd-rge",
        "--population",
        "8",
        "--micro-batch",
        "4",
        "--evaluations",
        "1",
        "--schedule",
        "constant",
    ),
]


@pytest.fixture
def torchrun(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")


def steps(folder):
    return [line["step"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]


def test_processes_that_are_started_again_go_on_with_their_run(tmp_path, torchrun):
    words = [*TRAIN, "--out", str(tmp_path / "run")]
    assert main([*words, "--steps", "3"]) == 0
    assert main([*words, "--steps", "5"]) == 0
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5]


def test_a_run_that_is_done_or_was_cut_short_at_its_first_step_needs_no_other_command(tmp_path, torchrun):
    run = tmp_path / "run"
    words = [*TRAIN, "--out", str(run), "--steps", "3"]
    assert main(words) == 0
    assert main(words) == 0
    for path in (run / "summary.json", run / "journal.jsonl", run / "metrics.jsonl"):
        path.unlink()
    shutil.rmtree(run / "checkpoints")
    assert main(words) == 0
    assert steps(run) == [1, 2, 3]


def test_another_run_in_the_folder_is_never_gone_on_with(tmp_path, torchrun, capsys):
    words = [*TRAIN, "--out", str(tmp_path / "run"), "--steps", "3"]
    assert main(words) == 0
    for number in range(2):  # as with --max-restarts
        assert main([*words, "--learning-rate", "0.5"]) == 2
        assert "is not empty" in capsys.readouterr().err, number
    assert steps(tmp_path / "run") == [1, 2, 3]


def test_overwrite_is_refused_where_it_would_be_done_again(tmp_path, torchrun, capsys):
    words = [*TRAIN, "--out", str(tmp_path / "run"), "--steps", "2"]
    assert main(words) == 0
    assert main([*words, "--overwrite"]) == 2
    assert "remove the folder instead" in capsys.readouterr().err
    assert steps(tmp_path / "run") == [1, 2]


def together(folder, *commands, timeout=120):
    """Exit codes and what was printed of processes that train together, each in a folder of its own."""
    processes = []
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(commands))}
    for rank, words in enumerate(commands):
        place = folder / f"machine-{rank}"
        place.mkdir(exist_ok=True)
        environment = os.environ | meeting | {"RANK": str(rank), "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "zorn", *words],
                cwd=place,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], printed


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_machine_without_the_run_is_sent_it_and_ends_with_the_same_weights(tmp_path, monkeypatch):
    (tmp_path / "machine-0").mkdir()
    monkeypatch.chdir(tmp_path / "machine-0")
    assert main([*TRAIN, "--out", "run", "--steps", "3"]) == 0
    resume = ["resume", "run", "--steps", "6"]
    codes, printed = together(tmp_path, resume, resume)
    assert codes == [0, 0], printed
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "--out", "whole", "--steps", "6"]) == 0
    of_two = latest_checkpoint(tmp_path / "machine-0" / "run" / "checkpoints") / "model.safetensors"
    of_one = latest_checkpoint(tmp_path / "whole" / "checkpoints") / "model.safetensors"
    assert of_two.read_bytes() == of_one.read_bytes()


def test_another_run_on_another_machine_is_kept(tmp_path, monkeypatch):
    for number in range(2):
        (tmp_path / f"machine-{number}").mkdir()
        monkeypatch.chdir(tmp_path / f"machine-{number}")
        assert main([*TRAIN, "--out", "run", "--steps", "3", "--seed", str(number)]) == 0
    before = sorted(path.name for path in (tmp_path / "machine-1").rglob("*"))
    resume = ["resume", "run", "--steps", "6"]
    codes, printed = together(tmp_path, resume, resume)
    assert codes == [2, 2], printed
    assert "holds another run on this machine" in printed[1]
    assert sorted(path.name for path in (tmp_path / "machine-1").rglob("*")) == before


def test_flags_that_differ_are_told_before_the_first_step(tmp_path):
    words = [*TRAIN, "--out", "run", "--steps", "3"]
    codes, printed = together(tmp_path, words, [*words, "--learning-rate", "0.5"])
    assert codes == [2, 2], printed
    assert "differs from rank 0 in learning_rate: 0.5, not 0.01" in printed[0]
    assert not (tmp_path / "machine-0" / "run").exists()
