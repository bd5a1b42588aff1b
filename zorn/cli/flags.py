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
from typing import Annotated, Any, TypeAlias, TypeVar

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
from zorn.settings import FROM_THE_RUN, fields_of, flag
from zorn.tasks import OBJECTIVES

Own = TypeVar("Own", bound=Any)

Flags: TypeAlias = dict[str, tuple[Any, Any, str]]
"""Name of a setting -> type, default and help."""

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


@dataclass(frozen=True, kw_only=True)
class Start:
    """The flags of every command that starts from settings of a run and writes something."""

    preset: str = "quickstart"
    """Settings to start from, by name; zorn train uses the preset's folder unless --out is given."""
    config: Path | None = None
    """Settings to start from: a config.json of a run or of zorn tune, of which what was asked is taken."""
    overwrite: bool = False
    """Replace the run or the file that is there already."""


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
    of_command = [field.name for field in dataclasses.fields(own)]
    start = start_settings(first if "run" in of_command else dataclasses.replace(first, run=None))
    names = {kind: getattr(first, flag_) or getattr(start, kind).name for kind, flag_ in SELECTORS.items()}
    flags = {part: _flags_of(part, start, names) for part in parts}
    short = bool({"-h", "--help"} & set(words))
    shown = COMMON | _settings_shown(names["estimator"]) if short else None
    words = ["--help" if word == "--help-all" else word for word in words]
    given = flag_names(words)
    _refuse_others(given, flags, names, of_command)
    nested = [_nested(part, flags[part], names, shown) for part in parts]
    made = dataclasses.make_dataclass(own.__name__, nested, bases=(own,), frozen=True, kw_only=True)
    made.__doc__ = own.__doc__
    found = parse(made, words, prog=prog)
    changes = {k: v for part in parts for k, v in vars(getattr(found, part)).items() if k in given}
    return own(**{name: getattr(found, name) for name in of_command}), change(start, **changes)


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
    asked: set[str], flags: Mapping[str, Flags], names: Mapping[str, str], of_command: Sequence[str]
) -> None:
    """Raise UsageError for a flag that belongs to another component than those that are named."""
    known = [key for of_part in flags.values() for key in of_part]
    for kind in (part for part in flags if part in COMPONENTS):
        for name in sorted(asked - {*known, *of_command} - FROM_THE_RUN):
            owners = [each for each in REGISTRIES[kind] if name in component_settings(kind, each)]
            if owners:
                raise UsageError(
                    f"{flag(name)} is no setting of {kind} {names[kind]}, but of {', '.join(owners)}: leave "
                    f"it out, or take {flag(SELECTORS[kind])} {owners[0]}"
                )
    twice = next((key for key in known if known.count(key) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{flag(twice)} is a setting of two components of {', '.join(names.values())}: rename it in yours"
        )


def _settings_shown(estimator: str) -> Set[str]:
    """The settings of an estimator that the help shows; of "auto" those of the one that most runs get."""
    return component_settings("estimator", AUTOMATIC[0] if estimator == AUTO else estimator).keys()


def _flags_of(part: str, start: Config, names: Mapping[str, str]) -> Flags:
    """The flags of a component or a group. A setting that must be given is None until it is."""
    before = getattr(start, part)
    if part in GROUPS:
        settings = fields_of(GROUPS[part]).values()
        return {each.name: (each.type, getattr(before, each.name), each.help) for each in settings}
    known = f"One of {', '.join(REGISTRIES[part])}, or path/to/file.py:Name."
    flags: Flags = {SELECTORS[part]: (str, names[part], f"{HELP[part]} {known}")}
    if part == "task":
        known = f"the function that is minimised: {', '.join(OBJECTIVES)}, or path/to/file.py:function."
        flags["objective"] = (str, start.objective, known)
    for name, setting in possible_settings(part, names[part]).items():
        default = before.get(name, setting.default)
        missing = default is dataclasses.MISSING
        type_ = setting.type | None if missing else setting.type
        flags[name] = (type_, None if missing else default, setting.help)
    return flags


def _nested(
    part: str, flags: Flags, names: Mapping[str, str], shown: Set[str] | None
) -> tuple[str, type, Any]:
    """A field that is a dataclass of its own; the help has the flags in `shown`, or all."""
    fields = []
    for key, (type_, default, help_) in flags.items():
        word = tyro.conf.arg(help=help_.replace("`", ""))
        hidden = () if shown is None or key in shown or key in SELECTORS.values() else (tyro.conf.Suppress,)
        fields.append((key, Annotated[(type_, word, *hidden)], dataclasses.field(default=default)))
    made = dataclasses.make_dataclass(part, fields, frozen=True, kw_only=True)
    doc = GROUPS[part].__doc__ if part in GROUPS else f"Settings of the {part} {names[part]}."
    made.__doc__ = inspect.cleandoc(doc or "")
    return part, made, dataclasses.field(default_factory=made)
