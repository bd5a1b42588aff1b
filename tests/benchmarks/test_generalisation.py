"""The comparison at equal training loss: the small training sets, the marks, what is recorded."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import generalisation
from contest import Point, Run, train
from generalisation import EPSILONS, MARKS, at_mark

import zorn

METHODS = generalisation.methods()


def point(steps, training, validation, smoothed=None):
    measured = {"loss": training, "validation_loss": validation, "validation_token_accuracy": validation / 10}
    if smoothed is not None:
        measured |= {f"smoothed_loss {epsilon:g}": smoothed for epsilon in EPSILONS}
    return Point(steps, 0, float(steps), training, measured)


def test_the_validation_loss_at_a_mark_lies_on_the_line_between_two_judgements():
    points = [point(0, 3.0, 3.2), point(1, 2.0, 3.0), point(2, 1.0, 5.0), point(3, 0.4, 9.0)]
    assert at_mark(points, 1.5, "validation_loss") == pytest.approx(4.0)
    assert at_mark(points, 2.5, "validation_loss") == pytest.approx(3.1)
    assert at_mark(points, 1.0, "validation_loss") == pytest.approx(5.0)  # "below": on the way to the next
    assert math.isnan(at_mark(points, 0.1, "validation_loss"))
    assert at_mark([point(0, 1.0, 2.0)], 1.5, "validation_loss") == 2.0


def test_records_tell_each_mark_and_the_best():
    points = [point(0, 3.4, 3.5), point(1, 1.2, 3.0, smoothed=1.5), point(2, 0.05, 4.0, smoothed=0.25)]
    method = METHODS["bptt-adamw"]
    records = generalisation.records_of("copy", method, 1, 9.0, 10, Run(points, 0))
    value = {
        (one.name, one.settings.get("training_loss"), one.settings.get("epsilon")): one.value
        for one in records
    }
    assert value["validation_loss", 0.1, None] == pytest.approx(3 + (1.2 - 0.1) / (1.2 - 0.05))
    assert value["smoothing_rise", 1.5, EPSILONS[0]] == pytest.approx(1.5 - 1.2)
    assert value["smoothing_rise", 0.1, EPSILONS[1]] == pytest.approx(0.25 - 0.05)
    assert value["best_validation_loss", None, None] == 3.0
    assert value["best_at", None, None] == 1.2
    assert {one.settings["seed"] for one in records} == {1}


@pytest.mark.parametrize("name", list(MARKS))
def test_the_training_set_is_small_and_the_validation_data_is_other_data(name):
    method = METHODS["bptt-adamw"]
    task, fresh = generalisation.make_tasks(name, method, 0)
    validation = fresh.evaluation_data("validation").batch
    if name == "text":
        assert abs(len(task.text["train"]) - generalisation.TEXT_BYTES) <= 4
        return
    first, later = task.training_batch(0), task.training_batch(9)
    assert torch.equal(first.inputs, later.inputs)
    assert len(first.inputs) == generalisation.SEQUENCES
    rows = {tuple(row) for row in first.inputs.tolist()}
    assert len(rows & {tuple(row) for row in validation.inputs.tolist()}) < 3  # short ones may meet


def test_the_smoothed_loss_is_taken_when_a_mark_is_passed_and_at_the_end():
    method = METHODS["bptt-adamw"]
    task, fresh = generalisation.make_tasks("copy", method, 0)
    model = zorn.LanguageModel(task.vocabulary, 8)
    start = task.evaluate(model).loss
    judge = generalisation.Judge(fresh, (start - 0.01, start - 0.05))
    run = train(method, model, task, judge, seconds=60, stop_below=start - 0.05)
    told = ["smoothed_loss 0.02" in one.measured for one in run.points]
    assert told[-1]
    assert sum(told) == 2
    assert run.points[0].measured["validation_loss"] != run.points[0].loss


def test_smoothing_raises_the_loss_of_a_sharp_minimum():
    method = METHODS["bptt-adamw"]
    task, _ = generalisation.make_tasks("copy", method, 0)
    model = zorn.LanguageModel(task.vocabulary, 8)
    near, far = (generalisation.smoothed(model, task, epsilon) for epsilon in (1e-4, 0.5))
    assert near == pytest.approx(task.evaluate(model).loss, abs=1e-3)
    assert far > near + 0.1


def test_the_methods_of_the_claim():
    decays = {
        method.optimizer.get("weight_decay", 0) for method in METHODS.values() if method.kind == "exact"
    }
    assert decays == {0, 0.1, 1}
    for name, kind in (("activity", "activity"), ("rank-one", "cd-rge")):
        mine = [method for key, method in METHODS.items() if key.startswith(name)]
        assert {method.estimator.name for method in mine} == {kind}
        assert len({method.estimator.epsilon for method in mine}) == 3
