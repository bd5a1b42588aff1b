"""The words of a mistake, and what remains when only tyro knows what is wrong."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from zorn.cli import parsing
from zorn.cli.parsing import UsageError, closest, leading_flags, parse


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group."""

    size: int = 1
    """A size."""
    colour: Literal["red", "blue"] = "red"
    """A colour."""


Made = dataclasses.make_dataclass(
    "Made",
    [
        ("depth", Annotated[int | None, tyro.conf.arg(help="A depth."), tyro.conf.Suppress], None),
        ("kind", Annotated[Literal["a", "b"], tyro.conf.arg(help="A kind.")], "a"),
        ("deep", Annotated[bool, tyro.conf.arg(help="Deep or not.")], False),
    ],
    frozen=True,
    kw_only=True,
)
"""A group as `zorn.cli.flags` makes them of the settings of a component."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Some words."""

    group: Group = dataclasses.field(default_factory=lambda: Group(size=3))
    made: Made = dataclasses.field(default_factory=Made)
    name: str = "x"
    """A name."""
    limit: float | None = None
    """A limit."""
    quick: bool = False
    """Whether to hurry."""


def read(*words):
    return parse(Words, words, prog="zorn words")


def test_flags_are_flat_and_defaults_stay():
    assert read("--colour", "blue", "--limit=-2.5", "--quick", "--kind", "b") == Words(
        group=Group(size=3, colour="blue"), limit=-2.5, quick=True, made=Made(kind="b")
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--siez", "3"], r"unknown flag --siez \(did you mean --size\?\): see zorn words --help"),
        (["--quick=1"], "--quick takes no value, got '1'"),
        (["--limit", "big"], "--limit must be a number or None, got 'big'"),
        (["--colour=green"], "--colour must be one of red, blue, got 'green'"),
        (["--name"], "--name needs a value, a text"),
        (["--kind", "c"], "--kind must be one of a, b, got 'c'"),
        (["--kind"], "--kind needs a value, one of a, b"),
        (["--depth", "deep"], "--depth must be a whole number or None, got 'deep'"),
        (["--deep=yes"], "--deep takes no value, got 'yes'"),
        (["--depht", "3"], r"unknown flag --depht \(did you mean --depth\?\)"),
    ],
)
def test_a_mistake_is_named(words, message):
    with pytest.raises(UsageError, match=message):
        read(*words)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Words without flags, one of them needed, beside a group."""

    folder: tyro.conf.Positional[Path]
    """A folder."""
    other: tyro.conf.Positional[str] = ""
    """Another word."""
    out: Path | None = None
    """A path."""
    name: str = ""
    """A name."""
    group: Group = dataclasses.field(default_factory=Group)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the run's folder is missing"),
        (["a", "b", "c"], "unexpected word 'c'"),
        (["a", "b", "--siez", "3"], r"unknown flag --siez"),
        (["a", "--out", ""], "--out must be a path, got an empty text: for example --out runs/mine"),
        (["a", "--out="], "--out must be a path, got an empty text"),
    ],
)
def test_words_without_flags_are_counted_and_paths_are_not_empty(words, message):
    with pytest.raises(UsageError, match=message):
        parse(Places, words, prog="zorn places")


def test_a_word_without_a_flag_can_be_left_out():
    found = parse(Places, ["a", "--name", "", "--out", "b"], prog="zorn places")
    assert (found.folder, found.other, found.name, found.out) == (Path("a"), "", "", Path("b"))


def test_what_only_tyro_understands_is_put_into_one_line(monkeypatch):
    monkeypatch.setattr(parsing, "_mistake", lambda *_: None)
    with pytest.raises(UsageError, match=r"^Unrecognized options: --siez, 3: see zorn words --help$"):
        read("--siez", "3")


def test_leading_flags_ignore_all_others():
    words = ["--other", "1", "--size=4", "--help", "word"]
    assert leading_flags(Group, words, prog="zorn") == Group(size=4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--other", "--size", "big"], "--size must be a whole number, got 'big': see zorn words --help"),
        (["--size", "--other"], "--size needs a value, a whole number"),
        (["--size"], "--size needs a value"),
    ],
)
def test_a_mistake_in_a_leading_flag_is_named(words, message):
    with pytest.raises(UsageError, match=message):
        leading_flags(Group, words, prog="zorn words")


def test_help_prints_and_stops(capsys):
    with pytest.raises(SystemExit, match="0"):
        read("--help")
    assert "Whether to hurry." in capsys.readouterr().out


def test_the_closest_word():
    assert closest("--hiden", ["--hidden", "--heads"]) == "--hidden"
    assert closest("--zzz", ["--hidden", "--heads"]) is None
