"""Overfitting one batch of 16 copy sequences: every estimator against steps, passes and seconds.

The smallest thing that a training method must be able to do, and the paper's Figure 1 (arXiv 2505.17852).
An LSTM of about 100,000 parameters and a DNC of about 300,000 are trained on one batch until its loss is
below 0.1 nats per token, or the time is over. Every method runs on one thread, in a process of its own,
with settings tuned for it on another batch and another seed (`--tune METHOD` repeats that search); "dense-
paper-96" has the paper's settings as they are. `seconds_to_loss`, `steps_to_loss` and `passes_to_loss` are
null where the loss was not reached; with more than one seed they are medians.
"""

import argparse
import dataclasses
import math
import statistics
import sys
from typing import Literal

import torch
from contest import Method, Run, draw_losses, print_run, run_apart, train
from harness import Record, argument_parser, report, thread_counts
from matplotlib.axes import Axes
from rich.table import Table

import zorn
from zorn.models import evaluation_mode, parameter_count, row_losses
from zorn.tasks import CopyTask, Task
from zorn.training.config import EstimatorConfig, OptimizerConfig

ROWS, LETTERS = 16, 10
THRESHOLDS = (1.0, 0.1)
SECONDS = {"lstm": 120.0, "dnc": 300.0}
SEEDS = {"lstm": 3, "dnc": 1}
TUNING_SEED = 1000
PARAMETERS: dict[str, int] = {"lstm": 100_000, "dnc": 300_000}

Structure = Literal["rank-one", "dense"]
Sampled = Literal["cd-rge", "fd-rge", "spsa-1.5"]


def sampled(
    structure: Structure,
    estimator: Sampled,
    population: int,
    epsilon: float,
    rate: float,
    *,
    group: int = 1,
    optimizer: Literal["adam", "sgd"] = "adam",
    tied: bool = False,
) -> Method:
    """A zero-order method."""
    name = f"{structure}-paper-{population}" if tied else f"{structure}-{estimator}-{population}"
    return Method(
        name=name,
        estimator=EstimatorConfig(
            estimator=estimator,
            structure=structure,
            population=population,
            group_size=group,
            epsilon=epsilon,
        ),
        optimizer=OptimizerConfig(optimizer=optimizer, learning_rate=rate, tie_epsilon=tied),
    )


def exact(
    optimizer: Literal["adamw", "sgd"], rate: float, clip: float | None = None, truncation: int | None = None
) -> Method:
    """BPTT, or TBPTT where it is truncated; SGD has momentum 0.9."""
    truncated = truncation is not None
    return Method(
        name=f"tbptt-{truncation}-{optimizer}" if truncated else f"bptt-{optimizer}",
        estimator=EstimatorConfig(estimator="tbptt" if truncated else "bptt", truncation=truncation),
        optimizer=OptimizerConfig(
            optimizer=optimizer,
            learning_rate=rate,
            momentum=0.9 if optimizer == "sgd" else 0.0,
            clip_norm=clip,
        ),
    )


METHODS = {
    "lstm": [
        exact("adamw", 0.05),
        exact("sgd", 1.0, clip=1.0),
        exact("adamw", 0.01, truncation=1),
        exact("adamw", 0.01, truncation=7),
        sampled("rank-one", "cd-rge", 256, 0.02, 0.01),
        sampled("rank-one", "fd-rge", 512, 0.005, 0.01),
        sampled("rank-one", "spsa-1.5", 256, 0.005, 0.01),
        sampled("dense", "cd-rge", 96, 0.02, 0.03, group=0),
        sampled("dense", "cd-rge", 96, 0.1, 0.1, group=0, optimizer="sgd", tied=True),
    ],
    "dnc": [
        exact("adamw", 0.02),
        exact("sgd", 1.0, clip=1.0),
        exact("adamw", 0.01, truncation=1),
        exact("adamw", 0.01, truncation=7),
        sampled("rank-one", "cd-rge", 512, 0.02, 0.01),
        sampled("rank-one", "fd-rge", 512, 0.005, 0.01),
        sampled("rank-one", "spsa-1.5", 512, 0.005, 0.01),
        sampled("dense", "cd-rge", 96, 0.02, 0.01, group=0),
        sampled("dense", "cd-rge", 96, 0.1, 0.1, group=0, optimizer="sgd", tied=True),
    ],
}

RATES = {"adam": (0.003, 0.01, 0.03), "adamw": (0.003, 0.01, 0.02, 0.05, 0.1), "sgd": (0.1, 0.3, 1.0, 3.0)}
EPSILONS = (0.001, 0.005, 0.02, 0.08)


def make_model(name: str, seed: int) -> zorn.LanguageModel:
    """The model of that name, its size the closest there is to the issue's."""
    return zorn.LanguageModel.with_parameters(PARAMETERS[name], CopyTask.vocabulary, cell=name, seed=seed)


def judge(model: zorn.LanguageModel, task: Task, last: bool) -> dict[str, float]:
    """The loss of the unperturbed model on the one batch, the same at the last time."""
    del last
    with torch.inference_mode(), evaluation_mode(model):
        return {"loss": float(row_losses(model, task.training_batch(0), task.objective).mean())}


def child(model_name: str, method: Method, seconds: float, seed: int) -> None:
    """Train, and print the run."""
    torch.set_num_threads(1)
    task = CopyTask(batch=ROWS, minimum_length=LETTERS, maximum_length=LETTERS, seed=seed, overfit=True)
    model = make_model(model_name, seed)
    stop = min(THRESHOLDS)
    print_run(train(method, model, task, judge, seconds=seconds, stop_below=stop, seed=seed))


def variants(method: Method) -> list[Method]:
    """The grid around a method: its learning rates, and for a zero-order one its epsilons."""
    exact = method.estimator.estimator in ("bptt", "tbptt")
    epsilons = (method.estimator.epsilon,) if exact else EPSILONS
    return [
        dataclasses.replace(
            method,
            estimator=dataclasses.replace(method.estimator, epsilon=epsilon),
            optimizer=dataclasses.replace(method.optimizer, learning_rate=rate),
        )
        for rate in RATES[method.optimizer.optimizer]
        for epsilon in epsilons
    ]


def find(model_name: str, name: str) -> Method:
    """The method of that name."""
    return next(method for method in METHODS[model_name] if method.name == name)


def records_of(model_name: str, method: Method, runs: list[Run], seconds: float) -> list[Record]:
    """What is recorded of a method's runs: steps, passes and seconds to each threshold, and the peak."""
    model = make_model(model_name, 0)
    settings = {
        "model": model_name,
        "method": method.name,
        "parameters": parameter_count(model),
        "tuned": method.words(),
        "budget_seconds": seconds,
        "seeds": len(runs),
        "threads": 1,
    }
    records = []
    for threshold in THRESHOLDS:
        reached = [point for run in runs if (point := run.first_below(threshold)) is not None]
        for name, unit, values in (
            ("steps_to_loss", "steps", [point.steps for point in reached]),
            ("passes_to_loss", "passes", [point.passes for point in reached]),
            ("seconds_to_loss", "s", [round(point.seconds, 3) for point in reached]),
        ):
            middle = statistics.median(values) if len(values) == len(runs) else math.nan
            place = {**settings, "threshold": threshold, "values": values}
            records.append(Record(name, middle, unit, place))
    last = [run.points[-1] for run in runs]
    trained = [point.seconds / max(point.steps, 1) * 1e3 for point in last]
    records.append(Record("final_loss", statistics.median(point.loss for point in last), "nats", settings))
    records.append(Record("milliseconds_per_step", statistics.median(trained), "ms", settings))
    peak = statistics.median(run.peak_bytes for run in runs)
    records.append(Record("peak_memory_bytes", peak, "bytes", settings))
    return records


def table_of(records: list[Record]) -> Table:
    """One row a method: seconds, steps and passes to each threshold, and what a step costs."""
    table = Table()
    table.add_column("model")
    table.add_column("method", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for threshold in THRESHOLDS:
        for unit in ("s", "steps", "passes"):
            table.add_column(f"{unit} to {threshold:g}", justify="right")
    for title in ("final loss", "ms/step", "peak MiB"):
        table.add_column(title, justify="right")

    def text(value: float) -> str:
        return "–" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    keys = list(dict.fromkeys((record.settings["model"], record.settings["method"]) for record in records))
    for model_name, method in keys:
        mine = [
            one for one in records if (one.settings["model"], one.settings["method"]) == (model_name, method)
        ]
        value = {(one.name, one.settings.get("threshold")): one.value for one in mine}
        to = [
            value[f"{unit}_to_loss", threshold]
            for threshold in THRESHOLDS
            for unit in ("seconds", "steps", "passes")
        ]
        rest = [value["final_loss", None], value["milliseconds_per_step", None]]
        peak = value["peak_memory_bytes", None]
        words = str(mine[0].settings["tuned"])
        table.add_row(
            str(model_name), str(method), words, *map(text, to), *map(text, rest), f"{peak / 2**20:.0f}"
        )
    return table


def tune(arguments: argparse.Namespace, model_name: str) -> None:
    """Print the loss that every variant of a method reaches in the budget, on another batch and seed."""
    grid = variants(find(model_name, arguments.tune))
    jobs = [
        [
            model_name,
            arguments.tune,
            str(arguments.seconds),
            str(TUNING_SEED),
            str(method.optimizer.learning_rate),
            str(method.estimator.epsilon),
        ]
        for method in grid
    ]
    for method, run in zip(grid, run_apart(__file__, jobs, at_once=len(thread_counts())), strict=True):
        point = run.points[-1]
        print(f"{model_name} {method.name}: {method.words()}: {point.loss:.3f} after {point.seconds:.1f} s")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        model_name, name, seconds, seed, *tuned = sys.argv[2:]
        method = find(model_name, name)
        if tuned:
            rate, epsilon = map(float, tuned)
            method = next(
                one
                for one in variants(method)
                if (one.optimizer.learning_rate, one.estimator.epsilon) == (rate, epsilon)
            )
        child(model_name, method, float(seconds), int(seed))
        return
    parser = argument_parser("overfit", __doc__)
    parser.add_argument("--model", choices=list(METHODS), help="only this model")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods")
    parser.add_argument(
        "--seeds", type=int, help="runs of each method, with seeds 0, 1, …: 3 for the LSTM, 1 for the DNC"
    )
    parser.add_argument(
        "--seconds", type=float, help="of training for each run: 120 for the LSTM, 300 for the DNC"
    )
    parser.add_argument(
        "--tune", metavar="METHOD", help="search this method's settings instead; needs --seconds"
    )
    arguments = parser.parse_args()
    models = [arguments.model] if arguments.model else list(METHODS)
    if arguments.tune:
        if arguments.seconds is None or arguments.model is None:
            parser.error("--tune needs --seconds and --model: for example --model lstm --seconds 20")
        tune(arguments, arguments.model)
        return
    budgets = {name: arguments.seconds or (2.0 if arguments.quick else SECONDS[name]) for name in models}
    chosen = [
        (name, method)
        for name in models
        for method in METHODS[name]
        if arguments.methods is None or method.name in arguments.methods
    ]
    if not chosen:
        known = ", ".join(method.name for method in METHODS[models[0]])
        parser.error(f"--methods names none of {known}")
    seeds = {name: arguments.seeds or (1 if arguments.quick else SEEDS[name]) for name in models}
    jobs = [
        [name, method.name, str(budgets[name]), str(seed)]
        for name, method in chosen
        for seed in range(seeds[name])
    ]
    runs = iter(run_apart(__file__, jobs, at_once=len(thread_counts())))
    of = {(name, method.name): [next(runs) for _ in range(seeds[name])] for name, method in chosen}
    records = [
        record
        for name, method in chosen
        for record in records_of(name, method, of[name, method.name], budgets[name])
    ]

    def draw(*panels: Axes) -> None:
        for number, model_name in enumerate(models):
            first_runs = {method: found[0] for (name, method), found in of.items() if name == model_name}
            size = parameter_count(make_model(model_name, 0))
            title = f"{model_name}, {size:,} parameters"
            draw_losses(panels[3 * number : 3 * number + 3], first_runs, title)

    title = f"Overfitting one batch of {ROWS} copy sequences of {LETTERS} letters"
    report(title, records, arguments, draw, panels=(len(models), 3), table=table_of(records))


if __name__ == "__main__":
    main()
