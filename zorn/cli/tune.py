"""`zorn tune`."""

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zorn.cli.process import STOPPED
from zorn.cli.train import asked_settings
from zorn.errors import ConfigError
from zorn.training.config import (
    BudgetConfig,
    Config,
    EstimatorConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
    config_to_json,
)
from zorn.training.interruption import Interruption
from zorn.training.presets import PresetName
from zorn.training.tune import Tuned, describe, tune


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRunConfig(RunConfig):
    """Where the settings are written, and how the run computes, evaluates and saves."""

    out: Path | None = None
    """File for the settings that were found. None: tuned.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune:
    """Find learning rate, epsilon, size of a step and discount for a training budget in seconds.

    Takes the flags of zorn train, as the settings to begin with. Writes what it finds to a file, and prints
    the command that trains with it; so too when it is stopped with Ctrl-C. The test split is not used.
    """

    tune_seconds: float = 60.0
    """Seconds to search for, above 0."""
    preset: PresetName = "quickstart"
    """Settings to start from, by name."""
    config: Path | None = None
    """Settings to start from: a config.json of a run or of zorn tune. None: those of the preset. What zorn
    chose in it stays, unless flags change the task, the model, the estimator or the optimizer: then it is
    chosen anew."""
    overwrite: bool = False
    """Replace the file that is there already."""
    task: TaskConfig
    model: ModelConfig
    estimator: EstimatorConfig
    optimizer: OptimizerConfig
    budget: BudgetConfig
    run: TuneRunConfig


def command(words: Sequence[str]) -> int:
    """Tune from command-line words; returns the exit code."""
    asked, config = settings(words)
    file = asked.run.out or Path("tuned.json")
    _check_writable(file, overwrite=asked.overwrite)
    with Interruption() as interruption:
        found = tune(
            config,
            seconds=asked.tune_seconds,
            report=_print,
            goes_on=lambda: not interruption.requested,
        )
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_text(config_to_json(found.config), encoding="utf-8")
        temporary.replace(file)
    _summarise(found, file)
    return 0 if found.stopped is None else STOPPED


def settings(words: Sequence[str]) -> tuple[Tune, Config]:
    """What command-line words ask for, and the settings to begin with."""

    def own(run: RunConfig) -> RunConfig:
        return TuneRunConfig(**_without_out(run))

    asked, config = asked_settings(Tune, words, prog="zorn tune", run=own)
    return asked, dataclasses.replace(config, run=RunConfig(**_without_out(asked.run)))


def _without_out(run: RunConfig) -> dict[str, Any]:
    """The fields of a run but for its place."""
    names = (field.name for field in dataclasses.fields(RunConfig) if field.name != "out")
    return {name: getattr(run, name) for name in names}


def _check_writable(file: Path, *, overwrite: bool) -> None:
    """Raise ConfigError, before any work, where the settings could not be written."""
    if file.is_dir() or not file.parent.is_dir():
        wrong = "is a folder" if file.is_dir() else f"is in no folder: there is no {file.parent}"
        raise ConfigError(
            f"--out must be a file to write to, got {file}, which {wrong}: choose another --out"
        )
    if file.exists() and not overwrite:
        raise ConfigError(f"{file} is there already: choose another --out, or replace it with --overwrite")


def _summarise(found: Tuned, file: Path) -> None:
    if found.stopped is not None:
        _print(f"stopped {found.stopped}")
    _print(f"found in {found.seconds:.1f} s: {describe(found.config, found.start)}")
    _print(f"{file} holds the settings; train with them:")
    _print(f"zorn train --config {shlex.quote(str(file))}")


def _print(line: str) -> None:
    print(line, flush=True)
