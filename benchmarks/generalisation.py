"""Does zero-order training generalise better than BPTT? The paper's claim, at equal training loss.

A small training set (64 sequences of copy or sort, or 8 KB of text) is learned by BPTT with and without
weight decay, and by forward passes alone at several ε. As the training loss falls below each of a list of
marks, the validation loss is taken (between two evaluations: on the line between them), and the smoothed
loss L_ε of the training data: how much the loss rises when the weights move by ε. Runs are added to the
results of earlier ones; one alone is for example

    python benchmarks/generalisation.py --task copy --method activity-0.1 --seed 0 --seconds 120
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

import torch
from cells import TRANSDUCTION
from contest import Method, Point, Run, print_run, run_apart, train
from harness import Record, argument_parser, report, thread_counts
from matplotlib.axes import Axes
from methods import activity, exact, rank_one
from results import Curve, Results, Row, curve_of, key_of, name_of
from tables import Column, Lines, table_of, write_page

import zorn
from zorn.models import parameter_count
from zorn.tasks import PYTHON_DOCS, Task, TextTask, read_source

FOLDER = Path(__file__).parents[1] / "docs" / "results"
SEQUENCES, TEXT_BYTES, TEXT_BATCH, HIDDEN = 64, 8192, 64, 64
SECONDS = 300.0
EPSILONS = (0.02, 0.08)
"""The ε, standard deviation of one weight's noise, that the smoothed loss is measured at."""

MARKS = {
    "copy": (2.5, 1.5, 1.0, 0.5, 0.1),
    "sort": (2.0, 1.5, 1.0, 0.5, 0.1),
    "text": (2.5, 2.2, 1.8, 1.4, 1.0),
}
"""The training losses, nats a token, at which the validation loss is compared; a run ends at the last."""

QUICK = ("copy", ("bptt-adamw", "activity-0.1"), 2.0)


def methods() -> dict[str, Method]:
    """BPTT with three weight decays, activity noise at three relative ε, noise on the weights at three ε."""
    found = {}
    for decay in (0.0, 0.1, 1.0):
        found["bptt-adamw" + (f"-decay-{decay:g}" if decay else "")] = exact("adamw", 0.003, decay=decay)
    for epsilon in (0.02, 0.1, 0.5):
        found[f"activity-{epsilon:g}"] = activity(1.0, epsilon, 0.003)
    for epsilon in (0.005, 0.02, 0.08):
        found[f"rank-one-{epsilon:g}"] = rank_one("cd-rge", 512, epsilon, 0.01)
    return {
        name: dataclasses.replace(method, name=name, batch=SEQUENCES, length=32)
        for name, method in found.items()
    }


def make_tasks(name: str, method: Method, seed: int) -> tuple[Task, Task]:
    """The small training set, and a task whose validation split is fresh data."""
    if name == "text":
        share = TEXT_BYTES / len(read_source(PYTHON_DOCS))
        task = TextTask(
            source=PYTHON_DOCS,
            tokenizer="alphabet",
            batch=method.batch,
            length=method.length,
            seed=seed,
            validation_fraction=0.05,
            test_fraction=0.95 - share,
        )
        return task, task
    options = {"batch": SEQUENCES, "minimum_length": 2, "maximum_length": 10, "seed": seed}
    return TRANSDUCTION[name](**options, overfit=True), TRANSDUCTION[name](**options)


class Judge:
    """Training and validation loss, and when a mark is passed the smoothed losses of the training data."""

    def __init__(self, fresh: Task, marks: tuple[float, ...]) -> None:
        self.fresh, self.left = fresh, list(marks)

    def __call__(self, model: zorn.LanguageModel, task: Task, last: bool) -> dict[str, float]:
        """The figures; "loss" is that of the whole training set."""
        loss = task.evaluate(model, "train").loss
        found = self.fresh.evaluate(model, "validation")
        figures = {
            "loss": loss,
            "validation_loss": found.loss,
            "validation_token_accuracy": found.token_accuracy,
        }
        passed = [mark for mark in self.left if loss < mark]
        self.left = [mark for mark in self.left if loss >= mark]
        if passed or last:
            figures |= {f"smoothed_loss {epsilon:g}": smoothed(model, task, epsilon) for epsilon in EPSILONS}
        return figures


def smoothed(model: zorn.LanguageModel, task: Task, epsilon: float) -> float:
    """L_ε of a training batch, eight members a sequence; NaN where a member's loss is not finite."""
    batch = task.training_batch(0)
    members = 8 * len(batch.inputs)
    try:
        return zorn.estimators.smoothed_loss(
            model, batch, task.objective, epsilon=epsilon, members=members, group_size=1
        ).loss
    except zorn.errors.NonFiniteLossError:
        return math.nan


def child(name: str, method: Method, seed: int, seconds: float) -> None:
    """Train, and print the run."""
    torch.set_num_threads(1)
    task, fresh = make_tasks(name, method, seed)
    model = zorn.LanguageModel(task.vocabulary, HIDDEN, seed=seed)
    every = 0.05 if method.kind == "exact" else 0.5  # seconds between two judgements
    judge = Judge(fresh, MARKS[name])
    stop = min(MARKS[name])
    run = train(method, model, task, judge, seconds=seconds, stop_below=stop, judge_every=every, seed=seed)
    print_run(run)


def at_mark(points: list[Point], mark: float, figure: str) -> float:
    """A figure where the training loss first falls below `mark`, on the line between the points around it;
    NaN if it never does."""
    after = next((number for number, point in enumerate(points) if point.loss < mark), None)
    if after is None:
        return math.nan
    now, before = points[after], points[max(after - 1, 0)]
    share = (before.loss - mark) / (before.loss - now.loss) if before.loss > now.loss else 1.0
    return before.measured[figure] + share * (now.measured[figure] - before.measured[figure])


def records_of(
    name: str, method: Method, seed: int, seconds: float, parameters: int, run: Run
) -> list[Record]:
    """What is recorded of a run: at each mark, and the least validation loss with where it was."""
    last = run.points[-1]
    settings = {
        "setting": "generalisation",
        "task": name,
        "cell": "lstm",
        "method": method.name,
        "seed": seed,
        "seconds": seconds,
        "kind": method.kind,
        "tuned": method.words(),
        "parameters": parameters,
        "threads": 1,
        "steps": last.steps,
        "trained_seconds": round(last.seconds, 3),
    }
    records = []
    for mark in MARKS[name]:
        place = {**settings, "training_loss": mark}
        for figure, unit in (("validation_loss", "nats"), ("validation_token_accuracy", "share")):
            records.append(Record(figure, at_mark(run.points, mark, figure), unit, place))
        point = run.first_below(mark)
        for epsilon in EPSILONS:
            rise = math.nan
            if point is not None:
                rise = point.measured[f"smoothed_loss {epsilon:g}"] - point.loss
            records.append(Record("smoothing_rise", rise, "nats", {**place, "epsilon": epsilon}))
    judged = [point for point in run.points if math.isfinite(point.loss)]
    best = min(judged, key=lambda point: point.measured["validation_loss"])
    for figure, value in (("best_validation_loss", best.measured["validation_loss"]), ("best_at", best.loss)):
        records.append(Record(figure, value, "nats", settings))
    records.append(Record("last_training_loss", last.loss, "nats", settings))
    return records


def columns_of(name: str) -> list[Column]:
    """Validation loss at every mark, the best of all, and how L_ε rises above the loss at the last mark."""
    marks = MARKS[name]
    losses = [Column(f"at {mark:g}", "validation_loss", {"training_loss": mark}) for mark in marks]
    rises = [
        Column(
            f"L_ε − L, ε {epsilon:g}, at {mark:g}",
            "smoothing_rise",
            {"training_loss": mark, "epsilon": epsilon},
        )
        for mark in (marks[len(marks) // 2], marks[-1])
        for epsilon in EPSILONS
    ]
    return [
        *losses,
        Column("best", "best_validation_loss"),
        Column("best at", "best_at"),
        *rises,
        Column("last training loss", "last_training_loss"),
    ]


HEAD = f"""# Generalisation at equal training loss

Made by `python benchmarks/generalisation.py` from `generalisation.json`: change the runs, not this page. An
LSTM of {HIDDEN} units learns {SEQUENCES} sequences of lengths 2 to 10, or {TEXT_BYTES:,} bytes of text.
"at x": validation loss, nats a token, when the training loss falls below x; medians over seeds [least,
largest], a dash where it was not reached. L_ε − L: how much the training loss rises when noise of standard
deviation ε is added to every weight."""


def show(results: Results, picture: Path) -> None:
    """Print the tables, draw the picture and write the page of all runs."""
    rows, curves = results.rows(), results.curves()
    order = {name: number for number, name in enumerate(methods())}
    budgets = sorted({(row["settings"]["task"], row["settings"]["seconds"]) for row in rows})
    sections: list[tuple[str, Lines, Path]] = []
    for name, seconds in budgets:
        mine = [
            row for row in rows if (row["settings"]["task"], row["settings"]["seconds"]) == (name, seconds)
        ]
        lines = table_of(mine, columns_of(name), lambda _, method: order.get(method, len(order)))
        path = picture.with_name(f"{picture.stem}-{name}-{seconds:g}s.png")
        title = f"{name}, {seconds:g} s of training"
        sections.append((title, lines, path))

        def draw(axes: Axes, mine: list[Row] = mine, name: str = name) -> None:
            draw_losses(axes, mine, curves, name)

        report(title, [], argparse.Namespace(picture=path, json=None), draw, table=lines.rich())
    write_page(results.path.with_suffix(".md"), HEAD, sections)


def draw_losses(axes: Axes, rows: list[Row], curves: dict[str, Curve], name: str) -> None:
    """Validation against training loss, from right to left as training goes; a colour a method."""
    runs = {key_of(row): row["settings"] for row in rows}
    labelled: set[str] = set()
    for key, place in runs.items():
        curve, method = curves.get(name_of(key), []), place["method"]
        axes.plot(
            [point[3] for point in curve],
            [point[4] for point in curve],
            "--" if place["kind"] == "exact" else "-",
            color=f"C{list(methods()).index(method)}" if method in methods() else "k",
            label="_" if method in labelled else method,
            lw=1.2,
        )
        labelled.add(method)
    low, high = min(MARKS[name]), 3.5
    axes.plot([low, high], [low, high], color="0.8", lw=1)
    axes.set_xlim(high, low)
    axes.set_ylim(low, 6)
    axes.set_xlabel("training loss (nats per token)")
    axes.set_ylabel("validation loss (nats per token)")
    axes.legend(fontsize=7)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, method, seed, seconds = json.loads(sys.argv[2])
        child(name, Method.from_json(method), seed, seconds)
        return
    parser = argument_parser("generalisation", __doc__)
    parser.add_argument("--task", nargs="+", choices=list(MARKS), help="only these training sets")
    parser.add_argument("--method", nargs="+", choices=list(methods()), help="only these methods")
    parser.add_argument("--seed", nargs="+", type=int, metavar="N", help="0 1 2")
    parser.add_argument("--seconds", type=float, help=f"of training for each run, at most: {SECONDS:g}")
    parser.add_argument("--jobs", type=int, default=len(thread_counts()), help="runs at once")
    arguments = parser.parse_args()
    quick_task, quick_methods, quick_seconds = QUICK
    tasks = arguments.task or ([quick_task] if arguments.quick else list(MARKS))
    names = arguments.method or (quick_methods if arguments.quick else list(methods()))
    seeds = arguments.seed or ([0] if arguments.quick else [0, 1, 2])
    seconds = arguments.seconds or (quick_seconds if arguments.quick else SECONDS)
    jobs = [(task, methods()[name], seed) for task in tasks for name in names for seed in seeds]
    folder = Path(__file__).parent / "out" if arguments.quick else FOLDER
    results = Results(arguments.json or folder / "generalisation.json")
    words = [json.dumps([task, method.to_json(), seed, seconds]) for task, method, seed in jobs]
    try:
        for number, run in run_apart(__file__, words, at_once=arguments.jobs):
            task, method, seed = jobs[number]
            vocabulary = make_tasks(task, method, seed)[0].vocabulary
            parameters = parameter_count(zorn.LanguageModel(vocabulary, HIDDEN))
            records = records_of(task, method, seed, seconds, parameters, run)
            results.add(records, curve_of(run.points, "loss", "validation_loss"))
    finally:
        default = Path(parser.get_default("picture"))
        same = arguments.picture == default
        show(results, results.path.with_suffix(".png") if same else arguments.picture)


if __name__ == "__main__":
    main()
