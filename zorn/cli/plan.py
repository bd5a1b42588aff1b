"""`zorn plan`."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zorn.plan as planning
from zorn.cli.flags import Start, read
from zorn.cli.output import console
from zorn.config import COMPONENTS, GROUPS, SELECTORS, Config
from zorn.settings import fields_of, flag

PIPED_WIDTH = 190
"""Columns of the tables where no terminal sets them."""

OWN = ("memory", "fit", "json", "calibration")
"""The flags that zorn train does not have."""


@dataclass(frozen=True, kw_only=True)
class Plan(Start):
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


def command(words: Sequence[str]) -> int:
    """Plan from command-line words; returns the exit code."""
    asked, config = read(Plan, words, prog="zorn plan")
    memory = None if asked.memory is None else planning.parse_bytes(asked.memory, "--memory")
    fit = None if asked.fit is None else planning.parse_bytes(asked.fit, "--fit")
    found = planning.plan(config, memory=memory, fit=fit, calibration=asked.calibration)
    nothing_fits = found.proposal is not None and found.proposal.config is None
    if asked.json:
        print(found.to_json(), end="")
        return int(nothing_fits)
    out = console(PIPED_WIDTH)
    for part in (planning.parameter_table(found), planning.memory_table(found), *planning.lines_of(found)):
        out.print(part)
    if found.proposal is not None and found.proposal.config is not None:
        print(train_command(words, found.config, found.proposal.config))
    return int(nothing_fits)


def train_command(words: Sequence[str], config: Config, proposed: Config) -> str:
    """The command that trains with the proposed settings: the words, without what is the plan's own or no
    longer fits, and with what is different."""
    before, after = _flat(config), _flat(proposed)
    changed = {name: value for name, value in after.items() if (name, value) not in before.items()}
    dropped = {*OWN, *changed, *(name for name in before if name not in after)}
    flags = [word for name, value in changed.items() for word in _flag(name, value)]
    return shlex.join(["zorn", "train", *_without(words, dropped), *flags])


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
