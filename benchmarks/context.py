"""Memory and time per token against the length of the context: the paper's motivation (arXiv 2505.17852).

An LSTM in inference (one token at a time), in zero-order training (rank-one CD-RGE with the fused update, and
activity noise, both in chunks of time), in TBPTT(100) and in BPTT; and a transformer with as many parameters
in inference, one token at a time behind a cache of keys and values that is already full. All on the same
sequences. Peak memory is that of a process of its own above what it held before it built the model
(interpreter, torch, its warmed-up libraries, and the tokens themselves). Time is CPU time of one thread: of a
step, its update included, over the tokens of its batch.

What holds more than `--limit` GiB is stopped by a watchdog in its process. Measurements are added to those of
earlier runs; one alone is for example

    python benchmarks/context.py --way bptt --length 10000
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import (
    RETURN_FREED_MEMORY,
    Record,
    argument_parser,
    process_bytes,
    report,
    restart_peak,
)
from matplotlib.axes import Axes
from results import Results, Row
from tables import Lines
from transformer import Transformer

import zorn
from zorn.models import Batch, parameter_count

FOLDER = Path(__file__).parents[1] / "docs" / "results"
VOCABULARY, PARAMETERS = 256, 1_000_000
SEQUENCES = 2
CHUNK = 100
LENGTHS = (100, 1_000, 10_000, 100_000)
QUICK_LENGTHS = (100, 400)
LIMIT = 4.0  # GiB
OVER_LIMIT = 75
"""How a process ends whose watchdog stopped it."""

WATCH_EVERY = 0.02  # seconds
ENOUGH = 1.0
"""CPU seconds that a measurement takes at least: short steps are repeated."""

NEW_TOKENS = 20
"""Tokens that the transformer makes behind its cache, over which its time is taken."""

WAYS = {
    "inference": ("LSTM inference", "tab:green"),
    "rank-one": ("rank-one CD-RGE step", "tab:blue"),
    "activity": ("activity step", "tab:cyan"),
    "tbptt": (f"TBPTT({CHUNK}) step", "tab:orange"),
    "bptt": ("BPTT step", "tab:red"),
    "transformer": ("transformer inference", "tab:purple"),
}
"""What is measured: its name in table and picture, and its colour."""


def tokens_of(length: int) -> torch.Tensor:
    """Random sequences of `length` + 1 tokens: `[SEQUENCES, length + 1]`."""
    return torch.randint(0, VOCABULARY, (SEQUENCES, length + 1), generator=torch.Generator().manual_seed(0))


def make_model(way: str, parameters: int) -> Any:
    """The LSTM, or the transformer, of about as many parameters."""
    kind = Transformer if way == "transformer" else zorn.LanguageModel
    return kind.with_parameters(parameters, VOCABULARY)


def work(way: str, model: Any, tokens: torch.Tensor) -> tuple[Callable[[], object], int]:
    """What is measured, as a function, and how many steps of time it runs."""
    length = tokens.shape[1] - 1
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    update = zorn.estimators.FusedSGD(learning_rate=1e-3)
    if way == "inference":
        return lambda: read(model, batch.inputs), length
    if way == "transformer":
        cache = model.filled_cache(SEQUENCES, length)
        return lambda: continue_from(model, cache, tokens[:, -1]), min(NEW_TOKENS, length)
    estimator: Any = {
        "rank-one": lambda: zorn.CDRGE(population=SEQUENCES, epsilon=0.01, group_size=1, time_chunk=CHUNK),
        "activity": lambda: zorn.ActivityCredit(epsilon=0.05, draws=1, time_chunk=CHUNK),
        "tbptt": lambda: zorn.TBPTT(truncation=CHUNK),
        "bptt": zorn.BPTT,
    }[way]()
    return lambda: estimator.estimate(model, batch, zorn.TokenCrossEntropy(), update), length


@torch.inference_mode()
def read(model: zorn.LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """Run an LSTM over tokens one at a time; returns the last logits `[rows, vocabulary]`."""
    state = model.initial_state(len(tokens))
    logits = torch.empty(0)
    for token in tokens.split(1, dim=1):
        logits, state = model(token, state)
    return logits[:, -1]


def continue_from(model: Transformer, cache: Any, token: torch.Tensor) -> torch.Tensor:
    """Make the last tokens that fit into a full cache once more, each from the one before it."""
    length = cache.keys.shape[3]
    for place in range(max(length - NEW_TOKENS, 0), length):
        token = model(token, cache, place).argmax(-1)
    return token


# --------------------------------------------------------------------------------- a process of its own


def child(way: str, length: int, parameters: int, limit_bytes: int) -> None:
    """Print the peak bytes, the seconds per token and the parameters of one measurement."""
    torch.set_num_threads(1)
    run, _ = work(way, make_model(way, 20_000), tokens_of(2 * CHUNK))
    run()  # loads libraries, makes their buffers
    tokens = tokens_of(length)
    before = process_bytes("VmRSS")
    watch(before + limit_bytes)
    restart_peak()
    model = make_model(way, parameters)
    run, steps = work(way, model, tokens)
    seconds: list[float] = []
    while sum(seconds) < ENOUGH:
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    found = {
        "bytes": process_bytes("VmHWM") - before,
        "seconds_per_token": statistics.median(seconds) / (steps * SEQUENCES),
        "parameters": parameter_count(model),
        "repeats": len(seconds),
    }
    print(json.dumps(found))


def watch(limit_bytes: int) -> None:
    """End this process with `OVER_LIMIT` as soon as it holds more than that."""

    def look() -> None:
        while process_bytes("VmRSS") <= limit_bytes:
            time.sleep(WATCH_EVERY)
        os._exit(OVER_LIMIT)

    threading.Thread(target=look, daemon=True).start()


def measured(way: str, length: int, parameters: int, limit_bytes: int) -> dict[str, Any] | None:
    """What `child` found, in a process of its own; None where its watchdog stopped it.

    Raises:
        RuntimeError: the process failed; its error is on standard error.
    """
    command = [sys.executable, __file__, "--child", json.dumps([way, length, parameters, limit_bytes])]
    environment = os.environ | RETURN_FREED_MEMORY | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode == OVER_LIMIT:
        return None
    if done.returncode:
        raise RuntimeError(f"{way} at {length} tokens failed: its error stands above")
    return json.loads(done.stdout)


# --------------------------------------------------------------------------------- records, table, picture


def records_of(way: str, length: int, limit_gib: float, found: dict[str, Any] | None) -> list[Record]:
    """The peak and the time per token of one measurement: NaN for one that was stopped."""
    settings = {
        "setting": "context",
        "task": f"T {length}",
        "cell": "transformer" if way == "transformer" else "lstm",
        "method": way,
        "seed": 0,
        "seconds": None,
        "T": length,
        "sequences": SEQUENCES,
        "time_chunk": CHUNK if way in ("rank-one", "activity", "tbptt") else None,
        "threads": 1,
        "limit_gib": limit_gib,
        "stopped": found is None,
        "parameters": found and found["parameters"],
        "repeats": found and found["repeats"],
    }
    peak, seconds = (math.nan, math.nan) if found is None else (found["bytes"], found["seconds_per_token"])
    return [
        Record("peak_memory_bytes", peak, "bytes", settings),
        Record("milliseconds_per_token", seconds * 1e3, "ms", settings),
    ]


def curve(rows: Sequence[Row], way: str, name: str) -> dict[int, float]:
    """The values of a record against T, NaN where it was stopped."""
    mine = (row for row in rows if (row["settings"]["method"], row["name"]) == (way, name))
    return {
        row["settings"]["T"]: math.nan if row["value"] is None else row["value"]
        for row in sorted(mine, key=lambda row: row["settings"]["T"])
    }


def lines_of(rows: Sequence[Row]) -> Lines:
    """A line for each way: memory at every length, then time at every length."""
    lengths = sorted({row["settings"]["T"] for row in rows})
    limits = {(row["settings"]["method"], row["settings"]["T"]): row["settings"]["limit_gib"] for row in rows}
    lines = []
    for way, (title, _) in WAYS.items():
        memory, times = curve(rows, way, "peak_memory_bytes"), curve(rows, way, "milliseconds_per_token")
        if not memory:
            continue
        counts = [row["settings"]["parameters"] for row in rows if row["settings"]["method"] == way]
        count = next((f"{one:,}" for one in counts if one), "–")
        cells = []
        for length in lengths:
            peak = memory.get(length)
            stopped = f"over {limits.get((way, length), 0):g} GiB"
            cells.append("–" if peak is None else stopped if math.isnan(peak) else f"{peak / 2**20:,.1f}")
        for length in lengths:
            milliseconds = times.get(length, math.nan)
            cells.append("–" if math.isnan(milliseconds) else f"{milliseconds:.3g}")
        model = "transformer" if way == "transformer" else "LSTM"
        lines.append([title, model, count, *cells])
    titles = [f"{unit}, T = {length:,}" for unit in ("MiB", "ms a token") for length in lengths]
    return Lines(["", "model", "parameters", *titles], lines)


HEAD = f"""# Memory and time against the length of the context

Made by `python benchmarks/context.py` from `context.json`: change the runs, not this page. {SEQUENCES}
sequences, {VOCABULARY} tokens in the vocabulary, float32, one thread. MiB: the peak of a process of its own
above what it held before it built the model, the sequences not counted. ms a token: CPU time of a step (of
training: its update included) over the tokens of its batch. Zero-order steps and TBPTT run in chunks of
{CHUNK} steps; inference goes one token at a time. The transformer's time is that of {NEW_TOKENS} tokens
behind a full cache of keys and values, so that no context need be read. What holds more than a limit
is stopped: a cross in the picture."""


def show(results: Results, picture: Path) -> None:
    """Print the table, draw the picture and write the page of all measurements."""
    rows = results.rows()
    if not rows:
        return
    lines = lines_of(rows)

    def draw(memory: Axes, times: Axes) -> None:
        draw_curves(memory, rows, "peak_memory_bytes", 2**20, "peak memory (MiB)")
        draw_curves(times, rows, "milliseconds_per_token", 1, "ms a token")
        memory.legend(fontsize=7)

    title = "Memory and time against the length of the context"
    quiet = argparse.Namespace(picture=picture, json=None)
    report(title, [], quiet, draw, panels=(1, 2), table=lines.rich())
    page = "\n\n".join([HEAD, lines.markdown(), f"![{title}]({picture.name})"])
    results.path.with_suffix(".md").write_text(page + "\n")


def draw_curves(axes: Axes, rows: Sequence[Row], name: str, unit: float, label: str) -> None:
    """Values against T, a line a way; a cross at the limit where one was stopped."""
    for way, (title, colour) in WAYS.items():
        found = curve(rows, way, name)
        axes.loglog(list(found), [value / unit for value in found.values()], "o-", color=colour, label=title)
    if name == "peak_memory_bytes":
        for row in rows:
            place = row["settings"]
            if row["name"] == name and place["stopped"]:
                axes.plot(place["T"], place["limit_gib"] * 2**30 / unit, "x", color=WAYS[place["method"]][1])
    axes.set_xlabel("context length T (tokens)")
    axes.set_ylabel(label)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*json.loads(sys.argv[2]))
        return
    parser = argument_parser("context", __doc__)
    parser.add_argument("--way", nargs="+", choices=list(WAYS), default=list(WAYS), help="only these")
    parser.add_argument("--length", nargs="+", type=int, metavar="T", help=f"{' '.join(map(str, LENGTHS))}")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="GIB", help=f"of memory: {LIMIT:g}")
    arguments = parser.parse_args()
    lengths = arguments.length or (QUICK_LENGTHS if arguments.quick else LENGTHS)
    if min(lengths) < 1 or arguments.limit <= 0:
        parser.error("--length and --limit must be positive")
    parameters = PARAMETERS // 10 if arguments.quick else PARAMETERS
    folder = Path(__file__).parent / "out" if arguments.quick else FOLDER
    results = Results(arguments.json or folder / "context.json")
    try:
        for length in lengths:
            for way in arguments.way:
                found = measured(way, length, parameters, int(arguments.limit * 2**30))
                results.add(records_of(way, length, arguments.limit, found), [])
                print(f"context: {way} at {length:,} tokens done", file=sys.stderr, flush=True)
    finally:
        same = arguments.picture == Path(parser.get_default("picture"))
        show(results, results.path.with_suffix(".png") if same else arguments.picture)


if __name__ == "__main__":
    main()
