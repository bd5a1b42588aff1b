"""Runs of the fault injection: what dies in them, where and when."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kill_points import POINTS

STEPS = 20
WORDS = "--task copy --batch 4 --minimum-length 1 --maximum-length 2 --hidden-size 8 --estimator cd-rge"
WORDS += " --population 8 --micro-batch 4 --evaluations 4 --threads 1 --exchange scalars"
WORDS += f" --process-timeout 60 --steps {STEPS}"
OPTIMIZERS = ("adamw", "fused-sgd")
CHECKPOINT_SECONDS = (0.0, 0.05, 1000.0)
"""A checkpoint after every step, after every few, and only at start and end."""

VICTIMS = ("worker", "launcher", "worker", "all", "worker")
"""Of kills at random moments, in turn; "all": launcher and workers at once, as when a machine dies."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One SIGKILL.

    Args:
        victim: "worker", "launcher" or "all".
        rank: of the worker that is killed, or that comes to the point.
        moment: seconds after the start of the workers; None: at a point.
        point, call: a name of `POINTS`, and the how many-th time that the worker comes there.
    """

    victim: str
    rank: int
    moment: float | None = None
    point: str = ""
    call: int = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, and the kills that happen to it one after the other, each in another start of its workers."""

    kind: str
    optimizer: str
    processes: int
    kills: tuple[Kill, ...] = ()
    checkpoint_seconds: float = 0.0

    def words(self, out: Path) -> list[str]:
        """Of `zorn train`."""
        own = ["--optimizer", self.optimizer, "--checkpoint-seconds", str(self.checkpoint_seconds)]
        return ["train", *WORDS.split(), *own, "--out", str(out)]


def plans(
    runs: int, processes: Sequence[int], seconds: dict[tuple[str, int], float], seed: int
) -> Iterator[Plan]:
    """Half of the runs die at every point in turn, the others one to three times at random moments.

    Args:
        seconds: of a run that nothing happens to, by optimizer and processes.
    """
    dice = random.Random(seed)
    reached = [(name, size) for name in POINTS for size in processes if size > 1 or POINTS[name].alone]
    places = zip(itertools.cycle(reached), itertools.cycle(("worker", "all")), strict=False)
    for (name, size), victim in itertools.islice(places, runs - runs // 2):
        point = POINTS[name]
        kill = Kill(
            victim=victim,
            rank=0 if point.writes else dice.randrange(size),
            point=name,
            call=dice.randint(1, point.calls(STEPS)),
        )
        yield Plan(kind=name, optimizer=dice.choice(OPTIMIZERS), processes=size, kills=(kill,))
    turns = zip(itertools.cycle(VICTIMS), itertools.cycle(processes), strict=False)
    for victim, size in itertools.islice(turns, runs // 2):
        optimizer = dice.choice(OPTIMIZERS)
        moments = [dice.uniform(0.0, seconds[optimizer, size]) for _ in range(dice.randint(1, 3))]
        yield Plan(
            kind=f"{victim} at random",
            optimizer=optimizer,
            processes=size,
            kills=tuple(Kill(victim=victim, rank=dice.randrange(size), moment=each) for each in moments),
            checkpoint_seconds=dice.choice(CHECKPOINT_SECONDS),
        )


def torchrun_plans(runs: int, seed: int) -> Iterator[Plan]:
    """Runs of two processes under torchrun."""
    dice = random.Random(seed)
    turns = itertools.cycle(zip(("worker", "launcher"), OPTIMIZERS, strict=True))
    for victim, optimizer in itertools.islice(turns, runs):
        kill = Kill(victim=victim, rank=dice.randrange(2), call=dice.randint(1, STEPS // 2))
        yield Plan(kind=f"torchrun: {victim}", optimizer=optimizer, processes=2, kills=(kill,))
