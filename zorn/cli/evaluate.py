"""`zorn evaluate`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.table import Table
from torch import nn

from zorn.checks import check_number, check_whole_number
from zorn.cli.output import console
from zorn.cli.parsing import UsageError, parse
from zorn.config import Config
from zorn.estimators import smoothed_loss
from zorn.models import Batch, row_losses, streamed
from zorn.noise import RankOne
from zorn.registry import Registry
from zorn.run.folder import RunFolder
from zorn.tasks import Task
from zorn.tasks.held_out import objective_value
from zorn.training.build import build_estimator
from zorn.training.load import load_run

SMOOTHED_ROWS = 16
"""Sequences that the smoothed loss is taken over, at most: each member reads them all twice."""

SMOOTHED_TIME_CHUNK = 64
"""Time steps run at once for it; changes nothing but memory and speed."""

MEMBERS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Evaluate the newest checkpoint of a run. Training never looks at the test splits."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    split: str = "validation"
    """The split to evaluate on: train, validation, test; for tasks other than text also validation-longer and
    test-longer, which are longer than any sequence of training."""
    smoothed_epsilon: float | None = None
    """Also print the smoothed loss at this scale, above 0: the mean loss under random perturbations of the
    weights, on the first 16 sequences of the split. None: not."""
    members: int = MEMBERS
    """Perturbations that the smoothed loss is averaged over, at least 2, each with both signs."""


def command(words: Sequence[str]) -> int:
    """Evaluate from command-line words; returns the exit code."""
    asked = parse(Evaluate, words, prog="zorn evaluate")
    if asked.smoothed_epsilon is None and asked.members != MEMBERS:
        raise UsageError(
            "--members belongs to --smoothed-epsilon, which is missing: give it or leave both out"
        )
    if asked.smoothed_epsilon is not None:
        check_number("smoothed_epsilon", asked.smoothed_epsilon, above=True)
        check_whole_number("members", asked.members, minimum=2)
    task, model = load_run(asked.run)
    Registry("--split", dict.fromkeys(task.splits), outside=False)[asked.split]
    config = RunFolder(asked.run).read_config()
    rows: dict[str, Any] = dataclasses.asdict(task.evaluate(model, asked.split))
    if config.objective != "cross-entropy":
        window = config.task.get("length", 0)
        rows[config.objective] = objective_value(model, task, asked.split, window=window)
    if asked.smoothed_epsilon is not None:
        rows |= _smoothed(asked, config, task, model)
    table = Table(title=str(asked.run), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
    console().print(table)
    return 0


def _smoothed(asked: Evaluate, config: Config, task: Task, model: nn.Module) -> dict[str, Any]:
    """The smoothed loss of the run's objective on the first sequences of a split, beside the plain loss."""
    assert asked.smoothed_epsilon is not None
    device = next(model.parameters()).device
    data = task.evaluation_data(asked.split).batch
    batch = Batch(*(part[:SMOOTHED_ROWS].to(device) for part in data))
    body, judge = streamed(model, task.objective)
    with torch.inference_mode():
        plain = row_losses(body, batch, judge, time_chunk=SMOOTHED_TIME_CHUNK).mean()
    found = smoothed_loss(
        model,
        batch,
        task.objective,
        epsilon=asked.smoothed_epsilon,
        members=asked.members,
        perturbation=build_estimator(config).settings().get("perturbation", RankOne()),
        time_chunk=SMOOTHED_TIME_CHUNK,
    )
    shown = f"{len(batch.inputs)} of {len(data.inputs)} sequences"
    return {
        f"{config.objective} of {shown}": float(plain),
        f"smoothed, epsilon {asked.smoothed_epsilon:g}": f"{found.loss:.4f} ± {found.standard_error:.4f}",
        "members": found.members,
    }
