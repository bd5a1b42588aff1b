"""The paper's sizes, 100 thousand to 4.5 billion parameters: seconds and memory of a step by each method.

An LSTM on copy at a batch of 1,024 sequences of ten letters, as in arXiv 2505.17852. A step of the paper has
96 or 512 members, each evaluated twice on the whole batch. What is measured is a step of two such members,
or of as many forward passes with a member for each sequence (rank-one); its seconds are in proportion to the
members, and `seconds_per_step` is that of 96 and of 512 by this proportion. BPTT is one exact step.

`forward_seconds`: the recurrent layer alone, on the rows of one micro-batch, without gradients: as it is,
under rank-one members (`perturbed_over_unperturbed` is the ratio of their speeds), by FlashRNN where it is
installed, and torch.nn.LSTM where there is one head. What does not fit in memory by the planner is left out,
and that is told.

    python benchmarks/paper_sizes.py [--quick] [--device cuda] [--dtype bfloat16] [--rows 8192]
        [--sizes 100k 1B …] [--json PATH] [--picture PATH]
"""

import argparse
import dataclasses
import gc
import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from harness import Record, argument_parser, process_bytes, report, restart_peak
from matplotlib.axes import Axes
from torch import nn

import zorn
from zorn.config import BudgetConfig, Choice, Config, RunConfig, resolve
from zorn.errors import ConfigError
from zorn.kernels.flashrnn import use_flashrnn
from zorn.models import LSTMCell, run
from zorn.noise import Draw
from zorn.plan import available_bytes, largest_micro_batch, show_bytes, step_memory
from zorn.training.limits import out_of_memory

INPUT = 100  # and vocabulary
SIZES = {  # heads and units of a head; that of 1B is the paper's, the others have as many parameters as its
    "100k": (1, 116),
    "1M": (1, 450),
    "10M": (1, 1530),
    "100M": (30, 850),
    "1B": (350, 850),
    "4.5B": (1350, 850),
}
QUICK_SIZES = {"10k": (1, 24), "20k": (4, 24)}
MEMBERS, MEASURED = (96, 512), 2
METHODS = {"rank-one": "cd-rge", "dense": "cd-rge", "bptt": "bptt"}
EPSILON, LEARNING_RATE = 0.01, 0.01


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where one model is measured."""

    size: str
    heads: int
    head_size: int
    sequences: int
    letters: int
    rows: int
    dtype: str
    device: str
    rounds: int

    @property
    def steps(self) -> int:
        """T, tokens of a sequence of copy."""
        return 2 * self.letters + 1

    def settings(self, **more: object) -> dict[str, object]:
        """Of a record."""
        names = ("size", "heads", "head_size", "dtype", "device", "rounds")
        return {name: getattr(self, name) for name in names} | {"T": self.steps} | more

    def configuration(self, method: str) -> Config:
        """The measured step of a method, as the planner takes it."""
        estimator = Choice(METHODS[method], micro_batch=self.rows)
        if method != "bptt":
            wide = method == "rank-one"
            estimator = estimator.but(
                perturbation=method,
                population=MEASURED * (self.sequences if wide else 1),
                group_size=1 if wide else self.sequences,
            )
        task = Choice("copy", batch=self.sequences, minimum_length=self.letters, maximum_length=self.letters)
        model = Choice(
            "lstm", hidden_size=self.heads * self.head_size, num_heads=self.heads, embedding_size=INPUT
        )
        asked = Config(
            task=task,
            model=model,
            estimator=estimator,
            optimizer=Choice("fused-sgd", learning_rate=LEARNING_RATE),
            budget=BudgetConfig(steps=1),
            run=RunConfig(device=self.device, dtype=self.dtype),  # type: ignore[arg-type]
        )
        return resolve(asked)[0]

    def model(self) -> zorn.LanguageModel:
        """The model on its device."""
        return zorn.LanguageModel(
            INPUT,
            self.heads * self.head_size,
            embedding_size=INPUT,
            num_heads=self.heads,
            dtype=self.dtype_,
            device=self.device,
        )

    @property
    def dtype_(self) -> torch.dtype:
        """Of the weights."""
        return getattr(torch, self.dtype)


def seconds_of(function: Callable[[], object], device: str) -> float:
    """Seconds of a call: between two events of a GPU, or of this process's CPU."""
    if torch.device(device).type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    before = time.process_time()
    function()
    return time.process_time() - before


class Peak:
    """Bytes at the peak since it was made: of a GPU's tensors, or of this process."""

    def __init__(self, device: str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            restart_peak()

    def bytes(self) -> int:
        """The peak until now."""
        return torch.cuda.max_memory_allocated() if self._cuda else process_bytes("VmHWM")


def step_of(
    method: str, setting: Setting, model: zorn.LanguageModel, micro_batch: int
) -> Callable[[], object]:
    """One step on a batch of copy."""
    task = zorn.tasks.CopyTask(
        batch=setting.sequences, minimum_length=setting.letters, maximum_length=setting.letters, seed=0
    )
    batch = task.training_batch(0)
    batch = zorn.Batch(*(tensor.to(setting.device) for tensor in batch))
    objective, update = zorn.TokenCrossEntropy(), zorn.estimators.FusedSGD(learning_rate=LEARNING_RATE)
    if method == "bptt":
        exact = zorn.BPTT()
        return lambda: exact.estimate(model, batch, objective, update)
    chosen = setting.configuration(method).estimator
    estimator = zorn.CDRGE(
        population=chosen.population,
        epsilon=EPSILON,
        group_size=chosen.group_size,
        perturbation=zorn.RankOne() if method == "rank-one" else zorn.Dense(),
        micro_batch=micro_batch,
    )
    return lambda: estimator.estimate(model, batch, objective, update)


def too_large(setting: Setting, method: str) -> tuple[int, str]:
    """The micro-batch that a method runs with, and why it does not run at all, if so."""
    config = setting.configuration(method)
    free = available_bytes(setting.device)
    rows = setting.sequences if method == "bptt" else largest_micro_batch(config, INPUT, setting.steps, free)
    needed = step_memory(config, INPUT, setting.steps).peak
    if rows is None or (method == "bptt" and needed > free):
        return 0, f"needs {show_bytes(needed)} by the planner, and {show_bytes(free)} are free"
    return min(rows, setting.rows), ""


def measure_step(setting: Setting, method: str) -> list[Record]:
    """Seconds and memory of a method's step; NaN and the reason where it does not run."""
    micro_batch, reason = too_large(setting, method)
    seconds: list[float] = []
    peak = math.nan
    if not reason:
        try:
            memory = Peak(setting.device)
            step = step_of(method, setting, setting.model(), micro_batch)
            step()  # compiles kernels, fills caches
            seconds = [seconds_of(step, setting.device) for _ in range(setting.rounds)]
            peak = memory.bytes()
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error) is None:
                raise
            reason = f"out of memory: {str(error).splitlines()[0]}"
    if reason:
        print(f"{setting.size}, {method}: left out, {reason}", flush=True)
    place = setting.settings(
        method=method, sequences=setting.sequences, micro_batch=micro_batch, left_out=reason
    )
    once = median(seconds) if seconds else math.nan
    records = [Record("peak_memory_bytes", peak, "bytes", place)]
    if method == "bptt":
        return [Record("seconds_per_step", once, "s", place), *records]
    return [
        *(
            Record(
                "seconds_per_step", once * n / MEASURED, "s", {**place, "members": n, "measured": MEASURED}
            )
            for n in MEMBERS
        ),
        *records,
    ]


def forwards(setting: Setting, rows: int) -> tuple[dict[str, Callable[[], object]], str]:
    """The passes of the recurrent layer, and why FlashRNN's is not among them."""
    hidden = setting.heads * setting.head_size
    cell = LSTMCell(INPUT, hidden, setting.heads).to(setting.device, setting.dtype_)
    x = torch.randn(setting.steps, rows, INPUT, device=setting.device).to(setting.dtype_)
    bound, draw = zorn.RankOne().bind(cell), Draw(seed=0, step=0, epsilon=EPSILON)

    @torch.inference_mode()
    def unperturbed() -> object:
        return run(cell, x, cell.initial_state(rows))

    @torch.inference_mode()
    def perturbed() -> object:
        with bound.members(draw, range(rows // 2), (1, -1), group=1):
            return run(cell, x, cell.initial_state(rows))

    found: dict[str, Callable[[], object]] = {"unperturbed": unperturbed, "perturbed": perturbed}
    if setting.heads == 1:
        reference = nn.LSTM(INPUT, hidden).to(setting.device, setting.dtype_)
        found["nn.LSTM"] = torch.inference_mode()(lambda: reference(x))
    try:
        use_flashrnn(cell)
    except ConfigError as error:
        return found, str(error)
    use_flashrnn(cell, None)

    @torch.inference_mode()
    def flash() -> object:
        use_flashrnn(cell)
        try:
            return run(cell, x, cell.initial_state(rows))
        finally:
            use_flashrnn(cell, None)

    return found | {"FlashRNN": flash}, ""


def measure_forward(setting: Setting) -> list[Record]:
    """Seconds of the layer's forward passes, taking turns, and the ratios of their speeds."""
    rows, reason = too_large(setting, "rank-one")
    rows -= rows % 2
    if rows < 2:
        print(f"{setting.size}, forward: left out, {reason}", flush=True)
        return []
    functions, missing = forwards(setting, rows)
    if missing:
        print(f"{setting.size}, FlashRNN: left out, {missing}", flush=True)
    for function in functions.values():
        function()
    rounds = [
        {name: seconds_of(function, setting.device) for name, function in functions.items()}
        for _ in range(setting.rounds)
    ]
    place = setting.settings(rows=rows)
    records = [
        Record("forward_seconds", median(one[name] for one in rounds), "s", {**place, "pass": name})
        for name in functions
    ]
    for name in functions.keys() - {"perturbed"}:
        ratio = median(one[name] / max(one["perturbed"], 1e-9) for one in rounds)
        title = "perturbed_over_" + {"nn.LSTM": "nn_lstm", "FlashRNN": "flashrnn"}.get(name, name)
        records.append(Record(title, ratio, "ratio", place))
    return records


def settings_of(arguments: argparse.Namespace) -> list[Setting]:
    """The models to measure, from small to large."""
    quick = arguments.quick
    sizes = QUICK_SIZES if quick else {name: SIZES[name] for name in arguments.sizes}
    return [
        Setting(
            size=name,
            heads=heads,
            head_size=head_size,
            sequences=8 if quick else 1024,
            letters=2 if quick else 10,
            rows=16 if quick else arguments.rows,
            dtype=arguments.dtype,
            device=arguments.device,
            rounds=2 if quick else arguments.rounds,
        )
        for name, (heads, head_size) in sizes.items()
    ]


def draw_records(seconds: Axes, memory: Axes, records: list[Record]) -> None:
    """Seconds of a step with 96 members, and its peak memory, by size."""
    names = list(dict.fromkeys(str(record.settings["size"]) for record in records))
    for axes, name, label, unit in (
        (seconds, "seconds_per_step", "seconds per step (96 members)", 1.0),
        (memory, "peak_memory_bytes", "peak memory (GiB)", 2.0**30),
    ):
        for method in METHODS:
            found: dict[Any, float] = {
                r.settings["size"]: r.value / unit
                for r in records
                if r.name == name
                and r.settings["method"] == method
                and r.settings.get("members", MEMBERS[0]) == MEMBERS[0]
            }
            axes.plot(range(len(names)), [found.get(one, math.nan) for one in names], "o-", label=method)
        axes.set_xticks(range(len(names)), names)
        axes.set_yscale("log")
        axes.set_xlabel("parameters")
        axes.set_ylabel(label)
        axes.legend()


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argument_parser("paper_sizes", __doc__)
    parser.add_argument("--device", default=device)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rows", type=int, default=8192, help="of one forward pass, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    records: list[Record] = []
    for setting in settings_of(arguments):
        for method in METHODS:
            records += measure_step(setting, method)
        records += measure_forward(setting)
    report(
        "Steps at the paper's sizes",
        records,
        arguments,
        lambda seconds, memory: draw_records(seconds, memory, records),
        panels=(1, 2),
    )


if __name__ == "__main__":
    main()
