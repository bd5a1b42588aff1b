"""Credit over 1,000 and 10,000 steps: a cue is read, then nothing but noise, then the cue is asked for.

Four cues, four fillers, one question; the answer is one token, `delay` steps after the cue. Chance is 0.25.
The model can hold a state for so long from the start (gates with the biases of Tallec and Ollivier 2018), but
must learn to write the cue there, to keep the noise out and to read it. Memory is the peak of training above
what the process held before; BPTT keeps every step, all others a chunk of time. Runs are added to the results
of earlier ones; one alone is for example

    python benchmarks/long_credit.py --delay 1000 --cell lstm --method bridge-100 --seed 0 --seconds 300
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from contest import Method, Run, judge_validation, print_run, run_apart, train
from harness import Record, argument_parser, report, thread_counts
from matplotlib.axes import Axes
from methods import activity, bridge, exact, rank_one, streaming
from results import Curve, Results, Row, curve_of, key_of, name_of
from tables import Column, Lines, table_of, write_page
from torch import Tensor

import zorn
from zorn.models import Batch, parameter_count
from zorn.random import integers
from zorn.tasks import IGNORE, EvaluationData, Task, TokenCrossEntropy
from zorn.tasks.task import data_stream

FOLDER = Path(__file__).parents[1] / "docs" / "results"
DELAYS = (1000, 10_000)
SECONDS = {1000: 300.0, 10_000: 600.0}
CHUNK, HIDDEN, ROWS, EVALUATED, JUDGEMENTS = 100, 32, 32, 128, 12
RIGHT = 0.9
"""The share of right answers whose time is recorded."""

QUICK = {"delay": [200], "cell": ["lstm"], "method": ["activity", "tbptt-100-adamw"], "seconds": 3.0}


class DelayedCue(Task):
    """`delay` tokens: a cue, fillers at random, a question; its answer, the cue, is the last target.

    Args:
        delay: from the cue to its answer, at least 2.
        batch: sequences of a training batch.
        windows: of a segment, a divisor of `delay`: a step reads one of them, and the state goes on.
        seed: of the data.

    Example:
        >>> task = DelayedCue(delay=4, batch=2, windows=2, seed=0)
        >>> first, last = task.training_batch(0), task.training_batch(1)
        >>> torch.equal(first.inputs[:, 0], last.targets[:, -1]), task.decode(last.inputs[0])[-1]
        (True, '?')
    """

    name = "delayed-cue"
    cues, fillers = "ABCD", "wxyz"
    symbols = cues + fillers + "?"
    vocabulary = len(symbols)
    objective = TokenCrossEntropy()

    def __init__(self, *, delay: int, batch: int, windows: int = 1, seed: int = 0) -> None:
        assert delay >= 2
        assert delay % windows == 0, (delay, windows)
        self._delay, self._batch, self._windows, self._seed = delay, batch, windows, seed

    def training_batch(self, step: int) -> Batch:
        """Window step mod `windows` of segment step // `windows`: `[batch, delay / windows]`."""
        segment, window = divmod(step, self._windows)
        whole, length = self._sequences(segment, 0, self._batch), self._delay // self._windows
        return Batch(*(part[:, window * length : (window + 1) * length] for part in whole))

    def begins(self, step: int) -> bool:
        """Whether a window is the first of its segment."""
        return step % self._windows == 0

    def evaluation_data(self, split: str) -> EvaluationData:
        """Fresh sequences of a split, whole."""
        batch = self._sequences(0, 1 + self.splits.index(split), EVALUATED)
        return EvaluationData(split, batch, total_bytes=None, whole_sequences=False)

    def encode(self, text: str) -> Tensor:
        """The tokens of a text of the task's symbols."""
        return torch.tensor([self.symbols.index(symbol) for symbol in text], dtype=torch.int64)

    def decode(self, tokens: Any) -> str:
        """The symbols of some tokens."""
        return "".join(self.symbols[int(token)] for token in tokens)

    def _sequences(self, step: int, pair: int, rows: int) -> Batch:
        """Sequences from the `pair`-th pair of data streams."""
        kinds, between = len(self.cues), self._delay - 2
        cue = integers(self._seed, step, data_stream(2 * pair), rows, kinds, device="cpu")
        noise = integers(
            self._seed, step, data_stream(2 * pair + 1), rows * between, len(self.fillers), device="cpu"
        )
        inputs = torch.full((rows, self._delay), self.vocabulary - 1)
        inputs[:, 0], inputs[:, 1:-1] = cue, kinds + noise.view(rows, between)
        targets = torch.full_like(inputs, IGNORE)
        targets[:, -1] = cue
        return Batch(inputs, targets)


def make_model(cell: str, delay: int, seed: int) -> zorn.LanguageModel:
    """A model whose first layer forgets over 1 to `delay` steps (Tallec and Ollivier 2018, chrono
    initialisation): the bias of an LSTM's forget gate is ln U(1, delay − 1), its input gate's the negative;
    that of a minGRU's update gate the negative."""
    model = zorn.LanguageModel(
        DelayedCue.vocabulary, HIDDEN, cell=cell, num_layers=2 if cell == "min-gru" else 1, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    bias = torch.empty(HIDDEN).uniform_(1, delay - 1, generator=generator).log_()
    with torch.no_grad():
        first = model.cells[0]
        if cell == "lstm":
            gates = first.map.bias.view(4, HIDDEN)
            gates[0], gates[1] = -bias, bias
        else:
            first.input_map.bias[:HIDDEN] = -bias
    return model


CELLS = ("lstm", "min-gru")


def methods(delay: int) -> dict[str, Method]:
    """The methods for a delay; all but BPTT hold chunks of 100 steps, PES and NRES update after each."""
    windows = max(delay // CHUNK, 1)
    found = [
        exact("adamw", 0.003, clip=1.0),
        exact("adamw", 0.003, clip=1.0, truncation=CHUNK),
        bridge(CHUNK, 0.1, 0.003, 0.003),
        activity(1.0, 0.1, 0.003),
        rank_one("cd-rge", 256, 0.05, 0.003),
        streaming("pes", 256, 0.05, 0.003, stream=windows),
        streaming("nres", 256, 0.05, 0.003, stream=windows),
    ]
    return {method.name: _in_chunks(method) for method in found}


def _in_chunks(method: Method) -> Method:
    """The method with `ROWS` sequences, or one a member, and in chunks where it takes whole sequences."""
    estimator = method.estimator
    batch = estimator.get("population") or ROWS
    if estimator.name in ("activity", "cd-rge"):
        estimator = estimator.but(time_chunk=CHUNK)
    return dataclasses.replace(method, batch=batch, estimator=estimator)


def child(delay: int, cell: str, method: Method, seed: int, seconds: float) -> None:
    """Train, and print the run."""
    torch.set_num_threads(1)
    task = DelayedCue(delay=delay, batch=method.batch, windows=method.stream or 1, seed=seed)
    model = make_model(cell, delay, seed)
    every = seconds / JUDGEMENTS
    print_run(train(method, model, task, judge_validation, seconds=seconds, judge_every=every, seed=seed))


def records_of(delay: int, cell: str, method: Method, seed: int, seconds: float, run: Run) -> list[Record]:
    """What is recorded of a run: the last accuracy and loss, the time to `RIGHT`, the peak of memory."""
    last = run.points[-1]
    settings = {
        "setting": "long-credit",
        "task": f"delay-{delay}",
        "cell": cell,
        "method": method.name,
        "seed": seed,
        "seconds": seconds,
        "delay": delay,
        "kind": method.kind,
        "tuned": method.words(),
        "parameters": parameter_count(make_model(cell, delay, 0)),
        "threads": 1,
        "steps": last.steps,
        "passes": last.passes,
    }
    right = (point for point in run.points if point.measured.get("token_accuracy", 0.0) >= RIGHT)
    reached = next((point.seconds for point in right), math.nan)
    best = max(point.measured.get("token_accuracy", 0.0) for point in run.points)
    return [
        Record("token_accuracy", last.measured.get("token_accuracy", math.nan), "share", settings),
        Record("best_token_accuracy", best, "share", settings),
        Record("loss", last.loss, "nats", settings),
        Record("seconds_to_accuracy", reached, "s", {**settings, "accuracy": RIGHT}),
        Record("peak_memory_bytes", run.peak_bytes, "bytes", settings),
        Record("optimizer_steps", last.steps, "steps", settings),
        Record("milliseconds_per_step", last.seconds / max(last.steps, 1) * 1e3, "ms", settings),
    ]


COLUMNS = [
    Column("right at the end", "token_accuracy"),
    Column("at best", "best_token_accuracy"),
    Column(f"s to {RIGHT:g}", "seconds_to_accuracy"),
    Column("loss", "loss"),
    Column("steps", "optimizer_steps"),
    Column("ms a step", "milliseconds_per_step"),
    Column("peak MiB", "peak_memory_bytes", unit=2**20),
]

HEAD = f"""# Credit over 1,000 and 10,000 steps

Made by `python benchmarks/long_credit.py` from `long_credit.json`: change the runs, not this page. A model of
{HIDDEN} units reads one of four cues, then random fillers, then a question, and answers with the cue;
`delay-N`: the answer is N steps after the cue. Shares of right answers among {EVALUATED} fresh sequences,
where chance is 0.25; medians over seeds [least, largest], a dash where it was not reached. Seconds are CPU
seconds of training on one thread; memory is the peak above what the process held before."""


def show(results: Results, picture: Path) -> None:
    """Print the tables, draw the pictures and write the page of all runs."""
    rows, curves = results.rows(), results.curves()
    order = {name: number for number, name in enumerate(methods(DELAYS[0]))}
    sections: list[tuple[str, Lines, Path]] = []
    for cell in dict.fromkeys(row["settings"]["cell"] for row in rows):
        mine = [row for row in rows if row["settings"]["cell"] == cell]
        lines = table_of(
            mine, COLUMNS, lambda task, method: (int(task.split("-")[1]), order.get(method, len(order)))
        )
        path = picture.with_name(f"{picture.stem}-{cell}.png")
        delays = sorted({row["settings"]["delay"] for row in mine})

        def draw(*panels: Axes, mine: list[Row] = mine, delays: list[int] = delays) -> None:
            for axes, delay in zip(panels, delays, strict=False):
                draw_accuracy(axes, [row for row in mine if row["settings"]["delay"] == delay], curves, order)
                axes.set_title(f"{delay:,} steps")
            draw_memory(panels[-1], mine, order)

        arguments, panels = argparse.Namespace(picture=path, json=None), (1, len(delays) + 1)
        report(f"long credit, {cell}", [], arguments, draw, panels=panels, table=lines.rich())
        sections.append((cell, lines, path))
    write_page(results.path.with_suffix(".md"), HEAD, sections)


def draw_accuracy(axes: Axes, rows: Sequence[Row], curves: dict[str, Curve], order: dict[str, int]) -> None:
    """Share of right answers against seconds, a colour a method and a line a seed."""
    for key, place in {key_of(row): row["settings"] for row in rows}.items():
        curve = curves.get(name_of(key), [])
        axes.plot(
            [point[2] for point in curve],
            [point[3] for point in curve],
            "--" if place["kind"] == "exact" else "-",
            color=f"C{order.get(place['method'], 9)}",
        )
    axes.axhline(0.25, color="0.8", lw=1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("right answers")


def draw_memory(axes: Axes, rows: Sequence[Row], order: dict[str, int]) -> None:
    """Peak memory against the delay, a line a method."""
    for name in sorted({row["settings"]["method"] for row in rows}, key=lambda one: order.get(one, 9)):
        peaks: dict[int, float] = {}
        for row in rows:
            if row["name"] == "peak_memory_bytes" and row["settings"]["method"] == name:
                delay = row["settings"]["delay"]
                peaks[delay] = max(peaks.get(delay, 0.0), row["value"] / 2**20)
        delays = sorted(peaks)
        axes.plot(
            delays, [peaks[delay] for delay in delays], "o-", color=f"C{order.get(name, 9)}", label=name
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("steps from the cue to the answer")
    axes.set_ylabel("peak memory (MiB)")
    axes.legend(fontsize=7)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        delay, cell, method, seed, seconds = json.loads(sys.argv[2])
        child(delay, cell, Method.from_json(method), seed, seconds)
        return
    parser = argument_parser("long_credit", __doc__)
    parser.add_argument("--delay", nargs="+", type=int, help="steps from the cue to the answer: 1000 10000")
    parser.add_argument("--cell", nargs="+", choices=CELLS, help="only these models")
    parser.add_argument("--method", nargs="+", choices=list(methods(DELAYS[0])), help="only these methods")
    parser.add_argument("--seed", nargs="+", type=int, metavar="N", help="0 1 2")
    parser.add_argument(
        "--seconds", type=float, help="of training for each run: 300 for 1,000 steps, else 600"
    )
    parser.add_argument("--jobs", type=int, default=len(thread_counts()), help="runs at once")
    arguments = parser.parse_args()
    quick: dict[str, Any] = QUICK if arguments.quick else {}
    delays = arguments.delay or quick.get("delay", DELAYS)
    if any(delay % CHUNK for delay in delays):
        parser.error(f"--delay must be a multiple of {CHUNK}, got {' '.join(map(str, delays))}")
    seeds = arguments.seed or ([0] if arguments.quick else [0, 1, 2])
    jobs = [
        (delay, cell, methods(delay)[name], seed)
        for delay in delays
        for cell in arguments.cell or quick.get("cell", CELLS)
        for name in arguments.method or quick.get("method", list(methods(delay)))
        for seed in seeds
    ]

    def budget(delay: int) -> float:
        return arguments.seconds or quick.get("seconds") or SECONDS.get(delay, max(SECONDS.values()))

    folder = Path(__file__).parent / "out" if arguments.quick else FOLDER
    results = Results(arguments.json or folder / "long_credit.json")
    words = [
        json.dumps([delay, cell, method.to_json(), seed, budget(delay)]) for delay, cell, method, seed in jobs
    ]
    try:
        for number, run in run_apart(__file__, words, at_once=arguments.jobs):
            delay, cell, method, seed = jobs[number]
            records = records_of(delay, cell, method, seed, budget(delay), run)
            results.add(records, curve_of(run.points, "token_accuracy"))
    finally:
        same = arguments.picture == Path(parser.get_default("picture"))
        show(results, results.path.with_suffix(".png") if same else arguments.picture)


if __name__ == "__main__":
    main()
