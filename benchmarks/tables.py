"""Tables of results over seeds: a line for each task and method, medians with the least and the largest."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from results import Row
from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A column of numbers: the records of that name whose settings have these values, over `unit`."""

    title: str
    name: str
    place: dict[str, object] = field(default_factory=dict)
    unit: float = 1.0

    def value(self, rows: Sequence[Row]) -> float:
        """The number of a run's rows; NaN for what was not reached or not measured."""
        for row in rows:
            settings = row["settings"]
            same = all(settings.get(name) == value for name, value in self.place.items())
            if row["name"] == self.name and same:
                return math.nan if row["value"] is None else row["value"] / self.unit
        return math.nan


@dataclass(frozen=True)
class Lines:
    """A table: titles of the columns, and the lines of words."""

    titles: list[str]
    lines: list[list[str]]

    def markdown(self) -> str:
        """The table in Markdown; numbers, from the fourth column on, to the right."""
        rule = ["---"] * 3 + ["--:"] * (len(self.titles) - 3)
        return "\n".join("| " + " | ".join(row) + " |" for row in [self.titles, rule, *self.lines])

    def rich(self) -> Table:
        """The table for a terminal."""
        table = Table(*self.titles)
        for line in self.lines:
            table.add_row(*line)
        return table


def table_of(rows: Sequence[Row], columns: Sequence[Column], order: Callable[[str, str], object]) -> Lines:
    """A line for each task and method: settings, seeds, and each column's spread over the seeds.

    Args:
        rows: of runs of one setting, cell and budget.
        order: of a task and a method: what the lines are sorted by.
    """
    runs: dict[tuple[str, str], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        place = row["settings"]
        runs[place["task"], place["method"]][place["seed"]].append(row)
    lines = []
    for task, method in sorted(runs, key=lambda pair: order(*pair)):  # type: ignore[arg-type]
        seeds = runs[task, method]
        words = next(iter(seeds.values()))[0]["settings"]["tuned"]
        numbers = [spread([column.value(found) for found in seeds.values()]) for column in columns]
        lines.append([task, method, words, str(len(seeds)), *numbers])
    return Lines(["task", "method", "settings", "seeds", *(column.title for column in columns)], lines)


def spread(values: Sequence[float]) -> str:
    """The median of some numbers, and the least and the largest: a dash for what was not reached (NaN).

    Example:
        >>> spread([3.0, 1.0, 2.0]), spread([5.0, 5.0]), spread([1.0, float("nan"), 3.0])
        ('2 [1, 3]', '5', '3 [1, –]')
    """
    ordered = sorted(math.inf if math.isnan(value) else value for value in values)
    median, least, largest = statistics.median_high(ordered), ordered[0], ordered[-1]
    return _number(median) + ("" if least == largest else f" [{_number(least)}, {_number(largest)}]")


def _number(value: float) -> str:
    if math.isinf(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_page(path: Path, head: str, sections: Sequence[tuple[str, Lines, Path]]) -> None:
    """A page of documentation: a head, then of each section its title, table and picture."""
    parts = [head]
    for title, lines, picture in sections:
        parts += [f"## {title}", lines.markdown(), f"![{title}]({picture.name})"]
    path.write_text("\n\n".join(parts) + "\n")
