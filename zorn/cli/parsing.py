"""Reading flags with tyro, and saying in one line what is wrong with them.

Tyro parses, builds the dataclasses and writes the help. The words are checked before it sees them, so that a
mistake is one line that says what to do, not a boxed report.
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
from zorn.settings import described, flag

Command = TypeVar("Command")


class UsageError(ZornError):
    """Words on the command line that mean nothing."""


def parse(kind: type[Command], words: Sequence[str], *, prog: str) -> Command:
    """Make a dataclass from command-line words; nested groups are flat flags, `--help` prints and exits.

    Raises:
        UsageError: an unknown flag, a value of the wrong type, a missing, an empty or a left-over word.
        SystemExit: after `--help`.
    """
    mistake = None if {"-h", "--help"} & set(words) else _mistake(kind, words)
    report = io.StringIO()
    try:
        if mistake is None:
            with contextlib.redirect_stderr(report):
                return tyro.cli(kind, args=list(words), prog=prog, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as stop:
        if not stop.code:
            raise
        mistake = _unboxed(report.getvalue())
    raise UsageError(f"{mistake}: see {prog} --help")


def leading_flags(kind: type[Command], words: Sequence[str], *, prog: str) -> Command:
    """Read only the flags that `kind` has, all with defaults, and leave all other words alone.

    Raises:
        UsageError: a value of the wrong type, or none.
    """
    known, own = _flags(kind), list[str]()
    for word, after in itertools.zip_longest(words, words[1:]):
        name, equals, _ = word.partition("=")
        if name.replace("_", "-") in known:
            own += [word] if equals or after is None else [word, after]
    return parse(kind, own, prog=prog)


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
    flags, waiting = _flags(kind), list(words)
    hints = typing.get_type_hints(kind, include_extras=True)
    places = [field for field in dataclasses.fields(kind) if _is_positional(hints[field.name])]
    while waiting:
        word, equals, value = waiting.pop(0).partition("=")
        name = word.replace("_", "-")
        if not word.startswith("-"):
            if not places:
                return f"unexpected word {word!r}"
            place = places.pop(0).name
            wanted, *_ = typing.get_args(hints[place])
            if not _fits(word, wanted):
                return f"{place} must be {described(wanted)}, got {word!r}"
        elif flags.get(name.replace("--no-", "--", 1)) is bool:
            if equals:
                return f"{word} takes no value, got {value!r}"
        elif name not in flags:
            hint = closest(name, list(flags))
            return f"unknown flag {word}" + (f" (did you mean {hint}?)" if hint else "")
        else:
            wanted = described(flags[name])
            if not equals:
                value = waiting.pop(0) if waiting else "-"
                if value.startswith("-") and not _fits(value, float):
                    known = value.partition("=")[0].replace("_", "-") in {"-", *flags}
                    fix = "" if known else f": one that begins with - is written {word}={shlex.quote(value)}"
                    return f"{word} needs a value, {wanted}{fix}"
            if not _fits(value, flags[name]):
                return f"{word} must be {wanted}, got {value!r}"
            if not value and Path in (flags[name], *typing.get_args(flags[name])):
                return f"{word} must be a path, got an empty text: for example {word} runs/mine"
    needed = any(field.default is dataclasses.MISSING for field in places)
    return "the run's folder is missing" if needed else None


def _fits(word: str, annotation: Any) -> bool:
    """True where a word can be read as a type that settings have."""
    if typing.get_origin(annotation) is Literal:
        return word in typing.get_args(annotation)
    if inner := typing.get_args(annotation):
        return any(_fits(word, each) for each in inner)
    try:
        return word == "None" if annotation is types.NoneType else annotation(word) is not None
    except ValueError:
        return False


def _unboxed(report: str) -> str:
    """Tyro's boxed report in one line: the text above its first rule."""
    lines = (line.strip("│| ") for line in report.splitlines()[1:])
    body = itertools.takewhile(lambda line: line.strip("─-╰╯+"), lines)
    return " ".join(body) or "the command line could not be read"
