"""The workers of an estimator: its micro-batches dealt over a group, and the values gathered in order."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn

from zorn.checks import wrong
from zorn.distributed.agreement import setup_facts, weight_facts
from zorn.distributed.dealing import dealt
from zorn.distributed.group import Group
from zorn.errors import DivergedReplicaError
from zorn.estimators import Estimator
from zorn.estimators.arguments import check_call
from zorn.estimators.workers import MicroBatch, Workers
from zorn.models import Batch
from zorn.noise import GradientBlock

T = TypeVar("T")


@final
class GroupWorkers(Workers):
    """The processes of a group, as the workers of an estimator.

    Args:
        group: the processes.
        check_every: estimates between two comparisons of all weights, at least 1.
        partial: values of a process that failed while it evaluated its share are NaN, instead of an error
            on all; the failure is told as a RuntimeWarning.

    Example:
        >>> workers = GroupWorkers(Group(), partial=False)
        >>> pieces = [MicroBatch(range(2), (1, -1), range(3))]
        >>> workers.gather(workers.deal(pieces), lambda share: torch.zeros(4, dtype=torch.float64))
        tensor([0., 0., 0., 0.], dtype=torch.float64)
    """

    def __init__(self, group: Group, *, partial: bool, check_every: int = 100) -> None:
        self.rank, self.size = group.rank, group.size
        self.group, self.partial, self.check_every = group, partial, check_every
        self._facts: dict[str, object] = {}
        self._agreed_at: int | None = None
        self._warned = False

    @contextmanager
    def together(
        self, estimator: Estimator, model: nn.Module, batch: Batch, objective: Any
    ) -> Iterator[None]:
        """A block in which all processes do one estimate: an error on one is an error on all.

        At first, and where the estimator's step does not follow the last one, the processes compare settings,
        model, weights and batch; every `check_every` steps the weights.

        Raises:
            ConfigError: processes that differ, which the message names; fewer rows than processes.
            DivergedReplicaError: weights that were the same are not any more.
            WorkerError: another process failed, or is gone. Where it met NonFiniteLossError, that.
        """
        step = estimator.step
        with self.group.together():
            check_call(model, batch, objective)
            if self.size > 1:
                self._agree(estimator, model, batch, objective)
            if estimator.deals == "rows" and len(batch.inputs) < self.size:
                expected = f"at least {self.size}, some for each process"
                fix = "take a larger batch, or fewer processes"
                raise wrong("the rows of the batch", expected, len(batch.inputs), fix)
            self._facts = {
                "step": step,
                "batch.inputs": tuple(batch.inputs.shape),
                "batch.targets": tuple(batch.targets.shape),
            }
            yield
            self._agreed_at = estimator.step

    def _agree(self, estimator: Estimator, model: nn.Module, batch: Batch, objective: Any) -> None:
        """Raise, on all processes, for what is not the same on all."""
        if self._agreed_at is None or estimator.step not in (self._agreed_at, self._agreed_at - 1):
            options = {"check_every of share()": self.check_every, "partial of share()": self.partial}
            facts = setup_facts(model, batch, objective, estimator)
            self.group.message(facts=facts | {name: str(value) for name, value in options.items()})
        elif estimator.step % self.check_every == 0:
            facts = {"step": str(estimator.step)} | weight_facts(model)
            self.group.message(facts=facts, disagreement=DivergedReplicaError)

    def deal(self, micro_batches: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
        """Runs of micro-batches, by their rows."""
        if len(micro_batches) < self.size and not self._warned:
            self._warned = True
            rows = max(piece.rows for piece in micro_batches)
            warnings.warn(
                f"{len(micro_batches)} micro-batches for {self.size} processes, so that some are idle: "
                f"set micro_batch below {rows}, the rows of one now, or take a larger population",
                RuntimeWarning,
                stacklevel=2,
            )
        runs = dealt([piece.rows for piece in micro_batches], self.size)
        return [list(micro_batches[run.start : run.stop]) for run in runs]

    def gather(self, shares: list[list[MicroBatch]], run: Callable[[Sequence[MicroBatch]], Tensor]) -> Tensor:
        """The values of all shares in order, in one message."""
        own, left_out = shares[self.rank], None
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
            facts=self._facts | {"work": f"{len(pieces)} micro-batches, {sum(p.rows for p in pieces)} rows"},
            left_out=left_out,
        )
        if left_out is not None:
            warnings.warn(
                f"rank {self.rank} failed, and its members are left out of this step: {left_out!r}",
                RuntimeWarning,
                stacklevel=2,
            )
        return torch.cat([note.values for note in notes])

    def collect(self, value: T) -> list[T]:
        """The values of all processes."""
        return self.group.collect(value)

    def rows(self, sequences: int) -> range:
        """An even share of the rows."""
        return dealt([1] * sequences, self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, in one message."""
        return self.group.sum(values)

    def sum_blocks(self, blocks: Iterator[GradientBlock]) -> Iterator[GradientBlock]:
        """Each block all-reduced."""
        for block in blocks:
            values = block.values.clone()  # in place, which the owner of the block may not expect
            self.group.all_reduce(values)
            yield GradientBlock(block.target, block.start, values)
