"""The memory of a training step: the real step, done on tensors that have sizes and no memory.

Nothing here knows an estimator, a cell or an optimizer: what they hold is what is seen to live. Long
sequences are done at two shorter lengths and large batches at fewer rows; memory is on a line through them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from zorn.config import Config, RunConfig, change
from zorn.errors import ConfigError
from zorn.models import Batch, RowObjective, TokenObjective
from zorn.plan.live import LiveBytes
from zorn.tasks import EvaluationData, Task, objective_of
from zorn.training.build import build_estimator
from zorn.training.learner import Learner

PARTS = ("weights", "optimizer", "gradients", "working")
"""Uses of memory. optimizer: its state. working: all that lives only during a step, and the batch's
tokens: noise, states, activations, logits."""

SHORTEST = 16
"""Time steps of the shorter of the two lengths, at least."""

LONGEST = 36
"""Time steps that a step is done at as it is, at least: one length takes as long as two shorter ones."""

PIECES = 2
"""Micro-batches that a step is cut to: the second shows what lives beside the next."""

TOKEN = 16
"""Bytes of a token of the batch and of what should answer it."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step: what stays from step to step, and the most that lives in its two halves.

    Attributes:
        estimate, update: bytes at the peak while the gradient is estimated, and while an optimizer moves the
            weights.

    >>> Memory(weights=4, optimizer=8, gradients=4, estimate=30, update=20).working
    14
    """

    weights: int | float
    optimizer: int | float
    gradients: int | float
    estimate: int | float
    update: int | float

    @property
    def peak(self) -> int:
        """Bytes that live at once, at most."""
        return math.ceil(max(self.estimate, self.update))

    @property
    def working(self) -> int:
        """Bytes at the peak beside what stays."""
        return self.peak - math.ceil(self.weights + self.optimizer + self.gradients)


@final
class Given(Task):
    """A task that gives one batch at every step; its tokens stand for no text."""

    name = "given"

    def __init__(self, batch: Batch, vocabulary: int, objective: TokenObjective | RowObjective) -> None:
        self.batch, self.vocabulary, self.objective = batch, vocabulary, objective

    def training_batch(self, step: int) -> Batch:
        """The batch."""
        del step
        return self.batch

    def begins(self, step: int) -> bool:
        """Only the first step begins sequences."""
        return step == 0

    def evaluation_data(self, split: str) -> EvaluationData:
        """The batch."""
        return EvaluationData(split, self.batch, total_bytes=None, whole_sequences=False)

    def encode(self, text: str) -> Tensor:
        """Raise ConfigError: there is no text."""
        raise ConfigError(f"text: got {text!r}, but a given batch stands for no text")

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The numbers of the tokens."""
        return " ".join(str(int(token)) for token in tokens)


def step_memory(config: Config, vocabulary: int, steps: int) -> Memory:
    """The bytes that a training step holds at once.

    Args:
        config: resolved.
        vocabulary: V, tokens that there are.
        steps: T, time steps of the batch's sequences.

    Raises:
        ConfigError: settings that cannot work.

    Example:
        >>> from zorn.config import BudgetConfig, Choice, resolve
        >>> model, estimator = Choice("gru", hidden_size=512), Choice("cd-rge", population=256)
        >>> config, _ = resolve(Config(model=model, estimator=estimator, budget=BudgetConfig(steps=1)))
        >>> int(step_memory(config, vocabulary=256, steps=32).weights)
        7353344
    """
    config = change(config, micro_batch=min(config.estimator.micro_batch, most_rows(config, steps)))
    first, second = _lengths(config, steps)
    found = _counted(config, vocabulary, second)
    if second == steps:
        return found
    before = _counted(config, vocabulary, first)
    share = (steps - second) / (second - first)
    values = {
        name: value + share * max(0.0, value - getattr(before, name))
        for name, value in dataclasses.asdict(found).items()
    }
    return Memory(**values)


def most_rows(config: Config, steps: int) -> int:
    """A micro-batch beyond which a larger one changes nothing: all rows of a step."""
    return math.ceil(build_estimator(config).passes(config.task.batch, steps))


def _lengths(config: Config, steps: int) -> tuple[int, int]:
    """The two lengths that a step is done at; the second is `steps` where that is short."""
    estimator = config.estimator
    period = min(steps, estimator.get("time_chunk") or estimator.get("truncation") or 1)
    least = period * math.ceil(SHORTEST / period)
    first, second = least + steps % period, 2 * least + steps % period
    return first, steps if steps <= LONGEST else min(second, steps)


def reduced(config: Config, rows: int) -> Config:
    """The settings with fewer members and sequences, so that a step has about `rows` rows, or as few as can
    be.

    >>> from zorn.config import BudgetConfig, Choice, resolve
    >>> asked = Config(estimator=Choice("cd-rge", population=1024), budget=BudgetConfig(steps=1))
    >>> small = reduced(resolve(asked)[0], 8)
    >>> small.task.batch, small.estimator.population
    (8, 8)
    """
    batch, group = config.task.batch, config.estimator.get("group_size")
    fewer = min(batch, (group or 1) * math.ceil(rows / (group or 1)))
    changes = {"batch": fewer}
    population = config.estimator.get("population")
    if population is not None:
        estimator: Any = build_estimator(config)
        multiple = estimator.population_multiple(fewer)
        together = estimator.perturbation.side_by_side  # else one member after the other: two show all
        members = math.ceil(rows / (group or fewer)) if together else PIECES
        changes["population"] = min(population, multiple * math.ceil(members / multiple))
    return change(config, **changes)


@functools.lru_cache(maxsize=4096)
def _counted(config: Config, vocabulary: int, steps: int) -> Memory:
    """Of a step that is done, with the gradient and the optimizer's state that the step before leaves."""
    micro_batch = config.estimator.get("micro_batch") or config.task.batch
    asked = config.task.batch
    config = reduced(config, PIECES * micro_batch)
    run = RunConfig(device="meta", dtype=config.run.dtype, seed=config.run.seed)
    config = dataclasses.replace(config, run=run)
    with LiveBytes() as live:
        shape = config.task.batch, steps
        tokens = [torch.empty(shape, dtype=torch.int64, device="meta") for _ in ("inputs", "targets")]
        given = Given(Batch(*tokens), vocabulary, objective_of(config.objective))
        learner = Learner.build(config, given)
        weights = sum(parameter.nbytes for parameter in learner.model.parameters())
        peaks = {"estimate": 0, "update": 0}

        def half_ends(name: str) -> None:
            peaks[name] = max(peaks[name], live.peak)
            live.peak = live.now

        moved = [group["params"] for each in learner.optimizers for group in each.param_groups]
        for parameter in itertools.chain(*moved):
            parameter.grad = torch.empty_like(parameter)
        for optimizer in learner.optimizers:
            optimizer.step()  # makes its state
        live.peak = live.now  # without what making all this took
        for optimizer in learner.optimizers[:1]:
            optimizer.register_step_pre_hook(lambda *_: half_ends("estimate"))
        learner.train_step(0.0)
        half_ends("update" if learner.optimizers else "estimate")
        gradients = [parameter.grad for parameter in itertools.chain(*moved)]
        states = [state for each in learner.optimizers for state in each.state.values()]
        moments = [each for state in states for each in state.values() if torch.is_tensor(each)]
    further = TOKEN * steps * (asked - config.task.batch)
    return Memory(
        weights=weights,
        optimizer=sum(each.nbytes for each in moments),
        gradients=sum(each.nbytes for each in gradients if each is not None),
        estimate=peaks["estimate"] + further,
        update=peaks["update"] + further * bool(peaks["update"]),
    )
