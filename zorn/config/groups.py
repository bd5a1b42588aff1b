"""The settings of a run that belong to no component: schedules, budget, and the run itself.

The string under a field is its help text and states unit and range.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from zorn.checks import Count, NotNegative, Positive, Seed, Share, check_fields, check_whole_number, wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Course of learning rate, epsilon and population over the budget."""

    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate over the budget. cosine: falls along half a cosine to the floor."""
    warmup_steps: Annotated[int, partial(check_whole_number, minimum=0)] = 0
    """Steps in which the learning rate climbs in a line from near 0, at least 0."""
    schedule_floor: Share = 0.1
    """Share of the first value at which a cosine ends, 0 to 1 (above 0 for epsilon)."""
    clip_norm: Positive | None = None
    """Scale the gradient down to this norm when it is longer, above 0. None: never."""
    epsilon_schedule: Literal["constant", "cosine"] = "constant"
    """Course of epsilon over the budget. cosine: falls along half a cosine to the floor."""
    tie_epsilon: bool = False
    """Set epsilon to the learning rate at every step, as in the paper; --epsilon is then not used."""
    final_population: Count | None = None
    """Members at the end of the budget, at least 1: grows (or shrinks) geometrically from --population, in
    whole multiples of batch / group size. None: constant."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.tie_epsilon and self.epsilon_schedule != "constant":
            expected = "constant with --tie-epsilon, which sets it to the learning rate"
            raise wrong("epsilon_schedule", expected, self.epsilon_schedule, "leave one of them out")
        falls = self.epsilon_schedule == "cosine" or (self.tie_epsilon and self.schedule == "cosine")
        if falls and self.schedule_floor == 0:
            expected = "above 0 where epsilon follows a cosine"
            raise wrong("schedule_floor", expected, 0, "for example --schedule-floor 0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """Length of the training, in steps or in seconds, not both.

    With a budget in steps a run is reproducible bit for bit, also over a stop and a resume. With a budget in
    seconds the number of steps depends on the clock, and so does what a cosine schedule sets.
    """

    steps: Count | None = None
    """Train for this many steps in all, at least 1."""
    seconds: Positive | None = None
    """Train for this many seconds in all, above 0, with evaluations and saving counted in."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            got = f"steps {self.steps} and seconds {self.seconds}"
            raise wrong(
                "the budget", "steps or seconds, exactly one of them", got, "for example --steps 1000"
            )
        check_fields(self)

    def progress(self, steps: int, seconds: float) -> float:
        """Share of the budget that is used, from 0 to 1.

        >>> BudgetConfig(steps=200).progress(50, 9.0)
        0.25
        """
        used = seconds / self.seconds if self.seconds is not None else steps / (self.steps or 1)
        return min(1.0, used)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Place of the run, and how it computes, evaluates and saves."""

    out: Path | None = None
    """Folder of the run. None: runs/ and the time of the start."""
    seed: Seed = 0
    """Determines weights, batches and perturbations, 0 to 2**64 - 1."""
    device: str = "cpu"
    """Device to compute on, in torch's words: cpu, cuda, cuda:1."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights."""
    kernels: Literal["own", "flashrnn"] = "own"
    """own: zorn's own. flashrnn: LSTMs on a GPU by FlashRNN, with structure dense and in evaluations, the
    parts of a run that it can do."""
    threads: Count | None = None
    """CPU threads, at least 1. None: 1 for small models, else torch's choice."""
    evaluations: Count = 20
    """Evaluations on the validation split, at least 1, spread over the budget (and one at the start)."""
    checkpoint_seconds: NotNegative = 60.0
    """Seconds between checkpoints, at least 0. 0: one after every step. The end is always saved."""
    keep: Count = 2
    """Checkpoints to keep, at least 1: the newest."""
    journal: bool = True
    """Write the few numbers of every step, where the estimator has such, from which the run resumes where it
    was killed (with pes and nres: where the segment began) and zorn replay makes any step again."""
    journal_sync: NotNegative | None = 1.0
    """Seconds until a step in the journal is forced to the disk, at least 0: the most that a machine which
    dies can lose (a process that dies loses nothing). 0: at once. None: as the system likes."""
    partial_steps: bool = False
    """Continue without the members of a process that fails in its evaluation, where members are dealt."""
    check_replicas: Count = 100
    """Steps between two comparisons of all processes' weights, at least 1."""
    process_timeout: Positive = 600.0
    """Seconds to wait for another process, above 0: longer than an evaluation or a checkpoint takes."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.device, str) or not self.device:
            raise wrong("device", "a device's name", repr(self.device), "for example --device cpu")
