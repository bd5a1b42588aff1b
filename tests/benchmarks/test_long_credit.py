"""Credit over a long delay: the task, the model that can hold a state, what is recorded and drawn."""

import doctest
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import long_credit
from contest import Point, Run, judge_validation, train
from long_credit import CELLS, DelayedCue
from results import Results, curve_of

from zorn.tasks import IGNORE

TASK = DelayedCue(delay=20, batch=8, seed=3)


def test_the_answer_is_the_cue_and_nothing_else_counts():
    inputs, targets = TASK.training_batch(0)
    assert inputs.shape == targets.shape == (8, 20)
    assert torch.equal(targets[:, -1], inputs[:, 0])
    assert (targets[:, :-1] == IGNORE).all()
    assert ((inputs[:, 1:-1] >= 4) & (inputs[:, 1:-1] < 8)).all()
    assert (inputs[:, -1] == 8).all()
    assert inputs[:, 0].max() < 4
    assert len(inputs[:, 0].unique()) > 1


def test_windows_of_a_segment_are_its_sequences_cut():
    cut = DelayedCue(delay=20, batch=8, windows=4, seed=3)
    for segment in range(2):
        parts = [cut.training_batch(4 * segment + window) for window in range(4)]
        whole = TASK.training_batch(segment)
        assert torch.equal(torch.cat([part.inputs for part in parts], 1), whole.inputs)
        assert torch.equal(torch.cat([part.targets for part in parts], 1), whole.targets)
    assert [cut.begins(step) for step in range(6)] == [True, False, False, False, True, False]
    assert [TASK.begins(step) for step in range(2)] == [True, True]


def test_steps_and_splits_have_data_of_their_own():
    task = DelayedCue(delay=20, batch=long_credit.EVALUATED, seed=3)
    first, second = task.training_batch(0).inputs, task.training_batch(1).inputs
    validation = task.evaluation_data("validation").batch.inputs
    for other in (second, validation):
        assert not torch.equal(first[:, 0], other[:, 0])
        assert not torch.equal(first[:, 1:-1], other[:, 1:-1])
    assert torch.equal(validation, task.evaluation_data("validation").batch.inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_the_first_layer_can_hold_a_state_over_the_delay(cell):
    """The mean time that a unit forgets over spreads from 1 step to the delay."""
    delay = 1000
    model = long_credit.make_model(cell, delay, 0)
    first = model.cells[0]
    if cell == "lstm":
        gates = first.map.bias.view(4, -1)
        keep = gates[1]
        assert torch.equal(gates[0], -gates[1])
    else:
        keep = -first.input_map.bias[: first.hidden_size]
    spans = 1 / (1 - keep.detach().double().sigmoid())
    assert spans.min() >= 2
    assert spans.max() <= delay
    assert spans.max() > delay / 2


def test_bptt_learns_a_short_delay():
    method = long_credit.methods(100)["bptt-adamw"]
    task, model = DelayedCue(delay=8, batch=32, seed=0), long_credit.make_model("lstm", 8, 0)
    run = train(method, model, task, judge_validation, seconds=60, stop_below=0.3, judge_every=0.1)
    assert run.points[-1].measured["token_accuracy"] > 0.9
    assert run.points[0].measured["token_accuracy"] < 0.5


def test_truncation_gets_no_credit_to_the_cue():
    """What lies in an earlier chunk than the answer has no gradient: the weights that read the cue."""
    task = DelayedCue(delay=300, batch=4, seed=0)
    model = long_credit.make_model("lstm", 300, 0)
    method = long_credit.methods(300)["tbptt-100-adamw"]
    embedding = model.embedding.weight.detach().clone()
    train(method, model, task, judge_validation, seconds=0.01)
    moved = (model.embedding.weight.detach() - embedding).abs().sum(1) > 0
    assert not moved[: len(DelayedCue.cues)].any()
    assert moved[-1]


@pytest.mark.parametrize("delay", [1000, 10_000])
def test_streams_cut_the_delay_into_windows_of_a_chunk(delay):
    for name, method in long_credit.methods(delay).items():
        streams = name in ("pes", "nres")
        assert method.stream == (delay // long_credit.CHUNK if streams else None)
        population = method.estimator.get("population")
        assert method.batch == (population if population else long_credit.ROWS)


def test_records_and_the_page(tmp_path):
    accuracies = (0.25, 0.95, 0.5)
    points = [
        Point(step, step, float(step), 1.0, {"loss": 1.0, "token_accuracy": share})
        for step, share in enumerate(accuracies)
    ]
    run = Run(points, 3 * 2**20)
    method = long_credit.methods(1000)["activity"]
    records = long_credit.records_of(1000, "lstm", method, 0, 9.0, run)
    value = {one.name: one.value for one in records}
    assert value["token_accuracy"] == 0.5
    assert value["best_token_accuracy"] == 0.95
    assert value["seconds_to_accuracy"] == 1.0
    assert value["peak_memory_bytes"] == 3 * 2**20
    never = long_credit.records_of(1000, "lstm", method, 1, 9.0, Run(points[:1], 0))
    assert math.isnan({one.name: one.value for one in never}["seconds_to_accuracy"])
    results = Results(tmp_path / "long_credit.json")
    results.add(records, curve_of(points, "token_accuracy"))
    long_credit.show(results, tmp_path / "long_credit.png")
    assert "| delay-1000 | activity |" in (tmp_path / "long_credit.md").read_text()
    assert (tmp_path / "long_credit-lstm.png").stat().st_size > 10_000


def test_documented_examples():
    assert doctest.testmod(long_credit).failed == 0
