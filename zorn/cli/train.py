"""`zorn train`."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from zorn.cli.parsing import UsageError, leading_flags, parse
from zorn.cli.running import train_to_the_end
from zorn.distributed import Group, start
from zorn.training.checks import flag
from zorn.training.config import (
    BudgetConfig,
    Config,
    EstimatorConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
)
from zorn.training.defaults import resolve
from zorn.training.groups import EstimatorName
from zorn.training.presets import PRESETS, PresetName
from zorn.training.run_folder import RunFolder, read_config
from zorn.training.together import state_of
from zorn.training.trainer import Trainer
from zorn.training.usage import without_unused

PROG = "zorn train"

GROUPS = ("task", "model", "estimator", "optimizer", "budget", "run")
"""The groups of settings, by their names in `Config`."""

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train a model with forward passes only.

    Without flags this is the main job (the preset quickstart), in runs/ and the time of the start. Flags
    change a preset's settings, or those of a file; --steps and --seconds replace its budget. A setting that
    is None, and the estimator where it is auto, is chosen when the run starts, which says so.
    """

    preset: PresetName = "quickstart"
    """Settings to start from, by name; the preset's folder is used unless --out is given."""
    config: Path | None = None
    """Settings to start from: a config.json of a run or of zorn tune. None: those of the preset. What zorn
    chose in it stays, unless flags change the task, the model, the estimator or the optimizer: then it is
    chosen anew."""
    overwrite: bool = False
    """Replace the run that is in the folder already."""
    task: TaskConfig
    model: ModelConfig
    estimator: EstimatorConfig
    optimizer: OptimizerConfig
    budget: BudgetConfig
    run: RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """The flags that decide what the others' defaults are."""

    preset: PresetName | None = None
    config: Path | None = None
    estimator: EstimatorName | None = None
    steps: int | None = None
    seconds: float | None = None


def command(words: Sequence[str]) -> int:
    """Train from command-line words; returns the exit code."""
    config, overwrite = settings(words)
    named = any(word.partition("=")[0] in ("--out", "--preset") for word in words)
    with start(timeout=config.run.process_timeout) as group, group.together():
        if group.size > 1 and not named:
            raise UsageError("--out must be given where several processes train: they use one folder")
        if "TORCHELASTIC_RUN_ID" in os.environ and overwrite:
            raise UsageError(
                "--overwrite would be done again each time that torchrun starts the processes anew: remove "
                "the folder instead"
            )
        trainer = _trainer(config, group, overwrite=overwrite)
        return 0 if trainer is None else train_to_the_end(trainer)


def _trainer(config: Config, group: Group, *, overwrite: bool) -> Trainer | None:
    """A new run; or, under torchrun, which starts processes anew after a failure and when others join, the
    one in the folder where that has these settings: None where nothing of it is left to do."""
    state, out = "other", config.run.out
    if "TORCHELASTIC_RUN_ID" in os.environ and out is not None and group.is_main:
        state = state_of(RunFolder(out), resolve(config)[0])
    state = group.collect(state)[0]
    if state == "done":
        return None
    if state == "saved" and out is not None:
        budget = {"steps": config.budget.steps, "seconds": config.budget.seconds}
        return Trainer.resume(out, **budget, group=group)
    return Trainer(config, overwrite=overwrite or state == "begun", group=group)


def settings(words: Sequence[str]) -> tuple[Config, bool]:
    """The configuration that command-line words ask for, and whether to overwrite."""
    asked, config = asked_settings(Train, words, prog=PROG)
    return config, asked.overwrite


def asked_settings(
    kind: type[Kind],
    words: Sequence[str],
    *,
    prog: str,
    run: Callable[[RunConfig], RunConfig] = lambda run: run,
) -> tuple[Kind, Config]:
    """What command-line words ask for of a command that takes the flags of `zorn train`, and the settings.

    Args:
        kind: the command's flags, a dataclass with those of `Train` among them.
        run: makes its group `run`, where that is its own, from that of the settings to start from.
    """
    first = leading_flags(First, words)
    start = start_settings(first, words)
    default = {name: getattr(start, name) for name in GROUPS} | {"run": run(start.run)}
    default |= {"preset": first.preset or "quickstart", "config": first.config}
    asked = parse(kind, words, prog=prog, default=kind(**default))
    return asked, Config(**{name: getattr(asked, name) for name in GROUPS}, chosen=start.chosen)


def start_settings(first: First, words: Sequence[str]) -> Config:
    """What the flags change: the settings of the preset or the file, with the budget that is asked for and
    without what another estimator than theirs does not use."""
    if first.preset is not None and first.config is not None:
        raise UsageError("--preset and --config both name the settings to start from: leave out one of them")
    start = PRESETS[first.preset or "quickstart"] if first.config is None else read_config(first.config)
    start = for_flags(start, words)
    changes: dict[str, Any] = {}
    if first.steps is not None or first.seconds is not None:
        changes["budget"] = BudgetConfig(steps=first.steps, seconds=first.seconds)
    if first.preset is None:
        new = Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}"
        changes["run"] = dataclasses.replace(start.run, out=new)
    return for_estimator(dataclasses.replace(start, **changes), first.estimator)


def for_flags(start: Config, words: Sequence[str]) -> Config:
    """Settings with what zorn had chosen in them left open again, where flags change what it depends on."""
    groups = (TaskConfig, ModelConfig, EstimatorConfig, OptimizerConfig)
    names = {field.name for group in groups for field in dataclasses.fields(group)}
    names |= {"dtype", "device", "threads"}
    flags = {prefix + flag(name).lstrip("-") for name in names for prefix in ("--", "--no-")}
    changed = any(word.partition("=")[0].replace("_", "-") in flags for word in words)
    return start.reopened() if changed else start


def for_estimator(start: Config, name: EstimatorName | None) -> Config:
    """Settings without what another estimator than theirs, where one is named, does not use."""
    if name is None or name == start.estimator.estimator:
        return start
    unnamed = dataclasses.replace(start.estimator, estimator="auto")  # which any settings fit
    return dataclasses.replace(
        start,
        task=without_unused(start.task, name),
        estimator=without_unused(unnamed, name),
        optimizer=without_unused(start.optimizer, name),
    )
