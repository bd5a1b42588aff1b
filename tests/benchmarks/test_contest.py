"""The comparisons of estimators: what a run records, and what the table and the records say of it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import overfit
from contest import Point, Run, train

import zorn
from zorn.tasks import CopyTask

TASK = CopyTask(batch=4, minimum_length=2, maximum_length=2, seed=0, overfit=True)


def point(steps, loss):
    return Point(steps, 10 * steps, steps / 2, loss, {"loss": loss})


def test_the_first_point_below_a_threshold_counts_and_not_the_best():
    run = Run([point(0, 3.0), point(1, 0.9), point(2, 1.2), point(3, 0.5)], 0)
    found = run.first_below(1.0)
    assert found is not None
    assert found.steps == 1
    assert run.first_below(0.1) is None


@pytest.mark.parametrize(
    "method", [overfit.METHODS["lstm"][0], overfit.METHODS["lstm"][4]], ids=["bptt", "zero-order"]
)
def test_a_run_counts_steps_passes_and_seconds_and_stops_at_the_loss(method):
    model = zorn.LanguageModel(TASK.vocabulary, 8)
    first = overfit.judge(model, TASK, False)["loss"]
    run = train(method, model, TASK, overfit.judge, seconds=60, stop_below=first - 0.05)
    last = run.points[-1]
    passes = 3 * 4 if method.estimator.exact else 2 * method.estimator.population
    assert [one.steps for one in run.points] == list(range(len(run.points)))
    assert [one.passes for one in run.points] == [passes * one.steps for one in run.points]
    assert all(a.seconds < b.seconds for a, b in zip(run.points, run.points[1:], strict=False))
    assert run.points[0].loss == first
    assert last.loss < first - 0.05 <= run.points[-2].loss
    assert last.loss == overfit.judge(model, TASK, True)["loss"]


def test_a_run_ends_with_its_seconds():
    run = train(overfit.METHODS["lstm"][0], zorn.LanguageModel(29, 8), TASK, overfit.judge, seconds=0.05)
    assert run.points[-2].seconds < 0.05 <= run.points[-1].seconds


def test_what_one_seed_did_not_reach_is_null():
    method = overfit.METHODS["lstm"][0]
    runs = [Run([point(0, 3.0), point(4, 0.5)], 2**20), Run([point(0, 3.0), point(8, 0.05)], 2**20)]
    records = {
        (record.name, record.settings.get("threshold")): record
        for record in overfit.records_of("lstm", method, runs, 1.0)
    }
    assert records["steps_to_loss", 1.0].value == 6
    assert records["seconds_to_loss", 1.0].value == 3
    assert math.isnan(records["steps_to_loss", 0.1].value)
    assert records["steps_to_loss", 0.1].settings["values"] == [8]
    assert records["steps_to_loss", 0.1].settings["method"] == "bptt-adamw"
    assert len(overfit.table_of(list(records.values())).rows) == 1


def test_the_names_of_the_methods():
    for methods in overfit.METHODS.values():
        names = [method.name for method in methods]
        assert len(set(names)) == len(names)
        assert {"bptt-adamw", "bptt-sgd", "tbptt-1-adamw", "rank-one-fd-rge-512", "dense-paper-96"} <= set(
            names
        )


@pytest.mark.slow
def test_the_script_writes_its_records_and_null_where_nothing_was_reached(tmp_path):
    words = [
        "--model",
        "lstm",
        "--methods",
        "bptt-adamw",
        "dense-paper-96",
        "--seconds",
        "0.3",
        "--seeds",
        "1",
    ]
    places = ["--json", str(tmp_path / "records.json"), "--picture", str(tmp_path / "picture.png")]
    subprocess.run([sys.executable, overfit.__file__, *words, *places], check=True, capture_output=True)
    records = json.loads((tmp_path / "records.json").read_text())
    of = {
        (one["name"], one["settings"]["method"], one["settings"].get("threshold")): one["value"]
        for one in records
    }
    assert of["seconds_to_loss", "dense-paper-96", 0.1] is None
    assert of["peak_memory_bytes", "bptt-adamw", None] > 0
    assert (tmp_path / "picture.png").stat().st_size > 10_000
