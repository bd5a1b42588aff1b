"""`zorn train`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from zorn.cli.parsing import leading_flags, parse
from zorn.cli.running import train_to_the_end
from zorn.training.config import (
    BudgetConfig,
    Config,
    EstimatorConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
)
from zorn.training.presets import PRESETS, PresetName
from zorn.training.trainer import Trainer

PROG = "zorn train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train a model with forward passes only.

    Without flags this is the main job (the preset quickstart), in runs/ and the time of the start. Flags
    change a preset's settings; --steps and --seconds replace its budget.
    """

    preset: PresetName = "quickstart"
    """Settings to start from, by name; the preset's folder is used unless --out is given."""
    overwrite: bool = False
    """Replace the run that is in the folder already."""
    task: TaskConfig
    model: ModelConfig
    estimator: EstimatorConfig
    optimizer: OptimizerConfig
    budget: BudgetConfig
    run: RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class _First:
    """The flags that decide what the others' defaults are."""

    preset: PresetName | None = None
    steps: int | None = None
    seconds: float | None = None


def command(words: Sequence[str]) -> int:
    """Train from command-line words; returns the exit code."""
    config, overwrite = settings(words)
    return train_to_the_end(Trainer(config, overwrite=overwrite))


def settings(words: Sequence[str]) -> tuple[Config, bool]:
    """The configuration that command-line words ask for, and whether to overwrite."""
    first = leading_flags(_First, words)
    name = first.preset or "quickstart"
    preset = PRESETS[name]
    budget = preset.budget
    if first.steps is not None or first.seconds is not None:
        budget = BudgetConfig(steps=first.steps, seconds=first.seconds)
    run = preset.run
    if first.preset is None:
        run = dataclasses.replace(run, out=Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}")
    default = Train(
        preset=name,
        task=preset.task,
        model=preset.model,
        estimator=preset.estimator,
        optimizer=preset.optimizer,
        budget=budget,
        run=run,
    )
    asked = parse(Train, words, prog=PROG, default=default)
    config = Config(
        task=asked.task,
        model=asked.model,
        estimator=asked.estimator,
        optimizer=asked.optimizer,
        budget=asked.budget,
        run=asked.run,
    )
    return config, asked.overwrite
