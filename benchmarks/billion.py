"""A recurrent network of 1.16 billion weights trained in the memory of inference, on one machine.

The LSTM of the paper (arXiv 2505.17852): 350 heads of 850 units, input and vocabulary 100, bfloat16. As
counted there, its input is one-hot and its biases are not trained: 1,160,250,000 parameters. It learns one
batch of copy by rank-one CD-RGE with the fused update. `peak_over_weights` is the peak of a training process
above what it held before it built the model, over the bytes of the weights; a second process goes on from the
checkpoint half way, and `resume_difference` is the largest difference of its losses from those of the first.
Beside it what BPTT with AdamW would take by the planner (`bptt_planned_over_weights`), at the same context
and at a longer one, and an attempt of it at the longer one in a process whose memory is limited.

    python benchmarks/billion.py [--quick] [--steps 20] [--json PATH] [--picture PATH] [--page PATH]
"""

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import (
    RETURN_FREED_MEMORY,
    Record,
    argument_parser,
    environment,
    process_bytes,
    report,
    restart_peak,
)
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

import zorn
from zorn.config import BudgetConfig, Choice, Config, RunConfig, resolve
from zorn.estimators import SHAPINGS
from zorn.models import parameter_count
from zorn.plan import step_memory
from zorn.run.checkpoint import Progress, latest_checkpoint, load_checkpoint, save_checkpoint
from zorn.training.limits import out_of_memory

INPUT = 100  # and vocabulary
HEADS, HEAD_SIZE = 350, 850
QUICK_HEADS, QUICK_HEAD_SIZE = 8, 256
SEQUENCES, LETTERS, MEMBERS = 8, 5, 16
LONG_CONTEXT = 10_001
EPSILON, LEARNING_RATE = 0.01, 0.03  # of coefficients over their deviation: a step of 0.2 ε along each member
MICRO_BATCH, TIME_CHUNK = 16, 4
OBJECTIVE = zorn.TokenCrossEntropy()


def build(heads: int, head_size: int) -> zorn.LanguageModel:
    """The model, its inputs one-hot and its biases held."""
    model = zorn.LanguageModel(
        INPUT, heads * head_size, embedding_size=INPUT, num_heads=heads, dtype=torch.bfloat16
    )
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(INPUT))
    for parameter in model.parameters():
        if parameter.dim() == 1 or parameter is model.embedding.weight:
            parameter.requires_grad_(False)
    return model


def copy_batch(letters: int) -> zorn.Batch:
    """One batch of the copy task; its context is 2 · letters + 1 tokens."""
    task = zorn.tasks.CopyTask(batch=SEQUENCES, minimum_length=letters, maximum_length=letters, seed=0)
    return task.training_batch(0)


def train(heads: int, head_size: int, steps: int, folder: Path, *, resume: bool) -> dict[str, Any]:
    """Train for `steps` steps and save half way; or go on from there."""
    before = process_bytes("VmRSS")
    model = build(heads, head_size)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    estimator = zorn.CDRGE(
        population=MEMBERS,
        epsilon=EPSILON,
        group_size=1,
        micro_batch=MICRO_BATCH,
        time_chunk=TIME_CHUNK,
        shaping=SHAPINGS["std"],
    )
    first = 0
    if resume:
        progress = load_checkpoint(latest_checkpoint(folder), model)
        estimator.load_state_dict(dict(progress.estimator))
        first = progress.step
    batch, update = copy_batch(LETTERS), zorn.estimators.FusedSGD(learning_rate=LEARNING_RATE)
    losses, seconds = [], []
    for step in range(first, steps):
        start = time.perf_counter()
        losses.append(estimator.estimate(model, batch, OBJECTIVE, update=update).loss)
        seconds.append(time.perf_counter() - start)
        print(f"step {step}: loss {losses[-1]:.4f}, {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
        if not resume and step + 1 == steps // 2:
            progress = Progress(
                step=step + 1,
                seconds=sum(seconds),
                forward_passes=0,
                dropped=0,
                seed=0,
                estimator=estimator.state_dict(),
            )
            save_checkpoint(folder, progress, model, [])
    return {
        "parameters": parameter_count(model),
        "weights": weights,
        "peak": process_bytes("VmHWM") - before,
        "losses": losses,
        "seconds": seconds,
    }


def backpropagate(heads: int, head_size: int, letters: int) -> dict[str, Any]:
    """One step of BPTT with AdamW on a batch of a context of 2 · letters + 1 tokens: its peak, and why it
    stopped, if it did."""
    before = process_bytes("VmRSS")
    model = build(heads, head_size)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stopped = ""
    try:
        zorn.BPTT().estimate(model, copy_batch(letters), OBJECTIVE)
        torch.optim.AdamW(trained, lr=1e-4).step()
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error) is None:
            raise
        stopped = str(error).splitlines()[0]
    return {"weights": weights, "peak": process_bytes("VmHWM") - before, "stopped": stopped}


def planned(heads: int, head_size: int, steps: int) -> float:
    """Memory of a step of BPTT with AdamW on a context of `steps` tokens, by the planner, over weights."""
    model = Choice("lstm", hidden_size=heads * head_size, embedding_size=INPUT, num_heads=heads)
    asked = Config(
        task=Choice("copy", batch=SEQUENCES),
        model=model,
        estimator=Choice("bptt"),
        optimizer=Choice("adamw", learning_rate=1e-4),
        budget=BudgetConfig(steps=1),
        run=RunConfig(dtype="bfloat16"),
    )
    memory = step_memory(resolve(asked)[0], INPUT, steps)
    return memory.peak / memory.weights


def child(arguments: dict[str, Any]) -> None:
    """Do one piece of work in this process and print what came out."""
    torch.set_num_threads(arguments["threads"])
    zorn.LanguageModel(INPUT, 16, dtype=torch.bfloat16)(
        torch.zeros(1, 1, dtype=torch.int64)
    )  # load libraries
    size = arguments["heads"], arguments["head_size"]
    restart_peak()
    if arguments["way"] == "bptt":
        limit = arguments["limit"]
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # of memory of its own, not of libraries
        found = backpropagate(*size, arguments["letters"])
    else:
        folder = Path(arguments["folder"])
        found = train(*size, arguments["steps"], folder, resume=arguments["way"] == "resume")
    print(json.dumps(found))


def apart(way: str, options: dict[str, Any]) -> dict[str, Any]:
    """What a piece of work gives in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps(options | {"way": way})]
    environment_ = os.environ | RETURN_FREED_MEMORY
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment_)
    return json.loads(done.stdout)


def measure(arguments: argparse.Namespace) -> list[Record]:
    """All records, of the large model or of a small one."""
    heads, head_size = (QUICK_HEADS, QUICK_HEAD_SIZE) if arguments.quick else (HEADS, HEAD_SIZE)
    options: dict[str, Any] = {
        "heads": heads,
        "head_size": head_size,
        "steps": arguments.steps,
        "threads": arguments.threads,
        "letters": LONG_CONTEXT // 2,
        "limit": int(arguments.bptt_limit * 2**30) if not arguments.quick else 2**30,
    }
    folder = Path(tempfile.mkdtemp(dir=arguments.scratch))
    try:
        whole = apart("train", options | {"folder": str(folder)})
        rest = apart("resume", options | {"folder": str(folder)})
    finally:
        shutil.rmtree(folder)
    bptt = apart("bptt", options)
    size = {"heads": heads, "head_size": head_size, "vocabulary": INPUT, "dtype": "bfloat16"}
    place = {**size, "T": 2 * LETTERS + 1, "sequences": SEQUENCES, "members": MEMBERS}
    place |= {"epsilon": EPSILON, "learning_rate": LEARNING_RATE, "threads": arguments.threads}
    long = {**size, "T": LONG_CONTEXT, "sequences": SEQUENCES, "limit": options["limit"]}
    losses = whole["losses"]
    difference = max(
        abs(one - other) for one, other in zip(losses[arguments.steps // 2 :], rest["losses"], strict=True)
    )
    per_step = sorted(whole["seconds"])[len(whole["seconds"]) // 2]
    records = [
        Record("parameters", whole["parameters"], "weights", size),
        Record("loss_first", losses[0], "nats", place),
        Record("loss_last", losses[-1], "nats", {**place, "step": len(losses) - 1}),
        Record("seconds_per_step", per_step, "s", place),
        Record("peak_over_weights", whole["peak"] / whole["weights"], "ratio", place),
        Record("resume_peak_over_weights", rest["peak"] / rest["weights"], "ratio", place),
        Record("resume_difference", difference, "nats", place),
        *(
            Record(
                "bptt_planned_over_weights", planned(heads, head_size, steps), "ratio", {**long, "T": steps}
            )
            for steps in (2 * LETTERS + 1, LONG_CONTEXT)
        ),
        Record("bptt_peak_over_weights", bptt["peak"] / bptt["weights"], "ratio", long),
        Record("bptt_fits", float(not bptt["stopped"]), "0 or 1", {**long, "stopped": bptt["stopped"]}),
    ]
    return records + [
        Record("loss", loss, "nats", {**place, "step": step}) for step, loss in enumerate(losses)
    ]


def draw(axes: Axes, memory: Axes, records: list[Record]) -> None:
    """The loss over steps, and the peaks beside the weights."""
    points = [(record.settings["step"], record.value) for record in records if record.name == "loss"]
    axes.plot(*zip(*points, strict=True), "o-", color="tab:blue")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss (nats) on one batch of copy")
    value = {record.name: record for record in records}
    bars = {
        "zero-order\ntraining": value["peak_over_weights"].value,
        "resumed": value["resume_peak_over_weights"].value,
        "BPTT + AdamW": value["bptt_peak_over_weights"].value,
    }
    drawn = memory.bar(list(bars), list(bars.values()), color=["tab:blue", "tab:blue", "tab:red"])
    stopped = not value["bptt_fits"].value
    labels = [f"{height:.2f}" for height in bars.values()]
    labels[-1] += "\n(stopped here)" if stopped else ""
    memory.bar_label(drawn, labels)
    memory.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    memory.set_ylim(0, 1.2 * max(bars.values()))
    memory.set_ylabel("peak memory over the weights")


def page(records: list[Record], picture: str) -> str:
    """The page of documentation with the figures and the picture."""
    value = {record.name: record for record in records if record.name != "loss"}
    settings = value["loss_first"].settings
    stopped = value["bptt_fits"].settings["stopped"] or "it fits"
    lines = [
        f"| {record.name} | {record.value:,.4g} | {record.unit} | {record.settings.get('T', '')} |"
        for record in records
        if record.name != "loss"
    ]
    lines[0] = f"| parameters | {value['parameters'].value:,.0f} | weights | |"
    machine = ", ".join(f"{name} {found}" for name, found in environment().items())
    return "\n".join(
        [
            "# A billion parameters on one machine",
            "",
            "Made by `python benchmarks/billion.py`. " + " ".join((__doc__ or "").split("\n\n")[1].split()),
            "",
            "| record | value | unit | T |",
            "|---|--:|---|--:|",
            *lines,
            "",
            f"Settings: {', '.join(f'{name} {found}' for name, found in settings.items())}.",
            "",
            f"BPTT with AdamW at T = {value['bptt_fits'].settings['T']:,}, limited to "
            f"{int(str(value['bptt_fits'].settings['limit'])) / 2**30:.0f} GiB: {stopped}.",
            "",
            f"![Loss over steps, and peak memory over the weights]({picture})",
            "",
            f"Machine: {machine}.",
            "",
        ]
    )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
        return
    parser = argument_parser("billion", __doc__)
    parser.add_argument("--steps", type=int, default=20, help="at least 2; a checkpoint is written half way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=None, help="where the checkpoint goes for a while")
    parser.add_argument("--bptt-limit", type=float, default=12.0, help="GiB that BPTT may take")
    parser.add_argument("--page", type=Path, help="write the page of documentation there")
    arguments = parser.parse_args()
    records = measure(arguments)
    assert all(math.isfinite(record.value) for record in records)
    report(
        "An LSTM of 1.16 billion weights" if not arguments.quick else "The same on a small LSTM",
        records,
        arguments,
        lambda axes, memory: draw(axes, memory, records),
        panels=(1, 2),
    )
    if arguments.page is not None:
        arguments.page.write_text(page(records, os.path.relpath(arguments.picture, arguments.page.parent)))


if __name__ == "__main__":
    main()
