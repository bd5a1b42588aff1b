"""The planned memory of a step, counted on sizes alone, against that of the same step on numbers."""

import pytest
import torch

import zorn
from zorn.config import BudgetConfig, Config, change, resolve
from zorn.plan import LiveBytes, step_memory
from zorn.plan.step import Step

STEPS, VOCABULARY = 12, 40


def settings(estimator, **more):
    named = {"batch": 8, "hidden_size": 24, "micro_batch": 8, "optimizer": "adam", **more}
    asked = change(Config(budget=BudgetConfig(steps=1)), estimator=estimator, **named)
    return resolve(asked)[0]


def counted(config, steps=STEPS, vocabulary=VOCABULARY):
    """Live bytes at the peak of steps on numbers, in plain torch."""
    with LiveBytes() as live:
        tokens = torch.randint(0, vocabulary, (config.task.batch, steps + 1))
        batch = zorn.Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        del tokens
        step = Step.build(config, vocabulary, batch)
        live.restart()
        for _ in range(1 + (config.estimator.get("credit_every") or 1)):
            step()
    return live.peak


@pytest.mark.parametrize(
    ("estimator", "more"),
    [
        ("cd-rge", {"population": 16}),
        ("cd-rge", {"population": 2, "perturbation": "dense", "group_size": None}),
        ("activity", {"draws": 2}),
        ("bptt", {"cell": "gru"}),
        ("tbptt", {"truncation": 4}),
        ("cd-rge", {"population": 16, "hidden_size": 8, "optimizer": "fused-sgd", "vocabulary": 9000}),
        ("e-prop", {}),
        ("bridge", {"truncation": 4, "draws": 2, "credit_every": 1}),
    ],
)
def test_a_step_on_sizes_holds_what_the_same_step_on_numbers_holds(estimator, more, monkeypatch):
    monkeypatch.setattr("zorn.native.loading.compiled", lambda: None)  # on numbers, torch's operations too
    vocabulary = more.get("vocabulary", VOCABULARY)  # above 8192 the head is read in slices
    config = settings(estimator, **{name: value for name, value in more.items() if name != "vocabulary"})
    found = step_memory(config, vocabulary, STEPS).peak
    assert found == pytest.approx(counted(config, vocabulary=vocabulary), rel=0.05)


@pytest.mark.parametrize("estimator", ["cd-rge", "bptt", "activity"])
def test_many_rows_of_a_large_model_lie_on_a_line(estimator, monkeypatch):
    config = change(settings(estimator), batch=256, micro_batch=512)
    whole = step_memory(config, VOCABULARY, STEPS).peak
    monkeypatch.setattr("zorn.plan.step.MUCH", 0)
    assert step_memory(config, VOCABULARY, STEPS).peak == pytest.approx(whole, rel=0.01)


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
