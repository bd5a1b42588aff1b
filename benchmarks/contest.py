"""What the comparisons of estimators share: one method training one model, in a process of its own.

A method is the settings that `zorn train` takes (estimator, optimizer, schedule), so that each line of a
table can be repeated from the command line. Its clock counts training alone: the loss of the
unperturbed model, which the curves show, is evaluated outside of it. One thread, one process a run: its
peak memory is its own, and its seconds are those of a core (CPU time, on a quiet machine the same as the
wall clock), so that other work on the machine does not count against a method.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import RETURN_FREED_MEMORY, process_bytes, restart_peak

import zorn
from zorn.config import (
    BudgetConfig,
    Choice,
    Config,
    RunConfig,
    ScheduleConfig,
    component_settings,
    from_plain,
    to_plain,
)
from zorn.tasks import Task
from zorn.training.build import build_estimator, build_optimizers
from zorn.training.schedules import rate_factor_at
from zorn.training.step import move_weights, prepare_step

_TOLD = {"perturbation", "truncation", "learning_rate"}
"""Settings that a method's name tells, or that its words begin with."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a model is trained: the estimator of the gradient, the optimizer that follows it, the batch.

    Attributes:
        estimator, optimizer: with the settings that are not the defaults, or with all of them.
        batch: sequences in a training batch.
        length: tokens of a window, where a text is learned.
        stream: windows that follow on each other with their state carried; None: each begins anew.
    """

    name: str
    estimator: Choice
    optimizer: Choice
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch: int
    length: int = 32
    stream: int | None = None

    @property
    def kind(self) -> str:
        """What the method needs: "exact" (backpropagation), "bridge" (within chunks), "forward" (none)."""
        kinds = {"bptt": "exact", "tbptt": "exact", "e-prop": "exact", "bridge": "bridge"}
        return kinds.get(self.estimator.name, "forward")

    def config(self, seed: int = 0) -> Config:
        """The settings as `zorn train` has them, all but the task's."""
        return Config(
            task=Choice("text", stream=self.stream),
            estimator=self.estimator,
            optimizer=self.optimizer,
            schedule=self.schedule,
            budget=BudgetConfig(steps=1),
            run=RunConfig(seed=seed),
        )

    def words(self) -> str:
        """The settings that the name does not tell and that are not the defaults, in a few words."""
        words = [f"{self.optimizer.name} {self.optimizer.learning_rate:g}"]
        for name, (value, default) in self._settings().items():
            if value != default and name not in _TOLD:
                number = f"{value:g}" if isinstance(value, float) else f"{value}"
                words.append(f"{name.replace('_', ' ')} {number}")
        streams = [] if self.stream is None else [f"streams of {self.stream} windows"]
        return ", ".join([*words, f"batch {self.batch}", *streams])

    def _settings(self) -> dict[str, tuple[Any, Any]]:
        """Value and default of the settings of estimator, optimizer and schedule."""
        found: dict[str, tuple[Any, Any]] = {}
        for kind, choice in (("estimator", self.estimator), ("optimizer", self.optimizer)):
            known = component_settings(kind, choice.name)
            found |= {name: (value, known[name].default) for name, value in choice.given.items()}
        for each in dataclasses.fields(self.schedule):
            found[each.name] = getattr(self.schedule, each.name), each.default
        return found

    def to_json(self) -> str:
        """All settings, for a process of its own; `from_json` reads them."""
        own = {"name": self.name, "batch": self.batch, "length": self.length}
        return json.dumps(own | {"config": to_plain(self.config())})

    @classmethod
    def from_json(cls, text: str) -> "Method":
        """The method that `to_json` wrote."""
        own: dict[str, Any] = json.loads(text)
        config = from_plain(own.pop("config"), "method")
        return cls(
            **own,
            estimator=config.estimator,
            optimizer=config.optimizer,
            schedule=config.schedule,
            stream=config.task.stream,
        )


@dataclass(frozen=True)
class Point:
    """Where a run stands: optimizer steps, forward passes, seconds of training, and the loss there.

    Attributes:
        measured: all figures of that point, such as an accuracy.
    """

    steps: int
    passes: int
    seconds: float
    loss: float
    measured: dict[str, float]


@dataclass(frozen=True)
class Run:
    """One run of a method: its points in order, and the peak memory above what the process began with."""

    points: list[Point]
    peak_bytes: int

    def first_below(self, threshold: float, figure: str = "loss") -> Point | None:
        """The first point whose figure is below `threshold`; None where it was not reached."""
        reached = (point for point in self.points if point.measured.get(figure, math.inf) < threshold)
        return next(reached, None)


Judge = Callable[[zorn.LanguageModel, Task, bool], dict[str, float]]
"""Evaluates a model without touching it: at least its "loss"; told whether it is the last time."""


def judge_validation(model: zorn.LanguageModel, task: Task, last: bool) -> dict[str, float]:
    """The figures of the task's first validation split, and the last time those of the others too.

    A figure of another split has that split's name before its own: "validation-longer token_accuracy". A task
    that is overfitted has its one batch as the first split.
    """
    figures: dict[str, float] = {}
    for split in task.validation_splits[: None if last else 1]:
        prefix = "" if split == task.validation_splits[0] else f"{split} "
        found = dataclasses.asdict(task.evaluate(model, split))
        names = ("loss", "token_accuracy", "sequence_accuracy", "bits_per_byte")
        figures |= {prefix + name: found[name] for name in names if found[name] is not None}
    return figures


def train(
    method: Method,
    model: zorn.LanguageModel,
    task: Task,
    judge: Judge,
    *,
    seconds: float,
    stop_below: float = -math.inf,
    judge_every: float = 0.0,
    seed: int = 0,
) -> Run:
    """Train for `seconds`, or until the loss falls below `stop_below` or is no longer finite.

    A step whose gradient is zero everywhere, as in a window without an answer, leaves weights and optimizer
    alone.

    Args:
        judge_every: seconds of training between two judgements, 0 for one after every step.
    """
    stepper = _Stepper(method, model, seed)
    memory = _TrainingMemory()
    points: list[Point] = []
    steps = passes = 0
    clock = last_judged = 0.0
    while True:
        if steps == 0 or clock - last_judged >= judge_every or clock >= seconds:
            with memory.not_counted():
                figures = judge(model, task, False)
                last_judged, loss = clock, figures["loss"]
                over = clock >= seconds or loss < stop_below or not math.isfinite(loss)
                figures = judge(model, task, True) if over else figures
            points.append(Point(steps, passes, clock, loss, figures))
            if over:
                return Run(points, memory.peak)
        start = time.process_time()
        try:
            passes += stepper.step(task, steps, clock / seconds)
        except zorn.errors.NonFiniteLossError:
            points.append(Point(steps, passes, clock, math.nan, {"loss": math.nan}))
            return Run(points, memory.peak)
        clock += time.process_time() - start
        steps += 1


class _TrainingMemory:
    """Peak memory in bytes, above what the process held at first, of all but what is not counted."""

    def __init__(self) -> None:
        self.peak, self._held = 0, process_bytes("VmRSS")
        restart_peak()

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """A block whose memory does not count."""
        self.peak = max(self.peak, process_bytes("VmHWM") - self._held)
        yield
        restart_peak()


class _Stepper:
    """The step of a method: estimate, clip, follow, as `zorn train` does it."""

    def __init__(self, method: Method, model: zorn.LanguageModel, seed: int) -> None:
        self.config, self.model = method.config(seed), model
        self.estimator: Any = build_estimator(self.config)
        self.optimizers = build_optimizers(self.config, model, self.estimator)
        assert self.optimizers, "a contest compares methods with a torch optimizer"

    def step(self, task: Task, number: int, progress: float) -> int:
        """Take step `number` (from 0) when `progress` (0 to 1) of the time is used; its forward passes."""
        prepare_step(self.config, task, self.estimator, number, progress)
        estimate = self.estimator.estimate(self.model, task.training_batch(number), task.objective)
        if estimate.gradient_norm > 0:
            factor = rate_factor_at(self.config.schedule, number, progress)
            move_weights(self.config, self.model, self.optimizers, factor, lambda _: estimate)
        return estimate.forward_passes


def run_apart(script: str, jobs: Sequence[str], *, at_once: int = 1) -> Iterator[tuple[int, Run]]:
    """Run `script --child JOB` for each job in a process of its own on one thread: (its number, its run), as
    they end.

    The script prints its run with `print_run`.

    Raises:
        RuntimeError: after the last job, if some of them failed; their errors are on standard error.
    """
    environment = os.environ | RETURN_FREED_MEMORY | {"OMP_NUM_THREADS": "1"}

    def one(job: str) -> Run:
        command = [sys.executable, script, "--child", job]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        found = json.loads(done.stdout)
        return Run([Point(*values) for values in found["points"]], found["peak_bytes"])

    failed = 0
    with ThreadPoolExecutor(at_once) as pool:
        numbers = {pool.submit(one, job): number for number, job in enumerate(jobs)}
        for done, future in enumerate(as_completed(numbers), start=1):
            error, number = future.exception(), numbers[future]
            failed += error is not None
            outcome = "done" if error is None else f"failed: {jobs[number]}"
            print(f"{Path(script).stem}: {done} of {len(jobs)} {outcome}", file=sys.stderr, flush=True)
            if error is None:
                yield number, future.result()
    if failed:
        raise RuntimeError(f"{failed} of {len(jobs)} runs failed: their errors stand above")


def print_run(run: Run) -> None:
    """What `run_apart` reads."""
    points = [[point.steps, point.passes, point.seconds, point.loss, point.measured] for point in run.points]
    print(json.dumps({"points": points, "peak_bytes": run.peak_bytes}))
