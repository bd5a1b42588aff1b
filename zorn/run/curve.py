"""The picture at the end of a run: the validation curves over time and forward passes, with yardsticks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zorn.run.loggers import Record
from zorn.run.progress_display import shorten

INK, QUIET, BLUE, ORANGE = "#222222", "#8a8a8a", "#1f5fa8", "#b8560f"
TALL, LOW = 4.2, 2.8
"""Inches: the height of a panel that is alone, and of one among several."""
SMALLEST_GAP = 0.26
"""Inches between two labels."""


@dataclass(frozen=True)
class Line:
    """One curve of a panel: label, records, values (one a record) and colour; a main one is drawn thick."""

    label: str
    records: Sequence[Record]
    values: Sequence[float]
    color: str
    main: bool = True


@dataclass(frozen=True)
class Panel:
    """One quantity, drawn over seconds and over forward passes."""

    title: str
    lines: Sequence[Line]
    yardsticks: Mapping[str, float]


def draw_curve(
    path: Path,
    records: Sequence[Record],
    yardsticks: Mapping[str, float],
    title: str,
    objective: str = "cross-entropy",
) -> None:
    """Write a PNG with the curves of the main validation split, over seconds and over forward passes.

    Text: bits per byte, with the training loss in the same unit. Other tasks: the loss in nats per token,
    and below it the accuracies. Where another objective than cross-entropy is minimised, it has a panel of
    its own. `yardsticks` are horizontal lines in the first panel, by name, in its unit. No window is opened,
    and no global state of matplotlib is changed.
    """
    from matplotlib.figure import Figure  # here: matplotlib takes most of a second to import

    panels = _panels(records, yardsticks, objective)
    height = TALL if len(panels) == 1 else LOW
    figure = Figure(figsize=(10.5, height * len(panels)), dpi=150, layout="constrained")
    grid = figure.subplots(len(panels), 2, sharex="col", sharey="row", squeeze=False)
    figure.suptitle(title, x=0.012, ha="left", color=INK, fontsize=11)
    for panel, (left, right) in zip(panels, grid, strict=True):
        for axes, axis in ((left, "seconds"), (right, "forward_passes")):
            _draw(axes, axis, panel)
        left.set_ylim(*_range(panel))
        left.set_ylabel(panel.title, color=INK)
        _label(right, panel, SMALLEST_GAP / height)
    for axes, axis in zip(grid[-1], ("seconds", "forward_passes"), strict=True):
        axes.set_xlabel(axis.replace("_", " "), color=INK)
        axes.set_xlim(0, max(record[axis] for record in records) * 1.01 or 1)
    grid[-1][1].xaxis.set_major_formatter(lambda value, _position: shorten(value))
    figure.savefig(path)


def _panels(records: Sequence[Record], yardsticks: Mapping[str, float], objective: str) -> list[Panel]:
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    evaluations = [record for record in evaluations if record["split"] == evaluations[0]["split"]]
    trained = [record for record in records if record["kind"] == "train"]
    last = evaluations[-1]
    in_bits = last["bits_per_byte"] is not None
    per_nat = last["bits_per_byte"] / last["loss"] if in_bits else 1.0

    def line(label: str, key: str, color: str = BLUE) -> Line:
        values = [record[key] for record in evaluations]
        shown = f"{values[-1]:.1%}" if key.endswith("accuracy") else f"{values[-1]:.2f}"
        return Line(f"{label} {shown}", evaluations, values, color)

    first = [line(last["split"], "bits_per_byte" if in_bits else "loss")]
    if trained and objective == "cross-entropy":
        losses = [record["loss"] * per_nat for record in trained]
        first.insert(0, Line("training batches", trained, losses, QUIET, main=False))
    panels = [Panel("bits per byte" if in_bits else "loss, nats per token", first, yardsticks)]
    if trained and objective != "cross-entropy":
        losses = [record["loss"] for record in trained]
        training = Line("training batches", trained, losses, QUIET, main=False)
        panels.append(Panel(objective, [training, line(last["split"], "objective")], {}))
    if not in_bits:
        accuracies = [line("tokens", "token_accuracy")]
        if last["sequence_accuracy"] is not None:
            accuracies.append(line("sequences", "sequence_accuracy", ORANGE))
        panels.append(Panel("accuracy", accuracies, {}))
    return panels


def _draw(axes: Any, axis: str, panel: Panel) -> None:
    for value in panel.yardsticks.values():
        axes.axhline(value, color=INK, linewidth=0.8, linestyle=(0, (5, 4)))
    for line in panel.lines:
        width, opacity = (1.8, 1.0) if line.main else (0.7, 0.6)
        places = [record[axis] for record in line.records]
        axes.plot(places, line.values, color=line.color, linewidth=width, alpha=opacity)
        if line.main:
            axes.plot(places[-1], line.values[-1], color=line.color, marker="o", markersize=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8.5)


def _range(panel: Panel) -> tuple[float, float]:
    """The range of a panel's height: all of its main curves and yardsticks, and the ends of the others."""
    shown = list(panel.yardsticks.values())
    only = not any(line.main for line in panel.lines)
    for line in panel.lines:
        shown += line.values if line.main or only else line.values[-1:]
    margin = 0.06 * (max(shown) - min(shown)) or 0.5
    return min(shown) - margin, max(shown) + margin


def _label(axes: Any, panel: Panel, gap: float) -> None:
    """Name each line at the right of its end, `gap` (a share of the height) or more apart."""
    low, high = _range(panel)
    labels = [(value, f"{name} {value:.2f}", INK, False) for name, value in panel.yardsticks.items()]
    labels += [(line.values[-1], line.label, line.color, line.main) for line in panel.lines]
    labels.sort()
    heights = spread([(value - low) / (high - low) for value, *_ in labels], gap)
    for height, (_, text, color, main) in zip(heights, labels, strict=True):
        axes.annotate(
            text,
            (1.02, height),
            xycoords="axes fraction",
            va="center",
            color=color,
            fontsize=9,
            fontweight="bold" if main else "normal",
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved apart as little as an even shift allows, so that neighbours differ by `gap`.

    >>> spread([0.1, 0.5, 0.5], 0.2)
    [0.1, 0.4, 0.6]
    """
    groups: list[tuple[float, int]] = []  # centre and number of labels that stand together
    for height in heights:
        groups.append((height, 1))
        while len(groups) > 1:
            (below, fewer), (above, more) = groups[-2:]
            if above - below >= gap * (fewer + more) / 2:
                break
            together = fewer + more
            groups[-2:] = [((below * fewer + above * more) / together, together)]
    return [centre + gap * (index - (number - 1) / 2) for centre, number in groups for index in range(number)]
