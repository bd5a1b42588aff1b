"""Streams: windows of a text that follow each other from step to step."""

import pytest
import torch

from zorn.errors import ConfigError
from zorn.tasks import CopyTask, TextTask

STREAM, BATCH, LENGTH = 5, 4, 16


def _task(**changes):
    settings = {"source": "python-docs", "batch": BATCH, "length": LENGTH, "seed": 5, "stream": STREAM}
    return TextTask(**(settings | changes))


def segment(task, number):
    """The text that each stream reads in one segment, with the last target: [batch, STREAM · LENGTH + 1]."""
    batches = [task.training_batch(STREAM * number + window) for window in range(STREAM)]
    assert all(batch.inputs.shape == (BATCH, LENGTH) == batch.targets.shape for batch in batches)
    return torch.cat([*(batch.inputs for batch in batches), batches[-1].targets[:, -1:]], dim=1)


def test_the_windows_of_a_segment_are_one_contiguous_text():
    task = _task()
    pieces = task.tokens["train"].long().unfold(0, STREAM * LENGTH + 1, 1)
    for number in (0, 3):
        for row in segment(task, number):
            assert (pieces == row).all(1).any()


def test_the_target_of_a_windows_last_token_is_the_first_input_of_the_next():
    task = _task()
    for step in range(2 * STREAM):
        now, after = task.training_batch(step), task.training_batch(step + 1)
        follows = torch.equal(now.targets[:, -1], after.inputs[:, 0])
        assert follows == (not task.begins(step + 1))
        assert torch.equal(now.targets[:, :-1], now.inputs[:, 1:])


def test_a_batch_is_a_function_of_seed_and_step_in_any_order():
    task, steps = _task(), [7, 0, 12, 3, 7]
    found = [task.training_batch(step).inputs for step in steps]
    assert torch.equal(found[0], found[-1])
    for step, inputs in zip(steps, found, strict=True):
        assert torch.equal(_task().training_batch(step).inputs, inputs)
        assert not torch.equal(_task(seed=6).training_batch(step).inputs, inputs)


def test_each_segment_and_each_stream_starts_elsewhere():
    starts = [tuple(row.tolist()) for number in range(4) for row in segment(_task(), number)]
    assert len(set(starts)) == len(starts)


def test_every_start_can_come_up_and_no_other(tmp_path):
    (tmp_path / "text").write_bytes(bytes(range(100)))
    task = _task(source=tmp_path / "text", batch=2000, length=20, stream=4)
    assert len(task.text["train"]) == 90
    assert sorted(set(task.training_batch(4).inputs[:, 0].tolist())) == list(range(10))
    assert task.training_batch(7).targets.max() == 89


def test_segments_begin_where_the_task_says():
    assert [_task().begins(step) for step in range(11)] == ([True] + [False] * 4) * 2 + [True]
    copies = CopyTask(batch=1, minimum_length=1, maximum_length=1, seed=0)
    for task in (_task(stream=None), _task(stream=1), _task(stream=None, overfit=True), copies):
        assert all(task.begins(step) for step in range(4))


def test_a_stream_of_one_window_is_none():
    one, none = _task(stream=1), _task(stream=None)
    for step in (0, 9):
        assert all(map(torch.equal, one.training_batch(step), none.training_batch(step)))


def test_the_text_must_be_long_enough_for_a_stream(tmp_path):
    (tmp_path / "text").write_bytes(b"a" * 99)
    message = (
        "too short: 99 bytes, but streams of 5 windows of 20 tokens .* need about 113 .* length or stream"
    )
    with pytest.raises(ConfigError, match=message):
        _task(source=tmp_path / "text", length=20)
    (tmp_path / "text").write_bytes(b"a" * 113)
    assert _task(source=tmp_path / "text", length=20).training_batch(4).inputs.shape == (BATCH, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": 0}, "stream must be a whole number of at least 1, got 0"),
        ({"overfit": True}, "stream must be None with overfit, got 5: .* leave out one"),
    ],
)
def test_settings_are_checked_before_the_source_is_read(changes, message):
    with pytest.raises(ConfigError, match=message):
        _task(source="/nowhere/at/all", **changes)
