"""Settings that fit a given memory: the largest micro-batch, and settings near the asked ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from zorn.config import Choice, Config, change, resolve
from zorn.errors import ConfigError
from zorn.plan.step import step_memory
from zorn.training.build import build_estimator

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
    """Settings that fit a memory, and those that were tried and do not.

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


def most_rows(config: Config, steps: int) -> int:
    """A micro-batch beyond which a larger one changes nothing: all rows of a step."""
    return math.ceil(build_estimator(config).passes(config.task.batch, steps))


def largest_micro_batch(config: Config, vocabulary: int, steps: int, limit: int) -> int | None:
    """The largest micro-batch that is found whose step fits `limit` bytes; None where a single row does not.

    The range is halved `GUESSES` times: the answer fits, and is at most a few per cent of all rows too small.
    """

    def needed(rows: int) -> int:
        return needed_bytes(change(config, micro_batch=rows), vocabulary, steps)

    fits, above = 1, most_rows(config, steps)
    if needed(above) <= limit:
        return above
    if needed(fits) > limit:
        return None
    for _ in range(GUESSES):
        guess = (fits + above) // 2
        if needed(guess) <= limit:
            fits = guess
        else:
            above = guess
    return fits


GUESSES = 5
"""Micro-batches that are tried between one row and all of them."""


def propose(config: Config, vocabulary: int, steps: int, limit: int) -> Proposal:
    """Settings that fit `limit` bytes, as near the asked ones as can be.

    Tried in turn: the settings as they are; shorter time chunks and smaller micro-batches, which change
    nothing but memory and speed; an update in place instead of the optimizer; bfloat16 weights; forward
    passes only, with rank-one members. The first that fits is taken.
    """
    asked = needed_bytes(config, vocabulary, steps)
    attempts = [] if asked <= limit else [Attempt(f"{_name(config)}, as asked,", asked)]
    least = asked
    for base in _near(config):
        found = _within(base, vocabulary, steps, limit)
        if found is not None:
            return Proposal(limit, found, needed_bytes(found, vocabulary, steps), tuple(attempts))
        smallest = needed_bytes(_chunked(change(base, micro_batch=1), 1), vocabulary, steps)
        least = min(least, smallest)
        attempts.append(Attempt(f"{_name(base)}, a row at a time,", smallest))
    return Proposal(limit, None, least, tuple(attempts))


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


def _chunked(config: Config, chunk: int | None) -> Config:
    """With another time chunk where the estimator has one and None is not asked."""
    has = "time_chunk" in config.estimator.given and chunk is not None
    return change(config, time_chunk=chunk) if has else config


def _within(config: Config, vocabulary: int, steps: int, limit: int) -> Config | None:
    """The settings with the time chunk and the micro-batch that fit; themselves where they do."""
    if needed_bytes(config, vocabulary, steps) <= limit:
        return config
    asked = min(config.estimator.micro_batch, most_rows(config, steps))
    best: tuple[int, Config] | None = None
    chunk = config.estimator.get("time_chunk") or steps
    while True:
        base = _chunked(change(config, micro_batch=asked), chunk if chunk < steps else None)
        if needed_bytes(base, vocabulary, steps) <= limit:
            return base
        rows = min(largest_micro_batch(base, vocabulary, steps, limit) or 0, asked)
        if rows > (best[0] if best else 0):
            best = rows, change(base, micro_batch=rows)
        if "time_chunk" not in config.estimator.given or chunk < 2 * SHORTEST_CHUNK:
            return best[1] if best else None
        chunk //= 2


def _near(config: Config) -> Iterator[Config]:
    """The settings, and others near them that hold less."""
    yield config
    for estimator in (config.estimator, Choice("cd-rge", perturbation="rank-one")):
        for dtype in ("float32", "bfloat16"):
            in_place = other(config, estimator, optimizer="fused-sgd", dtype=dtype)
            if in_place is not None and in_place != config:
                yield in_place


def other(config: Config, estimator: Choice, *, optimizer: str, dtype: str) -> Config | None:
    """The settings with another estimator, which keeps what both have, or optimizer; None where they do not
    go together."""
    try:
        given = change(config, estimator=estimator.name).estimator
        kept = {name: given.get(name) for name in KEPT if given.get(name) is not None}
        own = (
            estimator
            if estimator == config.estimator
            else Choice(estimator.name, **{**kept, **estimator.given})
        )
        chosen = config.optimizer if optimizer == config.optimizer.name else Choice(optimizer)
        if own.get("separate") and optimizer == "fused-sgd":
            own = own.but(separate=False)
        groups = {"estimator": own, "optimizer": chosen}
        changed = change(config, dtype=dtype, clip_norm=None) if optimizer == "fused-sgd" else config
        return resolve(_replace(changed, **groups))[0]
    except ConfigError:
        return None


KEPT = ("population", "draws", "micro_batch", "time_chunk", "truncation")
"""Settings that another estimator keeps."""


def _replace(config: Config, **choices: Choice) -> Config:
    return dataclasses.replace(config, **choices)
