"""Runs of the fault injection: what dies in them, where and when."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kill_points import POINTS

STEPS = 20
WORDS = "--task copy --batch 4 --minimum-length 1 --maximum-length 2 --hidden-size 8 --estimator cd-rge"
WORDS += " --population 8 --micro-batch 4 --evaluations 4 --threads 1"
WORDS += f" --steps {STEPS}"
PROCESS_TIMEOUT, HANG_TIMEOUT = 60, 10
"""Seconds after which processes give up one that is silent, in runs with kills only and with hangs."""

OPTIMIZERS = ("adamw", "fused-sgd")
CHECKPOINT_SECONDS = (0.0, 0.05, 1000.0)
"""A checkpoint after every step, after every few, and only at start and end."""

VICTIMS = ("worker", "launcher", "worker", "all", "worker")
"""Of kills at random moments, in turn; "all": launcher and workers at once, as when a machine dies."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One SIGKILL, or SIGSTOP.

    Args:
        hangs: the victim, a worker, is stopped instead: silent, and deaf to SIGTERM.
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
    hangs: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, and the kills that happen to it one after the other, each in another start of its workers."""

    kind: str
    optimizer: str
    processes: int
    kills: tuple[Kill, ...] = ()
    checkpoint_seconds: float = 0.0

    @property
    def hangs(self) -> bool:
        """Whether a worker hangs in it."""
        return any(kill.hangs for kill in self.kills)

    def words(self, out: Path) -> list[str]:
        """Of `zorn train`."""
        own = ["--optimizer", self.optimizer, "--checkpoint-seconds", str(self.checkpoint_seconds)]
        own += ["--process-timeout", str(HANG_TIMEOUT if self.hangs else PROCESS_TIMEOUT)]
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


def hang_plans(runs: int, seconds: dict[tuple[str, int], float], seed: int) -> Iterator[Plan]:
    """Runs of two processes of which one hangs, at a random moment or, every second run, at a point."""
    dice = random.Random(seed)
    for number in range(runs):
        optimizer = dice.choice(OPTIMIZERS)
        if number % 2 == 0:
            kill = Kill(
                victim="worker",
                rank=dice.randrange(2),
                moment=dice.uniform(0.0, seconds[optimizer, 2]),
                hangs=True,
            )
        else:
            name = dice.choice(list(POINTS))
            kill = Kill(
                victim="worker",
                rank=0 if POINTS[name].writes else dice.randrange(2),
                point=name,
                call=dice.randint(1, POINTS[name].calls(STEPS)),
                hangs=True,
            )
        kind = f"hangs {f'at {kill.point}' if kill.point else 'at random'}"
        yield Plan(kind=kind, optimizer=optimizer, processes=2, kills=(kill,))


def torchrun_plans(runs: int, seed: int) -> Iterator[Plan]:
    """Runs of two processes under torchrun: a worker is killed, the launcher is, a worker hangs."""
    dice = random.Random(seed)
    turns = zip(
        itertools.cycle(("worker", "launcher", "worker")),
        itertools.cycle((False, False, True)),
        itertools.cycle(OPTIMIZERS),
        strict=False,
    )
    for victim, hangs, optimizer in itertools.islice(turns, runs):
        kill = Kill(victim=victim, rank=dice.randrange(2), call=dice.randint(1, STEPS // 2), hangs=hangs)
        kind = f"torchrun: {victim}{' hangs' * hangs}"
        yield Plan(kind=kind, optimizer=optimizer, processes=2, kills=(kill,))
