"""Settings that fit a given memory: the largest micro-batch, and settings near the asked ones that fit."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from zorn.config import Choice, Config, change, resolve
from zorn.errors import ConfigError
from zorn.estimators import AUTOMATIC, ESTIMATORS
from zorn.optimizers import optimizer_kind
from zorn.plan.step import most_rows, step_memory
from zorn.settings import settings_of

PROCESS_BYTES = 420 * 2**20
"""Of a training process without its model: the interpreter, torch, libraries; measured 2026-11-23."""

MARGIN = 0.15
"""Share of a step's memory that a prediction may be too low by: `benchmarks/planner.py` measures it."""

SHORTEST_CHUNK = 8
"""Time steps that a chunk is cut to before rows are: shorter ones would cost speed."""


@dataclass(frozen=True)
class Attempt:
    """Settings that were tried, in words, and the bytes that they need (`needed_bytes`)."""

    words: str
    needed: int


@dataclass(frozen=True)
class Proposal:
    """Settings that fit a memory, and those that do not.

    Attributes:
        limit: bytes that it should fit in.
        config: settings that do; None where nothing was found.
        needed: bytes that they need, or the least that was found to be needed (`needed_bytes`).
        attempts: what was tried in turn and does not fit.
    """

    limit: int
    config: Config | None
    needed: int
    attempts: tuple[Attempt, ...]


def needed_bytes(config: Config, vocabulary: int, steps: int) -> int:
    """Bytes to have for a training process: its own, and as much as a step takes at its peak where the
    prediction is too low by `MARGIN`; on another device than the CPU, of the step alone."""
    process = PROCESS_BYTES if config.run.device == "cpu" else 0
    return process + math.ceil(step_memory(config, vocabulary, steps).peak / (1 - MARGIN))


def largest_micro_batch(config: Config, vocabulary: int, steps: int, limit: int) -> int | None:
    """A micro-batch whose step fits `limit` bytes, nearly the largest; None where a single row does not.

    Guessed on the straight line between two that are known; nearer to the one that fits where it does not.
    """

    def needed(rows: int) -> int:
        return needed_bytes(change(config, micro_batch=rows), vocabulary, steps)

    most = most_rows(config, steps)
    rows = min(config.estimator.micro_batch, most)
    rows, above = (rows, most) if needed(rows) <= limit else (1, rows)
    if needed(above) <= limit:
        return above
    if needed(rows) > limit:
        return None
    share = (limit - needed(rows)) / (needed(above) - needed(rows))
    guess = rows + int(share * (above - rows))
    while needed(guess) > limit:
        guess = (rows + guess) // 2
    return guess


def propose(config: Config, vocabulary: int, steps: int, limit: int) -> Proposal:
    """Settings that fit `limit` bytes, as near the asked ones as can be.

    Tried in turn: the settings as they are; shorter time chunks and smaller micro-batches, which change
    nothing but memory and speed; an update in place instead of the optimizer; bfloat16 weights; the same with
    the estimators of `AUTOMATIC`, of forward passes only. The first that fits is taken.
    """
    asked = needed_bytes(config, vocabulary, steps)
    if asked <= limit:
        return Proposal(limit, config, asked, ())
    attempts = [Attempt(f"{_name(config)}, as asked,", asked)]
    for base in _near(config):
        least = needed_bytes(_chunked(change(base, micro_batch=1), 1), vocabulary, steps)
        found = _within(base, vocabulary, steps, limit) if least <= limit else None
        if found is not None:
            return Proposal(limit, found, needed_bytes(found, vocabulary, steps), tuple(attempts))
        attempts.append(Attempt(f"{_name(base)}, a row at a time,", least))
    return Proposal(limit, None, min(attempt.needed for attempt in attempts), tuple(attempts))


def _name(config: Config) -> str:
    """Estimator, optimizer and dtype in words."""
    return f"{label_of(config)} with {config.optimizer.name} in {config.run.dtype}"


def label_of(config: Config) -> str:
    """An estimator with what it perturbs by and differentiates together.

    >>> from zorn.config import BudgetConfig
    >>> label_of(Config(estimator=Choice("tbptt", truncation=8), budget=BudgetConfig(steps=1)))
    'tbptt, k = 8'
    """
    structure, k = config.estimator.get("perturbation"), config.estimator.get("truncation")
    parts = [config.estimator.name, *([str(structure)] if structure else []), *([f"k = {k}"] if k else [])]
    return ", ".join(parts)


def _chunked(config: Config, chunk: int) -> Config:
    """With another time chunk where the estimator has one."""
    return change(config, time_chunk=chunk) if "time_chunk" in config.estimator.given else config


def _within(config: Config, vocabulary: int, steps: int, limit: int) -> Config | None:
    """The settings with the time chunk and the micro-batch that fit; themselves where they do."""
    chunk = config.estimator.get("time_chunk") or steps
    while needed_bytes(config, vocabulary, steps) > limit:
        chunk //= 2
        if chunk < SHORTEST_CHUNK or "time_chunk" not in config.estimator.given:
            rows = largest_micro_batch(config, vocabulary, steps, limit)
            return None if rows is None else change(config, micro_batch=rows)
        config = _chunked(config, chunk)
    return config


def _near(config: Config) -> Iterator[Config]:
    """The settings, and others near them that hold less: with an update in place."""
    yield config
    in_place = optimizer_kind(config.optimizer.name).in_place
    optimizer = config.optimizer if in_place else Choice("fused-sgd")
    for name in dict.fromkeys((config.estimator.name, *AUTOMATIC)):
        for dtype in ("float32", "bfloat16"):
            near = change(with_estimator(config, name), dtype=dtype, clip_norm=None)
            with contextlib.suppress(ConfigError):  # some do not go together
                near, _ = resolve(dataclasses.replace(near, optimizer=optimizer))
                if near != config:
                    yield near


def with_estimator(config: Config, name: str) -> Config:
    """The settings with another estimator: how much it does in a step and at once stays, what it must be told
    and is not is `TOLD`; all else is open.

    >>> from zorn.config import BudgetConfig
    >>> config = Config(estimator=Choice("cd-rge", population=8), budget=BudgetConfig(steps=1))
    >>> with_estimator(config, "fd-rge").estimator, with_estimator(config, "tbptt").estimator
    (Choice('fd-rge', population=8), Choice('tbptt', truncation=10))
    """
    if name == config.estimator.name:
        return config
    kind, before = ESTIMATORS[name], config.estimator
    settings = settings_of(kind)
    given = {each: TOLD for each, setting in settings.items() if setting.required}
    given |= {each: before.get(each) for each in (*kind.sizes, *AT_ONCE, *given) if before.get(each)}
    known = {each: value for each, value in given.items() if each in settings}
    return dataclasses.replace(config, estimator=Choice(name, **known))


AT_ONCE = ("micro_batch", "time_chunk")
"""Settings of how much is done at once."""

TOLD = 10
"""A setting that an estimator must be told, such as the steps that it differentiates together."""
