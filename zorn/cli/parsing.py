"""Reading flags with tyro, and saying in one line what is wrong with them.

Tyro parses, builds the dataclasses and writes the help. Where it refuses, its boxed report is not shown; the
reason is worked out again from the words and the fields, so that a mistake is one line that says what to do.
"""

import contextlib
import dataclasses
import io
import itertools
import shlex
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from zorn.errors import ZornError
from zorn.registry import closest
from zorn.settings import flag

Command = TypeVar("Command")


class UsageError(ZornError):
    """Words on the command line that mean nothing."""


def parse(kind: type[Command], words: Sequence[str], *, prog: str, default: Command | None = None) -> Command:
    """Make a dataclass from command-line words; nested groups are flat flags, `--help` prints and exits.

    Raises:
        UsageError: an unknown flag, a value of the wrong type, a missing, an empty or a left-over word.
        ZornError: what the dataclass itself raises for a value outside its range.
        SystemExit: after `--help`.
    """
    _refuse_empty_paths(kind, words)
    errors = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=list(words), prog=prog, config=(tyro.conf.OmitArgPrefixes,), **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, ZornError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        raise UsageError(
            f"{_mistake(kind, words) or _unboxed(errors.getvalue())}: see {prog} --help"
        ) from None


def leading_flags(kind: type[Command], words: Sequence[str]) -> Command:
    """Read only the flags that `kind` has, all with defaults, and leave all other words alone.

    Where they cannot be read the defaults are returned: `parse` will say what is wrong with the same words.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(kind, args=list(words), add_help=False, return_unknown_args=True)[0]
    except SystemExit:
        return kind()


def _flags(kind: type) -> dict[str, Any]:
    """Flag -> type, over a dataclass and its groups; positional fields are left out."""
    found: dict[str, Any] = {}
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            found |= _flags(annotation)
        elif not _is_positional(annotation):
            is_annotated = typing.get_origin(annotation) is typing.Annotated
            found[flag(name)] = typing.get_args(annotation)[0] if is_annotated else annotation
    return found


def _is_positional(annotation: Any) -> bool:
    """True for a word without a flag: `tyro.conf.Positional[…]`."""
    [_, mark] = typing.get_args(tyro.conf.Positional[int])
    return mark in typing.get_args(annotation)[1:]


def _mistake(kind: type, words: Sequence[str]) -> str | None:
    """The first word that does not fit, in words; None when all do."""
    flags = _flags(kind)
    waiting = list(words)
    words_wanted, words_needed = _positionals(kind)
    places = words_wanted
    while waiting:
        word, _, value = waiting.pop(0).partition("=")
        if not word.startswith("-"):
            places -= 1
            if places < 0:
                return f"unexpected word {word!r}"
            continue
        name = word.replace("_", "-")
        if flags.get(name.replace("--no-", "--", 1)) is bool:
            if value:
                return f"{word} takes no value, got {value!r}"
            continue
        if name not in flags:
            hint = closest(name, list(flags))
            return f"unknown flag {word}" + (f" (did you mean {hint}?)" if hint else "")
        if not value:
            after = waiting.pop(0) if waiting else ""
            if not after or (after.startswith("-") and not _is_number(after)):
                known = after.partition("=")[0].replace("_", "-") in {"", *flags}
                fix = "" if known else f": one that begins with - is written {word}={shlex.quote(after)}"
                return f"{word} needs a value, {_wanted(flags[name])}{fix}"
            value = after
        if not _fits(value, flags[name]):
            return f"{word} must be {_wanted(flags[name])}, got {value!r}"
    return "the run's folder is missing" if words_wanted - places < words_needed else None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _positionals(kind: type) -> tuple[int, int]:
    """The number of words without a flag that a dataclass takes, and of those that it needs."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = [field for field in dataclasses.fields(kind) if _is_positional(hints[field.name])]
    return len(found), sum(field.default is dataclasses.MISSING for field in found)


def _refuse_empty_paths(kind: type, words: Sequence[str]) -> None:
    """An empty text would be read as the path of the folder one stands in."""
    flags = _flags(kind)
    for word, after in itertools.zip_longest(words, words[1:]):
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        paths = Path in (flags.get(name), *typing.get_args(flags.get(name)))
        if paths and (value if equals else after) == "":
            raise UsageError(f"{name} must be a path, got an empty text: for example {name} runs/mine")


def _fits(value: str, annotation: Any) -> bool:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return any(_fits(value, inner) for inner in typing.get_args(annotation))
    if typing.get_origin(annotation) is Literal:
        return value in typing.get_args(annotation)
    if annotation is types.NoneType:
        return value == "None"
    try:
        annotation(value)
    except ValueError:
        return False
    return True


def _wanted(annotation: Any) -> str:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(_wanted(inner) for inner in typing.get_args(annotation))
    if typing.get_origin(annotation) is Literal:
        return f"one of {', '.join(typing.get_args(annotation))}"
    return {int: "a whole number", float: "a number", str: "a text"}.get(
        annotation, "None" if annotation is types.NoneType else "a path"
    )


def _unboxed(report: str) -> str:
    """Tyro's boxed report in one line: what stands above its first rule."""
    lines = [line.strip("│ ") for line in report.splitlines()[1:]]
    body = [line for line in lines if line and not line.startswith(("╭", "╰"))]
    rule = next((index for index, line in enumerate(body) if line.startswith("─")), len(body))
    return " ".join(body[:rule]) or "the command line could not be read"
