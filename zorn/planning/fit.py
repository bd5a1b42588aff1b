"""What fits a given memory: the largest micro-batch, and settings near the asked ones that fit."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from zorn.errors import ConfigError
from zorn.planning.kinds import as_kind, label_of
from zorn.planning.memory import step_memory
from zorn.planning.sizes import ModelSizes
from zorn.planning.work import most_rows
from zorn.training.config import Config, OptimizerConfig
from zorn.training.defaults import resolve
from zorn.training.usage import USED_BY

PROCESS_BYTES = 420 * 2**20
"""Of a training process without its model: the interpreter, torch, libraries; measured 2026-11-23."""

MARGIN = 0.15
"""Share of a step's memory that a prediction may be too low by: `benchmarks/planner.py` measures it."""

SHORTEST_CHUNK = 8
"""Time steps that a chunk is cut to before rows are: as many as a cell makes its drive of at once, so that
shorter chunks would cost speed."""


@dataclass(frozen=True)
class Attempt:
    """Settings that were tried, in words, and the bytes that they need (`needed_bytes`)."""

    words: str
    needed: int


@dataclass(frozen=True)
class Proposal:
    """What fits a memory, and what does not.

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


def needed_bytes(sizes: ModelSizes, config: Config, steps: int) -> int:
    """Bytes to have for a training process: its own, and as much as a step takes at its peak where the
    prediction is too low by `MARGIN`; on another device than the CPU, of the step alone."""
    process = PROCESS_BYTES if config.run.device == "cpu" else 0
    return process + math.ceil(step_memory(sizes, config, steps).peak / (1 - MARGIN))


def largest_micro_batch(sizes: ModelSizes, config: Config, steps: int, limit: int) -> int | None:
    """The largest micro-batch whose step fits `limit` bytes; None where a single row does not.

    >>> from zorn.training import BudgetConfig, ModelConfig, resolve
    >>> config, _ = resolve(Config(budget=BudgetConfig(steps=1)))
    >>> sizes = ModelSizes.of(config.model, vocabulary=256)
    >>> largest_micro_batch(sizes, config, steps=32, limit=2**40)  # all of them: 256 sequences, 4 draws
    1280
    """
    most = most_rows(config)
    if needed_bytes(sizes, with_rows(config, most), steps) <= limit:
        return most  # a whole batch needs no sum over its parts, so it may take less than half of it
    rows = range(1, most)
    fitting = bisect_right(rows, limit, key=lambda size: needed_bytes(sizes, with_rows(config, size), steps))
    return rows[fitting - 1] if fitting else None


def with_rows(config: Config, micro_batch: int, time_chunk: int | None = None) -> Config:
    """The settings with another micro-batch, and another time chunk unless it is None."""
    changes: dict[str, Any] = {"micro_batch": micro_batch}
    if time_chunk is not None:
        changes["time_chunk"] = time_chunk
    return dataclasses.replace(config, estimator=dataclasses.replace(config.estimator, **changes))


def propose(sizes: ModelSizes, config: Config, steps: int, limit: int) -> Proposal:
    """Settings that fit `limit` bytes, as near the asked ones as can be.

    Tried in turn: the settings as they are; shorter time chunks and smaller micro-batches, which change
    nothing but memory and speed; a fused update in place of the optimizer; bfloat16 weights; forward passes
    only, with rank-one members. The first that fits is taken.
    """
    asked = needed_bytes(sizes, config, steps)
    attempts = [] if asked <= limit else [Attempt(f"{_name(config)}, as asked,", asked)]
    least = asked
    for base in _near(config):
        of_base = sizes
        if base.run.dtype != config.run.dtype:
            of_base = ModelSizes.of(base.model, sizes.vocabulary, getattr(torch, base.run.dtype))
        found = _within(of_base, base, steps, limit)
        if found is not None:
            return Proposal(limit, found, needed_bytes(of_base, found, steps), tuple(attempts))
        smallest = needed_bytes(of_base, _smallest(base), steps)
        least = min(least, smallest)
        attempts.append(Attempt(f"{_name(base)}, a row at a time,", smallest))
    return Proposal(limit, None, least, tuple(attempts))


def _name(config: Config) -> str:
    """Estimator, optimizer and dtype in words."""
    return f"{label_of(config)} with {config.optimizer.optimizer} in {config.run.dtype}"


def _within(sizes: ModelSizes, config: Config, steps: int, limit: int) -> Config | None:
    """The settings with the time chunk and the micro-batch that fit; themselves where they do."""
    if needed_bytes(sizes, config, steps) <= limit:
        return config
    asked = min(config.estimator.micro_batch, most_rows(config))
    best: tuple[int, Config] | None = None
    for chunk in _chunks(config, steps):
        rows = largest_micro_batch(sizes, with_rows(config, asked, chunk), steps, limit) or 0
        if rows > (best[0] if best else 0):
            best = rows, with_rows(config, min(rows, asked), chunk)
        if best and (rows >= asked or (chunk or steps) < 2 * SHORTEST_CHUNK):
            break
    return best[1] if best else None


def _chunks(config: Config, steps: int) -> Iterator[int | None]:
    """Time chunks from the asked one down by halves; only the asked one where the estimator has none."""
    yield None
    if config.estimator.estimator in USED_BY["time_chunk"]:
        chunk = min(config.estimator.time_chunk or steps, steps)
        while chunk > 1:
            chunk //= 2
            yield chunk


def _smallest(config: Config) -> Config:
    return with_rows(config, 1, 1 if config.estimator.estimator in USED_BY["time_chunk"] else None)


def _near(config: Config) -> Iterator[Config]:
    """The settings, and others near them that hold less."""
    yield config
    plain: dict[str, Any] = {"optimizer": "fused-sgd", "momentum": 0.0, "clip_norm": None}
    if config.optimizer.optimizer != "fused-sgd":
        plain["learning_rate"] = None
    for base in (_fused(config, plain), as_kind(config, "cd-rge, rank-one", **plain)):
        if base is None:
            continue
        if base != config:
            yield base
        if base.run.dtype != "bfloat16":
            yield dataclasses.replace(base, run=dataclasses.replace(base.run, dtype="bfloat16"))


def _fused(config: Config, plain: dict[str, Any]) -> Config | None:
    """The settings with a fused update, a bridge's two parts together."""
    left_open = config.reopened()
    groups: dict[str, Any] = {"optimizer": dataclasses.replace(left_open.optimizer, **plain)}
    if config.two_part:
        groups["estimator"] = dataclasses.replace(left_open.estimator, separate=False, credit_every=None)
        one_part = {"credit_learning_rate": None, "credit_momentum": OptimizerConfig().credit_momentum}
        groups["optimizer"] = dataclasses.replace(groups["optimizer"], **one_part)
    try:
        return resolve(dataclasses.replace(left_open, **groups))[0]
    except ConfigError:
        return None
