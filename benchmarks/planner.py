"""The planner's memory figures against measured peaks, over cells, estimators, sizes and lengths.

`ratio`: predicted over measured bytes of two training steps. Each is measured in a process of its own: its
peak above what it held before it built the model (interpreter, torch, its warmed-up libraries), with a heap
that gives back what is freed. `within`: the share of the configurations whose ratio is at most 15 % off.
With `--measured PATH` the measured peaks are kept there, and read from there instead of measured again.
"""

import argparse
import json
import os
import subprocess
import sys
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

import zorn
from zorn.config import BudgetConfig, Config, change, resolve
from zorn.plan.step import Step, step_memory

ALLOWED = 0.15
CELLS = {"lstm": "tab:blue", "gru": "tab:orange", "min-gru": "tab:green", "dnc": "tab:red"}
Settings = dict[str, Any]

RANK_ONE = {"estimator": "cd-rge", "population": 64, "group_size": 1}
DENSE = {"estimator": "cd-rge", "population": 1, "group_size": None, "perturbation": "dense"}
ACTIVITY = {"estimator": "activity", "draws": 2}
FULL_ACTIVITY = {"estimator": "activity", "draws": 1, "exact_output": False}
BPTT, TBPTT = {"estimator": "bptt"}, {"estimator": "tbptt", "truncation": 16}
E_PROP = {"estimator": "e-prop"}
BRIDGE = {"estimator": "bridge", "truncation": 16}


def case(
    cell: str, estimator: Settings, hidden: int, steps: int, rows: int, vocabulary: int = 256, **more: Any
) -> Settings:
    """One configuration; `rows` is the micro-batch, and the batch 64 sequences unless given."""
    return {
        "cell": cell,
        "hidden_size": hidden,
        "T": steps,
        "micro_batch": rows,
        "vocabulary": vocabulary,
        "batch": 64,
        "optimizer": "adam",
        **estimator,
        **more,
    }


QUICK = [
    case("lstm", RANK_ONE, 1024, 64, 128, time_chunk=32, optimizer="fused-sgd"),
    case("gru", ACTIVITY, 512, 64, 96, time_chunk=32),
    case("min-gru", BPTT, 512, 64, 64),
    case("dnc", TBPTT, 512, 64, 64),
]
GRID = [
    *QUICK,
    case("lstm", RANK_ONE, 512, 128, 128, 2000, time_chunk=64),
    case("lstm", RANK_ONE, 2048, 16, 16, optimizer="fused-sgd", dtype="bfloat16"),
    case("gru", RANK_ONE, 1024, 64, 64),
    case("min-gru", RANK_ONE, 1024, 256, 128, time_chunk=128),
    case("dnc", RANK_ONE, 1024, 64, 128, memory_slots=64),
    case("lstm", DENSE, 1024, 64, 64, optimizer="fused-sgd"),
    case("gru", DENSE, 1536, 32, 32),
    case("min-gru", DENSE, 1024, 128, 64, 1000),
    case("dnc", DENSE, 1024, 32, 64, optimizer="sgd"),
    case("lstm", ACTIVITY, 1024, 64, 192, time_chunk=32),
    case("lstm", FULL_ACTIVITY, 512, 64, 128, 1000),
    case("min-gru", ACTIVITY, 1024, 128, 96, optimizer="fused-sgd"),
    case("dnc", ACTIVITY, 512, 64, 96, 2000),
    case("lstm", BPTT, 512, 64, 32, batch=32),
    case("lstm", BPTT, 256, 32, 32, 4000, optimizer="adamw"),
    case("gru", BPTT, 768, 16, 32, batch=32, num_layers=2),
    case("dnc", BPTT, 256, 32, 64, memory_slots=32),
    case("lstm", TBPTT, 768, 32, 32, batch=32),
    case("gru", TBPTT, 512, 32, 32, 2000, optimizer="sgd"),
    case("min-gru", TBPTT, 1024, 32, 32, batch=32),
    case("lstm", E_PROP, 512, 32, 32, batch=32, num_layers=2),
    case("gru", E_PROP, 768, 32, 32, batch=32, norm="layer"),
    case("min-gru", E_PROP, 512, 32, 64, norm="rms", num_layers=2, residual=True),
    case("lstm", BRIDGE, 768, 32, 32, batch=32),
    case("gru", BRIDGE, 512, 32, 32, 2000),
    case("min-gru", BRIDGE, 768, 32, 32, separate=False),
    case("dnc", BRIDGE, 512, 32, 32, batch=32),
    case("lstm", RANK_ONE, 256, 64, 128, 50_000, time_chunk=32, optimizer="fused-sgd"),
    case("gru", DENSE, 128, 64, 64, 50_000, optimizer="fused-sgd"),
    case("min-gru", RANK_ONE, 128, 64, 64, 50_000, optimizer="fused-sgd", dtype="bfloat16"),
    case("lstm", BPTT, 128, 16, 8, 50_000, batch=16),
]


def configuration(settings: Settings) -> Config:
    """The settings of a run, with everything chosen that they leave open."""
    named = {name: value for name, value in settings.items() if name not in ("T", "vocabulary")}
    return resolve(change(Config(budget=BudgetConfig(steps=1)), **named))[0]


def predicted(settings: Settings) -> int:
    """Bytes at the peak of a step, by the planner."""
    return step_memory(configuration(settings), settings["vocabulary"], settings["T"]).peak


def train(settings: Settings, steps: int | None = None) -> None:
    """Some steps on random tokens, by default to the second with credit (where every one has: the second),
    which has the gradient and the moments of those before."""
    config = configuration(settings)
    every: int = config.estimator.get("credit_every") or 1
    steps = 1 + every if steps is None else steps
    shape = config.task.batch, settings["T"] + 1
    tokens = torch.randint(0, settings["vocabulary"], shape, generator=torch.Generator().manual_seed(0))
    batch = zorn.Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    step = Step.build(config, settings["vocabulary"], batch)
    restart_peak()  # with the model built
    for _ in range(steps):
        step()


def child(settings: Settings) -> None:
    """Print the peak of the steps above what was held before the model was built."""
    torch.set_num_threads(1)
    small = {"hidden_size": 16, "T": 18, "micro_batch": 8, "vocabulary": 30, "batch": 4}
    members = {"population": 4} if "population" in settings else {}
    train({**settings, **small, **members}, steps=1)  # loads libraries, makes their buffers
    before = process_bytes("VmRSS")
    train(settings)
    print(json.dumps(process_bytes("VmHWM") - before))


def measured(settings: Settings) -> int:
    """Bytes at the peak, from a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps(settings)]
    environment = os.environ | RETURN_FREED_MEMORY
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


def kept(path: Path | None) -> dict[str, int]:
    """Measured peaks by configuration, from a file of `--measured`; a line of JSON each."""
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    return {_key(settings): peak for settings, peak in map(json.loads, lines)}


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def draw(axes: Axes, found: list[tuple[Settings, int, int]]) -> None:
    """Predicted against measured, a point a configuration, with the band of 15 %."""
    for cell, colour in CELLS.items():
        points = [(peak, guess) for settings, guess, peak in found if settings["cell"] == cell]
        if points:
            axes.loglog(
                *([value / 2**20 for value in axis] for axis in zip(*points, strict=True)),
                "o",
                color=colour,
                label=cell,
            )
    ends = [min(peak for *_, peak in found) / 2**20, max(peak for *_, peak in found) / 2**20]
    axes.plot(ends, ends, color="0.5")
    axes.fill_between(
        ends, [end * (1 - ALLOWED) for end in ends], [end * (1 + ALLOWED) for end in ends], color="0.9"
    )
    axes.set_xlabel("measured peak (MiB)")
    axes.set_ylabel("predicted peak (MiB)")
    axes.legend()


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
        return
    parser = argument_parser("planner", __doc__)
    parser.add_argument("--measured", type=Path, metavar="PATH", help="keep the measured peaks there")
    arguments: argparse.Namespace = parser.parse_args()
    found, known = [], kept(arguments.measured)
    for settings in QUICK if arguments.quick else GRID:
        peak = known.get(_key(settings)) or measured(settings)
        if arguments.measured is not None and _key(settings) not in known:
            with arguments.measured.open("a") as file:
                print(json.dumps([settings, peak]), file=file, flush=True)
        found.append((settings, predicted(settings), peak))
    records = []
    for settings, guess, peak in found:
        records.append(Record("predicted_bytes", guess, "bytes", settings))
        records.append(Record("measured_bytes", peak, "bytes", settings))
        records.append(Record("ratio", guess / peak, "ratio", settings))
    close = sum(abs(guess / peak - 1) <= ALLOWED for _, guess, peak in found)
    counted = {"configurations": len(found), "allowed": ALLOWED}
    records.append(Record("within", close / len(found), "ratio", counted))
    report("Planned against measured peak memory", records, arguments, lambda axes: draw(axes, found))


if __name__ == "__main__":
    main()
