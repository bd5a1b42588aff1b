"""Quality of every estimator: cosine to the gradient and SNR, at about the same number of forward passes.

    python benchmarks/estimators.py [--cells lstm dnc] [--times 16 64] [--estimators activity-1 bridge-4]

`cosine`: of one estimate to BPTT's gradient of the same batch. `snr`: cosine of two independent estimates.
`cosine_per_second`: the cosine over the processor seconds of one estimate. Each is the mean over batches of
the built-in text, with its standard error, at initialisation and after a short training by BPTT. A backward
pass counts as two forward passes; TBPTT has no noise that more passes would lower, and takes what it needs.
With `--json PATH` the records join those of earlier runs in that file, and a page is written beside it.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import Record, argument_parser, report, torch_threads
from matplotlib.axes import Axes
from tables import Lines, write_page

import zorn
from zorn.diagnostics import Signal, measure_signal
from zorn.estimators import BPTT, CDRGE, FDRGE, SPSA15, TBPTT, ActivityCredit
from zorn.estimators.bridge import Bridge
from zorn.models import LanguageModel
from zorn.tasks import TextTask
from zorn.tasks.text import PYTHON_DOCS

BATCH = 16
CELLS = ("lstm", "gru", "min-gru", "dnc")
WEIGHT_EPSILON, STATE_EPSILON = 0.003, 0.01
"""On the plateau of all cells: `zorn.diagnostics.find_epsilon`."""
COLOURS = {
    "cd": "tab:blue",
    "fd": "tab:cyan",
    "spsa": "navy",
    "activity": "tab:orange",
    "bridge": "tab:green",
}


HEAD = f"""# How good the estimates are

Made by `python benchmarks/estimators.py` from `estimators.json`: change the runs, not this page. Each cell:
cosine of one estimate to BPTT's gradient ± its standard error over batches of {BATCH} sequences of the
built-in text, SNR (cosine of two independent estimates), and cosine per processor second. A backward pass
counts as two forward passes. TBPTT has a bias and no noise; activity-0.8 a bias and less noise."""


@dataclass(frozen=True)
class Sizes:
    """What is measured: `passes` a zero-order estimate at most, and how often."""

    hidden: int = 64
    passes: int = 512
    batches: int = 4
    estimates: int = 4
    training_steps: int = 200
    training_time: int = 64


QUICK = Sizes(hidden=8, passes=112, batches=2, training_steps=5, training_time=8)


def estimators(passes: int) -> dict[str, Callable[[], Any]]:
    """All estimators by name, each with as many members or draws as `passes` forward passes allow."""
    weights: dict[str, Any] = {"epsilon": WEIGHT_EPSILON, "group_size": 1}
    state: dict[str, Any] = {"epsilon": STATE_EPSILON}

    def whole(members: int) -> int:
        return max(1, members // BATCH) * BATCH  # all sequences equally often

    sequences = passes // BATCH
    found: dict[str, Callable[[], Any]] = {
        "cd-rge": lambda: CDRGE(population=whole(passes // 2), **weights),
        "cd-rge-dense": lambda: CDRGE(
            population=sequences // 2, epsilon=WEIGHT_EPSILON, perturbation=zorn.Dense(), group_size=None
        ),
        "fd-rge": lambda: FDRGE(population=whole(passes - BATCH), **weights),
        "spsa-1.5": lambda: SPSA15(population=whole((passes - BATCH) // 2), **weights),
    }
    for discount in (1.0, 0.8):
        for exact in (True, False):
            name = f"activity-{discount:g}" + ("" if exact else "-noisy-output")
            draws = sequences - 3 if exact else (sequences - 1) // 2  # D + 2, 1 for sizes; or 2 D + 1
            options = {"discount": discount, "exact_output": exact, "draws": draws, **state}
            found[name] = lambda options=options: ActivityCredit(**options)
    for k in (1, 4, 8):
        options = {"truncation": k, "draws": (sequences - 3) // 2, "separate": False, **state}
        found[f"bridge-{k}"] = lambda options=options: Bridge(**options)
    for k in (1, 8):
        found[f"tbptt-{k}"] = lambda k=k: TBPTT(truncation=k)
    return found


def text(time: int, batch: int, *, seed: int) -> TextTask:
    """Windows of the built-in text."""
    return TextTask(source=PYTHON_DOCS, tokenizer="alphabet", batch=batch, length=time, seed=seed)


def model_of(cell: str, vocabulary: int, sizes: Sizes) -> LanguageModel:
    """A fresh model."""
    return LanguageModel(vocabulary, sizes.hidden, cell=cell, seed=0)


def train(model: LanguageModel, sizes: Sizes) -> None:
    """A few steps of BPTT and Adam on the text."""
    task = text(sizes.training_time, 32, seed=1)
    estimator, optimizer = BPTT(), torch.optim.Adam(model.parameters(), lr=0.005)
    for step in range(sizes.training_steps):
        estimator.estimate(model, task.training_batch(step), task.objective)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def measure(
    cells: Sequence[str], times: Sequence[int], names: Sequence[str], sizes: Sizes
) -> Iterator[Record]:
    """The three records of each cell, training, length and estimator."""
    made = estimators(sizes.passes)
    for cell in cells:
        for trained in (False, True):
            model = model_of(cell, text(times[0], BATCH, seed=0).vocabulary, sizes)
            if trained:
                train(model, sizes)
            for time in times:
                task = text(time, BATCH, seed=2)
                batches = [task.training_batch(step) for step in range(sizes.batches)]
                for name in names:
                    signals = [
                        measure_signal(model, batch, task.objective, made[name](), estimates=sizes.estimates)
                        for batch in batches
                    ]
                    place = {"estimator": name, "cell": cell, "T": time, "trained": trained}
                    yield from records_of(signals, place, sizes)


def records_of(signals: Sequence[Signal], place: dict[str, object], sizes: Sizes) -> Iterator[Record]:
    """What the signals on several batches come to: means, with their standard errors over batches."""
    seconds = torch.tensor([signal.seconds for signal in signals]).median().item()
    settings = {
        **place,
        "hidden": sizes.hidden,
        "batch": BATCH,
        "forward_passes": signals[0].forward_passes,
        "seconds": round(seconds, 5),
        "batches": len(signals),
        "estimates": sizes.estimates,
    }
    cosines = [signal.whole.cosine.mean for signal in signals if signal.whole.cosine is not None]
    columns = {"cosine": cosines, "snr": [signal.whole.snr.mean for signal in signals]}
    columns["cosine_per_second"] = [cosine / seconds for cosine in cosines]
    for name, values in columns.items():
        samples = torch.tensor(values, dtype=torch.float64)
        error = float(samples.std()) / math.sqrt(len(samples))
        unit = "1/s" if name == "cosine_per_second" else "cosine"
        yield Record(name, float(samples.mean()), unit, {**settings, "standard_error": round(error, 6)})


def merged(path: Path, records: Sequence[Record]) -> list[Record]:
    """The records of a JSON file, none without it, and new ones, which replace those of the same place."""
    rows = json.loads(path.read_text()) if path.exists() else []
    found = {(record.name, *_place(record)): record for record in (Record(**row) for row in rows)}
    found |= {(record.name, *_place(record)): record for record in records}
    names = list(estimators(QUICK.passes))

    def order(record: Record) -> tuple[int, bool, int]:
        cell, trained, name, _ = _place(record)
        return CELLS.index(str(cell)), bool(trained), names.index(str(name))

    return sorted(found.values(), key=order)


def table_of(records: Sequence[Record]) -> Lines:
    """A line for each cell, training and estimator; for each length cosine, SNR and cosine per second, or a
    dash where it was not measured."""
    times = sorted({int(str(record.settings["T"])) for record in records})
    found = {(record.name, *_place(record)): record for record in records}
    passes = {_place(record)[:3]: str(record.settings["forward_passes"]) for record in records}
    lines = []
    for place, number in passes.items():
        cells = []
        for time in times:
            if ("cosine", *place, time) not in found:
                cells.append("–")
                continue
            cosine, snr, rate = (
                found[column, *place, time] for column in ("cosine", "snr", "cosine_per_second")
            )
            error = float(str(cosine.settings["standard_error"]))
            cells.append(f"{cosine.value:.3f} ± {error:.3f}, snr {snr.value:.3f}, {rate.value:.3g}/s")
        cell, trained, name = place
        lines.append([str(cell), "yes" if trained else "no", str(name), number, *cells])
    return Lines(["cell", "trained", "estimator", "passes", *(f"T = {time}" for time in times)], lines)


def draw(axes: Sequence[Axes], records: Sequence[Record], cells: Sequence[str]) -> None:
    """Cosine against T, a panel for each cell before and after training."""
    places = [(cell, trained) for cell in cells for trained in (False, True)]
    for panel, (cell, trained) in zip(axes, places, strict=True):
        here = [record for record in records if record.name == "cosine"]
        here = [record for record in here if _place(record)[:2] == (cell, trained)]
        for name in dict.fromkeys(str(record.settings["estimator"]) for record in here):
            line = [record for record in here if record.settings["estimator"] == name]
            line.sort(key=lambda record: int(str(record.settings["T"])))
            panel.plot(
                [int(str(record.settings["T"])) for record in line],
                [max(record.value, 1e-4) for record in line],
                "--" if "noisy" in name or "dense" in name else "-",
                color=COLOURS.get(name.split("-")[0], "grey"),
                alpha=0.5 if "0.8" in name else 1.0,
                marker="o",
                markersize=3,
                label=name,
            )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_title(f"{cell}, {'trained' if trained else 'at initialisation'}", fontsize=9)
        panel.set_xlabel("T")
        panel.set_ylabel("cosine to the gradient")
    axes[0].legend(fontsize=5, ncols=2)


def _place(record: Record) -> tuple[object, object, object, object]:
    settings = record.settings
    return settings["cell"], settings["trained"], settings["estimator"], settings["T"]


def parser() -> argparse.ArgumentParser:
    found = argument_parser("estimators", __doc__)
    found.add_argument("--cells", nargs="+", choices=CELLS, metavar="CELL", help=", ".join(CELLS))
    found.add_argument("--times", nargs="+", type=int, metavar="T", help="lengths of the sequences")
    names = list(estimators(QUICK.passes))
    found.add_argument("--estimators", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    return found


def main(words: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(words)
    sizes = QUICK if arguments.quick else Sizes()
    cells = arguments.cells or (CELLS[:1] if arguments.quick else CELLS)
    times = arguments.times or ([8] if arguments.quick else [16, 64, 256])
    names = arguments.estimators or list(estimators(sizes.passes))
    with torch_threads(1):
        records = list(measure(cells, times, names, sizes))
    if arguments.json is not None:
        records = merged(arguments.json, records)
    title, lines = f"Quality of an estimate, at most {sizes.passes} forward passes", table_of(records)
    cells = [cell for cell in CELLS if any(_place(record)[0] == cell for record in records)]
    report(
        title,
        records,
        arguments,
        lambda *axes: draw(axes, records, cells),
        panels=(len(cells), 2),
        table=lines.rich(),
    )
    if arguments.json is not None:
        write_page(arguments.json.with_suffix(".md"), HEAD, [(title, lines, arguments.picture)])


if __name__ == "__main__":
    main()
