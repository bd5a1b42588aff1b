"""What the comparisons of estimators share: one method training one model, in a process of its own.

A method is the settings that `zorn train` takes (`EstimatorConfig`, `OptimizerConfig`), so that each line
of a table can be repeated from the command line. Its clock counts training alone: the loss of the
unperturbed model, which the curves show, is evaluated outside of it. One thread, one process a method: its
peak memory is its own, and its seconds are those of a core (CPU time, on a quiet machine the same as the
wall clock), so that other work on the machine does not count against a method.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import RETURN_FREED_MEMORY, process_bytes, restart_peak
from matplotlib.axes import Axes

import zorn
from zorn.tasks import Task
from zorn.training.build import build_estimator, build_optimizer
from zorn.training.config import EstimatorConfig, OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a model is trained: the estimator of the gradient, and the optimizer that follows it."""

    name: str
    estimator: EstimatorConfig
    optimizer: OptimizerConfig

    def words(self) -> str:
        """The settings that the method was run with, in a few words."""
        rate, estimator = self.optimizer.learning_rate, self.estimator
        words = f"{self.optimizer.optimizer} {rate:g}"
        if self.optimizer.momentum:
            words += f", momentum {self.optimizer.momentum:g}"
        if self.optimizer.clip_norm is not None:
            words += f", clip {self.optimizer.clip_norm:g}"
        if estimator.estimator not in ("bptt", "tbptt"):
            words += f", n {estimator.population}, g {estimator.group_size or 'B'}, ε {estimator.epsilon:g}"
        return words


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

    def first_below(self, threshold: float) -> Point | None:
        """The first point whose loss is below `threshold`; None where it was not reached."""
        return next((point for point in self.points if point.loss < threshold), None)


Judge = Callable[[zorn.LanguageModel, Task, bool], dict[str, float]]
"""Evaluates a model without touching it: at least its "loss"; told whether it is the last time."""


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

    Args:
        judge_every: seconds of training between two judgements, 0 for one after every step.
    """
    estimator = build_estimator(method.estimator, seed)
    optimizer = build_optimizer(method.optimizer, model)
    assert optimizer is not None, "a contest compares methods with a torch optimizer"
    clip = method.optimizer.clip_norm
    held = process_bytes("VmRSS")
    restart_peak()
    points: list[Point] = []
    steps = passes = 0
    clock = last_judged = 0.0
    while True:
        if steps == 0 or clock - last_judged >= judge_every or clock >= seconds:
            figures = judge(model, task, False)
            last_judged, loss = clock, figures["loss"]
            over = clock >= seconds or loss < stop_below or not math.isfinite(loss)
            figures = judge(model, task, True) if over else figures
            points.append(Point(steps, passes, clock, loss, figures))
            if over:
                return Run(points, process_bytes("VmHWM") - held)
        start = time.process_time()
        try:
            estimate = estimator.estimate(model, task.training_batch(steps), task.objective)
        except zorn.NonFiniteLossError:
            points.append(Point(steps, passes, clock, math.nan, {}))
            return Run(points, process_bytes("VmHWM") - held)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        clock += time.process_time() - start
        steps, passes = steps + 1, passes + estimate.forward_passes


def run_apart(script: str, jobs: Sequence[Sequence[str]], *, at_once: int = 1) -> list[Run]:
    """Run `script --child WORDS…` for each job in a process of its own on one thread; their `Run`s in order.

    The script prints its run with `print_run`.
    """
    environment = os.environ | RETURN_FREED_MEMORY | {"OMP_NUM_THREADS": "1"}

    def one(words: Sequence[str]) -> Run:
        command = [sys.executable, script, "--child", *words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        found = json.loads(done.stdout)
        print(f"{Path(script).stem}: {' '.join(words)} done", file=sys.stderr, flush=True)
        return Run([Point(*values) for values in found["points"]], found["peak_bytes"])

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, jobs))


def print_run(run: Run) -> None:
    """What `run_apart` reads."""
    points = [[point.steps, point.passes, point.seconds, point.loss, point.measured] for point in run.points]
    print(json.dumps({"points": points, "peak_bytes": run.peak_bytes}))


def draw_losses(panels: Sequence[Axes], runs: dict[str, Run], title: str) -> None:
    """Loss against steps, forward passes and seconds (logarithmic), a line a method; three panels."""
    against = {
        "optimizer steps": lambda point: point.steps,
        "forward passes": lambda point: point.passes,
        "seconds of training": lambda point: point.seconds,
    }
    for axes, (words, value) in zip(panels, against.items(), strict=True):
        for number, (name, run) in enumerate(runs.items()):
            later = [point for point in run.points if point.steps]
            axes.plot(
                [value(point) for point in later],
                [point.loss for point in later],
                "--" if "bptt" in name else "-",
                color=f"C{number}",
                label=name,
                lw=1.3,
            )
        axes.set_xscale("log")
        axes.set_ylim(0, 4)
        axes.set_xlabel(words)
    panels[0].set_ylabel(f"{title}\nloss (nats per token)")
    panels[0].legend(fontsize=6, loc="lower left")
