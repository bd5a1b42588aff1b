"""The settings near given ones that tuning compares: how much work a step is, the discount, the learning
rate."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

from zorn.errors import ConfigError
from zorn.training.config import Config
from zorn.training.usage import CREDIT, STREAMING, WEIGHT_SPACE

SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors of the sequences and members of a step."""
RATES = (0.5, 1.0, 2.0)
"""Factors of the learning rate."""
DISCOUNTS = (0.5, 0.8, 0.95, 1.0)
"""Values of γ, for the estimators that have one."""


def variants(config: Config) -> list[Config]:
    """Settings near given ones, themselves first; the nearer ones before those that differ in more.

    They differ in the size of a step (with the learning rate by the square root of it, the rule of Malladi et
    al., "On the SDEs and scaling rules for adaptive gradient algorithms", 2022), in the discount where the
    estimator has one, and in the learning rate. What the settings' own rules refuse is left out. Those that
    are equally near lie in an order drawn from the run's seed.

    Example:
        >>> from zorn.training import BudgetConfig, EstimatorConfig, TaskConfig, resolve
        >>> estimator = EstimatorConfig(estimator="cd-rge", population=128)
        >>> budget = BudgetConfig(seconds=60.0)
        >>> start, _ = resolve(Config(task=TaskConfig(batch=64), estimator=estimator, budget=budget))
        >>> found = variants(start)
        >>> found[0] == start, len(found)
        (True, 15)
        >>> sorted({(near.task.batch, near.estimator.population) for near in found})
        [(16, 32), (32, 64), (64, 128), (128, 256), (256, 512)]
    """
    own = config.estimator.discount
    discounts = [own]
    if config.estimator.estimator in CREDIT:
        discounts += [value for value in DISCOUNTS if value != own]
    found: dict[Config, tuple[int, float]] = {}
    choices = list(itertools.product(SIZES, discounts, RATES))
    random.Random(config.run.seed).shuffle(choices)
    for size, discount, rate in choices:
        near = _variant(config, size, discount, rate)
        changed = [size != 1, discount != own, rate != 1]
        distance = abs(math.log2(size)) + abs(math.log2(rate))
        if near is not None and near not in found:
            found[near] = (sum(changed), distance)
    return sorted(found, key=found.__getitem__)


def resized(config: Config, factor: float) -> Config | None:
    """The settings with the work of a step times `factor`; None where that is not whole, or nothing can be
    scaled.

    Scaled are the members and the batch for the estimators whose members share out the batch; the members
    alone where each sees all of it, or streams; the batch for the others, or the draws where the batch is to
    be overfitted.

    Example:
        >>> from zorn.training import BudgetConfig, EstimatorConfig, TaskConfig
        >>> start = Config(
        ...     task=TaskConfig(batch=64), estimator=EstimatorConfig(estimator="bptt"),
        ...     budget=BudgetConfig(seconds=60.0),
        ... )
        >>> resized(start, 0.5).task.batch, resized(start, 1 / 128)
        (32, None)
    """
    task: dict[str, Any] = {}
    estimator: dict[str, Any] = {}
    kind, own = config.estimator.estimator, config.estimator
    whole_batch = kind in STREAMING or own.group_size == 0
    if not (config.task.overfit or whole_batch):
        task["batch"] = config.task.batch * factor
    elif kind in CREDIT:
        estimator["draws"] = (own.draws or 1) * factor
    if kind in WEIGHT_SPACE:
        sizes = {"population": own.population, "final_population": own.final_population}
        estimator |= {name: size * factor for name, size in sizes.items() if size is not None}
    scaled = [*task.values(), *estimator.values()]
    if not scaled or not all(size >= 1 and size == int(size) for size in scaled):
        return None
    groups = {"task": task, "estimator": estimator}
    whole = {group: {name: int(size) for name, size in new.items()} for group, new in groups.items()}
    return _replaced(config, **whole)


def _variant(config: Config, size: float, discount: float | None, rate: float) -> Config | None:
    near = config if size == 1 else resized(config, size)
    if near is None:
        return None
    return _replaced(with_rate(near, rate * math.sqrt(size)), estimator={"discount": discount})


def with_rate(config: Config, factor: float) -> Config:
    """The settings with the learning rate, and that of bridge's credit part, times `factor`.

    Example:
        >>> from zorn.training import BudgetConfig, OptimizerConfig
        >>> optimizer = OptimizerConfig(learning_rate=0.5)
        >>> with_rate(Config(optimizer=optimizer, budget=BudgetConfig(steps=1)), 2.0).optimizer.learning_rate
        1.0
    """
    names = ("learning_rate", "credit_learning_rate")
    rates = {name: getattr(config.optimizer, name) for name in names}
    scaled = {name: rate * factor for name, rate in rates.items() if rate is not None}
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **scaled))


def shortened(config: Config, share: float) -> Config:
    """The settings for a run of a share of the time, above 0 to 1, that stand for those of the whole: the
    warm-up is as much shorter, and the learning rate larger by the square root.

    The step size that suits a run of T noisy steps falls as 1/√T (Zinkevich, "Online convex programming and
    generalized infinitesimal gradient ascent", 2003): what is best for a few seconds is far too large for
    minutes.

    Example:
        >>> from zorn.training import BudgetConfig, OptimizerConfig
        >>> optimizer = OptimizerConfig(learning_rate=0.5, warmup_steps=40)
        >>> short = shortened(Config(optimizer=optimizer, budget=BudgetConfig(steps=1)), share=0.25)
        >>> short.optimizer.learning_rate, short.optimizer.warmup_steps
        (1.0, 10)
    """
    longer = with_rate(config, 1 / math.sqrt(share))
    steps = round(config.optimizer.warmup_steps * share)
    return dataclasses.replace(longer, optimizer=dataclasses.replace(longer.optimizer, warmup_steps=steps))


def _replaced(config: Config, **groups: dict[str, Any]) -> Config | None:
    """The settings with some fields replaced, group by group; None where they do not go together."""
    try:
        made = {name: dataclasses.replace(getattr(config, name), **new) for name, new in groups.items()}
        return dataclasses.replace(config, **made)
    except ConfigError:
        return None


def differences(config: Config, base: Config) -> Iterator[tuple[str, str, Any]]:
    """Group, field and value of each setting that is not the base's.

    Example:
        >>> from zorn.training import BudgetConfig, ModelConfig
        >>> one, other = (Config(budget=BudgetConfig(steps=steps)) for steps in (1, 2))
        >>> list(differences(other, one))
        [('budget', 'steps', 2)]
    """
    for group in dataclasses.fields(config):
        new, old = getattr(config, group.name), getattr(base, group.name)
        for field in dataclasses.fields(new):
            value = getattr(new, field.name)
            if value != getattr(old, field.name):
                yield group.name, field.name, value
