"""Settings as `config.json`: what was asked, and what was resolved."""

from __future__ import annotations

import json
import typing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from zorn.checks import wrong
from zorn.config.config import COMPONENTS, GROUPS, Config, component_settings
from zorn.errors import ConfigError
from zorn.settings import Choice, described, fits


def to_json(asked: Config, resolved: Config) -> str:
    """The text of `config.json`: the objects "asked" and "resolved", one line a setting."""
    both = {"asked": to_plain(asked), "resolved": to_plain(resolved)}
    return json.dumps(both, indent=2, default=str) + "\n"


def to_plain(config: Config) -> dict[str, Any]:
    """The settings as JSON objects: one a component, with its name and what is given, and one a group.

    >>> from zorn.config import BudgetConfig
    >>> to_plain(Config(budget=BudgetConfig(steps=10)))["task"]
    {'name': 'text'}
    """
    plain: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Choice):
            plain[field.name] = {"name": value.name, **value.given}
        else:
            plain[field.name] = asdict(value) if field.name in GROUPS else value
    return json.loads(json.dumps(plain, default=str))


def from_json(text: str, origin: str = "config.json") -> tuple[Config, Config]:
    """The settings that were asked for and those that were resolved, read strictly: no field is unknown, each
    has its type, and of what was resolved none is missing.

    Raises:
        ConfigError: naming the fields; `origin` names the file in the message.

    >>> from zorn.config import BudgetConfig, resolve
    >>> asked = Config(budget=BudgetConfig(steps=10))
    >>> from_json(to_json(asked, resolve(asked)[0])) == (asked, resolve(asked)[0])
    True
    """
    try:
        both = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{origin} is not valid JSON ({error}): restore it or train again") from error
    _check_names(both, {"asked", "resolved"}, origin, "")
    asked = from_plain(both["asked"], f"{origin}: asked")
    resolved = from_plain(both["resolved"], f"{origin}: resolved")
    for kind in COMPONENTS:
        choice: Choice = getattr(resolved, kind)
        where = f"{origin}: resolved.{kind}"
        _check_names(dict(choice.given), set(component_settings(kind, choice.name)), where, "")
    return asked, resolved


def from_plain(plain: Any, origin: str) -> Config:
    """Settings from the objects of `to_plain`; raises ConfigError for anything else."""
    _check_names(plain, {field.name for field in fields(Config)}, origin, "")
    made: dict[str, Any] = {}
    for name, value in plain.items():
        if name in COMPONENTS:
            if not isinstance(value, dict) or not isinstance(value.get("name"), str):
                raise wrong(f"{origin}: {name}", "an object with a name", repr(value))
            made[name] = Choice(value["name"], **{k: v for k, v in value.items() if k != "name"})
        elif name in GROUPS:
            hints = typing.get_type_hints(GROUPS[name])
            _check_names(value, set(hints), origin, f"{name}.")
            made[name] = GROUPS[name](
                **{key: _read(each, hints[key], f"{origin}: {name}.{key}") for key, each in value.items()}
            )
        else:
            made[name] = value
    return Config(**made)


def _check_names(got: Any, expected: set[str], origin: str, prefix: str) -> None:
    if not isinstance(got, dict):
        raise wrong(f"{origin}: {prefix.rstrip('.') or 'the file'}", "an object", repr(got))
    missing = ", ".join(prefix + name for name in sorted(expected - got.keys()))
    unknown = ", ".join(prefix + name for name in sorted(got.keys() - expected))
    if missing or unknown:
        raise ConfigError(
            f"{origin} does not fit this version of zorn: missing {missing or 'nothing'}, "
            f"unknown {unknown or 'nothing'}; add or remove those fields, or train again"
        )


def _read(value: Any, annotation: Any, where: str) -> Any:
    """A JSON value in a field's type."""
    if isinstance(value, str) and Path in typing.get_args(annotation):
        return Path(value)
    if not fits(value, annotation):
        raise wrong(where, described(annotation), repr(value), "correct the file")
    return value
