"""The metrics file over stops and resumes, and TensorBoard's copy of it."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zorn.run.loggers import MetricsLog, read_metrics, truncate_metrics


def record(step, loss=1.0):
    return {"kind": "train", "step": step, "loss": loss, "note": None}


def test_what_is_written_is_read_and_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    with MetricsLog(path, tmp_path / "tensorboard") as log:
        log.write(record(1, 0.1 + 0.2))
        assert read_metrics(path) == [record(1, 0.1 + 0.2)], "each line is written at once"
        log.write(record(2))
    with path.open("a") as file:
        file.write(json.dumps(record(3))[:-5])
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_numbers_that_are_not_finite_are_valid_json_and_read_as_they_were(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = [math.nan, math.inf, -math.inf, 1e308]
    with MetricsLog(path, tmp_path / "tensorboard") as log:
        for step, value in enumerate(values):
            log.write(record(step, value))
    truncate_metrics(path, len(values))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert list(map(repr, (line["loss"] for line in read_metrics(path)))) == list(map(repr, values))


def test_truncation_drops_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record(step)) + "\n" for step in (0, 1, 1, 2, 3)) + '{"st')
    truncate_metrics(path, 1)
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_shows_each_step_once_over_a_resume(tmp_path):
    metrics, events = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with MetricsLog(metrics, events) as log:
        for step in (1, 2, 3):
            log.write(record(step, float(step)))
    with MetricsLog(metrics, events, step=2) as log:
        for step in (3, 4):
            log.write(record(step, 10.0 * step))
    found = EventAccumulator(str(events)).Reload()
    assert found.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
        (4, 40.0),
    ]


def test_tensorboard_keeps_the_splits_apart(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "events") as log:
        for split in ("validation", "validation-longer"):
            log.write(record(1) | {"kind": "evaluation", "split": split})
    found = EventAccumulator(str(tmp_path / "events")).Reload()
    assert found.Tags()["scalars"] == ["validation/loss", "validation-longer/loss"]


@pytest.mark.parametrize("damage", [b"[1]\n", b"3\n", b'{"a": 1}\n', b"\xff\xfe\n", b'{"kind": "tr'])
def test_reading_stops_at_a_line_that_is_no_record(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    first = {"kind": "train", "step": 1}
    path.write_bytes(json.dumps(first).encode() + b"\n" + damage + json.dumps(first).encode() + b"\n")
    assert read_metrics(path) == [first]


def test_a_clock_that_went_back_does_not_hide_what_was_logged_later(tmp_path, monkeypatch):
    metrics, events = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    now = iter([5e8, 4e8, 4e8, 9e8])
    for done in range(4):
        start = next(now)
        monkeypatch.setattr("zorn.run.loggers.time.time", lambda start=start: start)
        with MetricsLog(metrics, events, step=done) as log:
            log.write(record(done + 1, float(done)))
    found = EventAccumulator(str(events)).Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [
        (1, 0.0),
        (2, 1.0),
        (3, 2.0),
        (4, 3.0),
    ]
