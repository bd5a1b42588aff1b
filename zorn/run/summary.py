"""The end of a run in numbers: `summary.json`, and the table that is printed."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from zorn.run.files import write_whole
from zorn.run.loggers import Record
from zorn.run.progress_display import clock, shorten
from zorn.tasks import Task, TextTask, bigram_bits_per_byte, unigram_bits_per_byte

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows has none
    resource = None

Summary = dict[str, Any]


def yardsticks_of(task: Task) -> dict[str, float]:
    """Bits per byte of the byte models that only count, on the validation split; none but for text."""
    if not isinstance(task, TextTask):
        return {}
    return {
        "unigram": unigram_bits_per_byte(task, "validation"),
        "bigram": bigram_bits_per_byte(task, "validation"),
    }


def make_summary(
    evaluations: Sequence[Record],
    yardsticks: Mapping[str, float],
    *,
    objective: str,
    parameters: int,
    dropped: int,
) -> Summary:
    """The summary of a run from its last evaluations, one record for each split, the main one first.

    Bits are per byte of text, losses in nats per token, `forward_passes` in rows, memory in bytes. What a
    task does not have (bits per byte and yardsticks but for text, sequence accuracy for text) is left out, as
    is the memory where the system does not count it.
    The main split's name stands before its loss, bits and objective: `validation_loss`, or where one batch is
    overfitted `overfit_batch_loss`. The figures of a further split carry its name: `validation_longer_loss`
    is of `validation-longer`. The value of the objective is there where it is not cross-entropy.
    """
    main, *others = evaluations
    first = _name(main)
    figures = {
        f"{first}_objective": main.get("objective"),
        f"{first}_bits_per_byte": main["bits_per_byte"],
        "unigram_bits_per_byte": yardsticks.get("unigram"),
        "bigram_bits_per_byte": yardsticks.get("bigram"),
        f"{first}_loss": main["loss"],
        "token_accuracy": main["token_accuracy"],
        "sequence_accuracy": main["sequence_accuracy"],
    }
    for other in others:
        names = ("objective", "loss", "token_accuracy", "sequence_accuracy")
        figures |= {f"{_name(other)}_{name}": other.get(name) for name in names}
    figures |= {
        "objective": objective,
        "forward_passes": main["forward_passes"],
        "dropped_members": dropped,
        "seconds": main["seconds"],
        "steps": main["step"],
        "parameters": parameters,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _name(record: Record) -> str:
    """The name of an evaluation's split, as a part of a field's."""
    return record["split"].replace("-", "_").replace(" ", "_")


def peak_memory_bytes() -> int | None:
    """The most memory that this process has had in use, in bytes, as the system counts it; None on Windows.

    >>> peak = peak_memory_bytes()
    >>> peak is None or peak > 1_000_000
    True
    """
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def write_summary(path: Path, summary: Summary) -> None:
    """Write `summary.json` in one move."""
    write_whole(path, json.dumps(summary, indent=2) + "\n")


def print_summary(console: Console, summary: Summary, title: str) -> None:
    """Print the summary as a table under a title."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in summary.items():
        table.add_row(name.replace("_", " ").removesuffix(" bytes"), _shown(name, value))
    console.print(title, highlight=False)
    console.print(table)


def _shown(name: str, value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    if name == "seconds":
        return clock(value)
    if name == "peak_memory_bytes":
        return f"{value / 2**20:.0f} MiB"
    if name == "forward_passes":
        return shorten(value)
    if name.endswith("accuracy"):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
