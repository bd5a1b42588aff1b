"""Checks of settings: one clear line before any work, instead of a failure somewhere inside."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from zorn.errors import ConfigError

LARGEST = 2**31 - 1
"""Largest size or count: what torch and the generators of noise index with."""

MOST_NAMED = 5
"""Names that a message lists before it counts the rest."""


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
        raise ConfigError(f"{name} must be a whole number of at least {minimum}{top}, got {value!r}")


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
        fix = f": {hint}" if hint else ""
        raise ConfigError(f"{name} must be a number {bottom}{top}, got {value!r}{fix}")


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
        raise ConfigError(f"{name} must be True or False, got {value!r}")


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
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
