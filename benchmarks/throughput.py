"""Rows per second: an LSTM layer under rank-one noise, the same layer without, and torch.nn.LSTM, side by
side.

`perturbed_over_plain`: speed of the forward pass with members side by side (one member a row and its
antithetic twin, their signs drawn anew each time) over the same layer's unperturbed one.
`plain_over_nn_lstm`: that one over torch.nn.LSTM in inference mode; `perturbed_over_nn_lstm`: both together.
`perturbed_over_limit`: multiplications and additions of the weights that the perturbed pass does in a second,
over those of a product of two 2048 × 2048 matrices of the same dtype in the same rounds.
"""

from collections.abc import Callable

import torch
from harness import (
    Record,
    interleaved_seconds,
    median_ratio_with_spread,
    parse_arguments,
    report,
    thread_counts,
    torch_threads,
)
from matplotlib.axes import Axes
from torch import nn

from zorn.models import LSTMCell, run
from zorn.noise import Draw, RankOne

ROWS = 256
HIDDEN = [128, 256, 512, 1024, 2048]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RATIOS = {
    "perturbed_over_plain": ("plain", "perturbed"),
    "plain_over_nn_lstm": ("nn.LSTM", "plain"),
    "perturbed_over_nn_lstm": ("nn.LSTM", "perturbed"),
}
LIMIT_SIZE = 2048


def layers(hidden: int, dtype: torch.dtype, time: int) -> dict[str, Callable[[], object]]:
    """The three forward passes over the same input, time-major, from a zero state; and a large product."""
    reference = nn.LSTM(hidden, hidden).to(dtype)
    cell = LSTMCell(hidden, hidden).to(dtype)
    bound = RankOne().bind(cell)
    draw = Draw(seed=0, step=0, epsilon=0.01)
    x = torch.randn(time, ROWS, hidden).to(dtype)

    @torch.inference_mode()
    def nn_lstm() -> object:
        return reference(x)

    @torch.inference_mode()
    def plain() -> object:
        return run(cell, x, cell.initial_state(ROWS))

    @torch.inference_mode()
    def perturbed() -> object:
        with bound.members(draw, range(ROWS // 2), (1, -1), group=1):
            return run(cell, x, cell.initial_state(ROWS))

    square = torch.randn(LIMIT_SIZE, LIMIT_SIZE).to(dtype)
    result = torch.empty_like(square)

    @torch.inference_mode()
    def product() -> object:
        return torch.mm(square, square, out=result)

    return {"nn.LSTM": nn_lstm, "plain": plain, "perturbed": perturbed, "product": product}


def measure(hidden: int, dtype: str, threads: int, time: int, budget_seconds: float) -> list[Record]:
    """The ratios at one setting, from as many rounds as the budget allows: 3 to 41."""
    with torch_threads(threads):
        functions = layers(hidden, DTYPES[dtype], time)
        once = sum(seconds[0] for seconds in interleaved_seconds(functions, repeats=1).values())
        repeats = max(3, min(41, int(budget_seconds / once)))
        seconds = interleaved_seconds(functions, repeats, warm_up=0)
    settings = {
        "hidden": hidden,
        "dtype": dtype,
        "threads": threads,
        "rows": ROWS,
        "time": time,
        "repeats": repeats,
    }
    records = []
    for name, (numerator, denominator) in RATIOS.items():
        ratio = median_ratio_with_spread(seconds[numerator], seconds[denominator])
        spread = {"lower": round(ratio.lower, 3), "upper": round(ratio.upper, 3)}
        records.append(Record(name, ratio.median, "ratio", {**settings, **spread}))
    work = 8 * hidden * hidden * ROWS * time / LIMIT_SIZE**3
    limit = median_ratio_with_spread([work * s for s in seconds["product"]], seconds["perturbed"])
    spread = {"lower": round(limit.lower, 3), "upper": round(limit.upper, 3)}
    records.append(Record("perturbed_over_limit", limit.median, "ratio", {**settings, **spread}))
    return records


def draw(axes: Axes, records: list[Record]) -> None:
    """Each ratio against the hidden size, a line for each dtype and number of threads."""
    styles = {"perturbed_over_plain": ":", "perturbed_over_nn_lstm": "-", "perturbed_over_limit": "--"}
    colours = {
        ("float32", 1): "tab:blue",
        ("float32", 2): "navy",
        ("bfloat16", 1): "tab:orange",
        ("bfloat16", 2): "brown",
    }
    for name, style in styles.items():
        for (dtype, threads), colour in colours.items():
            line = [
                r
                for r in records
                if (r.name, r.settings["dtype"], r.settings["threads"]) == (name, dtype, threads)
            ]
            if line:
                label = f"{name}, {dtype}, {threads} thread{'s' * (threads > 1)}"
                places = [HIDDEN.index(int(str(r.settings["hidden"]))) for r in line]
                axes.plot(
                    places,
                    [r.value for r in line],
                    style,
                    color=colour,
                    marker="o",
                    markersize=4,
                    label=label,
                )
    axes.axhline(1, color="black", linewidth=0.5)
    axes.set_xticks(range(len(HIDDEN)), [str(hidden) for hidden in HIDDEN])
    axes.set_ylim(0, None)
    axes.set_xlabel("hidden size")
    axes.set_ylabel("ratio of rows per second")
    axes.legend(fontsize=6, ncols=2, loc="lower right")


def main() -> None:
    arguments = parse_arguments("throughput", __doc__)
    budget = 0.6 if arguments.quick else 12.0
    time = {hidden: max(4, min(16, 8192 // hidden)) if arguments.quick else 16 for hidden in HIDDEN}
    records = [
        record
        for threads in thread_counts()
        for dtype in DTYPES
        for hidden in HIDDEN
        for record in measure(hidden, dtype, threads, time[hidden], budget)
    ]
    report("Perturbed forward pass beside plain ones", records, arguments, lambda axes: draw(axes, records))


if __name__ == "__main__":
    main()
