"""zorn against the paper's scheme (arXiv 2505.17852), which `paper_scheme.py` writes from its description.

Three parts, each of them added to the results of earlier runs:

- cost: seconds of a step, update included, per member (its two evaluations, all sequences of each) and per
  pass (one sequence through the model, once), on as many passes a step for every method;
- tune: the paper's scheme at a grid of learning rates, with ε tied to it as in the paper and with ε free, on
  a seed that no result comes from;
- train: CPU seconds until the loss of one batch of copy falls below 1.0 and 0.5: the paper's scheme at the
  best rates found, beside zorn as it is, with the settings that `zorn train` chooses.

`speedup_to_loss`: the paper's seconds, of the better of tied and free ε, over zorn's, medians over seeds;
where the paper's scheme did not get there, the seconds it was given stand in for it, and `at_least` is true.
One run alone is for example

    python benchmarks/versus_paper.py --part train --parameters 100000 --method activity --seed 0
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cells import TUNING_SEED
from contest import Method, Point, Run, judge_validation, print_run, run_apart, train
from harness import argument_parser
from methods import Values, search
from paper_scheme import PaperScheme, train_by_paper
from results import Results, curve_of
from versus_paper_report import (
    FREE,
    MARKS,
    PAPER,
    SCHEMES,
    SINGLE,
    TIED,
    WHOLE,
    Place,
    cost_records,
    run_records,
    show,
    tuned_settings,
    tuning_scores,
)

import zorn
from zorn.config import BudgetConfig, Choice, Config, resolve
from zorn.models import parameter_count
from zorn.tasks import CopyTask, Task, TokenCrossEntropy

FOLDER = Path(__file__).parents[1] / "docs" / "results"
PARTS = ("cost", "tune", "train")
LETTERS = 10
POPULATION = 96
"""Members of a step of the paper's scheme, its smallest."""

ZORN = {"activity": "activity", "rank-one": "cd-rge"}
"""zorn's methods, and the estimator of each: its default, and that of the paper with rank-one members."""

TRAINED = (*ZORN, *SCHEMES)
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    TIED: {"rate": (0.003, 0.01, 0.03, 0.1)},
    FREE: {"rate": (0.1, 0.3, 1.0, 3.0), "epsilon": (0.005, 0.02)},
}
"""Where the search for the paper's settings begins; it is carried on beyond an edge that is the best."""

FULL: dict[str, Any] = {
    "cost": [100_000, 1_000_000, 10_000_000],
    "batch": [64, 1024],
    "train": [100_000, 1_000_000],
    "seed": [0, 1, 2],
    "seconds": 600.0,
    "tuning_seconds": 120.0,
    "rounds": 5,
    "grids": GRIDS,
    "extensions": 3,
}
QUICK: dict[str, Any] = {
    "cost": [10_000, 100_000],
    "batch": [16],
    "train": [10_000],
    "seed": [0],
    "seconds": 3.0,
    "tuning_seconds": 1.0,
    "rounds": 2,
    "grids": {TIED: {"rate": (0.03,)}, FREE: {"rate": (0.3, 1.0), "epsilon": (0.02,)}},
    "extensions": 0,
}


def make_task(sequences: int, seed: int) -> Task:
    """One batch of copy, `LETTERS` letters a sequence, over and over."""
    return CopyTask(batch=sequences, minimum_length=LETTERS, maximum_length=LETTERS, seed=seed, overfit=True)


def make_model(parameters: int, seed: int) -> zorn.LanguageModel:
    """One LSTM layer of zorn's, of about as many parameters."""
    return zorn.LanguageModel.with_parameters(parameters, CopyTask.vocabulary, seed=seed)


def zorn_method(name: str, parameters: int, sequences: int) -> Method:
    """zorn as it is: everything but the estimator as `zorn train` chooses it for the task and the model."""
    asked = Config(
        task=Choice("copy", batch=sequences, minimum_length=LETTERS, maximum_length=LETTERS, overfit=True),
        model=Choice("lstm", parameters=parameters),
        estimator=Choice(ZORN[name]),
        budget=BudgetConfig(steps=1),
    )
    config, _ = resolve(asked)
    return Method(
        name=name,
        estimator=config.estimator,
        optimizer=config.optimizer,
        schedule=config.schedule,
        batch=sequences,
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """One run of training: which method on what, and of the paper's scheme its learning rate and ε."""

    method: str
    parameters: int
    sequences: int
    seed: int
    seconds: float
    rate: float | None = None
    epsilon: float | None = None

    def words(self) -> str:
        """The settings, for the table."""
        if self.rate is None or self.epsilon is None:
            return zorn_method(self.method, self.parameters, self.sequences).words()
        return f"sgd {self.rate:g}, epsilon {self.epsilon:g}, population {POPULATION}, batch {self.sequences}"

    def run(self) -> Run:
        """Train until the loss is below the last of the marks, or the time is over."""
        task, model = make_task(self.sequences, self.seed), make_model(self.parameters, self.seed)
        if self.rate is None or self.epsilon is None:
            method = zorn_method(self.method, self.parameters, self.sequences)
            return train(
                method,
                model,
                task,
                judge_validation,
                seconds=self.seconds,
                stop_below=MARKS[-1],
                seed=self.seed,
            )
        scheme = PaperScheme(
            model, population=POPULATION, epsilon=self.epsilon, learning_rate=self.rate, seed=self.seed
        )
        return train_by_paper(scheme, task, judge_validation, seconds=self.seconds, stop_below=MARKS[-1])


@dataclasses.dataclass(frozen=True)
class Cost:
    """Steps of each method side by side, on one model and batch."""

    parameters: int
    batch: int
    rounds: int

    @property
    def members(self) -> int:
        """Members of a step that all see the whole batch: 8 of 64 sequences, 2 of 1024."""
        return 8 if self.batch <= 128 else 2

    def steps(self) -> dict[str, Callable[[], object]]:
        """The step of each method; each takes 2 · members · batch passes."""
        task = CopyTask(batch=self.batch, minimum_length=LETTERS, maximum_length=LETTERS, seed=0)
        batch = task.training_batch(0)
        model, own = make_model(self.parameters, 0), make_model(self.parameters, 0)
        scheme = PaperScheme(own, population=self.members, epsilon=0.01, learning_rate=0.01)
        update = zorn.estimators.FusedSGD(learning_rate=0.01)

        def rank_one(population: int, group: int) -> Callable[[], object]:
            estimator = zorn.CDRGE(population=population, epsilon=0.01, group_size=group)
            return lambda: estimator.estimate(model, batch, TokenCrossEntropy(), update)

        return {
            PAPER: lambda: scheme.step(batch),
            WHOLE: rank_one(self.members, self.batch),
            SINGLE: rank_one(self.members * self.batch, 1),
        }

    def run(self) -> Run:
        """A point a round: the CPU seconds of each method's step. The methods take turns, and the first round
        does not count."""
        steps, points, clock = self.steps(), [], 0.0
        for number in range(-1, self.rounds):
            seconds = {}
            for name, step in steps.items():
                start = time.process_time()
                step()
                seconds[name] = time.process_time() - start
            clock += sum(seconds.values())
            if number >= 0:
                points.append(Point(number + 1, 2 * self.members * self.batch, clock, 0.0, seconds))
        return Run(points, 0)


# --------------------------------------------------------------------------------- the three parts


def measure_costs(jobs: list[Cost], results: Results) -> None:
    """Measure each cell alone, one after another, and add its records."""
    for number, run in run_apart(__file__, [_words(job) for job in jobs]):
        job = jobs[number]
        count = parameter_count(make_model(job.parameters, 0))
        for records in cost_records((job.parameters, job.batch), job.members, count, run):
            results.add(records, [])


def train_all(jobs: list[Training], results: Results, at_once: int, setting: str = "training") -> None:
    """Run the jobs, each in a process of its own, and add each to the results when it ends."""
    for number, run in run_apart(__file__, [_words(job) for job in jobs], at_once=at_once):
        job = jobs[number]
        records = run_records(
            setting,
            (job.parameters, job.sequences),
            job.method,
            seed=job.seed,
            seconds=job.seconds,
            tuned=job.words(),
            trained_parameters=parameter_count(make_model(job.parameters, 0)),
            run=run,
            rate=job.rate,
            epsilon=job.epsilon,
        )
        results.add(records, curve_of(run.points, "loss"))


def training_jobs(
    names: Sequence[str], places: Sequence[Place], plan: dict[str, Any], results: Results
) -> list[Training]:
    """The runs of training of these methods, the paper's schemes at the best settings that were found.

    Raises:
        LookupError: a scheme whose settings were not searched.
    """
    jobs: list[Training] = []
    for place in places:
        for name in names:
            settings = tuned_settings(results.rows(), name, place) if name in SCHEMES else (None, None)
            if settings is None:
                raise LookupError(f"{name} has no settings yet for {place[0]} parameters: run --part tune")
            jobs += [Training(name, *place, seed, plan["seconds"], *settings) for seed in plan["seed"]]
    return jobs


def tune(scheme: str, place: Place, plan: dict[str, Any], results: Results, at_once: int) -> None:
    """Search the settings of one of the paper's schemes in one place; every point is added to the results."""

    def scores(points: list[Values]) -> list[tuple[float, ...]]:
        settings = [(values[0], values[-1]) for values in points]  # ε is the rate where there is no other
        jobs = [Training(scheme, *place, TUNING_SEED, plan["tuning_seconds"], *values) for values in settings]
        train_all(jobs, results, at_once, setting="tuning")
        found = tuning_scores(results.rows(), scheme, place)
        return [found[values] for values in settings]

    search(plan["grids"][scheme], scores, extensions=plan["extensions"])


def _words(job: Training | Cost) -> str:
    return json.dumps([type(job).__name__, dataclasses.asdict(job)])


def _child(words: str) -> None:
    torch.set_num_threads(1)
    kind, values = json.loads(words)
    print_run({"Training": Training, "Cost": Cost}[kind](**values).run())


def make_parser() -> argparse.ArgumentParser:
    """The flags of the script."""
    parser = argument_parser("versus_paper", __doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="only these parts")
    parser.add_argument("--parameters", nargs="+", type=int, metavar="N", help="only these sizes")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="of cost, sequences: 64 1024")
    parser.add_argument("--sequences", nargs="+", type=int, metavar="N", default=[16], help="of training: 16")
    parser.add_argument("--method", nargs="+", choices=TRAINED, default=TRAINED, help="only these trained")
    parser.add_argument("--seed", nargs="+", type=int, metavar="N", help="of training: 0 1 2")
    parser.add_argument("--seconds", type=float, help="of training, at most: 600")
    parser.add_argument("--tuning-seconds", type=float, help="of each point of the grid, at most: 120")
    parser.add_argument("--jobs", type=int, default=1, help="runs of training at once")
    return parser


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2])
        return
    parser = make_parser()
    arguments = parser.parse_args()
    plan = dict(QUICK if arguments.quick else FULL)
    for name in ("batch", "seed", "seconds", "tuning_seconds"):
        plan[name] = getattr(arguments, name) or plan[name]
    folder = Path(__file__).parent / "out" if arguments.quick else FOLDER
    results = Results(arguments.json or folder / "versus_paper.json")
    sizes = arguments.parameters or plan["train"]
    places = [(size, count) for size in sizes for count in arguments.sequences]
    try:
        if "cost" in arguments.part:
            sizes = arguments.parameters or plan["cost"]
            cells = [Cost(size, batch, plan["rounds"]) for size in sizes for batch in plan["batch"]]
            measure_costs(cells, results)
        if "tune" in arguments.part:
            for place in places:
                for scheme in (name for name in SCHEMES if name in arguments.method):
                    tune(scheme, place, plan, results, arguments.jobs)
        if "train" in arguments.part:
            try:
                jobs = training_jobs(arguments.method, places, plan, results)
            except LookupError as error:
                parser.error(str(error))
            train_all(jobs, results, arguments.jobs)
    finally:
        same = arguments.picture == Path(parser.get_default("picture"))
        show(results, results.path.with_suffix(".png") if same else arguments.picture)


if __name__ == "__main__":
    main()
