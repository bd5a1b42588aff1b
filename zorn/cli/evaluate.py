"""`zorn evaluate`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from zorn.cli.parsing import parse
from zorn.training.load import load_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Evaluate the newest checkpoint of a run. Training never looks at the test split."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    split: Literal["train", "validation", "test"] = "validation"
    """What to evaluate on."""


def command(words: Sequence[str]) -> int:
    """Evaluate from command-line words; returns the exit code."""
    asked = parse(Evaluate, words, prog="zorn evaluate")
    task, model = load_run(asked.run)
    evaluation = task.evaluate(model, asked.split)
    table = Table(title=str(asked.run), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in dataclasses.asdict(evaluation).items():
        if value is not None:
            table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)
    return 0
