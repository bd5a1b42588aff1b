"""What every estimator learns, beside tuned BPTT and TBPTT, in the three settings of the paper.

Overfitting one batch, transduction on fresh data, and a text (see `cells.py`); the methods and their settings
are in `methods.py`. Every run is a process of its own with one thread; its seconds are CPU seconds of
training. Runs are added to the results of earlier ones, so that a long measurement can be made in parts; one
cell alone is for example

    python benchmarks/learning.py --setting transduction --task copy --cell lstm --method bridge-1 --seed 0

With `--tune` the settings of methods are searched instead, on seeds and data that no result comes from.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
from pathlib import Path

import torch
from cells import CELLS, MODELS, STOP_BELOW, TASKS, THRESHOLDS, TUNING_SEED, Cell
from contest import Method, Run, judge_validation, print_run, run_apart, train
from harness import argument_parser, thread_counts
from learning_report import records_of, show
from methods import Values, grid_of, methods_of, search, variant
from results import Results, curve_of
from rich.console import Console
from rich.table import Table

from zorn.models import parameter_count

FOLDER = Path(__file__).parents[1] / "docs" / "results"
JUDGEMENTS = 60
"""Evaluations over the time of a run; a run that overfits is evaluated after every step."""

QUICK_METHODS = ("bptt-adamw", "tbptt-1-adamw", "rank-one-cd-rge", "activity", "bridge-1")
QUICK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: what is trained, how, from which seed, for how many CPU seconds."""

    cell: Cell
    method: Method
    seed: int
    seconds: float

    def to_json(self) -> str:
        """For the process that runs it."""
        return json.dumps([*dataclasses.astuple(self.cell), self.method.to_json(), self.seed, self.seconds])

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """What `to_json` wrote."""
        setting, task, cell, method, seed, seconds = json.loads(text)
        return cls(Cell(setting, task, cell), Method.from_json(method), seed, seconds)

    def run(self) -> Run:
        """Train, on one thread."""
        torch.set_num_threads(1)
        task = self.cell.make_task(self.method, self.seed)
        model = self.cell.make_model(task, self.seed)
        every = 0.0 if self.cell.setting == "overfit" else self.seconds / JUDGEMENTS
        return train(
            self.method,
            model,
            task,
            judge_validation,
            seconds=self.seconds,
            stop_below=STOP_BELOW[self.cell.setting],
            judge_every=every,
            seed=self.seed,
        )


def make_parser() -> argparse.ArgumentParser:
    """The flags of the script."""
    parser = argument_parser("learning", __doc__)
    tasks = dict.fromkeys(task for tasks in TASKS.values() for task in tasks)
    parser.add_argument("--setting", nargs="+", choices=list(TASKS), help="only these settings")
    parser.add_argument("--task", nargs="+", choices=list(tasks), help="only these tasks")
    parser.add_argument("--file", type=Path, metavar="PATH", help="a text in place of the built-in one")
    parser.add_argument(
        "--cell", nargs="+", choices=CELLS, help="the model: by default LSTM, to overfit also DNC"
    )
    parser.add_argument("--method", nargs="+", metavar="NAME", help="only these methods")
    parser.add_argument("--seed", nargs="+", type=int, metavar="N", help="by default 0 1 2")
    parser.add_argument(
        "--seconds", type=float, help="of training for each run: 600; to overfit 120 (DNC: 300)"
    )
    parser.add_argument("--jobs", type=int, default=len(thread_counts()), help="runs at once")
    parser.add_argument(
        "--tune", action="store_true", help="search settings instead; adds nothing to the results"
    )
    return parser


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """The runs that the command line asks for; none where it names what is not there."""
    quick = arguments.quick
    wanted = arguments.method or (QUICK_METHODS if quick else None)
    seeds = arguments.seed or ([0] if quick or arguments.tune else [0, 1, 2])
    jobs = []
    for setting in arguments.setting or TASKS:
        tasks = [task for task in TASKS[setting] if task in (arguments.task or TASKS[setting])]
        tasks = tasks[:1] if quick else tasks
        if setting == "text" and arguments.file:
            tasks = [str(arguments.file.absolute())]
        for task in tasks:
            for name in arguments.cell or MODELS[setting][: 1 if quick else None]:
                cell = Cell(setting, task, name)
                seconds = arguments.seconds or (QUICK_SECONDS if quick else cell.seconds())
                jobs += [
                    Job(cell, method, seed, seconds)
                    for method in methods_of(setting, task, name).values()
                    if wanted is None or method.name in wanted
                    for seed in seeds
                ]
    return jobs


def measure(jobs: list[Job], results: Results, picture: Path, *, at_once: int) -> None:
    """Run the jobs, add each to the results when it ends, then show them."""
    words = [job.to_json() for job in jobs]
    try:
        for number, run in run_apart(__file__, words, at_once=at_once):
            job = jobs[number]
            model = job.cell.make_model(job.cell.make_task(job.method, job.seed), job.seed)
            parameters = parameter_count(model)
            records = records_of(job.cell, job.method, job.seed, job.seconds, parameters, run)
            results.add(records, curve_of(run.points, THRESHOLDS[job.cell.setting][0]))
    finally:
        show(results, picture, {(job.cell.setting, job.cell.cell, job.seconds) for job in jobs})


# --------------------------------------------------------------------------------- searching settings


def tune(jobs: list[Job], *, at_once: int) -> None:
    """Search the settings of each method of each cell, and print what every point of its grid reached."""
    found: dict[tuple[Cell, str], list[Job]] = {}
    for job in jobs:
        found.setdefault((job.cell, job.method.name), []).append(job)
    for (cell, name), mine in found.items():
        grid = grid_of(mine[0].method)
        scores = search(grid, lambda points, mine=mine, grid=grid: _scores(mine, grid, points, at_once))
        table = Table(
            *grid, "unreached", "steps", "loss", title=f"{cell.setting}, {cell.title}, {cell.cell}: {name}"
        )
        for point, score in sorted(scores.items(), key=lambda pair: pair[1]):
            table.add_row(*(f"{value:g}" for value in point), *(f"{value:.4g}" for value in score))
        Console().print(table)


def _scores(
    jobs: list[Job], grid: dict[str, tuple[float, ...]], points: list[Values], at_once: int
) -> list[tuple[float, ...]]:
    """Each point's score over the tuning seeds: the share of runs that missed the threshold, the median of
    the steps to it, the median of the last losses (not finite: the worst). Lower is better."""
    figure, thresholds = THRESHOLDS[jobs[0].cell.setting]
    tried = [
        dataclasses.replace(job, method=variant(job.method, grid, point), seed=TUNING_SEED + job.seed)
        for point in points
        for job in jobs
    ]
    runs: list[Run | None] = [None] * len(tried)
    for number, run in run_apart(__file__, [job.to_json() for job in tried], at_once=at_once):
        runs[number] = run
    scores = []
    for first in range(0, len(runs), len(jobs)):
        mine = [run for run in runs[first : first + len(jobs)] if run is not None]
        reached = [run.first_below(thresholds[-1], figure) for run in mine]
        steps = [math.inf if point is None else float(point.steps) for point in reached]
        last = [run.points[-1].measured.get(figure, math.inf) for run in mine]
        last = [value if math.isfinite(value) else math.inf for value in last]
        missed = sum(math.isinf(value) for value in steps) / len(steps)
        scores.append((missed, statistics.median_high(steps), statistics.median(last)))
    return scores


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print_run(Job.from_json(sys.argv[2]).run())
        return
    parser = make_parser()
    arguments = parser.parse_args()
    jobs = jobs_of(arguments)
    if not jobs:
        places = [(setting, task) for setting in arguments.setting or TASKS for task in TASKS[setting]]
        names = dict.fromkeys(name for place in places for name in methods_of(*place, ""))
        parser.error(f"no such run: the methods of these settings are {', '.join(names)}")
    if arguments.tune:
        tune(jobs, at_once=arguments.jobs)
        return
    folder = Path(__file__).parent / "out" if arguments.quick else FOLDER
    results = Results(arguments.json or folder / "learning.json")
    same = arguments.picture == Path(parser.get_default("picture"))
    picture = results.path.with_suffix(".png") if same else arguments.picture
    measure(jobs, results, picture, at_once=arguments.jobs)


if __name__ == "__main__":
    main()
