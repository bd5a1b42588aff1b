"""Steps per second on many workers, from the measured costs of the parts of a step.

A step of n members evaluates R rows, whole micro-batches of m at a time, dealt to N workers. With the
measured seconds of a row t, of folding one member into one parameter f, the link's latency ℓ and bandwidth β,
and d trained parameters:

    evaluation   share · t · (1 + σ H_N)              share = min(R, ⌈⌈R/m⌉ / N⌉ m), the largest one
    losses       ⌈log₂ N⌉ ℓ                           two float64 a member, gathered in rounds, after each of
                 + (N − 1) (32 + 16 n / N) / β        which a worker knows twice as many (Bruck et al. 1997)
    fold         n d f                                every worker folds all

σ is what a worker is late on average, as a part of its evaluation and exponentially distributed: the last of
N is late by H_N = 1 + 1/2 + … + 1/N times that. A worker that fails takes the step with it: with failures at
a rate Λ over all workers, and a restart of r seconds, a step of S seconds takes (e^{ΛS} − 1)(1/Λ + r) on
average (Daly 2006, "A higher order estimate of the optimum checkpoint interval"; the journal makes every step
a checkpoint).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from zorn.checks import check_number, check_whole_number
from zorn.distributed.dealing import dealt
from zorn.errors import ConfigError

PARTS = ("evaluation", "losses", "fold", "fixed")
LOSS_BYTES, HEADER_BYTES = 16.0, 32.0
"""Of a member, its two losses in float64; of the message that they come in."""


@dataclass(frozen=True, kw_only=True)
class WorkerCosts:
    """What the parts of a step cost on one worker, and on its link.

    `python benchmarks/scaling.py` measures them.

    Args:
        row: t, seconds of one forward pass of one row over its whole sequence, above 0.
        fold: f, seconds of folding one more member, over the parameters, above 0.
        latency: ℓ, seconds of the smallest message from one worker to another.
        bandwidth: β, bytes per second of a worker's link, each way.
        fixed: seconds of a step that do not depend on the members: what a fold takes at least, the optimizer,
            the journal, a checkpoint spread over its steps.
        late: σ, by how much a worker is late on average, as a part of its evaluation.
        failures: of one worker, per second.
        restart: r, seconds from a failure until the group goes on: detection, start, load, replay.

    Raises:
        ConfigError: a number out of range.
    """

    row: float
    fold: float
    latency: float
    bandwidth: float
    fixed: float = 0.0
    late: float = 0.0
    failures: float = 0.0
    restart: float = 0.0

    def __post_init__(self) -> None:
        for name in ("row", "fold", "bandwidth"):
            check_number(name, getattr(self, name), above=True, hint="benchmarks/scaling.py measures it")
        for name in ("latency", "fixed", "late", "failures", "restart"):
            check_number(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """What a step has to do, over all workers.

    Args:
        population: n, members.
        rows: R, forward passes of the step: 2 n g of central differences, see `forward_passes`.
        micro_batch: m, rows that run together; whole ones are dealt.
        parameters: d, trained ones.

    Raises:
        ConfigError: a number out of range.
    """

    population: int
    rows: int
    micro_batch: int
    parameters: int

    def __post_init__(self) -> None:
        for name in ("population", "rows", "micro_batch", "parameters"):
            check_whole_number(name, getattr(self, name), minimum=1)

    @property
    def portions(self) -> list[int]:
        """Rows of each micro-batch; more workers than there are of them leave some without work."""
        whole, rest = divmod(self.rows, self.micro_batch)
        return [self.micro_batch] * whole + [rest] * (rest > 0)


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of the parts of a step; `total` has what failures cost on average too."""

    evaluation: float
    losses: float
    fold: float
    fixed: float
    total: float

    @property
    def steps_per_second(self) -> float:
        """Of a long run."""
        return 1 / self.total

    @property
    def bottleneck(self) -> str:
        """The part that takes longest."""
        return max(PARTS, key=lambda part: getattr(self, part))


def predict(work: StepWork, costs: WorkerCosts, workers: int) -> StepSeconds:
    """Seconds of a step on equal workers, in closed form.

    Args:
        workers: N, at least 1.

    Raises:
        ConfigError: no workers.

    Example:
        >>> costs = WorkerCosts(row=0.01, fold=1e-10, latency=1e-4, bandwidth=1e9)
        >>> work = StepWork(population=512, rows=1024, micro_batch=8, parameters=10_000_000)
        >>> for workers in (1, 16, 128):
        ...     step = predict(work, costs, workers)
        ...     print(f"{workers}: {step.steps_per_second:.2f} steps per second, {step.bottleneck}")
        1: 0.09 steps per second, evaluation
        16: 0.87 steps per second, evaluation
        128: 1.69 steps per second, fold
    """
    check_whole_number("workers", workers, minimum=1)
    share = min(work.rows, math.ceil(len(work.portions) / workers) * work.micro_batch)
    harmonic = float((1 / np.arange(1, workers + 1)).sum())
    evaluation = share * costs.row * (1 + costs.late * harmonic)
    losses = _gather_seconds(costs, workers, _loss_bytes(work, workers))
    fold = work.population * work.parameters * costs.fold
    seconds = evaluation + losses + fold + costs.fixed
    rate = workers * costs.failures
    total = math.expm1(rate * seconds) * (1 / rate + costs.restart) if rate else seconds
    return StepSeconds(evaluation, losses, fold, costs.fixed, total)


def fold_bound_workers(work: StepWork, costs: WorkerCosts) -> float:
    """The number of workers at which evaluating takes as long as folding all members, (R/n) t / (d f):
    however many more there are, a step gets at most twice as fast. It does not depend on the members.

    Example:
        >>> costs = WorkerCosts(row=0.01, fold=1e-10, latency=1e-4, bandwidth=1e9)
        >>> work = StepWork(population=512, rows=1024, micro_batch=8, parameters=10_000_000)
        >>> round(fold_bound_workers(work, costs), 3)
        20.0
    """
    return work.rows * costs.row / (work.population * work.parameters * costs.fold)


def simulate(
    work: StepWork,
    costs: WorkerCosts,
    workers: int,
    *,
    steps: int = 100,
    speeds: Any = None,
    seed: int = 0,
) -> float:
    """Seconds of a step on average, worker by worker and message by message.

    Every worker's own clock is followed: it evaluates its micro-batches, is late by chance, sends all losses
    that it knows to one worker and waits for those of another, round after round, and folds. A failure of any
    worker takes the step in flight with it.

    Args:
        work, costs, workers: as in `predict`.
        steps: that are simulated, at least 1.
        speeds: of the workers, [workers] above 0, relative to `costs.row`; None: all 1. Folding is as fast.
        seed: of what is left to chance, 0 or more.

    Raises:
        ConfigError: an argument out of range.

    Example:
        >>> costs = WorkerCosts(row=0.01, fold=1e-10, latency=1e-4, bandwidth=1e9)
        >>> work = StepWork(population=512, rows=1024, micro_batch=8, parameters=10_000_000)
        >>> seconds = simulate(work, costs, 16, steps=1)
        >>> round(seconds / predict(work, costs, 16).total, 6)
        1.0
    """
    check_whole_number("workers", workers, minimum=1)
    check_whole_number("steps", steps, minimum=1)
    check_whole_number("seed", seed, minimum=0)
    speed = np.ones(workers) if speeds is None else np.asarray(speeds, dtype=np.float64)
    if speed.shape != (workers,) or not (np.isfinite(speed) & (speed > 0)).all():
        raise ConfigError(f"speeds: got {speeds!r}, expected {workers} numbers above 0, one for each worker")
    portions = list(work.portions)
    runs = dealt(portions, workers)
    rows = np.array([sum(portions[run.start : run.stop]) for run in runs])
    generator = np.random.default_rng(seed)
    rate = workers * costs.failures
    clock, fails_at = 0.0, generator.exponential(1 / rate) if rate else math.inf
    done = 0
    while done < steps:
        late = 1 + costs.late * generator.exponential(size=workers)
        seconds = _one_step(work, costs, speed, rows * late)
        if clock + seconds <= fails_at:
            clock += seconds
            done += 1
        else:
            clock = fails_at + costs.restart
            fails_at = clock + generator.exponential(1 / rate)
    return clock / steps


def _one_step(work: StepWork, costs: WorkerCosts, speed: np.ndarray, rows: np.ndarray) -> float:
    """Seconds until the last worker is done."""
    workers = len(speed)
    clocks = rows * costs.row / speed
    clocks = _gather(clocks, costs, _loss_bytes(work, workers))
    clocks = clocks + work.population * work.parameters * costs.fold / speed
    return float(clocks.max()) + costs.fixed


def _gather(clocks: np.ndarray, costs: WorkerCosts, size: float) -> np.ndarray:
    """The workers' clocks once all have the `size` bytes of each: with those of h workers known, a worker
    sends them to the one h before it, and gets those of the one h behind it."""
    workers, have = len(clocks), 1
    while have < workers:
        new = min(have, workers - have)
        clocks = np.maximum(clocks, np.roll(clocks, -have)) + _message_seconds(costs, new * size)
        have += new
    return clocks


def _rounds(workers: int) -> int:
    """⌈log₂ N⌉: until all know what one knows, or each what all know."""
    return (workers - 1).bit_length()


def _message_seconds(costs: WorkerCosts, size: float) -> float:
    """Of one message of `size` bytes from one worker to another."""
    return costs.latency + size / costs.bandwidth


def _gather_seconds(costs: WorkerCosts, workers: int, size: float) -> float:
    """Of `size` bytes of each worker to all, see `_gather`."""
    return _rounds(workers) * costs.latency + (workers - 1) * size / costs.bandwidth


def _loss_bytes(work: StepWork, workers: int) -> float:
    return HEADER_BYTES + LOSS_BYTES * work.population / workers
