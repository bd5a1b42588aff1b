"""The estimators that a plan compares, each with the settings that it shares with the run's."""

from __future__ import annotations

import dataclasses
from typing import Any

from zorn.errors import ConfigError
from zorn.training.config import Config
from zorn.training.defaults import resolve
from zorn.training.usage import without_unused

TRUNCATION = 10
"""Steps that tbptt and bridge differentiate together, where the run says nothing."""

KINDS: dict[str, dict[str, Any]] = {
    "cd-rge, rank-one": {"estimator": "cd-rge", "structure": "rank-one"},
    "cd-rge, dense": {"estimator": "cd-rge", "structure": "dense", "group_size": 0, "population": None},
    "activity": {"estimator": "activity"},
    "bridge": {"estimator": "bridge"},
    "e-prop": {"estimator": "e-prop"},
    "tbptt": {"estimator": "tbptt"},
    "bptt": {"estimator": "bptt"},
}
"""What is compared, by name."""


def kind_of(config: Config) -> str:
    """The name in a plan of the estimator of settings that leave nothing open.

    >>> from zorn.training import BudgetConfig
    >>> kind_of(resolve(Config(budget=BudgetConfig(steps=1)))[0])
    'activity'
    """
    settings = config.estimator
    return settings.estimator + (f", {settings.structure}" if settings.structure else "")


def label_of(config: Config) -> str:
    """The same with what it differentiates together, for people.

    >>> from zorn.training import BudgetConfig, EstimatorConfig
    >>> settings = EstimatorConfig(estimator="tbptt", truncation=8)
    >>> label_of(Config(estimator=settings, budget=BudgetConfig(steps=1)))
    'tbptt, k = 8'
    """
    k = config.estimator.truncation
    return kind_of(config) + (f", k = {k}" if k is not None else "")


def compared(config: Config) -> dict[str, Config]:
    """The settings of every kind that fits the task, by name: the run's own first where it is none of
    `KINDS`. The optimizer is the run's throughout.

    Args:
        config: settings that leave nothing open.

    >>> from zorn.training import BudgetConfig, EstimatorConfig
    >>> settings = EstimatorConfig(estimator="spsa-1.5")
    >>> list(compared(resolve(Config(estimator=settings, budget=BudgetConfig(steps=1)))[0]))[:2]
    ['spsa-1.5, rank-one', 'cd-rge, rank-one']
    """
    own = kind_of(config)
    found = {} if own in KINDS else {own: config}
    for name in KINDS:
        other = config if name == own else as_kind(config, name)
        if other is not None:
            found[name] = other
    return found


def as_kind(config: Config, name: str, **optimizer: Any) -> Config | None:
    """The settings with another estimator, and what it does not use left out; None where it does not fit the
    task, as bptt does not fit an objective without a derivative.

    Args:
        name: one of `KINDS`.
        optimizer: fields of the optimizer to change.
    """
    kind, left_open = KINDS[name], config.reopened()
    estimator = kind["estimator"]
    unnamed = dataclasses.replace(left_open.estimator, estimator="auto")  # which any settings fit
    settings = dict(kind)
    if estimator in ("tbptt", "bridge"):
        settings["truncation"] = config.estimator.truncation or TRUNCATION
    if estimator == "bridge":
        kept = optimizer.get("optimizer", config.optimizer.optimizer)
        settings["separate"] = config.estimator.separate and kept in ("adam", "adamw", "sgd")
        if not settings["separate"]:
            settings["credit_every"] = None
    try:
        groups = {
            "task": without_unused(config.task, estimator),
            "estimator": dataclasses.replace(without_unused(unnamed, estimator), **settings),
            "optimizer": dataclasses.replace(without_unused(left_open.optimizer, estimator), **optimizer),
        }
        return resolve(dataclasses.replace(left_open, **groups))[0]
    except ConfigError:
        return None
