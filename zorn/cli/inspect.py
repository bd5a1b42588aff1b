"""`zorn inspect`."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from zorn.cli.own_model import OWN, own_model
from zorn.cli.parsing import UsageError, leading_flags, parse
from zorn.errors import UncoveredParameterError
from zorn.perturbations import Dense, ParameterReport, Perturbation, RankOne, inspect_model
from zorn.training.build import build_model, build_task
from zorn.training.checks import flag
from zorn.training.config import BudgetConfig, Config, ModelConfig, TaskConfig
from zorn.training.presets import PRESETS, PresetName
from zorn.training.run_folder import RunFolder

PIPED_WIDTH = 160
"""Columns of the table where no terminal sets them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect:
    """List what training would perturb in a model, and how, what is frozen, and what no rule covers.

    The exit code is 1 where a zero-order estimator would refuse the model; what helps is printed then.
    """

    target: tyro.conf.Positional[str] = ""
    """A run's folder, or a function that returns an nn.Module: path/to/file.py:function or
    package.module:function. Left out: the model that the flags describe."""
    structure: Literal["rank-one", "dense"] | None = None
    """The structure of the perturbations. None: the run's or the preset's, or rank-one."""
    preset: PresetName = "quickstart"
    """Settings to start from, by name."""
    task: TaskConfig
    model: ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class _First:
    """The flag that decides what the others' defaults are."""

    preset: PresetName = "quickstart"


def command(words: Sequence[str]) -> int:
    """Inspect from command-line words; returns the exit code."""
    preset = leading_flags(_First, words).preset
    default = Inspect(preset=preset, task=PRESETS[preset].task, model=PRESETS[preset].model)
    asked = parse(Inspect, words, prog="zorn inspect", default=default)
    model, structure = _model(asked, default)
    structure = asked.structure or structure
    perturbation = Dense() if structure == "dense" else RankOne()
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    _print(console, inspect_model(model, perturbation), f"{asked.target or preset}, {structure}")
    refusal = _refusal(model, perturbation)
    if refusal is None:
        return 0
    named = refusal.replace(OWN, Path(asked.target.partition(":")[0]).stem)  # as the user imports it
    console.print(named, markup=False, highlight=False, soft_wrap=True)
    return 1


def _model(asked: Inspect, default: Inspect) -> tuple[nn.Module, str]:
    """The model that is asked for, and the structure that it is trained with where nothing else is said."""
    if not asked.target:
        config = Config(task=asked.task, model=asked.model, budget=BudgetConfig(steps=1))
        structure = PRESETS[asked.preset].estimator.structure
        return build_model(config, build_task(config).vocabulary), structure or "rank-one"
    given = _given(asked, default)
    if given:
        raise UsageError(f"{asked.target} brings a model of its own: leave out {', '.join(given)}")
    if not Path(asked.target).is_dir() and ":" in asked.target:
        return own_model(asked.target), "rank-one"
    folder = RunFolder(Path(asked.target))
    config = folder.read_config()
    structure = config.estimator.structure or "rank-one"
    return build_model(config, build_task(config, folder).vocabulary), structure


def _given(asked: Inspect, default: Inspect) -> list[str]:
    """The flags of the task and the model that were given."""
    found = [] if asked.preset == "quickstart" else ["--preset"]
    for group, before in ((asked.task, default.task), (asked.model, default.model)):
        names = [field.name for field in dataclasses.fields(group)]
        found += [flag(name) for name in names if getattr(group, name) != getattr(before, name)]
    return found


def _print(console: Console, reports: Sequence[ParameterReport], title: str) -> None:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("parameter", overflow="fold")
    table.add_column("shape")
    table.add_column("numbers", justify="right")
    table.add_column("status")
    table.add_column("how", overflow="fold")
    for report in reports:
        shape = " × ".join(map(str, report.shape)) or "scalar"
        how = report.how if report.tied_to is None else f"tied to {report.tied_to}"
        count = f"{report.count:,}" if report.tied_to is None else ""
        style = "bold red" if report.status == "uncovered" else None
        table.add_row(report.name, shape, count, report.status, how, style=style)
    console.print(table)
    untied = [report for report in reports if report.tied_to is None]
    sums = {
        status: sum(report.count for report in untied if report.status == status)
        for status in ("perturbed", "frozen", "uncovered")
    }
    noise = sum(report.noise_numbers for report in untied)
    parts = [f"{sum(sums.values()):,} numbers", *(f"{count:,} {status}" for status, count in sums.items())]
    console.print(f"{', '.join(parts)}; {noise:,} random numbers a member", highlight=False)


def _refusal(model: nn.Module, perturbation: Perturbation) -> str | None:
    """What an estimator would say to the model; None where it would train it."""
    try:
        perturbation.bind(model)
    except UncoveredParameterError as error:
        return str(error)
    return None
