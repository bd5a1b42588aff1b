"""Faults from outside a run: kills, edits, full disks, a second process. Nothing is lost, and nothing goes on
as if it had not happened."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from zorn.config import BudgetConfig, Choice, Config, RunConfig, ScheduleConfig, resolve, to_json
from zorn.errors import CheckpointError, ConfigError
from zorn.run import checkpoints, latest_checkpoint
from zorn.run.lock import locked
from zorn.run.loggers import read_metrics
from zorn.training import Trainer
from zorn.training.load import load_run, load_writer

COPY = Choice("copy", batch=4, minimum_length=1, maximum_length=2)
SILENT = Console(file=io.StringIO())


def settings(out, *, steps=3, task=COPY, estimator="cd-rge", checkpoint_seconds=0.0):
    return Config(
        task=task,
        model=Choice("lstm", hidden_size=8),
        estimator=Choice(estimator, population=8),
        optimizer=Choice("auto"),
        schedule=ScheduleConfig(schedule="cosine", epsilon_schedule="cosine"),
        budget=BudgetConfig(steps=steps),
        run=RunConfig(out=out, evaluations=3, checkpoint_seconds=checkpoint_seconds),
    )


def train(config, **options):
    trainer = Trainer(config, console=SILENT, **options)
    trainer.run()
    return trainer


def resume(folder, **options):
    return Trainer.resume(folder, console=SILENT, **options)


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def without_clock(folder):
    records = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def tensors(folder):
    newest = latest_checkpoint(folder / "checkpoints")
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("all work and no play makes a dull text, " * 40)
    return path


def text_task(text, tokenizer):
    size = 270 if tokenizer == "bpe" else None
    return Choice("text", source=str(text), tokenizer=tokenizer, vocabulary_size=size, batch=4, length=8)


# Edits ---------------------------------------------------------------------------------------------------


def edit(folder, group, **changes):
    file = folder / "config.json"
    groups = json.loads(file.read_text())
    groups["resolved"][group] |= changes
    file.write_text(json.dumps(groups))


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("task", {"maximum_length": 3}, "maximum_length is 3, was 2"),
        ("model", {"residual": True}, "residual is True, was False"),
        (
            "estimator",
            {"epsilon": 0.1, "shaping": "sign"},
            "epsilon is 0.1, was 0.02; shaping is sign, was none",
        ),
        ("optimizer", {"learning_rate": 1.0}, "learning_rate is 1.0, was 0.01"),
        ("run", {"seed": 7}, "seed is 7, was 0"),
    ],
)
def test_an_edit_of_what_determines_the_run_is_refused_with_both_values(tmp_path, group, changes, message):
    train(settings(tmp_path))
    edit(tmp_path, group, **changes)
    before = contents(tmp_path)
    for use in (lambda: resume(tmp_path, steps=5), lambda: load_run(tmp_path), lambda: load_writer(tmp_path)):
        with pytest.raises(ConfigError) as caught:
            use()
        assert str(caught.value) == (
            f"config.json was changed since the run started: {message}; put the former values "
            "back, or train a new run with these"
        )
    assert contents(tmp_path) == before


def test_an_edit_of_what_only_says_how_to_run_is_taken(tmp_path):
    whole, edited = tmp_path / "whole", tmp_path / "edited"
    train(settings(whole, steps=5))
    train(settings(edited, steps=3))
    edit(edited, "run", evaluations=9, checkpoint_seconds=60.0, keep=1, out=None, threads=1)
    edit(edited, "estimator", micro_batch=256, time_chunk=50)
    edit(edited, "budget", steps=5)
    with contextlib.suppress(FileNotFoundError):
        (edited / "summary.json").unlink()
    resume(edited).run()
    assert latest_checkpoint(edited / "checkpoints").name == "step-00000005"


def test_a_text_that_was_changed_is_refused_and_one_that_was_moved_is_not(tmp_path, text):
    folder = tmp_path / "run"
    train(settings(folder, task=text_task(text, "bytes")))
    moved = text.rename(tmp_path / "moved.txt")
    edit(folder, "task", source=str(moved))
    load_run(folder)
    resume(folder, steps=4)
    moved.write_text(moved.read_text().replace("dull", "full", 1))
    before = contents(tmp_path)
    for use in (lambda: resume(folder, steps=5), lambda: load_run(folder)):
        with pytest.raises(
            ConfigError, match=r"moved\.txt' has changed since .*: it has 1600 bytes .*had 1600"
        ):
            use()
    load_writer(folder)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("tokenizer", ["bytes", "alphabet", "bpe"])
def test_writing_needs_the_tokenizer_and_not_the_text(tmp_path, text, tokenizer):
    folder = tmp_path / "run"
    trained = train(settings(folder, task=text_task(text, tokenizer)))
    text.unlink()
    writer, model = load_writer(folder)
    assert writer.encode("a dull day").tolist() == trained.task.encode("a dull day").tolist()
    assert writer.decode(writer.encode("all play")) == "all play"
    assert torch.equal(model.head.weight, trained.model.head.weight)
    with pytest.raises(ConfigError, match=r"text\.txt' does not exist"):
        load_run(folder)
    if tokenizer != "bytes":
        (folder / "tokenizer.json").unlink()
        for use in (load_writer, load_run, resume):
            with pytest.raises(ConfigError, match=r"tokenizer\.json is missing"):
                use(folder)


def test_a_damaged_newest_checkpoint_stops_a_resume_until_it_is_moved(tmp_path):
    folder = tmp_path / "run"
    train(settings(folder, steps=3))
    before = tensors(folder)
    older, newest = checkpoints(folder / "checkpoints")
    manifest = newest / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    for use in (lambda: resume(folder, steps=5), lambda: load_run(folder), lambda: load_writer(folder)):
        with pytest.raises(
            CheckpointError, match=f"{newest} is damaged; {older} before it is intact: move or"
        ):
            use()
    newest.rename(tmp_path / "damaged")
    (folder / "summary.json").unlink()
    resume(folder).run()
    assert tensors(folder) == before


# Two processes, and folders that refuse ------------------------------------------------------------------


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "run"
    train(settings(folder))
    with locked(folder):
        before = contents(folder)
        for second in (
            lambda: resume(folder, steps=5),
            lambda: train(settings(folder), overwrite=True),
        ):
            with pytest.raises(ConfigError, match=f"run is in use by process {os.getpid()}"):
                second()
        assert contents(folder) == before
    resume(folder, steps=4).run()


def test_a_run_holds_its_folder_while_it_trains(tmp_path):
    trainer = Trainer(settings(tmp_path), console=SILENT)
    update, seen = trainer._update, []

    def update_and_look(*arguments):
        with pytest.raises(ConfigError, match="is in use by process"), locked(tmp_path):
            pass
        seen.append(trainer.step)
        return update(*arguments)

    trainer._update = update_and_look
    trainer.run()
    assert seen == [0, 1, 2]


def test_a_run_that_went_on_meanwhile_is_not_gone_back_on(tmp_path):
    train(settings(tmp_path))
    late = resume(tmp_path, steps=5)
    resume(tmp_path, steps=4).run()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"step-00000004 was written by another process meanwhile"):
        late.run()
    after = contents(tmp_path)
    assert {path: after[path] for path in before if path.name != ".lock"} == {
        path: before[path] for path in before if path.name != ".lock"
    }


def test_a_resume_where_nothing_can_be_written_removes_nothing(tmp_path, monkeypatch):
    """Simulated, because the tests may run as root, whom permissions do not stop."""
    train(settings(tmp_path))
    before = contents(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=r"cannot write to .*: change its permissions, or copy the run"):
        resume(tmp_path, steps=5)
    monkeypatch.undo()
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)
    late = resume(tmp_path, steps=5)

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    with pytest.raises(
        OSError, match=r"stopped \(.*Read-only file system\); step 3 is saved: mend that, then resume"
    ):
        late.run()
    assert {path: data for path, data in contents(tmp_path).items() if path.name != ".lock"} == {
        path: data for path, data in before.items() if path.name != ".lock"
    }


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, error_of_a_full_disk):
    """The size is one that the metrics reach first."""
    error = error_of_a_full_disk(20000, ["--population", "4", "--steps", "400", "--checkpoint-seconds", "0"])
    assert "zorn: the run in run stopped ([Errno 27] File too large" in error
    folder = tmp_path / "run"
    newest = latest_checkpoint(folder / "checkpoints")
    step = int(newest.name.removeprefix("step-"))
    assert 0 < step < 400
    assert f"step {step} is saved: mend that, then resume with zorn resume" in error
    assert all(path.name.startswith("step-") for path in (folder / "checkpoints").iterdir())
    resume(folder, steps=step + 1).run()
    steps = [record["step"] for record in without_clock(folder) if record["kind"] == "train"]
    assert steps == list(range(1, step + 2))


def test_where_nothing_could_be_saved_the_error_names_the_way_on(tmp_path, monkeypatch):
    config = settings(tmp_path / "run")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
        with pytest.raises(OSError, match=r"make room, .*nothing is saved: .* train again with --overwrite"):
            train(config)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        resume(config.run.out, steps=5)
    train(config, overwrite=True)
    assert latest_checkpoint(config.run.out / "checkpoints").name == "step-00000003"


# Kills ---------------------------------------------------------------------------------------------------

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
        Trainer.resume(folder, console=console).run()
    else:
        Trainer(config, overwrite=(folder / "config.json").exists(), console=console).run()

def lines(folder):
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\\n")
    except FileNotFoundError:
        return 0

moments = random.Random(0)
for path in sys.argv[1:]:
    config, _ = from_json(Path(path).read_text())
    folder = config.run.out
    for trial in range(1000):
        child = os.fork()
        if child == 0:
            try:
                work(folder, config)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        # the first at any moment of the start, the others after some more lines of the log
        started, goal = time.monotonic(), lines(folder) + moments.randint(2, 9)
        over = 0.03 if trial == 0 else 60.0
        while lines(folder) < goal and time.monotonic() - started < over:
            if (folder / "summary.json").exists():
                break
            time.sleep(0.0005)
        time.sleep(moments.uniform(0.0, 0.01))
        ended, _ = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if (folder / "summary.json").exists():
            break
        done = [int(path.parent.name[5:]) for path in folder.glob("checkpoints/step-*/manifest.json")]
        print(folder.name, max(done, default=-1), flush=True)
"""


@pytest.mark.slow
def test_runs_that_are_killed_again_and_again_end_as_if_nothing_had_happened(tmp_path):
    """SIGKILL at random moments: while the folder is made, a step is taken, saved, logged or evaluated."""
    files = []
    for name in ("cd-rge", "fd-rge", "spsa-1.5"):
        config = settings(tmp_path / name, steps=20, estimator=name)
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(to_json(config, resolve(config)[0]))
        whole = dataclasses.replace(config.run, out=tmp_path / f"{name} whole")
        train(dataclasses.replace(config, run=whole))
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *map(str, files)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("cd-rge", "fd-rge", "spsa-1.5"):
        steps = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
        assert any(0 <= step < 20 for step in steps), f"no kill hit the training: {steps}"
        assert tensors(tmp_path / name) == tensors(tmp_path / f"{name} whole")
        assert without_clock(tmp_path / name) == without_clock(tmp_path / f"{name} whole")


@pytest.mark.parametrize("moment", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_saves_what_there_is(tmp_path, moment):
    trainer = Trainer(settings(tmp_path), console=SILENT)
    evaluate = trainer._evaluate

    def evaluate_and_interrupt(*arguments):
        signal.raise_signal(moment)
        evaluate(*arguments)

    trainer._evaluate = evaluate_and_interrupt
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (trainer.step, trainer.saved_step) == (0, 0)
    assert resume(tmp_path).step == 0
