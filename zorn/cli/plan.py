"""`zorn plan`."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import zorn.plan as planning
from zorn.cli.flags import read
from zorn.config import COMPONENTS, GROUPS, SELECTORS, Config
from zorn.settings import fields_of, flag

PROG = "zorn plan"

PIPED_WIDTH = 190
"""Columns of the tables where no terminal sets them."""

OWN = ("memory", "fit", "json", "calibration")
"""The flags that zorn train does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Predict the needs of a run: parameters, memory for each estimator, what fits, seconds a step.

    Takes the flags of zorn train, and does not train. A step is done on tensors that have sizes and no
    memory; a few small steps are timed, where the weights and a batch fit in a tenth of the memory.
    """

    memory: str | None = None
    """Memory that the run may take, as 8GiB or 500MB. None: what is free."""
    fit: str | None = None
    """Propose settings that fit in this much, as 8GiB, as a command to run. None: propose none."""
    json: bool = False
    """Print the figures as JSON."""
    calibration: bool = True
    """Time a few small steps, for some seconds."""
    preset: str = "quickstart"
    """Settings to start from, by name."""
    config: Path | None = None
    """Settings to start from: a config.json of a run or of zorn tune. None: those of the preset."""
    overwrite: bool = False
    """As of zorn train; a plan writes nothing."""


def command(words: Sequence[str]) -> int:
    """Plan from command-line words; returns the exit code."""
    asked, config = settings(words)
    memory = None if asked.memory is None else planning.parse_bytes(asked.memory, "--memory")
    fit = None if asked.fit is None else planning.parse_bytes(asked.fit, "--fit")
    found = planning.plan(config, memory=memory, fit=fit, calibration=asked.calibration)
    nothing_fits = found.proposal is not None and found.proposal.config is None
    if asked.json:
        print(found.to_json(), end="")
        return int(nothing_fits)
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    for table in (planning.parameter_table(found), planning.memory_table(found)):
        console.print(table, highlight=False, markup=False)
    for line in planning.lines_of(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.proposal is not None and found.proposal.config is not None:
        print(train_command(words, found.config, found.proposal.config))
    return int(nothing_fits)


def settings(words: Sequence[str]) -> tuple[Plan, Config]:
    """The command's own flags, and the settings of the run, from command-line words."""
    return read(Plan, words, prog=PROG)


def train_command(words: Sequence[str], config: Config, proposed: Config) -> str:
    """The command that trains with the proposed settings: the words, without what is the plan's own or no
    longer fits, and with what is different."""
    before, after = _flat(config), _flat(proposed)
    changed = {name: value for name, value in after.items() if before.get(name, _NOTHING) != value}
    dropped = {*OWN, *changed, *(name for name in before if name not in after)}
    flags = [word for name, value in changed.items() for word in _flag(name, value)]
    return shlex.join(["zorn", "train", *_without(words, dropped), *flags])


_NOTHING = object()


def _flat(config: Config) -> dict[str, Any]:
    """All settings by the names of their flags."""
    found: dict[str, Any] = {"objective": config.objective}
    for kind in COMPONENTS:
        choice = getattr(config, kind)
        found |= {SELECTORS[kind]: choice.name, **choice.given}
    for name, kind in GROUPS.items():
        found |= {field: getattr(getattr(config, name), field) for field in fields_of(kind)}
    return found


def _without(words: Sequence[str], names: set[str]) -> list[str]:
    """The words without these flags and their values."""
    dropped = {flag(name) for name in names} | {f"--no-{flag(name)[2:]}" for name in names}
    kept: list[str] = []
    waiting = list(words)
    while waiting:
        own = [waiting.pop(0)]
        while waiting and not waiting[0].startswith("--"):
            own.append(waiting.pop(0))
        if own[0].partition("=")[0].replace("_", "-") not in dropped:
            kept += own
    return kept


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name) if value else f"--no-{flag(name)[2:]}"]
    return [flag(name), str(value)]
