"""Checks of what a user gives: one clear line before any work, "X must be A, got B: fix"."""

import functools
import types
import typing
from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Annotated, Any, Literal

from zorn.errors import ConfigError

LARGEST = 2**31 - 1
"""Largest size or count: what torch and the generators of noise index with."""

MOST_NAMED = 5
"""Names that a message lists before it counts the rest."""


def wrong(name: str, expected: str, got: str | float | None, fix: str | None = None) -> ConfigError:
    """The error for something that is not as it must be; `got` is in words, see `described`.

    >>> str(wrong("clip_norm", "None with fused-sgd", 1.0, "leave it out"))
    'clip_norm must be None with fused-sgd, got 1.0: leave it out'
    """
    return ConfigError(f"{name} must be {expected}, got {got}{f': {fix}' if fix else ''}")


def described(value: object) -> str:
    """A value in a few words, for a message: never a whole tensor.

    >>> described(0.5), described((0.5,)), described(float)
    ('0.5', '(float)', 'the class float, not an instance of it')
    """
    if value is None or isinstance(value, str | Real):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance of it"
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return f"a value of type {type(value).__name__}"


def some(names: Sequence[str], separator: str = ", ") -> str:
    """A list for a message: the first names, and how many more there are.

    >>> some(["a", "b"]), some(["a", "b", "c", "d", "e", "f", "g"])
    ('a, b', 'a, b, c, d, e and 2 more')
    """
    rest = len(names) - MOST_NAMED
    return separator.join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def check_whole_number(name: str, value: Any, *, minimum: int, maximum: int = LARGEST) -> None:
    """Checks a setting that counts something.

    Raises:
        ConfigError: `value` is no whole number from `minimum` to `maximum`.

    Example:
        >>> check_whole_number("batch", 0, minimum=1)
        Traceback (most recent call last):
        zorn.errors.ConfigError: batch must be a whole number of at least 1, got 0
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not minimum <= value <= maximum:
        top = "" if maximum == LARGEST and not (whole and value > maximum) else f" and at most {maximum}"
        raise wrong(name, f"a whole number of at least {minimum}{top}", described(value))


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = 0.0,
    maximum: float = float("inf"),
    above: bool = False,
    below: float = float("inf"),
    hint: str = "",
) -> None:
    """Checks a setting that is a finite real number.

    Args:
        above: True where `value` must be more than `minimum`, not just as much.
        below: a bound that `value` must stay under.
        hint: what the fix could be, added to the message.

    Raises:
        ConfigError: `value` is no finite number from `minimum` to `maximum`.

    Example:
        >>> check_number("epsilon", "0.1", above=True, hint="0.001 to 0.1 suits most models")
        Traceback (most recent call last):
        zorn.errors.ConfigError: epsilon must be a number above 0, got '0.1': 0.001 to 0.1 suits most models
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")
    inside = minimum <= number <= maximum and number < below
    if not inside or number == float("inf") or (above and number == minimum):
        bottom = f"above {minimum:g}" if above else f"of at least {minimum:g}"
        top = "" if maximum == float("inf") else f" and at most {maximum:g}"
        top = top if below == float("inf") else f" and below {below:g}"
        raise wrong(name, f"a number {bottom}{top}", described(value), hint)


def check_switch(name: str, value: object) -> None:
    """Checks a setting that is on or off: the text "no" would count as on.

    Raises:
        ConfigError: `value` is neither True nor False.

    Example:
        >>> check_switch("simple", "no")
        Traceback (most recent call last):
        zorn.errors.ConfigError: simple must be True or False, got 'no'
    """
    if not isinstance(value, bool):
        raise wrong(name, "True or False", described(value))


def check_seed(seed: object) -> None:
    """Checks that a seed has 64 bits.

    Raises:
        ConfigError: it is no whole number from 0 to 2**64 - 1.

    Example:
        >>> check_seed(0)
    """
    check_whole_number("seed", seed, minimum=0, maximum=2**64 - 1)


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Checks a setting that has a few values.

    Raises:
        ConfigError: `value` is none of `choices`.

    Example:
        >>> check_choice("split", "training", ["train", "test"])
        Traceback (most recent call last):
        zorn.errors.ConfigError: split must be one of 'train', 'test', got 'training'
    """
    if value not in choices:
        raise wrong(name, f"one of {', '.join(map(repr, choices))}", described(value))


Count = Annotated[int, partial(check_whole_number, minimum=1)]
"""A setting that counts something, at least 1."""

Seed = Annotated[int, partial(check_whole_number, minimum=0, maximum=2**64 - 1)]
"""A seed of 64 bits."""

Positive = Annotated[float, partial(check_number, above=True)]
"""A finite number above 0."""

Share = Annotated[float, partial(check_number, maximum=1.0)]
"""A number from 0 to 1."""

NotNegative = Annotated[float, partial(check_number)]
"""A finite number of at least 0."""

BelowOne = Annotated[float, partial(check_number, below=1.0)]
"""A number from 0 up to 1, which it stays under."""


def checked(name: str, value: Any, annotation: Any) -> Any:
    """A setting, if it is as its annotation says: `Count` and the others above, `bool`, a `Literal`, or None
    where that may be. A number comes back as a float. Other types are left to their owner.

    Raises:
        ConfigError: it is not.

    Example:
        >>> checked("epsilon", 1, Positive), checked("group_size", None, Count | None)
        (1.0, None)
    """
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
        if value is None and len(kinds) < len(typing.get_args(annotation)):
            return None
        return checked(name, value, kinds[0]) if len(kinds) == 1 else value
    if annotation is bool:
        check_switch(name, value)
    elif typing.get_origin(annotation) is Literal:
        check_choice(name, value, typing.get_args(annotation))
    for check in getattr(annotation, "__metadata__", ()):
        if isinstance(check, partial):
            check(name, value)
            value = float(value) if typing.get_args(annotation)[0] is float else value
    return value


def check_fields(made: object) -> None:
    """Raise ConfigError unless each field of a dataclass is as its annotation says, see `checked`."""
    for name, annotation in annotations_of(type(made)).items():
        checked(name, getattr(made, name), annotation)


@functools.cache
def annotations_of(kind: type) -> dict[str, Any]:
    """The annotations of a class and its bases by name, with the ranges that are in them."""
    return typing.get_type_hints(kind, include_extras=True)
