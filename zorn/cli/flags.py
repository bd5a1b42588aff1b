"""The settings of a run from command-line words: flags are made of the settings of the components that are
named.

A component is named first (`--estimator bridge`), so a flag of another one is unknown by construction.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from zorn.cli.parsing import UsageError, leading_flags, parse
from zorn.config import (
    AUTO,
    COMPONENTS,
    GROUPS,
    PRESETS,
    REGISTRIES,
    SELECTORS,
    BudgetConfig,
    Config,
    change,
    component_settings,
    possible_settings,
)
from zorn.estimators import AUTOMATIC
from zorn.registry import Registry
from zorn.run.folder import RunFolder, read_config
from zorn.settings import FROM_THE_RUN, Setting, fields_of, flag
from zorn.tasks import OBJECTIVES

Own = TypeVar("Own", bound=Any)

HELP = {
    "task": "the task.",
    "model": "the recurrent cell. dnc: a controller with a memory that it reads and writes.",
    "estimator": (
        "the estimator of the gradient; auto: zorn chooses, and says why. Forward passes only: activity "
        "(noise on the outputs of layers, credited with the losses that follow), cd-rge, "
        "fd-rge, spsa-1.5 (noise on "
        "the weights), pes, nres (noise on the weights along streams). bridge: exact within a few steps, "
        "forward passes across them. Exact: bptt, tbptt, e-prop (without the paths through recurrent "
        "matrices)."
    ),
    "optimizer": "the optimizer. fused-sgd: in place, least memory. auto: adam, or fused-sgd for bfloat16.",
}

COMMON = frozenset(
    "preset config overwrite task objective source batch length maximum_length cell hidden_size num_layers "  # noqa: SIM905
    "estimator optimizer learning_rate schedule steps seconds out seed device".split()
)
"""The settings that `--help` shows, beside those of the estimator; `--help-all` shows all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """The flags that decide which others there are, and what their defaults are."""

    preset: str | None = None
    config: Path | None = None
    run: Path | None = None
    task: str | None = None
    cell: str | None = None
    estimator: str | None = None
    optimizer: str | None = None
    steps: int | None = None
    seconds: float | None = None


def read(
    own: type[Own],
    words: Sequence[str],
    *,
    prog: str,
    parts: Sequence[str] = (*COMPONENTS, *GROUPS),
) -> tuple[Own, Config]:
    """The flags of a command's own, and the settings that are asked for.

    Args:
        own: a dataclass of the command's own flags; all have defaults.
        parts: of `Config`, that the command has flags for.

    Raises:
        UsageError, ConfigError: words that mean nothing, or settings that cannot be.
    """
    first = leading_flags(First, words, prog=prog)
    if not any(field.name == "run" for field in dataclasses.fields(own)):
        first = dataclasses.replace(first, run=None)
    start = start_settings(first)
    names = {kind: getattr(first, flag_) or getattr(start, kind).name for kind, flag_ in SELECTORS.items()}
    short = "--help" in words or "-h" in words
    words = ["--help" if word == "--help-all" else word for word in words]
    given = flag_names(words)
    settings = {kind: possible_settings(kind, names[kind]) for kind in COMPONENTS if kind in parts}
    _refuse_others(given, settings, names, own, parts)
    found = parse(_flags_type(own, settings, start, names, parts, short=short), words, prog=prog)
    changes: dict[str, Any] = {}
    for part in parts:
        nested = getattr(found, part)
        for field in dataclasses.fields(nested):
            if field.name in given or part in GROUPS:
                changes[field.name] = getattr(nested, field.name)
    made = {field.name: getattr(found, field.name) for field in dataclasses.fields(own)}
    return own(**made), change(start, **changes)


def start_settings(first: First) -> Config:
    """The settings that flags change: those of the preset, the file or the run, with the budget that is asked
    for."""
    named = [flag(each) for each in ("preset", "config", "run") if getattr(first, each) is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} both name the settings to start from: leave out one of them")
    if first.config is not None:
        start = read_config(first.config)[0]
    elif first.run is not None:
        start = RunFolder(first.run).read_asked()
    else:
        start = Registry("preset", PRESETS, outside=False)[first.preset or "quickstart"]
    changes: dict[str, Any] = {}
    if first.steps is not None or first.seconds is not None:
        changes["budget"] = BudgetConfig(steps=first.steps, seconds=first.seconds)
    if first.preset is None:
        changes["run"] = dataclasses.replace(start.run, out=None)
    return dataclasses.replace(start, **changes)


def flag_names(words: Sequence[str]) -> set[str]:
    """The settings that words give, by name.

    >>> sorted(flag_names(["--hidden-size=8", "--no-separate", "8"]))
    ['hidden_size', 'no_separate', 'separate']
    """
    flags = {word.partition("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")}
    return flags | {name.removeprefix("no_") for name in flags}


def given_flags(words: Sequence[str], parts: Sequence[str]) -> list[str]:
    """The flags among words that belong to some components.

    >>> given_flags(["--hidden-size=8", "--steps", "3"], ["task", "model"])
    ['--hidden-size']
    """
    names = {SELECTORS[kind] for kind in parts} | ({"objective"} if "task" in parts else set())
    for kind in parts:
        names |= {key for each in REGISTRIES[kind] for key in component_settings(kind, each)}
    return [flag(name) for name in sorted(flag_names(words) & names)]


def _refuse_others(
    asked: set[str],
    settings: Mapping[str, Mapping[str, Setting]],
    names: Mapping[str, str],
    own: type,
    parts: Sequence[str],
) -> None:
    """Raise UsageError for a flag that belongs to another component than those that are named."""
    known = {key for group in settings.values() for key in group} | {
        field.name for field in dataclasses.fields(own)
    }
    known |= {field.name for group in GROUPS if group in parts for field in dataclasses.fields(GROUPS[group])}
    known |= {SELECTORS[kind] for kind in settings} | {"objective"}
    for kind in settings:
        for name in sorted(asked - known - FROM_THE_RUN):
            owners = [each for each in REGISTRIES[kind] if name in component_settings(kind, each)]
            if owners:
                raise UsageError(
                    f"{flag(name)} is no setting of {kind} {names[kind]}, but of {', '.join(owners)}: leave "
                    f"it out, or take {flag(SELECTORS[kind])} {owners[0]}"
                )
    both = [key for key, count in _counts(settings, parts).items() if count > 1]
    if both:
        raise UsageError(
            f"{flag(both[0])} is a setting of two components of {', '.join(names.values())}: rename it "
            "in yours"
        )


def _counts(settings: Mapping[str, Mapping[str, Setting]], parts: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    groups = [
        {field.name for field in dataclasses.fields(GROUPS[group])} for group in GROUPS if group in parts
    ]
    for keys in (*settings.values(), *groups):
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
    return counts


def _flags_type(
    own: type,
    settings: Mapping[str, Mapping[str, Setting]],
    start: Config,
    names: Mapping[str, str],
    parts: Sequence[str],
    *,
    short: bool,
) -> type:
    """A dataclass of all flags: the command's own, and one nested dataclass for each component and group."""
    nested: list[Any] = []
    for kind, of_kind in settings.items():
        given = {key: getattr(start, kind).get(key, setting.default) for key, setting in of_kind.items()}
        known = f" One of {', '.join(REGISTRIES[kind])}, or path/to/file.py:Name."
        flags = {SELECTORS[kind]: (str, names[kind], HELP[kind] + known)}
        if kind == "task":
            known = f"the function that is minimised: {', '.join(OBJECTIVES)}, or path/to/file.py:function."
            flags["objective"] = (str, start.objective, known)
        flags |= _flags(of_kind, given)
        shown = COMMON | (_shown(names[kind]) if kind == "estimator" else set())
        nested.append(
            _nested(kind, f"Settings of the {kind} {names[kind]}.", flags, shown if short else None)
        )
    for group in (each for each in GROUPS if each in parts):
        given = {
            field.name: getattr(getattr(start, group), field.name)
            for field in dataclasses.fields(GROUPS[group])
        }
        flags = _flags(fields_of(GROUPS[group]), given)
        nested.append(
            _nested(group, inspect.cleandoc(GROUPS[group].__doc__ or ""), flags, COMMON if short else None)
        )
    made = dataclasses.make_dataclass(own.__name__, nested, bases=(own,), frozen=True, kw_only=True)
    made.__doc__ = own.__doc__
    return made


def _shown(estimator: str) -> Set[str]:
    """The settings of an estimator; for "auto" those of the one that most runs get."""
    return component_settings("estimator", AUTOMATIC[0] if estimator == AUTO else estimator).keys()


def _flags(settings: Mapping[str, Setting], given: Mapping[str, Any]) -> dict[str, tuple[Any, Any, str]]:
    """Name -> type, default and help. A setting that must be given is None until it is."""
    found: dict[str, tuple[Any, Any, str]] = {}
    for name, setting in settings.items():
        missing = given[name] is dataclasses.MISSING
        found[name] = (
            (setting.type | None, None, setting.help)
            if missing
            else (setting.type, given[name], setting.help)
        )
    return found


def _nested(
    name: str, doc: str, flags: Mapping[str, tuple[Any, Any, str]], shown: Set[str] | None
) -> tuple[str, type, Any]:
    """A field that is a dataclass of its own; the help has the flags in `shown`, or all."""
    fields = []
    for key, (type_, default, help_) in flags.items():
        word = tyro.conf.arg(help=help_.replace("`", ""))
        hidden = () if shown is None or key in shown or key in SELECTORS.values() else (tyro.conf.Suppress,)
        fields.append((key, Annotated[(type_, word, *hidden)], dataclasses.field(default=default)))
    made = dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)
    made.__doc__ = doc
    return name, made, dataclasses.field(default_factory=made)
