"""`zorn diagnose`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from zorn.cli.flags import given_flags, read
from zorn.cli.output import console
from zorn.cli.own_model import own_model
from zorn.cli.parsing import UsageError
from zorn.config import BudgetConfig, Config, RunConfig, resolve
from zorn.diagnostics import diagnose
from zorn.errors import ConfigError
from zorn.models import Batch
from zorn.run.checkpoint import latest_checkpoint, read_progress
from zorn.run.folder import RunFolder
from zorn.tasks import Task, has_derivative
from zorn.training.build import build_estimator, build_model, build_task, set_threads
from zorn.training.load import load_run

FILES = ("diagnosis.json", "diagnosis.png")
"""The files that --out names."""

PIPED_WIDTH = 160
"""Columns of the tables where no terminal sets them."""


PARTS = ("task", "model", "estimator")
"""The settings that the command has flags for."""


@dataclass(frozen=True, kw_only=True)
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
    preset: str = "quickstart"
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


def command(words: Sequence[str]) -> int:
    """Diagnose from command-line words; returns the exit code."""
    asked, config = read(Diagnose, words, prog="zorn diagnose", parts=PARTS)
    _refuse_what_does_not_fit(asked, words)
    config, reasons = resolve(_with_run(asked, config))
    task, model, step = _subject(asked, config)
    set_threads(config.run.threads)
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)  # a disk that refuses says so before any work
    device = next(model.parameters()).device
    batch, probe = (
        Batch(*(part.to(device) for part in task.training_batch(number))) for number in (step, step + 1)
    )
    streamless = config.task.but(stream=None) if config.task.get("stream") else config.task
    with torch.inference_mode(mode=False):
        found = diagnose(
            model,
            batch,
            task.objective,
            build_estimator(dataclasses.replace(config, task=streamless)),
            probe=probe,
            estimates=asked.estimates,
            exact=asked.exact and has_derivative(config.objective),
            exact_micro_batch=config.estimator.get("micro_batch", 512),
            time_chunk=config.estimator.get("time_chunk"),
        )
    out = console(PIPED_WIDTH)
    settings = ("estimator", *(name.replace("_", " ") for name in config.estimator.given))
    for reason in (reason for reason in reasons if reason.startswith(settings)):
        out.print(reason)
    out.print(found.table())
    if asked.out is not None:
        numbers, picture = (asked.out / name for name in FILES)
        numbers.write_text(found.to_json(), encoding="utf-8")
        found.draw(picture)
        out.print(f"{asked.out}: {', '.join(FILES)}")
    return 0


def _refuse_what_does_not_fit(asked: Diagnose, words: Sequence[str]) -> None:
    """Raise, before any work, for flags of something that --run or --own brings along, and where an earlier
    diagnosis lies."""
    if asked.own and asked.run is not None:
        raise UsageError("--run and --own both bring a model: leave one of them out")
    given, brought = (given_flags(words, ["model"]) if asked.own else []), "--own brings a model of its own"
    if asked.run is not None:
        given, brought = given_flags(words, ["task", "model"]), "--run brings the run's own"
        given += ["--preset"] * (asked.preset != "quickstart") + ["--device"] * (asked.device != "cpu")
    if given:
        raise UsageError(f"{brought}: leave out {', '.join(given)}")
    there = [asked.out / name for name in FILES if (asked.out / name).exists()] if asked.out else []
    if there and not asked.overwrite:
        raise ConfigError(
            f"{there[0]} is there already: choose another --out, or replace it with --overwrite"
        )


def _with_run(asked: Diagnose, config: Config) -> Config:
    """All settings, with the flags that are the command's own."""
    run = RunConfig(seed=asked.seed, device=asked.device, threads=asked.threads)
    if asked.run is not None:
        run = dataclasses.replace(config.run, seed=asked.seed, threads=asked.threads or config.run.threads)
    return dataclasses.replace(config, budget=BudgetConfig(steps=1), run=run)


def _subject(asked: Diagnose, config: Config) -> tuple[Task, nn.Module, int]:
    """Task, model, and the step whose batch is next."""
    if asked.run is not None:
        task, model = load_run(asked.run)
        return task, model, read_progress(latest_checkpoint(RunFolder(asked.run).checkpoints)).step
    task = build_task(config)
    if asked.own:
        return task, own_model(asked.own).to(config.run.device), 0
    return task, build_model(config, task.vocabulary), 0
