"""The memory of a training step: the real step, done on tensors that have sizes and no memory.

Nothing here knows an estimator, a cell or an optimizer: what they hold is what is seen to live. Long
sequences are done at two shorter lengths, and many rows of a large model at two smaller numbers of them with
the micro-batch in proportion; what each part of a step holds is on a line through the two.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch

from zorn.config import Config, RunConfig, change
from zorn.estimators import Estimate, Estimator
from zorn.models import Batch
from zorn.plan.live import LiveBytes
from zorn.tasks import objective_of
from zorn.training.build import build_estimator, build_model, build_optimizers, model_of
from zorn.training.step import move_weights

PARTS = ("weights", "optimizer", "gradients", "working")
"""Uses of memory. optimizer: its state. working: all that lives only during a step, and the batch's
tokens: noise, states, activations, logits."""

SHORTEST = 32
"""Time steps of the shorter of two lengths, at least."""

LONGEST = 72
"""Time steps that a step is done at as it is, at least: one length takes as long as two shorter ones."""

PIECES = 2
"""Micro-batches that a step is cut to, and pieces of time: the second shows what lives beside the next."""

MUCH = 2**34
"""Rows × weights: a step of more is done with fewer rows, as every second would become many."""

ROWS = 32
"""Rows, about, of the smaller of the two steps of fewer members."""

TOKEN = 16
"""Bytes of a token of the batch and of what should answer it."""


Bytes = dict[Hashable, int | float]
"""Amounts of memory: what stays, by its name, and the peaks of the parts of a step."""


@dataclass(frozen=True)
class Memory:
    """Bytes that live during a training step.

    Attributes:
        weights, optimizer, gradients: what stays from step to step.
        peak: bytes that live at once, at most.

    >>> Memory(weights=4, optimizer=8, gradients=4, peak=30).working
    14
    """

    weights: int
    optimizer: int
    gradients: int
    peak: int

    @property
    def working(self) -> int:
        """Bytes at the peak beside what stays."""
        return self.peak - self.weights - self.optimizer - self.gradients


@dataclass(frozen=True)
class Step:
    """A model, and all that its training step on one batch needs.

    >>> from zorn.config import BudgetConfig, Choice, resolve
    >>> asked = Config(task=Choice("copy", batch=2), estimator=Choice("bptt"), budget=BudgetConfig(steps=1))
    >>> batch = Batch(torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64))
    >>> Step.build(resolve(asked)[0], 29, batch)().forward_passes
    6
    """

    config: Config
    model: torch.nn.Module
    estimator: Estimator
    optimizers: list[torch.optim.Optimizer]
    batch: Batch

    @classmethod
    def build(cls, config: Config, vocabulary: int, batch: Batch) -> Step:
        """With fresh weights on the configured device, where the batch must be."""
        model, estimator = build_model(config, vocabulary), build_estimator(config)
        return cls(config, model, estimator, build_optimizers(config, model, estimator), batch)

    def __call__(self) -> Estimate:
        """Move the weights."""
        objective = objective_of(self.config.objective)
        return move_weights(
            self.config,
            self.model,
            self.optimizers,
            1.0,
            lambda update: self.estimator.estimate(self.model, self.batch, objective, update=update),
        )


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
    rows = min(config.estimator.micro_batch, most_rows(config, steps))
    whole = reduced(change(config, micro_batch=rows), PIECES * rows)
    first, second = _lengths(config, steps)
    found = _of_rows(whole, vocabulary, second)
    if second < steps:
        found = _beyond(_of_rows(whole, vocabulary, first), found, (steps - second) / (second - first))
    stay = {name: math.ceil(found.pop(name)) for name in PARTS[:-1]}
    return Memory(**stay, peak=math.ceil(max(found.values())) + TOKEN * steps * config.task.batch)


def _of_rows(whole: Config, vocabulary: int, steps: int) -> Bytes:
    """Of a step of these settings; where that is too much work, on the line through those of fewer rows."""

    def work(config: Config) -> float:
        return build_estimator(config).passes(config.task.batch, steps) / all_

    def counted(config: Config) -> Bytes:
        rows = math.ceil(whole.estimator.micro_batch * work(config))
        return _counted(change(config, micro_batch=rows), vocabulary, steps)

    all_ = build_estimator(whole).passes(whole.task.batch, steps)
    model = model_of(whole.model, vocabulary, device="meta")
    much = all_ * sum(parameter.numel() for parameter in model.parameters()) > MUCH
    near = reduced(whole, ROWS)
    far = reduced(whole, math.ceil(2 * all_ * work(near)))
    if not (much and work(near) < work(far) < 1):
        return dict(_counted(whole, vocabulary, steps))
    return _beyond(counted(near), counted(far), (1 - work(far)) / (work(far) - work(near)))


def _beyond(near: Bytes, far: Bytes, share: float) -> Bytes:
    """Each amount beyond `far` on its line from `near`, by a share of the way between them."""
    return {key: value + share * (value - near.get(key, value)) for key, value in far.items()}


def most_rows(config: Config, steps: int) -> int:
    """A micro-batch beyond which a larger one changes nothing: all rows of a step."""
    return math.ceil(build_estimator(config).passes(config.task.batch, steps))


def _lengths(config: Config, steps: int) -> tuple[int, int]:
    """The two lengths that a step is done at; the second is `steps` where that is short."""
    estimator = config.estimator
    period = min(steps, estimator.get("time_chunk") or estimator.get("truncation") or 1)
    least = period * max(PIECES, math.ceil(SHORTEST / period))
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
    group = config.estimator.get("group_size") or 1
    batch = min(config.task.batch, group * math.ceil(rows / group))
    fewer = change(config, batch=batch)
    population = config.estimator.get("population")
    if population is None:
        return fewer
    estimator = build_estimator(fewer)
    multiple = estimator.population_multiple(batch)
    members = math.ceil(rows * population / estimator.passes(batch, 1) / multiple) * multiple
    return change(fewer, population=min(population, max(members, PIECES)))


@functools.lru_cache(maxsize=4096)
def _counted(config: Config, vocabulary: int, steps: int) -> Bytes:
    """Of a step that is done, with the gradient and the optimizer's state that the step before leaves, beside
    the tokens of the batch."""
    run = RunConfig(device="meta", dtype=config.run.dtype, seed=config.run.seed)
    config = dataclasses.replace(config, run=run)
    with LiveBytes() as live:
        tokens = [torch.empty(config.task.batch, steps, dtype=torch.int64, device="meta") for _ in range(2)]
        step = Step.build(config, vocabulary, Batch(*tokens))
        moved = [
            each
            for optimizer in step.optimizers
            for group in optimizer.param_groups
            for each in group["params"]
        ]
        for parameter in moved:
            parameter.grad = torch.empty_like(parameter)
        for optimizer in step.optimizers:
            optimizer.step()  # makes its state
        for optimizer in step.optimizers[:1]:
            optimizer.register_step_pre_hook(lambda *_: setattr(live, "part", "update"))
        live.restart()  # without what making all this took
        step()
        states = [state for each in step.optimizers for state in each.state.values()]
        moments = [each for state in states for each in state.values() if torch.is_tensor(each)]
    return {
        "weights": sum(parameter.nbytes for parameter in step.model.parameters()),
        "optimizer": sum(each.nbytes for each in moments),
        "gradients": sum(each.grad.nbytes for each in moved if each.grad is not None),
        **{part: peak - TOKEN * config.task.batch * steps for part, peak in live.peaks.items()},
    }
