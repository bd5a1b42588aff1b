"""Streams in the trainer: state goes on from window to window, and through a stop within a segment."""

import io

import pytest
import torch
from rich.console import Console

from zorn.config import BudgetConfig, Choice, Config, RunConfig, change
from zorn.models import Batch, row_losses
from zorn.run import latest_checkpoint
from zorn.run.loggers import read_metrics
from zorn.training import Trainer

ESTIMATORS = {
    "activity": {"draws": 2},
    "bridge": {"truncation": 2},
    "tbptt": {"truncation": 2},
    "pes": {"population": 8},
    "nres": {"population": 8, "shaping": "zscore"},
}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Leave the picture out: it takes longer to draw than these runs take to train."""
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog, again and again. " * 60)
    return path


def settings(out, text_file, name, *, steps, stream=4, **optimizer):
    start = Config(
        task=Choice("text", source=str(text_file), batch=4, length=6, stream=stream),
        model=Choice("lstm", hidden_size=8),
        estimator=Choice(name, **ESTIMATORS[name]),
        budget=BudgetConfig(steps=steps),
        run=RunConfig(out=out, evaluations=1, checkpoint_seconds=0.0),
    )
    return change(start, **optimizer)


def train(config):
    Trainer(config, console=Console(file=io.StringIO())).run()


def tensors(folder):
    newest = latest_checkpoint(folder / "checkpoints")
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


def losses(folder):
    records = read_metrics(folder / "metrics.jsonl")
    return [record["loss"] for record in records if record["kind"] == "train"]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_stop_in_the_middle_of_a_segment_changes_no_bit(tmp_path, text_file, name):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(settings(whole, text_file, name, steps=7))
    train(settings(parts, text_file, name, steps=2))
    for steps in (5, 7):  # inside the first segment, then inside the second
        Trainer.resume(parts, steps=steps, console=Console(file=io.StringIO())).run()
    assert "estimator.safetensors" in tensors(parts)
    assert tensors(whole) == tensors(parts)
    assert losses(whole) == losses(parts)


@pytest.mark.parametrize("name", ["activity", "bridge", "tbptt"])
def test_state_is_carried_over_the_windows_of_a_segment_and_no_further(tmp_path, text_file, name):
    """With a step size of nearly 0, the windows of a segment have the losses of one long window."""
    out = tmp_path / "run"
    config = settings(out, text_file, name, steps=8, learning_rate=1e-30)
    run = Trainer(config, console=Console(file=io.StringIO()))
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(4.0)  # so that the state matters
    run.run()
    found = losses(out)
    for first in (0, 4):
        windows = [run.task.training_batch(step) for step in range(first, first + 4)]
        whole = Batch(*(torch.cat(parts, dim=1) for parts in zip(*windows, strict=True)))
        with torch.no_grad():
            together = float(row_losses(run.model, whole, run.task.objective).mean())
            apart = [float(row_losses(run.model, one, run.task.objective).mean()) for one in windows]
        assert sum(found[first : first + 4]) / 4 == pytest.approx(together, rel=1e-6)
        assert found[first] == pytest.approx(apart[0], rel=1e-6)
        assert found[first + 1] != pytest.approx(apart[1], rel=1e-4)
