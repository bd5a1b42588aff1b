"""The value of an objective on held-out data, for objectives that `Task.evaluate` does not report."""

from typing import Any

import torch
from torch import nn

from zorn.checks import check_whole_number
from zorn.errors import ConfigError
from zorn.models import Batch, RowObjective, TokenObjective, evaluation_mode, row_losses, streamed
from zorn.models.sliced_head import outputs_at_once
from zorn.tasks.objectives import IGNORE
from zorn.tasks.task import Task, device_of

ROWS = 256
"""Most rows that it is the mean of: some objectives take milliseconds a row."""

OUTPUTS = 2**22
"""Outputs in one forward pass: 16 MiB of float32."""


def objective_value(
    model: nn.Module,
    task: Task,
    split: str = "validation",
    *,
    objective: TokenObjective | RowObjective | None = None,
    window: int | None = None,
) -> float:
    """Mean of an objective over rows of a split, at most 256 of them evenly spread, without noise.

    Rows are read from the initial state, under teacher forcing, as in training. A text's streams are cut into
    windows first, so that its rows have the length that training minimises the objective over.

    Args:
        model: a recurrent model; evaluated in inference mode.
        split: one of `task.splits`.
        objective: what is taken the mean of; None is the task's.
        window: tokens of a row, at least 1, of a task whose rows are no whole sequences; None: the whole row.

    Raises:
        ConfigError: an unknown split, a window below 1, a model without `initial_state`, or a split in which
            no row has a token that counts.

    Example:
        >>> from zorn.models import LanguageModel
        >>> from zorn.tasks import CopyTask, token_error_rate
        >>> task = CopyTask(batch=4, minimum_length=1, maximum_length=2, seed=0)
        >>> 0.9 < objective_value(LanguageModel(29, 8), task, objective=token_error_rate) <= 1.0
        True
    """
    device = device_of(model)
    batch = _rows(task, split, window)
    wanted = task.objective if objective is None else objective
    body, judge = streamed(model, wanted)
    of_a_step = outputs_at_once(body, task.vocabulary)
    together = max(1, OUTPUTS // (batch.targets.shape[1] * of_a_step))
    options: dict[str, Any] = {}
    if isinstance(wanted, TokenObjective):  # a row objective needs all outputs of a row
        tokens = int((batch.targets != IGNORE).sum()) / len(batch.targets)
        options = {"normaliser": tokens, "time_chunk": max(1, OUTPUTS // (together * of_a_step))}
    total = 0.0
    with evaluation_mode(model), torch.inference_mode():
        for parts in zip(*(part.split(together) for part in batch), strict=True):
            some = Batch(*(part.to(device) for part in parts))
            total += float(row_losses(body, some, judge, **options).sum())
    return total / len(batch.targets)


def _rows(task: Task, split: str, window: int | None) -> Batch:
    data = task.evaluation_data(split)
    inputs, targets = data.batch
    if window is not None and not data.whole_sequences:
        check_whole_number("window", window, minimum=1)
        length = min(window, targets.shape[1])
        whole = targets.shape[1] // length * length
        inputs, targets = (part[:, :whole].reshape(-1, length) for part in (inputs, targets))
    counted = (targets != IGNORE).any(1).nonzero().squeeze(1)
    if len(counted) == 0:
        raise ConfigError(f"no token of the split {split!r} counts: evaluate another one")
    chosen = counted[torch.linspace(0, len(counted) - 1, min(ROWS, len(counted))).long()]
    return Batch(inputs[chosen], targets[chosen])
