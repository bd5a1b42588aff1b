"""The picture at the end of a run: the validation curves over time and forward passes, with yardsticks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zorn.run.loggers import Record
from zorn.run.progress_display import shorten

INK, QUIET, BLUE, ORANGE = "#222222", "#8a8a8a", "#1f5fa8", "#b8560f"
TALL, LOW = 4.2, 2.8
"""Inches: the height of a panel that is alone, and of one among several."""


@dataclass(frozen=True)
class Panel:
    """One quantity, drawn over seconds and over forward passes.

    Args:
        lines: label, records, values (one a record) and colour of each curve.
        training: the losses of the training records, drawn thin; the range ignores all but their last one.
        yardsticks: horizontal lines, by name.
    """

    title: str
    lines: Sequence[tuple[str, Sequence[Record], Sequence[float], str]]
    training: Sequence[float] = ()
    yardsticks: Mapping[str, float] = field(default_factory=dict)


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

    trained = [record for record in records if record["kind"] == "train"]
    panels = _panels(records, trained, yardsticks, objective)
    height = TALL if len(panels) == 1 else LOW
    figure = Figure(figsize=(10.5, height * len(panels)), dpi=150, layout="constrained")
    grid = figure.subplots(len(panels), 2, sharex="col", sharey="row", squeeze=False)
    figure.suptitle(title, x=0.012, ha="left", color=INK, fontsize=11)
    for panel, (left, right) in zip(panels, grid, strict=True):
        _draw(left, "seconds", panel, trained)
        _draw(right, "forward_passes", panel, trained)
        left.set_ylabel(panel.title, color=INK)
        right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    for axes, axis in zip(grid[-1], ("seconds", "forward_passes"), strict=True):
        axes.set_xlabel(axis.replace("_", " "), color=INK)
        axes.set_xlim(0, max(record[axis] for record in records) * 1.01 or 1)
    grid[-1][1].xaxis.set_major_formatter(lambda value, _position: shorten(value))
    figure.savefig(path)


def _panels(
    records: Sequence[Record], trained: Sequence[Record], yardsticks: Mapping[str, float], objective: str
) -> list[Panel]:
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    evaluations = [record for record in evaluations if record["split"] == evaluations[0]["split"]]
    last = evaluations[-1]
    in_bits = last["bits_per_byte"] is not None
    per_nat = last["bits_per_byte"] / last["loss"] if in_bits else 1.0
    losses = [record["loss"] for record in trained]

    def line(label: str, key: str, color: str = BLUE) -> tuple[str, Sequence[Record], list[float], str]:
        values = [record[key] for record in evaluations]
        shown = f"{values[-1]:.1%}" if key.endswith("accuracy") else f"{values[-1]:.2f}"
        return f"{label} {shown}", evaluations, values, color

    other = objective != "cross-entropy"
    first = [line(last["split"], "bits_per_byte" if in_bits else "loss")]
    title = "bits per byte" if in_bits else "loss, nats per token"
    panels = [Panel(title, first, [] if other else [loss * per_nat for loss in losses], yardsticks)]
    if trained and other:
        panels.append(Panel(objective, [line(last["split"], "objective")], losses))
    if not in_bits:
        accuracies = [line("tokens", "token_accuracy")]
        if last["sequence_accuracy"] is not None:
            accuracies.append(line("sequences", "sequence_accuracy", ORANGE))
        panels.append(Panel("accuracy", accuracies))
    return panels


def _draw(axes: Any, axis: str, panel: Panel, trained: Sequence[Record]) -> None:
    if panel.training:
        places = [record[axis] for record in trained]
        axes.plot(places, panel.training, color=QUIET, linewidth=0.7, alpha=0.6, label="training batches")
    for label, records, values, color in panel.lines:
        places = [record[axis] for record in records]
        axes.plot(places, values, color=color, linewidth=1.8, label=label)
        axes.plot(places[-1], values[-1], color=color, marker="o", markersize=5)
    for (name, value), dashes in zip(panel.yardsticks.items(), ((5, 4), (1, 2)), strict=False):
        axes.axhline(value, color=INK, linewidth=0.8, linestyle=(0, dashes), label=f"{name} {value:.2f}")
    shown = [
        *panel.yardsticks.values(),
        *panel.training[-1:],
        *(each for line in panel.lines for each in line[2]),
    ]
    margin = 0.06 * (max(shown) - min(shown)) or 0.5
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8.5)
