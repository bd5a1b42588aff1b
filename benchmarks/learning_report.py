"""What the learning benchmark records of a run, and the tables and pictures that it makes of all of them.

A table and a picture for each setting, cell of the model and budget of seconds.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cells import THRESHOLDS, Cell
from contest import Method, Run
from harness import Record, report
from matplotlib.axes import Axes
from methods import methods_of
from results import Curve, Results, Row, key_of, name_of
from tables import Column, table_of, write_page

Group = tuple[str, str, float]
"""What one table and one picture hold: setting, cell and seconds."""


def records_of(
    cell: Cell, method: Method, seed: int, seconds: float, parameters: int, run: Run
) -> list[Record]:
    """What is recorded of a run: when each threshold was met (NaN: never), the last figures, the peak."""
    last = run.points[-1]
    settings = {
        "setting": cell.setting,
        "task": cell.title,
        "cell": cell.cell,
        "method": method.name,
        "seed": seed,
        "seconds": seconds,
        "kind": method.kind,
        "tuned": method.words(),
        "parameters": parameters,
        "threads": 1,
        "steps": last.steps,
        "passes": last.passes,
        "trained_seconds": round(last.seconds, 3),
    }
    records = []
    figure, thresholds = THRESHOLDS[cell.setting]
    for threshold in thresholds:
        point = run.first_below(threshold, figure)
        place = {**settings, "threshold": threshold, "figure": figure}
        for name, unit in (("steps", "steps"), ("passes", "passes"), ("seconds", "s")):
            value = math.nan if point is None else round(float(getattr(point, name)), 3)
            records.append(Record(f"{name}_to_loss", value, unit, place))
    for words, value in last.measured.items():
        split, _, name = words.rpartition(" ")
        name, unit = _NAMES.get(name, (name, "share"))
        first = "overfit batch" if cell.setting == "overfit" else "validation"
        records.append(Record(name, value, unit, {**settings, "split": split or first}))
    records.append(Record("milliseconds_per_step", last.seconds / max(last.steps, 1) * 1e3, "ms", settings))
    records.append(Record("peak_memory_bytes", run.peak_bytes, "bytes", settings))
    return records


_NAMES = {"loss": ("loss", "nats"), "bits_per_byte": ("validation_bits_per_byte", "bits")}


def columns_of(setting: str) -> list[Column]:
    """The columns that a setting's table has behind task, method, settings and seeds."""
    figure, thresholds = THRESHOLDS[setting]
    unit = "bits" if figure == "bits_per_byte" else "nats"
    reached = [Column(f"s to {mark:g} {unit}", "seconds_to_loss", {"threshold": mark}) for mark in thresholds]
    counts = [
        Column(f"{what} to {thresholds[-1]:g}", f"{what}_to_loss", {"threshold": thresholds[-1]})
        for what in ("steps", "passes")
    ]
    step = [
        Column("ms a step", "milliseconds_per_step"),
        Column("peak MiB", "peak_memory_bytes", unit=2**20),
    ]
    if setting == "overfit":
        return [*reached, *counts, Column("last loss", "loss"), *step]
    if setting == "text":
        return [Column("bits per byte", "validation_bits_per_byte"), *reached, *step]
    shares = [
        Column(f"{what} right{words}", f"{name}_accuracy", {"split": split})
        for split, words in (("validation", ""), ("validation-longer", ", longer"))
        for what, name in (("tokens", "token"), ("sequences", "sequence"))
    ]
    return [Column("loss", "loss", {"split": "validation"}), *shares, *reached, *step]


HEAD = """# What the estimators learn: all results

Made by `python benchmarks/learning.py` from `learning.json`: change the runs, not this page. Numbers are
medians over seeds [least, largest]; a dash means that it was not reached in the time. Seconds are CPU
seconds of training on one thread; a forward pass is one sequence through the model, a backward pass counts
as two; memory is the peak of training above what the process held before."""


def show(results: Results, picture: Path, touched: set[Group]) -> None:
    """Print the tables and draw the pictures of the groups `touched`, and write the page of all groups.

    Args:
        picture: path whose name the pictures begin with: NAME-overfit-lstm-120s.png.
    """
    groups: dict[Group, list[Row]] = defaultdict(list)
    for row in results.rows():
        place = row["settings"]
        groups[place["setting"], place["cell"], place["seconds"]].append(row)
    curves, sections = results.curves(), []
    for (setting, cell, seconds), rows in groups.items():
        title = f"{setting}, {cell}, {seconds:g} s of training"

        def order(task: str, method: str, setting: str = setting, cell: str = cell) -> tuple[str, int]:
            return task, order_of(setting, task, cell, method)

        lines = table_of(rows, columns_of(setting), order)
        path = picture.with_name(f"{picture.stem}-{setting}-{cell}-{seconds:g}s.png")
        sections.append((title, lines, path))
        if (setting, cell, seconds) not in touched:
            continue
        tasks = list(dict.fromkeys(line[0] for line in lines.lines))

        def draw(*panels: Axes, rows: list[Row] = rows, tasks: list[str] = tasks) -> None:
            for number, task in enumerate(tasks):
                mine = [row for row in rows if row["settings"]["task"] == task]
                draw_losses(panels[3 * number : 3 * number + 3], mine, curves)

        arguments = argparse.Namespace(picture=path, json=None)
        report(title, [], arguments, draw, panels=(len(tasks), 3), table=lines.rich())
    write_page(results.path.with_suffix(".md"), HEAD, sections)


def order_of(setting: str, task: str, cell: str, method: str) -> int:
    """Where a method stands in the table of methods; last if it is no longer there."""
    names = list(methods_of(setting, task, cell))
    return names.index(method) if method in names else len(names)


def draw_losses(panels: Sequence[Axes], rows: Sequence[Row], curves: dict[str, Curve]) -> None:
    """The loss in one task against steps, forward passes and seconds (logarithmic), a line a seed.

    A colour a method. Backpropagation is dashed, the bridge dotted; methods of forward passes alone are
    drawn through.
    """
    runs = {key_of(row): row["settings"] for row in rows}
    first = rows[0]["settings"]
    setting, task, cell = first["setting"], first["task"], first["cell"]
    kinds = {place["method"]: place["kind"] for place in runs.values()}
    names = sorted(kinds, key=lambda name: order_of(setting, task, cell, name))
    for number, axes in enumerate(panels):
        for color, name in enumerate(names):
            mine = [key for key, place in runs.items() if place["method"] == name]
            for line, key in enumerate(mine):
                curve = curves.get(name_of(key), [])
                axes.plot(
                    [point[number] for point in curve],
                    [point[3] for point in curve],
                    {"exact": "--", "bridge": ":"}.get(kinds[name], "-"),
                    color=_COLORS[color % len(_COLORS)],
                    label="_" if line else name,  # one entry of the legend for all seeds
                    lw=1.2,
                )
        axes.set_xscale("log")
        axes.set_xlabel(("optimizer steps", "forward passes", "seconds of training")[number])
        axes.set_ylim(*((1.8, 5) if setting == "text" else (0, 4)))
    panels[0].set_ylabel(f"{task}\n{'bits per byte' if setting == 'text' else 'nats per token'}")
    panels[0].legend(fontsize=5, loc="lower left")


_COLORS = [f"C{number}" for number in range(10)] + ["k", "gold", "navy", "lime", "crimson", "teal", "orchid"]
