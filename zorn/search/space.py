"""The resolved settings near given ones that a search compares."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from zorn.checks import wrong
from zorn.config import COMPONENTS, GROUPS, Choice, Config, resolve, to_plain
from zorn.errors import ConfigError
from zorn.estimators import ESTIMATORS

RATES = tuple(10 ** (power / 2) for power in (1, -1, 2, -2, 3, -3, 4, -4))
"""Factors of the learning rate: two decades to each side."""
SIZES, EPSILONS = (0.5, 2.0, 0.25, 4.0), (0.3, 3.0, 0.1, 10.0)
"""Factors of the sizes of a step, and of ε."""
MOST = 60


class Knob(NamedTuple):
    """A setting that is searched: values tried alone, values tried while others change too, and what makes
    the settings with a value."""

    alone: tuple[Any, ...]
    together: tuple[Any, ...]
    turn: Callable[[Config, Any], Config]


def knobs(config: Config) -> list[Knob]:
    """Learning rate, batch, and what the estimator offers; what matters most comes first."""
    kind, own = ESTIMATORS[config.estimator.name], config.estimator
    found = [Knob(RATES, (0.5, 2.0), with_rate)]
    sizes = {"batch": None if config.task.get("overfit") else config.task.get("batch")}
    sizes |= {name: own.get(name) for name in kind.sizes}
    found += [Knob(SIZES, SIZES[:2], partial(resized, name)) for name, size in sizes.items() if size]
    if "epsilon" in kind.scheduled and not config.schedule.tie_epsilon:
        values = tuple(own.epsilon * factor for factor in EPSILONS)
        found.append(Knob(values, values[:2], partial(_with, "epsilon")))
    return found + [Knob(values, values, partial(_with, name)) for name, values in kind.searched.items()]


def alone(config: Config) -> Iterator[Config | None]:
    """Settings that differ in one knob; None for those that do not go together."""
    return (_turned(config, [(knob.turn, value)]) for knob in knobs(config) for value in knob.alone)


def together(config: Config) -> Iterator[Config | None]:
    """Up to `MOST` settings that differ in any of the knobs, in an order drawn from the run's seed."""
    choices = list(
        itertools.product(*[[None, *((knob.turn, v) for v in knob.together)] for knob in knobs(config)])
    )
    for choice in random.Random(config.run.seed).sample(choices, min(MOST, len(choices))):
        yield _turned(config, [turn for turn in choice if turn is not None])


def _turned(config: Config, turns: list[tuple[Callable[[Config, Any], Config], Any]]) -> Config | None:
    try:
        for turn, value in turns:
            config = turn(config, value)
        return resolve(config)[0]
    except ConfigError:
        return None


def resized(name: str, config: Config, factor: float) -> Config:
    """The settings with the batch, or a size of the estimator, times `factor`, and the learning rate times
    its square root (Malladi et al., "On the SDEs and scaling rules for adaptive gradient algorithms", 2022);
    ConfigError where the size would not be whole."""
    size = (config.task if name == "batch" else config.estimator).get(name) * factor
    if size != int(size):
        raise wrong(name, "a whole number", size)
    return with_rate(_with(name, config, int(size)), math.sqrt(factor))


def with_rate(config: Config, factor: float) -> Config:
    """The settings with every learning rate times `factor`."""

    def scaled(choice: Choice) -> Choice:
        rates = {name: rate for name, rate in choice.given.items() if name.endswith("learning_rate") and rate}
        return choice.but(**{name: rate * factor for name, rate in rates.items()})

    return replace(config, optimizer=scaled(config.optimizer), estimator=scaled(config.estimator))


def shortened(config: Config, share: float) -> Config:
    """Settings for a run of a share of the time, above 0 to 1, that stand for those of the whole run: the
    warm-up is as much shorter, and the learning rate larger by 1/√share, as the best step size of T noisy
    steps falls as 1/√T (Zinkevich, "Online convex programming", 2003)."""
    steps = round(config.schedule.warmup_steps * share)
    schedule = replace(config.schedule, warmup_steps=steps)
    return replace(with_rate(config, 1 / math.sqrt(share)), schedule=schedule)


def applied(asked: Config, found: Config, start: Config) -> Config:
    """The settings that were asked for, with what differs between those that were found and the start."""
    changed = asked
    for group, name, value in differences(found, start):
        given = {**getattr(changed, group).given, name: value}
        changed = replace(changed, **{group: Choice(getattr(found, group).name, **given)})
    return changed if resolve(changed)[0] == found else found


def differences(config: Config, base: Config) -> list[tuple[str, str, Any]]:
    """Group, name and value of each setting that is not the base's."""
    new, old = to_plain(config), to_plain(base)
    groups = [(group, new[group].items(), old[group]) for group in (*COMPONENTS, *GROUPS)]
    return [
        (group, name, value)
        for group, values, before in groups
        for name, value in values
        if value != before.get(name)
    ]


def describe(config: Config, base: Config) -> str:
    """The differences between settings in words, "unchanged" for none."""
    changed = [(name, f"{v:.4g}" if isinstance(v, float) else v) for _, name, v in differences(config, base)]
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changed) or "unchanged"


def _with(name: str, config: Config, value: Any) -> Config:
    group = "task" if name == "batch" else "estimator"
    return replace(config, **{group: getattr(config, group).but(**{name: value})})
