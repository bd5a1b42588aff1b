"""Kills and full disks with a journal: nothing is lost but the step in flight."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from zorn.config import BudgetConfig, Choice, Config, RunConfig, resolve, to_json
from zorn.run import checkpoints, latest_checkpoint
from zorn.run.journal import last_step
from zorn.run.loggers import read_metrics
from zorn.training import Trainer

KILLER = """
import io, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from rich.console import Console
from zorn.training import Trainer
from zorn.config import from_json
import zorn.training.trainer, tensorboard.summary.writer.record_writer
import tensorboard.compat.proto.event_pb2, tensorboard.compat.proto.summary_pb2
zorn.training.trainer.draw_curve = lambda *_: None
torch.optim.Adam([torch.zeros(1)])  # here, before the forks: torch imports late

def work(folder, config):
    console = Console(file=io.StringIO())
    if list(folder.glob("checkpoints/step-*/manifest.json")):
        trainer = Trainer.resume(folder, console=console)
        print("resumed", trainer.step, trainer.saved_step, flush=True)
        trainer.run()
    else:
        Trainer(config, overwrite=(folder / "config.json").exists(), console=console).run()

def written(folder):
    file = folder / "journal.jsonl"
    return file.read_bytes().count(b"\\n") - 1 if file.exists() else 0

moments = random.Random(1)
config, _ = from_json(Path(sys.argv[1]).read_text())
folder = config.run.out
for trial in range(100):
    child = os.fork()
    if child == 0:
        try:
            work(folder, config)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    goal = written(folder) + moments.randint(1, 5)
    while written(folder) < goal and not (folder / "summary.json").exists():
        time.sleep(0.0005)
    time.sleep(moments.uniform(0.0, 0.01))
    ended, _ = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if (folder / "summary.json").exists():
        break
"""


def settings(out, **run):
    return Config(
        task=Choice("copy", batch=4, minimum_length=1, maximum_length=2),
        model=Choice("lstm", hidden_size=4),
        estimator=Choice("cd-rge", population=8),
        budget=BudgetConfig(steps=16),
        run=RunConfig(**({"out": out, "evaluations": 4, "checkpoint_seconds": 1e6, "threads": 1} | run)),
    )


def lines(folder):
    records = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "seconds"} for line in records]


def tensors(folder):
    newest = latest_checkpoint(folder / "checkpoints")
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path):
    """SIGKILL at random moments, with nothing saved but the start: all that is left is the journal."""
    Trainer(settings(tmp_path / "whole"), console=Console(file=io.StringIO())).run()
    asked = settings(tmp_path / "run")
    (tmp_path / "run.json").write_text(to_json(asked, resolve(asked)[0]))
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "run.json")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    resumed = [list(map(int, line.split()[1:])) for line in done.stdout.splitlines()]
    assert len(resumed) >= 2, "no kill hit the training"
    assert [saved for _, saved in resumed] == [0] * len(resumed)
    assert [step for step, _ in resumed] == sorted({step for step, _ in resumed}), "some run lost steps"
    assert tensors(tmp_path / "run") == tensors(tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_a_full_disk_stops_the_run_with_one_line_and_every_step_before_is_kept(
    tmp_path, error_of_a_full_disk
):
    """The size is one that the journal reaches first, in the middle of an entry."""
    words = ["--population", "1024", "--maximum-length", "2", "--steps", "8"]
    error = error_of_a_full_disk(20000, words)
    assert "zorn: the run in run stopped ([Errno 27] File too large); step 0 is saved: mend" in error
    folder = tmp_path / "run"
    assert last_step(folder / "journal.jsonl") == 3
    assert (folder / "journal.jsonl").read_bytes().count(b"\n") == 1 + 3
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step-00000000"]
    resumed = Trainer.resume(folder, console=Console(file=io.StringIO()), steps=4)
    assert resumed.step == 3
    resumed.run()
    assert [line["step"] for line in lines(folder) if line["kind"] == "train"] == [1, 2, 3, 4]
