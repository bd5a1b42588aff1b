"""Peak memory of a training step beside inference and BPTT, against the length of the context.

`step_over_inference`: peak of a rank-one CD-RGE step with the fused update over that of evaluating the same
model on as many rows at once. `t10000_over_t100`: the step's peak at T = 10,000 over T = 100, in time chunks.
`memory_million_over_thousand`: the same of a small model at T = 1,000,000 over T = 1,000, the tokens
themselves (8 bytes each, which are the task's) taken off both.
Every peak is that of a process of its own, less what the process held before it built the model (interpreter,
torch, its warmed-up libraries): the stricter reading, since that constant would pull every ratio towards 1.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from harness import (
    RETURN_FREED_MEMORY,
    Record,
    parse_arguments,
    process_bytes,
    report,
    restart_peak,
    thread_counts,
)
from matplotlib.axes import Axes

import zorn
from zorn.models import evaluation_mode, row_losses

VOCABULARY = 256
ROWS = 16  # of one forward pass: 8 members and their antithetic twins
TIME_CHUNK = 50
LONG_HIDDEN, LONG_ROWS, LONG_CHUNK = 512, 4, 250
WAYS = {"inference": "tab:green", "step": "tab:blue", "bptt": "tab:red"}
OBJECTIVE = zorn.TokenCrossEntropy()


def work(way: str, model: zorn.LanguageModel, time: int, rows: int, chunk: int = TIME_CHUNK) -> None:
    """One evaluation, one zero-order step with the fused update, or one step of BPTT, in which `rows` rows of
    `time` tokens run at once: for the zero-order step half as many sequences, each under both signs."""
    sequences = rows // 2 if way == "step" else rows
    tokens = torch.randint(0, VOCABULARY, (sequences, time + 1), generator=torch.Generator().manual_seed(0))
    batch = zorn.Batch(tokens[:, :-1], tokens[:, 1:])
    if way == "inference":
        with torch.inference_mode(), evaluation_mode(model):
            row_losses(model, batch, OBJECTIVE, time_chunk=chunk)
    elif way == "step":
        estimator = zorn.CDRGE(
            population=sequences, epsilon=0.01, group_size=1, micro_batch=rows, time_chunk=chunk
        )
        estimator.estimate(model, batch, OBJECTIVE, update=zorn.estimators.FusedSGD(learning_rate=1e-3))
    else:
        zorn.BPTT().estimate(model, batch, OBJECTIVE, update=zorn.estimators.FusedSGD(learning_rate=1e-3))


def child(way: str, hidden: int, dtype: str, time: int) -> None:
    """Print the peak memory of the work above what was held before the model was built."""
    torch.set_num_threads(1)
    kind = getattr(torch, dtype)
    work(
        way, zorn.LanguageModel(VOCABULARY, 16).to(kind), TIME_CHUNK + 1, 4
    )  # loads libraries, makes their buffers
    before = process_bytes("VmRSS")
    model = zorn.LanguageModel(VOCABULARY, hidden).to(kind)
    restart_peak()  # with the model built
    work(way, model, time, ROWS)
    print(json.dumps(process_bytes("VmHWM") - before))


def long_child(time: int) -> None:
    """Print the peak of a step of a small model on one sequence of `time` tokens, less the tokens."""
    torch.set_num_threads(1)
    work("step", zorn.LanguageModel(VOCABULARY, 16), LONG_CHUNK + 1, LONG_ROWS, LONG_CHUNK)
    before = process_bytes("VmRSS")
    model = zorn.LanguageModel(VOCABULARY, LONG_HIDDEN, embedding_size=16)
    restart_peak()
    work("step", model, time, LONG_ROWS, LONG_CHUNK)
    print(json.dumps(process_bytes("VmHWM") - before - 8 * LONG_ROWS // 2 * (time + 1)))


def peak(*job: str | int) -> int:
    """Bytes, from a process of its own."""
    command = [sys.executable, __file__, "--child", *map(str, job)]
    environment = os.environ | RETURN_FREED_MEMORY
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


def draw(axes: Axes, curves: dict[str, list[tuple[int, int]]], hidden: int) -> None:
    """Peak memory against context length, a line for each way, labelled at its end."""
    for way, points in curves.items():
        times, peaks = zip(*points, strict=True)
        axes.loglog(times, [value / 2**20 for value in peaks], "o-", color=WAYS[way])
        label = {"inference": "inference", "step": "zero-order step", "bptt": "BPTT step"}[way]
        place = (times[-1], peaks[-1] / 2**20)
        shift = (6, -10) if way == "inference" else (6, 2)
        axes.annotate(label, place, textcoords="offset points", xytext=shift, color=WAYS[way])
    axes.set_xlim(80, 60_000)
    axes.set_xlabel("context length T (tokens)")
    axes.set_ylabel(f"peak memory (MiB), hidden {hidden}, {ROWS} rows")


def main() -> None:
    if sys.argv[1:3] == ["--child", "long"]:
        long_child(int(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--child"]:
        way, hidden, dtype, time = sys.argv[2:]
        child(way, int(hidden), dtype, int(time))
        return
    arguments: argparse.Namespace = parse_arguments("memory", __doc__)
    hidden = 768 if arguments.quick else 1024
    lengths = [100, 10_000] if arguments.quick else [100, 300, 1000, 3000, 10_000]
    longest_bptt = 300 if arguments.quick else 1000
    lengths_of = dict.fromkeys(WAYS, lengths) | {"bptt": [t for t in (100, 300, 1000) if t <= longest_bptt]}
    sizes = [hidden] if arguments.quick else [512, 1024, 2048]
    jobs = [(way, hidden, "float32", time) for way in WAYS for time in lengths_of[way]]
    jobs += [
        (way, size, dtype, 100)
        for way in ("step", "inference")
        for size in sizes
        for dtype in ("float32", "bfloat16")
    ]
    with ThreadPoolExecutor(len(thread_counts())) as pool:  # each in a process of its own, on one thread
        peaks = dict(zip(jobs, pool.map(lambda job: peak(*job), jobs), strict=True))
    curves = {way: [(time, peaks[way, hidden, "float32", time]) for time in lengths_of[way]] for way in WAYS}
    settings = {"hidden": hidden, "rows": ROWS, "time_chunk": TIME_CHUNK, "dtype": "float32", "threads": 1}
    records = [
        Record("peak_memory_bytes", value, "bytes", {"way": way, "T": time, **settings})
        for way, points in curves.items()
        for time, value in points
    ]
    step, inference = dict(curves["step"]), dict(curves["inference"])
    records.append(Record("t10000_over_t100", step[10_000] / step[100], "ratio", settings))
    for size in sizes:
        for dtype in ("float32", "bfloat16"):
            found = {way: peaks[way, size, dtype, 100] for way in ("step", "inference")}
            place = {**settings, "hidden": size, "dtype": dtype, "T": 100}
            records.append(Record("step_over_inference", found["step"] / found["inference"], "ratio", place))
    long = {**settings, "T": 10_000}
    records.append(Record("step_over_inference", step[10_000] / inference[10_000], "ratio", long))
    first, last = curves["bptt"][0], curves["bptt"][-1]
    growth = {**settings, "T": last[0], "over_T": first[0]}
    records.append(Record("bptt_growth", last[1] / first[1], "ratio", growth))
    shortest, longest = 1000, 100_000 if arguments.quick else 1_000_000
    ratio = peak("long", longest) / peak("long", shortest)
    place = {"hidden": LONG_HIDDEN, "rows": LONG_ROWS, "time_chunk": LONG_CHUNK, "dtype": "float32"}
    place |= {"T": longest, "over_T": shortest, "threads": 1}
    records.append(Record("memory_million_over_thousand", ratio, "ratio", place))
    report("Peak memory against context length", records, arguments, lambda axes: draw(axes, curves, hidden))


if __name__ == "__main__":
    main()
