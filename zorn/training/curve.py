"""The picture at the end of a run: the validation curve over time and forward passes, with yardsticks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from zorn.training.loggers import Record
from zorn.training.progress_display import shorten

INK, QUIET, BLUE = "#222222", "#8a8a8a", "#1f5fa8"
SMALLEST_GAP = 0.062  # between two labels, as a share of the height


def draw_curve(path: Path, records: Sequence[Record], yardsticks: Mapping[str, float], title: str) -> None:
    """Write a PNG with the validation curve and the training loss, over seconds and over forward passes.

    In bits per byte where the evaluations have them, else in nats per token. `yardsticks` are horizontal
    lines, by name, in the same unit. No window is opened, and no global state of matplotlib is changed.
    """
    from matplotlib.figure import Figure  # here: matplotlib takes most of a second to import

    evaluations = [record for record in records if record["kind"] == "evaluation"]
    trained = [record for record in records if record["kind"] == "train"]
    last = evaluations[-1]
    in_bits = last["bits_per_byte"] is not None
    key = "bits_per_byte" if in_bits else "loss"
    per_nat = last["bits_per_byte"] / last["loss"] if in_bits else 1.0
    losses = [record["loss"] * per_nat for record in trained]

    figure = Figure(figsize=(10.5, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title, x=0.012, ha="left", color=INK, fontsize=11)
    for panel, axis in zip(panels, ("seconds", "forward_passes"), strict=True):
        for value in yardsticks.values():
            panel.axhline(value, color=INK, linewidth=0.8, linestyle=(0, (5, 4)))
        panel.plot([record[axis] for record in trained], losses, color=QUIET, linewidth=0.7, alpha=0.6)
        values = [record[key] for record in evaluations]
        panel.plot([record[axis] for record in evaluations], values, color=BLUE, linewidth=1.8)
        panel.plot(last[axis], last[key], color=BLUE, marker="o", markersize=5)
        panel.set_xlabel(axis.replace("_", " "), color=INK)
        panel.set_xlim(0, last[axis] * 1.01 or 1)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=INK, labelsize=8.5)
    shown = [record[key] for record in evaluations] + list(yardsticks.values()) + losses[-1:]
    margin = 0.06 * (max(shown) - min(shown)) or 0.5
    low, high = min(shown) - margin, max(shown) + margin
    panels[0].set_ylim(low, high)
    panels[0].set_ylabel("bits per byte" if in_bits else "loss, nats per token", color=INK)
    panels[1].xaxis.set_major_formatter(lambda value, _position: shorten(value))

    labels = [(value, f"{name} {value:.2f}", INK) for name, value in yardsticks.items()]
    labels.append((last[key], f"validation {last[key]:.2f}", BLUE))
    if losses:
        labels.append((losses[-1], "training batches", QUIET))
    labels.sort()
    heights = spread([(value - low) / (high - low) for value, _, _ in labels], SMALLEST_GAP)
    for height, (_, text, color) in zip(heights, labels, strict=True):
        panels[1].annotate(
            text,
            (1.02, height),
            xycoords="axes fraction",
            va="center",
            color=color,
            fontsize=9,
            fontweight="bold" if color == BLUE else "normal",
        )
    figure.savefig(path)


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
