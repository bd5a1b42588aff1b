"""A learner trains as the trainer does."""

import io
import math

import pytest
import torch
from rich.console import Console

from zorn.config import BudgetConfig, Choice, Config, RunConfig, change, resolve
from zorn.training import Trainer
from zorn.training.build import build_task
from zorn.training.learner import Learner

TEXT = "the quick brown fox jumps over the lazy dog, again and again. " * 200


def settings(*, task=None, estimator=None, optimizer=None, run=None):
    start = Config(
        task=Choice("copy", batch=4, maximum_length=2),
        model=Choice("lstm", hidden_size=8),
        estimator=Choice("cd-rge", population=8),
        budget=BudgetConfig(steps=4),
        run=RunConfig(evaluations=1),
    )
    groups = (task or {}, estimator or {}, optimizer or {}, run or {})
    return resolve(change(start, **{name: value for group in groups for name, value in group.items()}))[0]


def learner(config):
    return Learner.build(config, build_task(config))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


KINDS = {
    "cd-rge": {},
    "fd-rge, growing": {"estimator": {"estimator": "fd-rge", "final_population": 32}},
    "in place": {"optimizer": {"optimizer": "fused-sgd", "learning_rate": 0.1}},
    "momentum, clipped": {"optimizer": {"optimizer": "sgd", "momentum": 0.9, "clip_norm": 0.1}},
    "schedules": {"optimizer": {"schedule": "cosine", "epsilon_schedule": "cosine", "warmup_steps": 2}},
    "bptt": {"estimator": {"estimator": "bptt"}},
    "tbptt": {"estimator": {"estimator": "tbptt", "truncation": 2}},
    "activity": {"estimator": {"estimator": "activity"}},
    "bridge": {"estimator": {"estimator": "bridge", "truncation": 2}},
    "bridge, one part": {"estimator": {"estimator": "bridge", "truncation": 2, "separate": False}},
}


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_its_steps_are_the_trainers(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)
    config = settings(**KINDS[kind], run={"out": tmp_path / "run"})
    trainer = Trainer(config, console=Console(file=io.StringIO()))
    trainer.run()
    own = learner(config)
    for step in range(4):
        own.train_step(share=step / 4)
    assert torch.equal(weights(own.model), weights(trainer.model))


def test_a_held_out_loss_that_is_no_number_is_infinite():
    own = learner(settings())
    with torch.no_grad():
        next(own.model.parameters()).fill_(math.nan)
    assert own.held_out_loss() == math.inf


def test_held_out_data_are_the_validation_split(text_file, monkeypatch):
    config = settings(task={"task": "text", "source": text_file, "length": 10})
    task, asked = build_task(config), []
    data = type(task).evaluation_data
    monkeypatch.setattr(
        type(task), "evaluation_data", lambda self, split: asked.append(split) or data(self, split)
    )
    own = Learner.build(config, task)
    own.held_out_loss()
    assert asked == ["validation"]
    copying = learner(settings())
    assert copying.held_out_loss() == pytest.approx(copying.task.evaluate(copying.model).loss, rel=1e-5)
