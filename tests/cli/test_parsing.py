"""The words of a mistake, and what remains when only tyro knows what is wrong."""

import dataclasses
from typing import Literal

import pytest

from zorn.cli import parsing
from zorn.cli.parsing import UsageError, closest, leading_flags, parse


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group."""

    size: int = 1
    """A size."""
    colour: Literal["red", "blue"] = "red"
    """A colour."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Some words."""

    group: Group
    name: str = "x"
    """A name."""
    limit: float | None = None
    """A limit."""
    quick: bool = False
    """Whether to hurry."""


def read(*words):
    return parse(Words, words, prog="zorn words", default=Words(group=Group(size=3)))


def test_flags_are_flat_and_defaults_stay():
    assert read("--colour", "blue", "--limit=-2.5", "--quick") == Words(
        group=Group(size=3, colour="blue"), limit=-2.5, quick=True
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--siez", "3"], r"unknown flag --siez \(did you mean --size\?\): see zorn words --help"),
        (["--quick=1"], "--quick takes no value, got '1'"),
        (["--limit", "big"], "--limit must be a number or None, got 'big'"),
        (["--colour=green"], "--colour must be one of red, blue, got 'green'"),
        (["--name"], "--name needs a value, a text"),
    ],
)
def test_a_mistake_is_named(words, message):
    with pytest.raises(UsageError, match=message):
        read(*words)


def test_what_only_tyro_understands_is_put_into_one_line(monkeypatch):
    monkeypatch.setattr(parsing, "_mistake", lambda *_: None)
    with pytest.raises(UsageError, match=r"^Unrecognized options: --siez, 3: see zorn words --help$"):
        read("--siez", "3")


def test_leading_flags_ignore_all_others():
    words = ["--other", "1", "--size=4", "--help", "word"]
    assert leading_flags(Group, words) == Group(size=4)
    assert leading_flags(Group, ["--size", "big"]) == Group(), "parse says what is wrong with it"


def test_help_prints_and_stops(capsys):
    with pytest.raises(SystemExit, match="0"):
        read("--help")
    assert "Whether to hurry." in capsys.readouterr().out


def test_the_closest_word():
    assert closest("--hiden", ["--hidden", "--heads"]) == "--hidden"
    assert closest("--zzz", ["--hidden", "--heads"]) is None
