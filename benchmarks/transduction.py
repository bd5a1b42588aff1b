"""Transduction on fresh data: what weight-space estimates reach in a few minutes, beside BPTT, told as it is.

Copy, reverse, sort, repeat-copy and add, with lengths 2 to 10; every batch is new. Each model learns each
task by rank-one CD-RGE and by BPTT with AdamW (stopped early where it solves the task), on one thread, in a
process of its own. Judged on the validation split: loss, share of the tokens and of the whole sequences
that are right, and the same at lengths 11 to 60, which training never saw. A model that knows only which
tokens may follow pays ln 26 = 3.26 nats for a letter.
"""

import sys
from collections.abc import Callable

import torch
from contest import Method, Run, print_run, run_apart, train
from harness import Record, argument_parser, report, thread_counts
from matplotlib.axes import Axes
from overfit import exact, sampled
from rich.table import Table

import zorn
from zorn.models import parameter_count
from zorn.tasks import AddTask, CopyTask, RepeatCopyTask, ReverseTask, SortTask, Task

TASKS: dict[str, Callable[..., Task]] = {
    "copy": CopyTask,
    "reverse": ReverseTask,
    "sort": SortTask,
    "repeat-copy": RepeatCopyTask,
    "add": AddTask,
}
MODELS = {"lstm": 100_000, "gru": 100_000, "min-gru": 100_000, "dnc": 100_000}
METHODS = [exact("adamw", 0.003, clip=1.0), sampled("rank-one", "cd-rge", 1024, 0.02, 0.01)]
BATCH = {"bptt-adamw": 64, "rank-one-cd-rge-1024": 256}
SOLVED = 0.01  # nats per token


def make_task(name: str, batch: int) -> Task:
    """A task of the benchmark."""
    return TASKS[name](batch=batch, minimum_length=2, maximum_length=10, seed=0)


def make_model(name: str, task: Task) -> zorn.LanguageModel:
    """A model of the benchmark; the minGRU has two layers: the gates of one see no state."""
    layers = 2 if name == "min-gru" else 1
    return zorn.LanguageModel.with_parameters(
        MODELS[name], task.vocabulary, cell=name, num_layers=layers, seed=0
    )


def judge(model: zorn.LanguageModel, task: Task, last: bool) -> dict[str, float]:
    """Validation in distribution, and the last time at longer lengths too."""
    figures: dict[str, float] = {}
    for split, prefix in (("validation", ""), ("validation-longer", "longer_"))[: 1 + last]:
        found = task.evaluate(model, split)
        assert found.sequence_accuracy is not None
        figures[f"{prefix}loss"] = found.loss
        figures[f"{prefix}token_accuracy"] = found.token_accuracy
        figures[f"{prefix}sequence_accuracy"] = found.sequence_accuracy
    return figures


def child(task_name: str, model_name: str, method: Method, seconds: float) -> None:
    """Train, and print the run."""
    torch.set_num_threads(1)
    task = make_task(task_name, BATCH[method.name])
    model = make_model(model_name, task)
    run = train(method, model, task, judge, seconds=seconds, stop_below=SOLVED, judge_every=seconds / 15)
    print_run(run)


def records_of(task_name: str, model_name: str, method: Method, run: Run, seconds: float) -> list[Record]:
    """The figures of a run's end."""
    last = run.points[-1]
    settings = {
        "task": task_name,
        "model": model_name,
        "method": method.name,
        "parameters": parameter_count(make_model(model_name, make_task(task_name, 1))),
        "tuned": method.words(),
        "budget_seconds": seconds,
        "seconds": round(last.seconds, 1),
        "steps": last.steps,
        "passes": last.passes,
    }
    units = {"loss": "nats", "longer_loss": "nats"}
    return [Record(name, value, units.get(name, "share"), settings) for name, value in last.measured.items()]


def table_of(records: list[Record]) -> Table:
    """One row a run."""
    figures = list(dict.fromkeys(record.name for record in records))
    columns = ("task", "model", "method", "parameters", "seconds", "steps", "passes")
    table = Table(*columns)
    for name in figures:
        table.add_column(name.replace("_", " "), justify="right")
    for first in range(0, len(records), len(figures)):
        mine = records[first : first + len(figures)]
        values = [f"{record.value:.3f}" for record in mine]
        table.add_row(*(str(mine[0].settings[name]) for name in columns), *values)
    return table


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        task_name, model_name, name, seconds = sys.argv[2:]
        child(task_name, model_name, next(one for one in METHODS if one.name == name), float(seconds))
        return
    parser = argument_parser("transduction", __doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seconds", type=float, help="of zero-order training: 300")
    parser.add_argument("--bptt-seconds", type=float, help="of BPTT, at most: 100")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tasks, arguments.models = arguments.tasks[:1], arguments.models[:2]
    zero_order, bptt = (1.0, 1.0) if arguments.quick else (300.0, 100.0)
    seconds = {
        METHODS[0].name: arguments.bptt_seconds or bptt,
        METHODS[1].name: arguments.seconds or zero_order,
    }
    cells = [
        (task, model, method) for task in arguments.tasks for model in arguments.models for method in METHODS
    ]
    jobs = [[task, model, method.name, str(seconds[method.name])] for task, model, method in cells]
    runs = run_apart(__file__, jobs, at_once=len(thread_counts()))
    records = [
        record
        for (task, model, method), run in zip(cells, runs, strict=True)
        for record in records_of(task, model, method, run, seconds[method.name])
    ]

    def draw(*panels: Axes) -> None:
        for axes, task_name in zip(panels, arguments.tasks, strict=False):
            for (task, model, method), run in zip(cells, runs, strict=True):
                if task == task_name:
                    later = run.points[1:]
                    style = "--" if method.name.startswith("bptt") else "-"
                    color = f"C{list(MODELS).index(model)}"
                    axes.plot(
                        [point.seconds for point in later],
                        [point.loss for point in later],
                        style,
                        color=color,
                        label=f"{model}, {method.name}",
                    )
            axes.set_title(task_name)
            axes.set_xscale("log")
            axes.set_ylim(0, 4)
            axes.set_xlabel("seconds of training")
        panels[0].set_ylabel("validation loss (nats per token)")
        panels[0].legend(fontsize=6)

    title = "Transduction on fresh data, lengths 2 to 10"
    panels = (1, len(arguments.tasks))
    report(title, records, arguments, draw, panels=panels, table=table_of(records))


if __name__ == "__main__":
    main()
