"""The processes that do one step together, and the micro-batches that are dealt to them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from zorn.models import Batch
from zorn.noise.weights.structure import GradientBlock

T = TypeVar("T")


@dataclass(frozen=True)
class MicroBatch:
    """Rows that run together: some members under some signs on a part of their groups; or, under the sign 0
    alone, a part of the batch at θ itself.

    Args:
        members: which, j; `range(1)` under the sign 0.
        signs: of +1 and −1, or (0,).
        part: places within each member's group; under the sign 0, rows of the batch.

    Example:
        >>> MicroBatch(range(2, 5), (1, -1), range(4)).rows
        24
    """

    members: range
    signs: tuple[int, ...]
    part: range

    @property
    def rows(self) -> int:
        """Number of rows that run, the cost of the micro-batch."""
        return len(self.signs) * len(self.members) * len(self.part)

    @property
    def values(self) -> int:
        """Number of results: a sum of losses for each sign and member; under the sign 0, one for each row."""
        return self.rows if self.signs == (0,) else len(self.signs) * len(self.members)


class Workers:
    """The processes that do one step together, each with a replica of the model: here one, which does all.

    Whole micro-batches (or rows) are dealt. They are the same for any number of processes, and their results
    come back in their order, so that the sum does not depend on the number of processes. All processes make
    the same calls in the same order. `zorn.distributed` has the workers of several processes.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.

    Example:
        >>> Workers().rows(6)
        range(0, 6)
    """

    rank: int = 0
    size: int = 1

    def together(
        self, estimator: Any, model: nn.Module, batch: Batch, objective: Any
    ) -> AbstractContextManager[None]:
        """A block in which all processes do one estimate: an error on one is an error on all."""
        del estimator, model, batch, objective
        return nullcontext()

    def deal(self, micro_batches: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
        """The share of each process, all of them in order."""
        return [list(micro_batches)]

    def gather(self, shares: list[list[MicroBatch]], run: Callable[[Sequence[MicroBatch]], Tensor]) -> Tensor:
        """The values of all micro-batches in order, float64 [Σ values]; `run` gives those of this process's
        share."""
        return run(shares[0])

    def collect(self, value: T) -> list[T]:
        """The values of all processes, in the order of ranks."""
        return [value]

    def rows(self, sequences: int) -> range:
        """This process's rows of a batch, where rows are dealt."""
        return range(sequences)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes of a few numbers, float64 [count]."""
        return values

    def sum_blocks(self, blocks: Iterator[GradientBlock]) -> Iterator[GradientBlock]:
        """The sum over processes of gradients, block by block."""
        return blocks


ALONE = Workers()
"""One process by itself."""
