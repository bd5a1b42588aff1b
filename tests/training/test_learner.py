"""A learner trains as the trainer does, and goes back to where it was, bit for bit."""

import io
import math

import pytest
import torch
from rich.console import Console

from zorn.config import BudgetConfig, Choice, Config, RunConfig, change, resolve
from zorn.errors import NonFiniteLossError
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
    "bptt": {"estimator": {"estimator": "bptt", "population": None}},
    "tbptt": {"estimator": {"estimator": "tbptt", "population": None, "truncation": 2}},
    "activity": {"estimator": {"estimator": "activity", "population": None}},
    "bridge": {"estimator": {"estimator": "bridge", "population": None, "truncation": 2}},
    "bridge, one part": {
        "estimator": {"estimator": "bridge", "population": None, "truncation": 2, "separate": False}
    },
}


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def streams(source):
    return {"task": "text", "source": source, "length": 4, "stream": 3, "maximum_length": 10}


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


@pytest.mark.parametrize("kind", [*KINDS, "streams"])
def test_it_goes_back_and_repeats_its_steps(kind, text_file):
    streaming = {"task": streams(text_file), "estimator": KINDS["activity"]["estimator"]}
    own = learner(settings(**(streaming if kind == "streams" else KINDS[kind])))
    own.train_step(share=0.0)
    own.train_step(share=0.1)  # in the middle of a segment
    state, before = own.state_dict(), weights(own.model)

    def steps():
        return [own.train_step(share=0.5).loss for _ in range(3)]

    losses, after = steps(), weights(own.model)
    assert not torch.equal(before, after)
    for _ in range(2):  # a state can be loaded again: nothing has grown into it
        own.load_state_dict(state)
        assert torch.equal(weights(own.model), before)
        assert own.step == 2
        assert steps() == losses
        assert torch.equal(weights(own.model), after)


def test_a_probe_leaves_nothing_behind_also_when_it_diverges(monkeypatch):
    config = settings(optimizer={"optimizer": "sgd", "learning_rate": 0.1})
    own, twin = learner(config), learner(config)
    losses = [own.probe(3, rate_factor=factor) for factor in (1.0, 1e-6, 1e38, 1.0)]
    assert losses[0] == losses[3]
    assert losses[1] == pytest.approx(own.held_out_loss(), abs=1e-4)
    assert losses[2] > 1e9
    estimate, answers = own.estimator.estimate, iter([True, False])

    def diverging(*parts, **options):
        if next(answers):
            return estimate(*parts, **options)
        raise NonFiniteLossError("the losses were not finite")

    with monkeypatch.context() as patch:
        patch.setattr(own.estimator, "estimate", diverging)
        assert own.probe(3) == math.inf
    assert torch.equal(weights(own.model), weights(twin.model))
    assert own.train_step(share=0.0).loss == twin.train_step(share=0.0).loss
    assert torch.equal(weights(own.model), weights(twin.model))


def test_a_held_out_loss_that_is_no_number_is_infinite():
    own = learner(settings())
    with torch.no_grad():
        next(own.model.parameters()).fill_(math.nan)
    assert own.held_out_loss() == math.inf


def test_a_probe_runs_the_schedules_through_unless_a_share_is_fixed():
    own = learner(settings(optimizer={"optimizer": "sgd", "schedule": "cosine", "schedule_floor": 0.0}))
    assert own.probe(2, share=1.0) == own.held_out_loss()
    assert own.probe(2, share=0.0) != own.probe(2)


def test_held_out_data_are_the_validation_split(text_file, monkeypatch):
    config = settings(task={"task": "text", "source": text_file, "maximum_length": 10})
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
