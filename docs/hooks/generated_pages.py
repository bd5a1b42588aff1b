"""The two pages of the site that are made from the code when it is built: the public names, and the flags."""

from __future__ import annotations

import dataclasses
import importlib
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import zorn
from zorn.cli.entry import COMMANDS
from zorn.cli.flags import HELP, REGISTRIES, SELECTORS
from zorn.config import COMPONENTS, GROUPS, PRESETS, component_settings
from zorn.settings import Setting, fields_of, flag

NAMES = """\
# Reference

Made from the docstrings. Everything below can be had as `zorn.NAME`; the pages of the rooms hold more, which
is imported from there (`from zorn.tasks import edit_distance`). Each name links to its room's page.

| name | what it is |
|---|---|
"""

FLAGS = """\
# Command line

`zorn train --help` shows the flags that most runs need and those of the chosen estimator; `--help-all` shows
all of them. A flag has the name of a setting: `hidden_size` is `--hidden-size`. A switch such as `--overfit`
is turned off by `--no-overfit`.

The commands that train, tune, plan, inspect or diagnose take the [settings](#settings) of the components
that are named. `zorn train` starts from the preset `quickstart`, with another preset from
[its own](#presets).

Exit codes: 0 done; 1 training stopped on non-finite losses, or `zorn inspect` found what no rule covers;
2 bad input, or a disk that refuses; 130 after Ctrl-C or SIGTERM.
"""

COMPONENTS_TEXT = """\
## Settings

A component is chosen by its name, and brings settings of its own. A name can also be `path/to/file.py:Name`:
a component of yours. A setting that the chosen component does not have is refused.
"""

PRESET = "quickstart"
"""The preset that commands start from."""


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
    """Every command with its flags, the settings of every component, and the presets."""
    parts = [FLAGS]
    for name in COMMANDS:
        module = importlib.import_module(f"zorn.cli.{name}")
        parts += _command(name, getattr(module, name.capitalize()))
    parts.append(COMPONENTS_TEXT)
    for kind, registry in REGISTRIES.items():
        parts.append(f"### {kind.capitalize()}: `{flag(SELECTORS[kind])}`\n\n{HELP[kind]}\n")
        parts += _components(kind, registry)
    for group, kind in GROUPS.items():
        parts.append(f"### {group.capitalize()}\n\n{_paragraphs(kind.__doc__ or '')}\n")
        parts.append(_table(fields_of(kind)))
    parts.append("## Presets\n\nEach preset is short for these words.\n")
    for name in PRESETS:
        if name != PRESET:
            words = ["zorn train", *preset_words(name)]
            parts.append(f"### {name}\n\n```sh\n" + " \\\n    ".join(words) + "\n```\n")
    return "\n".join(parts)


def preset_words(name: str) -> list[str]:
    """The flags that make a preset of the default one, a flag and its value in one word each."""
    mine, default = PRESETS[name], PRESETS[PRESET]
    words = [] if mine.objective == default.objective else [f"--objective {mine.objective}"]
    for kind in COMPONENTS:
        asked, start = getattr(mine, kind), getattr(default, kind)
        if asked.name != start.name:
            words.append(f"{flag(SELECTORS[kind])} {asked.name}")
        words += [_word(*each) for each in asked.given.items() if each not in start.given.items()]
    for group in GROUPS:
        asked, start = getattr(mine, group), getattr(default, group)
        for field in dataclasses.fields(asked):
            value = getattr(asked, field.name)
            if value != getattr(start, field.name) and not (group == "budget" and value is None):
                words.append(_word(field.name, value))
    return words


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(name) if value else flag(name).replace("--", "--no-", 1)
    return f"{flag(name)} {value}"


def _command(name: str, kind: Any) -> Iterator[str]:
    """A command with the flags of its own."""
    yield f"## zorn {name}\n\n{_paragraphs(kind.__doc__)}\n"
    hints = typing.get_type_hints(kind, include_extras=True)
    strings = fields_of(kind)
    own: dict[str, Setting] = {}
    for field in dataclasses.fields(kind):
        annotation = hints[field.name]
        if dataclasses.is_dataclass(annotation):
            continue
        positional = typing.get_origin(annotation) is typing.Annotated
        plain = typing.get_args(annotation)[0] if positional else annotation
        text = strings[field.name].help if field.name in strings else ""
        own[field.name.upper() if positional else field.name] = Setting(
            field.name, plain, field.default, text
        )
    if own:
        yield _table(own)


def _components(kind: str, registry: Any) -> Iterator[str]:
    """A table of the settings that all components of a kind have, and one for each with its others."""
    settings = {name: component_settings(kind, name) for name in registry}
    first, *others = settings.values()
    shared = {key: each for key, each in first.items() if all(other.get(key) == each for other in others)}
    if shared:
        yield f"All of them have these settings.\n\n{_table(shared)}"
    alike: dict[str, tuple[list[str], dict[str, Setting]]] = {}  # by all that is shown of the settings
    for name, of_one in settings.items():
        own = {key: each for key, each in of_one.items() if key not in shared}
        alike.setdefault(repr(own), ([], own))[0].append(name)
    for names, own in alike.values():
        if own:
            yield f"#### {', '.join(names)}\n\n{_table(own)}"


def _table(settings: Mapping[str, Setting]) -> str:
    rows = ["| flag | takes | default | meaning |", "|---|---|---|---|"]
    for name, setting in settings.items():
        assert setting.help, f"{name} has no help text"
        shown = "" if setting.required or setting.default == "" else f"`{setting.default}`"
        word = name if name.isupper() else flag(name)
        rows.append(f"| `{word}` | {_cell(_values(setting.type))} | {shown} | {_cell(setting.help)} |")
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


def _paragraphs(docstring: str) -> str:
    return "\n".join(line.strip() for line in docstring.splitlines()).strip()


def _cell(text: str) -> str:
    """Text for a table's cell; code between backticks stays as it is, but for a bar."""
    pieces = text.split("`")
    for i in range(0, len(pieces), 2):
        pieces[i] = re.sub(r"([*_\[])", r"\\\1", pieces[i])
    return "`".join(pieces).replace("|", "\\|")
