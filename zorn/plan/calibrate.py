"""Seconds of a step, from a few small ones: work and time of two sizes, and the line through them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from zorn.config import Config
from zorn.errors import NonFiniteLossError
from zorn.models import Batch
from zorn.plan.fit import needed_bytes
from zorn.plan.step import TOKEN, Step, reduced, step_memory
from zorn.tasks import Task
from zorn.training.build import build_estimator, checked_device
from zorn.training.limits import out_of_memory

SECONDS = 2.0
"""Seconds of a calibration once the model is built; a step that has begun is finished."""

SHARE = 0.1
"""Of the memory, that a model's weights and a batch may take to be made for a calibration."""

LONGEST = 64
"""Tokens of a sequence in a calibration: beyond that a step's time is in proportion to them."""


@dataclass(frozen=True)
class Calibration:
    """Seconds of a step, or why they are not known.

    Attributes:
        seconds: of a step of the asked size; None where none was measured.
        steps: forward passes × time steps, and seconds, of the steps that were measured.
        reason: why none was; empty otherwise.
    """

    seconds: float | None
    steps: tuple[tuple[int | float, float], ...] = ()
    reason: str = ""


def calibrate(config: Config, task: Task, steps: int, available: int) -> Calibration:
    """Do steps of the run's own kind, each of four times the work of the one before, for about two seconds.

    The model is built for it, and a batch made as the run makes it. Sequences are cut to 64 tokens.

    Args:
        config: resolved.
        task: of the run; its first batch is read.
        steps: T, time steps of a batch's sequences.
        available: bytes; nothing is made where weights and a batch need more than a tenth of them.

    Raises:
        ConfigError: a device that cannot compute.
    """
    vocabulary = task.vocabulary
    fixed = step_memory(config, vocabulary, steps).weights + TOKEN * config.task.batch * steps
    if fixed > SHARE * available:
        return Calibration(None, reason="weights and a batch need more than a tenth of the memory")
    checked_device(config.run.device)
    batch = Batch(*(part[:, :LONGEST].to(config.run.device) for part in task.training_batch(0)))
    rows, found = 1, list[tuple[float, float]]()
    fits = needed_bytes(config, vocabulary, steps) <= available  # so that smaller ones do
    began = time.perf_counter()
    try:
        while True:
            small = reduced(config, rows)
            if not (fits or needed_bytes(small, vocabulary, batch.inputs.shape[1]) <= available):
                break
            found.append(_timed(small, vocabulary, Batch(*(part[: small.task.batch] for part in batch))))
            spent = time.perf_counter() - began
            if small == config or (
                len(found) > 1 and spent > SECONDS / 4
            ):  # the next takes four times as long
                break
            rows *= 4
    except NonFiniteLossError as error:
        return Calibration(None, reason=str(error))
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error) is None:
            raise
    if not found:
        return Calibration(None, reason="not even a small step fits the memory")
    work = build_estimator(config).passes(config.task.batch, steps) * steps
    return Calibration(line(found, work), tuple(found))


def _timed(config: Config, vocabulary: int, batch: Batch) -> tuple[float, float]:
    """Work that was done and seconds of a step, the second one: a first step makes buffers."""
    step = Step.build(config, vocabulary, batch)
    step()
    start = time.perf_counter()
    passes = step().forward_passes
    return passes * batch.inputs.shape[1], time.perf_counter() - start


def line(measured: Sequence[tuple[int | float, float]], work: int | float) -> float:
    """Seconds of `work`, on the line through the last two measured points, or in proportion to the last one
    where there is one or they fall.

    >>> line([(10, 2.0), (20, 3.0)], 40), line([(10, 2.0)], 40), line([(10, 3.0), (20, 2.0)], 40)
    (5.0, 8.0, 4.0)
    """
    last, seconds = measured[-1]
    if len(measured) > 1:
        before, fewer = measured[-2]
        if seconds > fewer and last > before:
            return seconds + (seconds - fewer) / (last - before) * (work - last)
    return seconds * work / last
