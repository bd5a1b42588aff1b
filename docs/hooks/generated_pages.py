"""The two pages of the site that are made from the code when it is built: the public names, and the flags."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import zorn
from zorn.cli.entry import COMMANDS
from zorn.training.config import Config
from zorn.training.presets import PRESETS, PresetName

NAMES = """\
# Reference

Made from the docstrings. Everything below can be had as `zorn.NAME`; the pages of the rooms hold more, which
is imported from there (`from zorn.tasks import edit_distance`). Each name links to its room's page.

| name | what it is |
|---|---|
"""

FLAGS = """\
# Command line

`zorn COMMAND --help` shows the same. Flags are the same words as the fields of
[the settings](training.md), `hidden_size` is `--hidden-size`; a switch such as `--overfit` is turned off by
`--no-overfit`.

The defaults of `zorn train` and `zorn inspect` are those of the preset `quickstart`; with another preset they
are [its own](#presets).

Exit codes: 0 done; 1 training stopped on non-finite losses, or `zorn inspect` found what no rule covers;
2 bad input, or a disk that refuses; 130 after Ctrl-C or SIGTERM.
"""

PRESET: PresetName = "quickstart"
"""Where `zorn train` and `zorn inspect` take their defaults from."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by MkDocs once the files of `docs/` are known: adds the generated pages."""
    files.append(File.generated(config, "reference/index.md", content=names_page()))
    files.append(File.generated(config, "reference/command-line.md", content=command_line_page()))
    return files


def names_page() -> str:
    """A table of all public names, each with the first sentence of its docstring."""
    rows = []
    for name in sorted(zorn.__all__, key=str.lower):
        thing = getattr(zorn, name)
        room = ".".join(thing.__module__.split(".")[:2])
        if f"{room}.{name}" == thing.__module__:
            room = thing.__module__  # a function in a file of its own name, which hides it from mkdocstrings
        sentence = " ".join((thing.__doc__ or "").split("\n\n")[0].split())
        rows.append(f"| [`{name}`][{room}.{name}] | {_cell(sentence)} |")
    return NAMES + "\n".join(rows) + "\n"


def command_line_page() -> str:
    """Every command with its flags: what they take, their default, and their help text."""
    parts = [FLAGS]
    for name in COMMANDS:
        module = importlib.import_module(f"zorn.cli.{name}")
        parts += _command(name, getattr(module, name.capitalize()))
    parts += ["## Presets\n\nWhat each preset is short for.\n"]
    for name in PRESETS:
        if name != PRESET:
            words = ["zorn train", *preset_words(name)]
            parts.append(f"### {name}\n\n```sh\n" + " \\\n    ".join(words) + "\n```\n")
    return "\n".join(parts)


def preset_words(name: str) -> list[str]:
    """The flags that make a preset of the default one, a flag and its value in one word each."""
    presets = cast("Mapping[str, Config]", PRESETS)
    words = []
    for group in dataclasses.fields(Config):
        mine, default = (getattr(presets[preset], group.name) for preset in (name, PRESET))
        for field in dataclasses.fields(mine):
            value = getattr(mine, field.name)
            if value == getattr(default, field.name) or (group.name == "budget" and value is None):
                continue
            flag = _flag(field.name)
            words.append(
                flag.replace("--", "--no-" if value is False else "--")
                if isinstance(value, bool)
                else f"{flag} {value}"
            )
    return words


def _command(name: str, kind: Any) -> Iterator[str]:
    yield f"## zorn {name}\n\n{_paragraphs(kind.__doc__)}\n"
    hints = typing.get_type_hints(kind, include_extras=True)
    plain = [field for field in dataclasses.fields(kind) if not dataclasses.is_dataclass(hints[field.name])]
    yield _table(kind, {field.name: field.default for field in plain}, hints)
    for field in dataclasses.fields(kind):
        group = hints[field.name]
        if dataclasses.is_dataclass(group):
            yield f"### zorn {name}: {field.name}\n\n{_paragraphs(group.__doc__ or '')}\n"
            defaults = dataclasses.asdict(getattr(PRESETS[PRESET], field.name))
            if "out" in defaults:
                defaults["out"] = None  # the preset's own folder is for those who name the preset
            yield _table(group, defaults, typing.get_type_hints(group))


def _table(kind: Any, defaults: Mapping[str, Any], hints: Mapping[str, Any]) -> str:
    help_texts = griffe.load(kind.__module__, search_paths=[str(Path(zorn.__file__).parents[1])])[
        kind.__name__
    ]
    rows = ["| flag | takes | default | meaning |", "|---|---|---|---|"]
    for name, default in defaults.items():
        positional = typing.get_origin(hints[name]) is typing.Annotated
        flag = name.upper() if positional else _flag(name)
        docstring = help_texts[name].docstring
        assert docstring is not None, f"{kind.__name__}.{name} has no help text"
        shown = "" if default is dataclasses.MISSING or default == "" else f"`{default}`"
        takes = _cell(_values(hints[name]))
        rows.append(f"| `{flag}` | {takes} | {shown} | {_cell(' '.join(docstring.value.split()))} |")
    return "\n".join(rows) + "\n"


def _values(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        return _values(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    if typing.get_args(annotation):
        return " or ".join(_values(inner) for inner in typing.get_args(annotation))
    words = {bool: "switch", int: "whole number", float: "number", str: "text", Path: "path"}
    return words.get(annotation, "`None`")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _paragraphs(docstring: str) -> str:
    return "\n".join(line.strip() for line in docstring.splitlines()).strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("[", "\\[")
