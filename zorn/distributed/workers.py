"""The workers of an estimator: its micro-batches dealt over a group, and the values gathered in order."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, final

import torch
from torch import Tensor

from zorn.distributed.dealing import dealt
from zorn.distributed.group import Group
from zorn.perturbations import GradientBlock
from zorn.perturbations.evaluate import MicroBatch

T = TypeVar("T")

SPEED_KEPT = 0.5
"""Share of the running speed of a process that a step keeps."""


@final
class GroupWorkers:
    """`zorn.perturbations.evaluate.Workers` over a group.

    Args:
        group: the processes.
        balance: deal in proportion to the speeds measured so far, instead of evenly. It changes who does
            what, and no bit of the result.
        partial: values of a process that failed while it evaluated its share are NaN, instead of an error
            on all; the failure is told as a RuntimeWarning.

    Attributes:
        facts: what must be the same on all processes at the next evaluation.

    Example:
        >>> workers = GroupWorkers(Group(), balance=False, partial=False)
        >>> pieces = [MicroBatch(range(2), (1, -1), range(3))]
        >>> workers.gather(workers.deal(pieces), lambda share: torch.zeros(4, dtype=torch.float64))
        tensor([0., 0., 0., 0.], dtype=torch.float64)
    """

    def __init__(self, group: Group, *, balance: bool, partial: bool) -> None:
        self.group, self.balance, self.partial = group, balance, partial
        self.facts: dict[str, object] = {}
        self._speeds: list[float | None] = [None] * group.size  # rows a second
        self._warned = False

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.group.rank

    def deal(self, micro_batches: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
        """Runs of micro-batches, by their rows and the speeds of the processes."""
        if len(micro_batches) < self.group.size and not self._warned:
            self._warned = True
            rows = max(piece.rows for piece in micro_batches)
            warnings.warn(
                f"{len(micro_batches)} micro-batches for {self.group.size} processes, so that some are idle: "
                f"set micro_batch below {rows}, the rows of one now, or take a larger population",
                RuntimeWarning,
                stacklevel=2,
            )
        runs = dealt([piece.rows for piece in micro_batches], self._known_speeds())
        return [list(micro_batches[run.start : run.stop]) for run in runs]

    def gather(self, shares: list[list[MicroBatch]], run: Callable[[Sequence[MicroBatch]], Tensor]) -> Tensor:
        """The values of all shares in order, in one message."""
        own, left_out = shares[self.rank], None
        started = time.perf_counter()
        try:
            values = run(own)
        except Exception as error:
            if not self.partial:
                raise
            left_out = error
            values = torch.full((sum(piece.values for piece in own),), torch.nan, dtype=torch.float64)
        pieces = [piece for share in shares for piece in share]
        notes = self.group.message(
            values,
            facts=self.facts | {"work": f"{len(pieces)} micro-batches, {sum(p.rows for p in pieces)} rows"},
            work=float(sum(piece.rows for piece in own)),
            seconds=time.perf_counter() - started,
            left_out=left_out,
        )
        if left_out is not None:
            warnings.warn(
                f"rank {self.rank} failed, and its members are left out of this step: {left_out!r}",
                RuntimeWarning,
                stacklevel=2,
            )
        if self.balance:
            for rank, note in enumerate(notes):
                if note.work > 0 and note.seconds > 0 and not note.left_out:
                    self._measured(rank, note.work / note.seconds)
        return torch.cat([note.values for note in notes])

    def _measured(self, rank: int, speed: float) -> None:
        before = self._speeds[rank]
        self._speeds[rank] = speed if before is None else SPEED_KEPT * before + (1 - SPEED_KEPT) * speed

    def _known_speeds(self) -> list[float]:
        """The speed of each process; the mean of the others where it was not measured yet."""
        known = [speed for speed in self._speeds if speed is not None]
        usual = sum(known) / len(known) if known else 1.0
        return [usual if speed is None else speed for speed in self._speeds]

    def collect(self, value: T) -> list[T]:
        """What every process gave."""
        return self.group.collect(value)

    def rows(self, sequences: int) -> range:
        """An even share of the rows."""
        return dealt([1] * sequences, [1.0] * self.group.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, in one message."""
        return self.group.sum(values)

    def sum_blocks(self, blocks: Iterator[GradientBlock]) -> Iterator[GradientBlock]:
        """Each block all-reduced."""
        for block in blocks:
            values = block.values.clone()  # in place, which the owner of the block may not expect
            self.group.all_reduce(values)
            yield GradientBlock(block.target, block.start, values)
