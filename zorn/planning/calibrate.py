"""Seconds of a step, from a few small ones: work and time of two sizes, and the line through them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from zorn.errors import NonFiniteLossError
from zorn.models import Batch
from zorn.planning.fit import needed_bytes
from zorn.planning.memory import batch_bytes
from zorn.planning.sizes import ModelSizes
from zorn.planning.work import forward_passes
from zorn.tasks import Task
from zorn.training.build import build_estimator, build_model, build_optimizer, checked_device
from zorn.training.config import Config
from zorn.training.limits import out_of_memory
from zorn.training.step import update_weights
from zorn.training.variants import resized

SECONDS = 2.0
"""What a calibration may take once the model is built; a step that has begun is finished."""

SHARE = 0.1
"""Of the memory, that a model's weights and a batch may take to be made for a calibration."""

LONGEST = 64
"""Tokens of a sequence in a calibration: beyond that a step's time is in proportion to them."""


@dataclass(frozen=True)
class Calibration:
    """Seconds of a step, or why they are not known.

    Attributes:
        seconds: of a step of the asked size; None where none was measured.
        steps: rows × time steps and seconds of the steps that were measured.
        reason: why none was; empty otherwise.
    """

    seconds: float | None
    steps: tuple[tuple[int, float], ...] = ()
    reason: str = ""


def calibrate(sizes: ModelSizes, config: Config, task: Task, steps: int, available: int) -> Calibration:
    """Do steps of the run's own kind, each of four times the work of the one before, for about two seconds.

    The model is built for it, and a batch made as the run makes it. Sequences are cut to 64 tokens.

    Args:
        config: settings that leave nothing open.
        task: of the run; a part of its first batch is read.
        steps: T, time steps of a batch's sequences.
        available: bytes; nothing is made where weights and a batch need more than a tenth of them.

    Raises:
        ConfigError: a device that cannot compute.

    >>> from zorn.training import BudgetConfig, ModelConfig, TaskConfig, resolve
    >>> from zorn.training.build import build_task
    >>> settings = TaskConfig(task="copy", batch=8)
    >>> asked = Config(task=settings, model=ModelConfig(hidden_size=8), budget=BudgetConfig(steps=1))
    >>> config, _ = resolve(asked)
    >>> sizes, task = ModelSizes.of(config.model, 29), build_task(config)
    >>> calibrate(sizes, config, task, 21, 2**30).seconds > 0
    True
    >>> calibrate(sizes, config, task, 21, 2**13).reason
    'weights and a batch need more than a tenth of the memory'
    """
    if sizes.weight_bytes + batch_bytes(config, steps) > SHARE * available:
        return Calibration(None, reason="weights and a batch need more than a tenth of the memory")
    checked_device(config.run.device)
    short = Batch(*(part[:, :LONGEST].to(config.run.device) for part in task.training_batch(0)))
    asked = _smaller(config)
    if needed_bytes(sizes, asked[0], short.inputs.shape[1]) > available:
        return Calibration(None, reason="not even a small step fits the memory")
    model = build_model(config, task.vocabulary)
    optimizer = build_optimizer(config.optimizer, model, two_part=config.two_part)

    def seconds_of(settings: Config) -> float:
        carry = settings.task.stream is not None
        estimator = build_estimator(settings.estimator, settings.run.seed, carry=carry)
        batch = Batch(*(part[: settings.task.batch] for part in short))
        update_weights(settings, task, model, estimator, optimizer, batch, 1.0)  # what only a first step does
        every = settings.estimator.credit_every or 1
        seconds = []
        for step in (1, every)[: min(every, 2)]:  # of a bridge: one without credit, then one with it
            estimator.step = step
            start = time.perf_counter()
            update_weights(settings, task, model, estimator, optimizer, batch, 1.0)
            seconds.append(time.perf_counter() - start)
        return (seconds[0] * (every - 1) + seconds[-1]) / every

    found: list[tuple[int, float]] = []
    began = time.perf_counter()
    try:
        for settings in asked:
            work = forward_passes(settings, short.inputs.shape[1]) * short.inputs.shape[1]
            found.append((work, seconds_of(settings)))
            spent = time.perf_counter() - began
            if len(found) > 1 and spent > SECONDS / 4:  # the next one takes four times as long
                break
    except NonFiniteLossError as error:
        return Calibration(None, reason=str(error))
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error) is None:
            raise
        if len(found) == 0:
            return Calibration(None, reason="not even a small step fits the memory")
    return Calibration(line(found, forward_passes(config, steps) * steps), tuple(found))


def line(measured: list[tuple[int, float]], work: int) -> float:
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


def _smaller(config: Config) -> list[Config]:
    """Settings of less work, the least first, each of four times the one before; the whole last."""
    found = [config]
    while (smaller := resized(found[-1], 0.25)) is not None:
        found.append(smaller)
    return found[::-1]
