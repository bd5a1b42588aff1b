"""Settings changed by their flat names, the same in Python as on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zorn.config.config import AUTO, COMPONENTS, GROUPS, Config, component_settings
from zorn.errors import ConfigError
from zorn.estimators import ESTIMATORS
from zorn.models import CELLS
from zorn.optimizers import OPTIMIZERS
from zorn.registry import closest
from zorn.settings import Choice, Setting, fields_of
from zorn.tasks import TASKS

REGISTRIES: dict[str, Any] = {"task": TASKS, "model": CELLS, "estimator": ESTIMATORS, "optimizer": OPTIMIZERS}
"""Component -> those that there are."""

SELECTORS = {"task": "task", "model": "cell", "estimator": "estimator", "optimizer": "optimizer"}
"""Component -> the setting that names it."""


def change(config: Config, **values: Any) -> Config:
    """The settings with some of them changed by name: `cell="gru"`, `hidden_size=8`, `estimator="cd-rge"`.

    Where a component is named anew, the settings that it shares with the former one stay.

    Raises:
        ConfigError: a name that no component and no group has.

    >>> from zorn.config import PRESETS
    >>> found = change(PRESETS["copy"], cell="gru", estimator="bptt", steps=10, seconds=None)
    >>> found.model, found.estimator, found.budget.steps
    (Choice('gru', hidden_size=64), Choice('bptt'), 10)
    """
    left = dict(values)
    changes: dict[str, Any] = {}
    for kind in COMPONENTS:
        before: Choice = getattr(config, kind)
        name = left.pop(SELECTORS[kind], before.name)
        known = possible_settings(kind, name)
        given = {key: value for key, value in before.given.items() if key in known}
        given |= {key: left.pop(key) for key in list(left) if key in known}
        changes[kind] = Choice(name, **given)
    if "objective" in left:
        changes["objective"] = left.pop("objective")
    for group, kind in GROUPS.items():
        own = {key: left.pop(key) for key in list(left) if key in fields_of(kind)}
        if own:
            changes[group] = dataclasses.replace(getattr(config, group), **own)
    if left:
        name = next(iter(left))
        near = closest(name, sorted(all_names(changes)))
        raise ConfigError(
            f"{name} is no setting of {', '.join(changes[kind].name for kind in COMPONENTS)}, nor of a run: "
            + (f"did you mean {near}?" if near else "leave it out")
        )
    return dataclasses.replace(config, **changes)


def possible_settings(kind: str, name: str) -> Mapping[str, Setting]:
    """The settings of a component; of one that zorn chooses, those of all that it may be."""
    if name != AUTO:
        return component_settings(kind, name)
    found: dict[str, Setting] = {}
    for each in REGISTRIES[kind]:
        for key, setting in component_settings(kind, each).items():
            found.setdefault(key, setting)
    return found


def all_names(choices: Mapping[str, Any]) -> set[str]:
    """The names of all settings of chosen components and of the groups."""
    names = {key for kind in COMPONENTS for key in possible_settings(kind, choices[kind].name)}
    return (
        names
        | {key for kind in GROUPS.values() for key in fields_of(kind)}
        | {*SELECTORS.values(), "objective"}
    )
