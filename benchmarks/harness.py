"""What every benchmark shares: arguments, timing side by side, and a report that says where it was measured.

A benchmark is a script `python benchmarks/NAME.py [--quick] [--json PATH] [--picture PATH]` that measures,
collects `Record`s and hands them to `report`: a table, a picture, and the records as JSON.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

UNKNOWN = "unknown"
RETURN_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "16384",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_ARENA_MAX": "1",
}
"""For glibc's malloc: what is freed goes back at once, so a peak is what lived together, not what the heap
kept."""
FILE_WIDTH = 190  # of a table that goes to a file or pipe


@dataclass(frozen=True)
class Record:
    """One measured number: what a table shows in a row and a program finds in the JSON file.

    Attributes:
        name: what was measured, as the issue or the log calls it.
        value: the number, a median where it was measured more than once; NaN (null in the
            JSON file) for what was not reached.
        unit: of the value, or "ratio".
        settings: everything it was measured at (sizes, dtype, threads, repeats, quartiles).
    """

    name: str
    value: float
    unit: str
    settings: dict[str, object] = field(default_factory=dict)


class Ratio(NamedTuple):
    """The median of the per-round ratios of two series, and their lower and upper quartile."""

    median: float
    lower: float
    upper: float


def argument_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of the flags `quick`, `json` and `picture` that all benchmarks take.

    Args:
        name: of the benchmark, hence of its picture: benchmarks/out/NAME.png.
        description: shown by --help; usually the script's docstring.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller: about a minute on two cores")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the records there, as a list")
    picture = Path(__file__).parent / "out" / f"{name}.png"
    parser.add_argument(
        "--picture", type=Path, metavar="PATH", default=picture, help="where the picture goes"
    )
    return parser


def parse_arguments(
    name: str, description: str | None, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """The flags that all benchmarks take, from the command line unless given: see `argument_parser`."""
    return argument_parser(name, description).parse_args(arguments)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_counts() -> list[int]:
    """1, and 2 where there are two cores."""
    return [1, 2][: _cores()]


def interleaved_seconds(
    functions: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, the functions taking turns, so that a slow spell of the machine meets them all.

    Args:
        functions: what to time, by name. Each round calls each once, another one first every time.
        repeats: rounds that count.
        warm_up: rounds before, that do not.

    Returns:
        For each name its seconds, round by round.

    Example:
        >>> seconds = interleaved_seconds({"sum": lambda: sum(range(10)), "list": lambda: [1]}, repeats=3)
        >>> {name: len(rounds) for name, rounds in seconds.items()}
        {'sum': 3, 'list': 3}
    """
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            _synchronize()
            start = time.perf_counter()
            functions[name]()
            _synchronize()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio_with_spread(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """The median and quartiles of numerator / denominator, round by round.

    Example:
        >>> median_ratio_with_spread([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
        Ratio(median=2.0, lower=1.5, upper=2.5)
    """
    ratios = [above / below for above, below in zip(numerator, denominator, strict=True)]
    lower, median, upper = (float(value) for value in np.quantile(ratios, [0.25, 0.5, 0.75]))
    return Ratio(median, lower, upper)


def nanoseconds_per_item(seconds: Sequence[float], items: int) -> float:
    """The median of `seconds`, in nanoseconds for each of `items`."""
    return statistics.median(seconds) * 1e9 / items


def environment() -> dict[str, str | int]:
    """Machine and versions: cpu, cores, memory, gpu, python, torch, zorn; "unknown" what cannot be read."""
    memory = _line_value(Path("/proc/meminfo"), "MemTotal")
    return {
        "cpu": _line_value(Path("/proc/cpuinfo"), "model name"),
        "cores": _cores(),
        "memory": UNKNOWN if memory == UNKNOWN else f"{int(memory.split()[0]) / 2**20:.1f} GiB",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "zorn": version("zorn"),
    }


def report(
    title: str,
    records: Sequence[Record],
    arguments: argparse.Namespace,
    draw: Callable[..., None],
    *,
    panels: tuple[int, int] = (1, 1),
    table: Table | None = None,
) -> None:
    """Print the records as a table, draw the picture, and write the JSON where one was asked for.

    Args:
        title: of table and picture.
        records: what was measured.
        arguments: from `parse_arguments`.
        draw: fills the axes of the picture, given one by one, row by row.
        panels: rows and columns of axes.
        table: to print in place of one with a row for each record.
    """
    machine = environment()
    caption = ", ".join(f"{name} {value}" for name, value in machine.items())
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    if table is None:
        console.print(_table(title, records, caption))
    else:
        table.title, table.caption = title, caption
        console.print(table)

    rows, columns = panels
    figure = Figure(figsize=(4 + 4 * columns, 1 + 4 * rows), layout="constrained")
    draw(*figure.subplots(rows, columns, squeeze=False).flat)
    figure.suptitle(title)
    figure.supxlabel(caption, fontsize=6)
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.picture, dpi=150)
    console.print(f"picture: {arguments.picture}", soft_wrap=True)

    if arguments.json is not None:
        rows = [asdict(record) for record in records]
        for row in rows:
            row["settings"]["environment"] = machine
            row["value"] = None if math.isnan(row["value"]) else row["value"]
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
        console.print(f"records: {arguments.json}", soft_wrap=True)


def process_bytes(name: str) -> int:
    """A field of /proc/self/status, such as VmHWM (peak) or VmRSS (now), in bytes. Linux only."""
    return int(_line_value(Path("/proc/self/status"), name).split()[0]) * 1024


def restart_peak() -> None:
    """Let the peak VmHWM start again from what the process holds now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def _table(title: str, records: Sequence[Record], caption: str) -> Table:
    """One row a record."""
    table = Table("name", "value", "unit", "settings", title=title, caption=caption)
    for record in records:
        settings = ", ".join(f"{name} {value}" for name, value in record.settings.items())
        value = "–" if math.isnan(record.value) else f"{record.value:.4g}"
        table.add_row(record.name, value, record.unit, settings)
    return table


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _line_value(path: Path, name: str) -> str:
    """What follows "name:" in the first such line of a file of /proc; unknown without file or line."""
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), UNKNOWN)
