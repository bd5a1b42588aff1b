"""A run is read while another process trains in its folder: saves, and removes what is being read."""

import shutil

import pytest
import torch

from zorn.cli import main
from zorn.errors import CheckpointError, ConfigError
from zorn.run.checkpoint import load_checkpoint, newest_mark, read_progress, save_checkpoint
from zorn.run.lock import locked
from zorn.training import Trainer, load

WORDS = ["--task", "copy", "--batch", "2", "--hidden-size", "4", "--steps", "1", "--keep", "1"]


@pytest.fixture
def run(tmp_path):
    assert main(["train", *WORDS, "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def trainer_that_saves(run, times, step=None):
    """In place of `load_checkpoint`: before the first calls a save comes in between, whose weights are equal
    to its number, and removes the checkpoint that was to be read."""
    saves = iter(range(1, times + 1))

    def read(path, model, optimizer=None):
        number = next(saves, None)
        if number is not None:
            progress = load_checkpoint(path, model)
            for weight in model.parameters():
                weight.data.fill_(number)
            settings = read_progress(path).settings
            after = progress.step + 1 if step is None else step
            values = {name: getattr(progress, name) for name in ("seconds", "forward_passes", "dropped")}
            changed = type(progress)(
                step=after, seed=progress.seed, settings=settings, text=progress.text, **values
            )
            if after == progress.step:
                shutil.rmtree(path)
            save_checkpoint(path.parent, changed, model, None, keep=1)
            if after == progress.step:
                raise CheckpointError("half of the former files, half of the new")
        return load_checkpoint(path, model, optimizer)

    return read


@pytest.mark.parametrize("reader", [load.load_run, load.load_writer])
@pytest.mark.parametrize("step", [None, 1])
def test_what_was_removed_while_it_was_read_is_read_anew(run, reader, step, monkeypatch):
    monkeypatch.setattr(load, "load_checkpoint", trainer_that_saves(run, times=3, step=step))
    _, model = reader(run)
    assert all(torch.equal(weight, torch.full_like(weight, 3.0)) for weight in model.parameters())


def test_a_run_that_is_written_faster_than_it_is_read(run, monkeypatch):
    monkeypatch.setattr(load, "load_checkpoint", trainer_that_saves(run, times=99))
    with pytest.raises(CheckpointError, match="is written faster than it can be read, 10 times"):
        load.load_writer(run)


def test_damage_is_not_tried_again(run, monkeypatch):
    calls = []

    def damaged(path, model, optimizer=None):
        calls.append(path)
        raise CheckpointError("damaged")

    monkeypatch.setattr(load, "load_checkpoint", damaged)
    with pytest.raises(CheckpointError, match=r"^damaged$"):
        load.load_run(run)
    assert len(calls) == 1
    assert newest_mark(run / "nothing") is None


def test_a_run_in_use_is_not_resumed_and_the_message_names_the_process(run, capsys):
    with locked(run):
        assert main(["resume", str(run), "--steps", "3"]) == 2
    assert "is in use by process" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="finished"):
        Trainer.resume(run)
