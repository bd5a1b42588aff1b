"""Checks of settings: one message that names the field, the rule, the value, and a flag that works."""

import dataclasses
import types
import typing
from typing import Any, Literal

from zorn.errors import ConfigError


def flag(name: str) -> str:
    """The command-line flag of a field.

    >>> flag("hidden_size")
    '--hidden-size'
    """
    return "--" + name.replace("_", "-")


def check_types(group: Any) -> None:
    """What the types of a dataclass's fields imply: a choice is one of its values, an integer has 31 bits.

    Raises:
        ConfigError: a field that does not fit its type.
    """
    for name, annotation in typing.get_type_hints(type(group)).items():
        kind, optional = without_none(annotation)
        value = getattr(group, name)
        if value is None and optional:
            continue
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            rule = f"one of {', '.join(choices)}" + (" or None" if optional else "")
            require(value in choices, name, value, rule, choices[0])
        elif kind is int and name != "seed":
            require(value < 2**31, name, value, "below 2**31", 100)


def without_none(annotation: Any) -> tuple[Any, bool]:
    """A type without the None that it may also be, and whether it may.

    >>> without_none(int | None), without_none(Literal["a", "b"])
    ((<class 'int'>, True), (typing.Literal['a', 'b'], False))
    """
    if typing.get_origin(annotation) not in (types.UnionType, typing.Union):
        return annotation, False
    (kind,) = (one for one in typing.get_args(annotation) if one is not types.NoneType)
    return kind, True


def require(condition: bool, name: str, got: object, rule: str, example: object) -> None:
    """Raise ConfigError unless `condition` holds: `name` must be `rule`, for example `example`.

    >>> require(False, "rank", 0, "at least 1", 1)
    Traceback (most recent call last):
    zorn.errors.ConfigError: rank must be at least 1, got 0: for example --rank 1
    """
    if not condition:
        shown = "an empty text" if got == "" else got
        fix = f"{flag(name)} {example}"
        if isinstance(example, bool):
            fix = flag(name) if example else flag(f"no_{name}")
        raise ConfigError(f"{name} must be {rule}, got {shown}: for example {fix}")


def require_positive_or_none(name: str, value: int | None, example: int) -> None:
    """Raise ConfigError unless `value` is None or at least 1.

    >>> require_positive_or_none("threads", None, 1)
    """
    require(value is None or value >= 1, name, value, "at least 1, or None", example)


def require_default(group: Any, names: tuple[str, ...], used: bool, why: str) -> None:
    """Raise ConfigError where fields that are not `used` have other values than their defaults.

    >>> from zorn.training import ModelConfig
    >>> ModelConfig(cell="lstm", memory_slots=8)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    zorn.errors.ConfigError: memory_slots must be 16 with lstm: only dnc uses it, got 8: for example ...
    """
    defaults = {field.name: field.default for field in dataclasses.fields(group)}
    for name in names:
        value = getattr(group, name)
        require(used or value == defaults[name], name, value, f"{defaults[name]} {why}", defaults[name])
