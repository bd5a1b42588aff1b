"""The planned memory of a step, counted on sizes alone, against that of the same step on numbers."""

from typing import Any

import pytest
import torch

import zorn
from zorn.config import BudgetConfig, Config, change, resolve
from zorn.plan import LiveBytes, step_memory
from zorn.plan.step import Given
from zorn.training.learner import Learner

STEPS, VOCABULARY = 12, 40


def settings(estimator, **more):
    named = {"batch": 8, "hidden_size": 24, "micro_batch": 8, "optimizer": "adam", **more}
    asked = change(Config(budget=BudgetConfig(steps=1)), estimator=estimator, **named)
    return resolve(asked)[0]


def counted(config, steps=STEPS):
    """Live bytes at the peak of steps on numbers, in plain torch."""
    with LiveBytes() as live:
        tokens = torch.randint(0, VOCABULARY, (config.task.batch, steps + 1))
        batch = zorn.Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        del tokens
        task: Any = Given(batch, VOCABULARY, zorn.TokenCrossEntropy())
        learner = Learner.build(config, task)
        live.peak = live.now
        for _ in range(1 + (config.estimator.get("credit_every") or 1)):
            learner.train_step(0.0)
    return live.peak


@pytest.mark.parametrize(
    ("estimator", "more"),
    [
        ("cd-rge", {"population": 16}),
        ("cd-rge", {"population": 2, "perturbation": "dense", "group_size": None}),
        ("activity", {"draws": 2}),
        ("bptt", {"cell": "gru"}),
        ("tbptt", {"truncation": 4}),
        ("e-prop", {}),
        ("bridge", {"truncation": 4, "draws": 2, "credit_every": 1}),
    ],
)
def test_a_step_on_sizes_holds_what_the_same_step_on_numbers_holds(estimator, more, monkeypatch):
    monkeypatch.setattr("zorn.native.loading.compiled", lambda: None)  # on numbers, torch's operations too
    config = settings(estimator, **more)
    assert step_memory(config, VOCABULARY, STEPS).peak == pytest.approx(counted(config), rel=0.05)


def test_tensors_are_counted_while_they_live():
    with LiveBytes() as live:
        kept = torch.zeros(100, requires_grad=True)
        (kept * kept).sum().backward()
        assert live.now == 800  # the leaf and its gradient
    assert live.peak >= 1200


def test_memory_grows_with_what_it_should_grow_with():
    small = step_memory(settings("bptt"), VOCABULARY, STEPS)
    for bigger in (
        step_memory(settings("bptt", hidden_size=48), VOCABULARY, STEPS),
        step_memory(settings("bptt"), VOCABULARY, 2 * STEPS),
        step_memory(settings("bptt"), 10 * VOCABULARY, STEPS),
    ):
        assert bigger.peak > small.peak
    assert small.optimizer == pytest.approx(2 * small.weights, rel=0.01)
    assert small.gradients == small.weights


def test_long_sequences_lie_on_a_line():
    config = settings("bptt")
    long = step_memory(config, VOCABULARY, 48).peak
    assert long == pytest.approx(counted(config, 48), rel=0.15)
    assert step_memory(config, VOCABULARY, 10**6).peak > 10_000 * long
