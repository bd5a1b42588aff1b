"""`zorn inspect`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from zorn.cli.flags import given_flags, read
from zorn.cli.output import console
from zorn.cli.own_model import own_model
from zorn.cli.parsing import UsageError
from zorn.config import Config
from zorn.errors import ZornError
from zorn.noise import Dense, ParameterReport, RankOne, inspect_model
from zorn.run.folder import RunFolder
from zorn.training.build import build_model, build_task

PIPED_WIDTH = 160
"""Columns of the table where no terminal sets them."""


PARTS = ("task", "model")
"""The settings that the command has flags for."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """List the parameters of a model: perturbed, and how, frozen, or refused.

    The exit code is 1 where a zero-order estimator would refuse the model; the reason is printed then.
    """

    target: tyro.conf.Positional[str] = ""
    """A run's folder, or a function that returns an nn.Module: path/to/file.py:function or
    package.module:function. Left out: the model that the flags describe."""
    perturbation: Literal["rank-one", "dense"] | None = None
    """The structure of the perturbations. None: the run's or the preset's, or rank-one."""
    preset: str = "quickstart"
    """Settings to start from, by name."""


def command(words: Sequence[str]) -> int:
    """Inspect from command-line words; returns the exit code."""
    asked, config = read(Inspect, words, prog="zorn inspect", parts=PARTS)
    model, structure = _model(asked, config, words)
    structure = asked.perturbation or structure
    perturbation = Dense() if structure == "dense" else RankOne()
    out = console(PIPED_WIDTH)
    _print(out, inspect_model(model, perturbation), f"{asked.target or asked.preset}, {structure}")
    try:
        perturbation.bind(model)
    except ZornError as error:  # an estimator would refuse the model
        file = Path(asked.target.partition(":")[0])
        out.print(str(error).replace(type(model).__module__, file.stem))  # as the user imports it
        return 1
    return 0


def _model(asked: Inspect, config: Config, words: Sequence[str]) -> tuple[nn.Module, str]:
    """The model that is asked for, and the structure that it is trained with where nothing else is said."""
    if asked.target:
        given = ["--preset"] * (asked.preset != "quickstart") + given_flags(words, PARTS)
        if given:
            raise UsageError(f"{asked.target} brings a model of its own: leave out {', '.join(given)}")
        if not Path(asked.target).is_dir() and ":" in asked.target:
            return own_model(asked.target), "rank-one"
    folder = RunFolder(Path(asked.target)) if asked.target else None
    config = config if folder is None else folder.read_config()
    model = build_model(config, build_task(config, folder).vocabulary)
    return model, config.estimator.get("perturbation", "rank-one")


def _print(out: Console, reports: Sequence[ParameterReport], title: str) -> None:
    table = Table("parameter", "shape", "numbers", "status", "how", title=title, box=box.SIMPLE_HEAD)
    table.title_justify, table.columns[2].justify = "left", "right"
    table.columns[0].overflow = table.columns[4].overflow = "fold"
    for report in reports:
        shape = " × ".join(map(str, report.shape)) or "scalar"
        how = report.how if report.tied_to is None else f"tied to {report.tied_to}"
        count = f"{report.count:,}" if report.tied_to is None else ""
        style = "bold red" if report.status == "refused" else None
        table.add_row(report.name, shape, count, report.status, how, style=style)
    out.print(table)
    untied = [report for report in reports if report.tied_to is None]
    parts = [f"{sum(report.count for report in untied):,} numbers"]
    for status in ("perturbed", "frozen", "refused"):
        parts.append(f"{sum(report.count for report in untied if report.status == status):,} {status}")
    noise = sum(report.noise_numbers for report in untied)
    out.print(f"{', '.join(parts)}; {noise:,} random numbers a member")
