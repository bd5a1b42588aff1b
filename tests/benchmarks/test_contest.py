"""The comparisons of estimators: what a run records, and what is judged."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import contest
import methods
from contest import Method, Point, Run, judge_validation, run_apart, train

import zorn
from zorn.config import ScheduleConfig
from zorn.tasks import CopyTask, SortTask

TASK = CopyTask(batch=4, minimum_length=2, maximum_length=2, seed=0, overfit=True)
BPTT = methods.exact("adamw", 0.05, batch=4)
RANK_ONE = methods.rank_one("cd-rge", 64, 0.02, 0.05, batch=4)


def point(steps, loss):
    return Point(steps, 10 * steps, steps / 2, loss, {"loss": loss, "bits": 2 * loss})


def test_the_first_point_below_a_threshold_counts_and_not_the_best():
    run = Run([point(0, 3.0), point(1, 0.9), point(2, 1.2), point(3, 0.5)], 0)
    found = run.first_below(1.0)
    assert found is not None
    assert found.steps == 1
    assert run.first_below(0.1) is None
    by_other = run.first_below(1.1, "bits")
    assert by_other is not None
    assert by_other.steps == 3


@pytest.mark.parametrize("method", [BPTT, RANK_ONE], ids=lambda method: method.name)
def test_a_run_counts_steps_passes_and_seconds_and_stops_at_the_loss(method):
    model = zorn.LanguageModel(TASK.vocabulary, 8)
    first = judge_validation(model, TASK, False)["loss"]
    run = train(method, model, TASK, judge_validation, seconds=60, stop_below=first - 0.05)
    last = run.points[-1]
    passes = 3 * 4 if method.kind == "exact" else 2 * method.estimator.population
    assert [one.steps for one in run.points] == list(range(len(run.points)))
    assert [one.passes for one in run.points] == [passes * one.steps for one in run.points]
    assert all(a.seconds < b.seconds for a, b in zip(run.points, run.points[1:], strict=False))
    assert run.points[0].loss == first
    assert last.loss < first - 0.05 <= run.points[-2].loss
    assert last.loss == judge_validation(model, TASK, True)["loss"]


def test_a_run_ends_with_its_seconds():
    run = train(BPTT, zorn.LanguageModel(29, 8), TASK, judge_validation, seconds=0.05)
    assert run.points[-2].seconds < 0.05 <= run.points[-1].seconds


def test_the_learning_rate_and_epsilon_follow_their_schedules():
    method = methods.rank_one("cd-rge", 8, 0.02, 0.01, batch=4)
    method = dataclasses.replace(
        method, schedule=ScheduleConfig(schedule="cosine", epsilon_schedule="cosine")
    )
    stepper = contest._Stepper(method, zorn.LanguageModel(29, 8), 0)
    stepper.step(TASK, 0, 0.5)
    assert stepper.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.55)
    assert stepper.estimator.epsilon == pytest.approx(0.02 * 0.55)
    stepper.step(TASK, 1, 1.0)
    assert stepper.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)


def test_the_memory_of_judging_does_not_count():
    def hungry(model, task, last):
        bytearray(b"x" * 2**27)
        return judge_validation(model, task, last)

    run = train(BPTT, zorn.LanguageModel(29, 8), TASK, hungry, seconds=0.1)
    assert run.peak_bytes < 2**26


def test_other_splits_are_judged_at_the_end_alone():
    task, model = SortTask(batch=2, minimum_length=1, maximum_length=2, seed=0), zorn.LanguageModel(29, 4)
    assert set(judge_validation(model, task, False)) == {"loss", "token_accuracy", "sequence_accuracy"}
    last = judge_validation(model, task, True)
    found = task.evaluate(model, "validation-longer")
    assert last["validation-longer token_accuracy"] == found.token_accuracy
    assert last["loss"] == task.evaluate(model, "validation").loss


def test_a_method_comes_back_from_json_as_it_was():
    for method in methods.methods_of("overfit", "copy", "lstm").values():
        assert Method.from_json(method.to_json()) == method


def test_the_words_of_a_method_are_what_the_name_does_not_tell():
    words = methods.exact("sgd", 1.0, truncation=3, batch=8).words()
    assert words == "sgd 1, momentum 0.9, clip norm 1, batch 8"
    assert RANK_ONE.words() == "adam 0.05, population 64, batch 4"


def test_a_run_that_fails_is_told_after_the_others_are_done(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "assert sys.argv[2] != 'bad'\n"
        "print(json.dumps({'points': [[1, 2, 3.0, 4.0, {'loss': 4.0}]], 'peak_bytes': int(sys.argv[2])}))\n"
    )
    running = run_apart(str(script), ["10", "bad", "30"])
    found = dict([next(running), next(running)])
    with pytest.raises(RuntimeError, match="1 of 3 runs failed"):
        next(running)
    assert {number: run.peak_bytes for number, run in found.items()} == {0: 10, 2: 30}
    assert found[0].points == [Point(1, 2, 3.0, 4.0, {"loss": 4.0})]
