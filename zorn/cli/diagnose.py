"""`zorn diagnose`."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from zorn.cli.own_model import own_model
from zorn.cli.parsing import UsageError, leading_flags, parse
from zorn.cli.train import for_estimator, for_flags
from zorn.diagnostics import diagnose
from zorn.errors import ConfigError
from zorn.models import Batch
from zorn.tasks import Task
from zorn.training.build import build_estimator, build_model, build_task, set_threads
from zorn.training.checkpoint import latest_checkpoint, read_progress
from zorn.training.checks import flag
from zorn.training.config import (
    BudgetConfig,
    Config,
    EstimatorConfig,
    ModelConfig,
    RunConfig,
    TaskConfig,
)
from zorn.training.defaults import resolve
from zorn.training.groups import EstimatorName
from zorn.training.load import load_run
from zorn.training.presets import PRESETS, PresetName
from zorn.training.run_folder import RunFolder

FILES = ("diagnosis.json", "diagnosis.png")
"""What --out writes."""

PIPED_WIDTH = 160
"""Columns of the tables where no terminal sets them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnose:
    """Measure how good the estimates of the gradient are: signal, members, epsilon, step size.

    The model is a fresh one of the flags, a trained one (--run), or your own (--own); nothing is trained.
    With --run the task and the model are the run's, and flags of the estimator change the run's.
    """

    run: Path | None = None
    """A run's folder: its model at the newest checkpoint, on the batch that would come next."""
    own: str = ""
    """A function that returns an nn.Module for the task's batches: path/to/file.py:function or
    package.module:function. Empty: none."""
    preset: PresetName = "quickstart"
    """Settings to start from, by name; not with --run."""
    estimates: int = 32
    """Independent estimates that are compared, a power of two, at least 4."""
    exact: bool = True
    """Compare with the gradient by backpropagation too, where the objective has one. --no-exact saves its
    memory."""
    out: Path | None = None
    """Folder for diagnosis.json and diagnosis.png. None: write no files."""
    overwrite: bool = False
    """Replace the diagnosis that is in the folder already."""
    seed: int = 0
    """Determines weights, batches and perturbations, 0 to 2**64 - 1; with --run the perturbations only."""
    device: str = "cpu"
    """Where to compute, in torch's words: cpu, cuda, cuda:1; with --run the run's is used."""
    threads: int | None = None
    """CPU threads, at least 1. None: torch's choice, or the run's."""
    task: TaskConfig
    model: ModelConfig
    estimator: EstimatorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class _First:
    """The flags that decide what the others' defaults are."""

    run: Path | None = None
    preset: PresetName = "quickstart"
    estimator: EstimatorName | None = None


def command(words: Sequence[str]) -> int:
    """Diagnose from command-line words; returns the exit code."""
    first = leading_flags(_First, words)
    start = _start(first, words)
    default = Diagnose(
        run=first.run,
        preset=first.preset,
        task=start.task,
        model=start.model,
        estimator=start.estimator,
    )
    asked = parse(Diagnose, words, prog="zorn diagnose", default=default)
    _refuse_what_does_not_fit(asked, default)
    _refuse_to_replace(asked)
    config, reasons = resolve(_config(asked, start))
    task, model, step = _subject(asked, config)
    set_threads(config.run.threads)
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)  # a disk that refuses says so before any work
    device = next(model.parameters()).device
    batch, probe = (
        Batch(*(part.to(device) for part in task.training_batch(number))) for number in (step, step + 1)
    )
    with torch.inference_mode(mode=False):
        found = diagnose(
            model,
            batch,
            task.objective,
            build_estimator(config.estimator, config.run.seed),
            probe=probe,
            estimates=asked.estimates,
            exact=asked.exact and config.task.objective == "cross-entropy",
            exact_micro_batch=config.estimator.micro_batch,
            time_chunk=config.estimator.time_chunk,
        )
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    settings = tuple(field.name.replace("_", " ") for field in dataclasses.fields(EstimatorConfig))
    for reason in (reason for reason in reasons if reason.startswith(settings)):
        console.print(reason, highlight=False, markup=False)
    console.print(found.table(), highlight=False, markup=False)
    if asked.out is not None:
        numbers, picture = (asked.out / name for name in FILES)
        numbers.write_text(found.to_json(), encoding="utf-8")
        found.draw(picture)
        console.print(f"{asked.out}: {', '.join(FILES)}", highlight=False, markup=False)
    return 0


def _start(first: _First, words: Sequence[str]) -> Config:
    """What the flags change: the settings of the preset or the run, without what another estimator than
    theirs does not use."""
    start = PRESETS[first.preset] if first.run is None else RunFolder(first.run).read_config()
    return for_estimator(for_flags(start, words), first.estimator)


def _refuse_to_replace(asked: Diagnose) -> None:
    """Raise ConfigError, before any work, where an earlier diagnosis lies."""
    if asked.out is None or asked.overwrite:
        return
    there = [asked.out / name for name in FILES if (asked.out / name).exists()]
    if there:
        raise ConfigError(
            f"{there[0]} is there already: choose another --out, or replace it with --overwrite"
        )


def _refuse_what_does_not_fit(asked: Diagnose, default: Diagnose) -> None:
    """Flags of what --run or --own brings along."""
    groups = []
    if asked.own:
        groups.append((asked.model, default.model))
    if asked.run is not None:
        if asked.own:
            raise UsageError("--run and --own both bring a model: leave one of them out")
        groups += [(asked.task, default.task), (asked.model, default.model)]
    given = [
        flag(field.name)
        for group, before in groups
        for field in dataclasses.fields(group)
        if getattr(group, field.name) != getattr(before, field.name)
    ]
    if asked.run is not None:
        given += ["--preset"] * (asked.preset != "quickstart") + ["--device"] * (asked.device != "cpu")
    if given:
        brought = "--run brings the run's own" if asked.run is not None else "--own brings a model of its own"
        raise UsageError(f"{brought}: leave out {', '.join(given)}")


def _config(asked: Diagnose, start: Config) -> Config:
    """All settings, checked together."""
    run = RunConfig(seed=asked.seed, device=asked.device, threads=asked.threads)
    if asked.run is not None:
        run = dataclasses.replace(start.run, seed=asked.seed, threads=asked.threads or start.run.threads)
    return Config(
        task=asked.task, model=asked.model, estimator=asked.estimator, budget=BudgetConfig(steps=1), run=run
    )


def _subject(asked: Diagnose, config: Config) -> tuple[Task, nn.Module, int]:
    """Task, model, and the step whose batch is next."""
    if asked.run is not None:
        task, model = load_run(asked.run)
        return task, model, read_progress(latest_checkpoint(RunFolder(asked.run).checkpoints)).step
    task = build_task(config)
    if asked.own:
        return task, own_model(asked.own).to(config.run.device), 0
    return task, build_model(config, task.vocabulary), 0
