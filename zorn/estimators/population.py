"""The losses of a population on a batch: which rows run together, and how their losses come back in member
order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from zorn.checks import wrong
from zorn.estimators.workers import ALONE, MicroBatch, Workers
from zorn.models import (
    Batch,
    RowObjective,
    TokenObjective,
    evaluation_mode,
    mean_tokens,
    row_losses,
    streamed,
)
from zorn.noise.draw import Draw
from zorn.noise.weights.structure import BoundPerturbation

Objective: TypeAlias = TokenObjective | RowObjective


@runtime_checkable
class Lanes(Protocol):
    """The model of each micro-batch, whose rows start in states of their own."""

    def deal(self, micro_batches: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
        """The share of each process: a micro-batch goes where the states of its rows are."""
        ...

    def __call__(self, piece: MicroBatch) -> Callable[..., Any]:
        """The model for a micro-batch."""
        ...


@dataclass(frozen=True)
class Workload:
    """The sequences that each member is evaluated on, and the sizes of the portions that run together.

    Member j is evaluated on the `group` sequences of block j mod (B / group) of the batch, so that every
    sequence is used equally often.

    Args:
        population: n, the members.
        group: g, sequences of a member: 1 up to the whole batch.
        micro_batch: rows of one forward pass at most (both signs counted); changes memory and speed only.
        time_chunk: steps after which a recurrent model's outputs are dropped; None: the whole sequence.
            Changes memory only.
    """

    population: int
    group: int
    micro_batch: int
    time_chunk: int | None = None

    def check(self, sequences: int) -> None:
        """Raise `ConfigError` unless the members cover a batch of `sequences` evenly."""
        if not 1 <= self.group <= sequences or sequences % self.group:
            expected = f"a divisor of the batch, {sequences} sequences (1: one a member; None: all)"
            raise wrong("group_size", expected, self.group)
        blocks = sequences // self.group
        if self.population % blocks:
            expected = (
                f"a multiple of {blocks} for a batch of {sequences} sequences in groups of {self.group}"
            )
            raise wrong("population", f"{expected}, so that all are used equally often", self.population)

    def sequences_of(self, members: range, part: slice, sequences: int) -> Tensor:
        """Indices into the batch of the rows of `members`, [len(members) · len(part)], for a part of each
        group."""
        blocks = torch.arange(members.start, members.stop) % (sequences // self.group)
        return (blocks.unsqueeze(1) * self.group + torch.arange(self.group)[part]).flatten()

    def portions(
        self, signs: int, *, side_by_side: bool, avoid: frozenset[int] = frozenset()
    ) -> Iterator[tuple[range, list[slice], bool]]:
        """The members that run together, the parts that their groups are cut into to stay within
        `micro_batch` rows, and whether their signs run together too.

        Several lanes (members and signs) never make a number of rows in `avoid`, the other sizes that the
        model's
        inputs have: a module that puts time first would then pass for one that puts rows first.
        """
        lanes = max(1, self.micro_batch // signs)
        together = min(self.population, max(1, lanes // self.group)) if side_by_side else 1
        while together > 1 and signs * together * self.group in avoid:
            together -= 1
        length = min(self.group, lanes)
        parts = [slice(start, min(start + length, self.group)) for start in range(0, self.group, length)]
        for first in range(0, self.population, together):
            members = range(first, min(first + together, self.population))
            rows = {signs * len(members) * (part.stop - part.start) for part in parts}
            if len(members) > 1 and rows & avoid:  # the last ones, fewer than the others
                yield from ((range(member, member + 1), parts, False) for member in members)
            else:
                yield members, parts, side_by_side and not rows & avoid

    def micro_batches(
        self,
        signs: tuple[int, ...],
        sequences: int,
        *,
        side_by_side: bool,
        avoid: frozenset[int] = frozenset(),
    ) -> list[MicroBatch]:
        """All that is to be run for a batch of `sequences` rows, in a fixed order: `portions`, then θ itself
        where 0 is among the signs."""
        moved = tuple(sign for sign in signs if sign != 0)
        copies = len(moved) if side_by_side else 1
        found = [
            MicroBatch(members, some, range(part.start, part.stop))
            for members, parts, pairs in self.portions(copies, side_by_side=side_by_side, avoid=avoid)
            for some in ([moved] if pairs else [(sign,) for sign in moved])
            for part in parts
        ]
        if 0 in signs:
            starts = range(0, sequences, self.micro_batch)
            found += [
                MicroBatch(range(1), (0,), range(start, min(start + self.micro_batch, sequences)))
                for start in starts
            ]
        return found


def member_losses(
    model: nn.Module,
    bound: BoundPerturbation,
    draw: Draw,
    signs: tuple[int, ...],
    batch: Batch,
    objective: Objective,
    work: Workload,
    *,
    side_by_side: bool,
    normaliser: float | None = None,
    lanes: Lanes | None = None,
    workers: Workers = ALONE,
    first: int = 0,
) -> tuple[Tensor, int]:
    """Each member's mean loss at θ + s ε z_j for every sign, in inference mode.

    Large vocabularies are read in slices, see `zorn.models.sliced_head`.

    Args:
        signs: of +1, −1 and 0; 0 is θ itself, evaluated once a sequence and shared by the members.
        normaliser: tokens per row that a token objective is divided by; None is `mean_tokens` of the batch.
        lanes: what runs a micro-batch, for signs ±1; None: `model`, every row from its initial state.
        workers: the processes that share the work; the losses are the same bits for any number of them.
        first: number of the direction of the first member.

    Returns:
        losses [len(signs), population] float64 on the CPU, and the number of forward passes (rows) that it
        took, of all processes.
    """
    sequences = len(batch.inputs)
    work.check(sequences)
    assert lanes is None or 0 not in signs
    if normaliser is None and isinstance(objective, TokenObjective):
        normaliser = mean_tokens(objective, batch.targets)
    bound.prove(batch.inputs)
    body, judge = streamed(model, objective) if lanes is None else (model, objective)
    micro_batches = work.micro_batches(
        signs, sequences, side_by_side=side_by_side, avoid=_other_sizes(batch.inputs, work.time_chunk)
    )

    def run(chosen: Sequence[MicroBatch]) -> Tensor:
        """The values of some micro-batches, in order."""
        found = [torch.empty(0, dtype=torch.float64)]
        with evaluation_mode(model):
            for (members, some, length), same in groupby(
                chosen, key=lambda piece: (piece.members, piece.signs, len(piece.part))
            ):
                numbers = range(first + members.start, first + members.stop)
                with nullcontext() if some == (0,) else bound.members(draw, numbers, some, length):
                    for piece in same:
                        runner = body if lanes is None else lanes(piece)
                        losses = rows_of(runner, piece)
                        found.append(losses if some == (0,) else losses.unflatten(0, (-1, length)).sum(-1))
        return torch.cat(found)

    def rows_of(runner: Callable[..., Any], piece: MicroBatch) -> Tensor:
        """The loss of each row of a micro-batch."""
        if piece.signs == (0,):
            index = torch.arange(piece.part.start, piece.part.stop)
        else:
            part = slice(piece.part.start, piece.part.stop)
            index = work.sequences_of(piece.members, part, sequences).repeat(len(piece.signs))
        with torch.inference_mode():
            losses = row_losses(
                runner,
                batch,
                judge,
                time_chunk=work.time_chunk,
                normaliser=normaliser,
                rows=index.to(batch.inputs.device),
            )
        return losses.cpu()

    values = workers.gather((lanes or workers).deal(micro_batches), run)
    losses = torch.zeros(len(signs), work.population, dtype=torch.float64)
    base: list[Tensor] = []
    for piece, found in zip(micro_batches, values.split([p.values for p in micro_batches]), strict=True):
        if piece.signs == (0,):
            base.append(found)
            continue
        places = torch.tensor([signs.index(sign) for sign in piece.signs])
        losses[places, piece.members.start : piece.members.stop] += found.view(len(piece.signs), -1)
    losses /= work.group
    if base:
        index = work.sequences_of(range(work.population), slice(None), sequences)
        losses[signs.index(0)] = torch.cat(base)[index].view(work.population, work.group).mean(-1)
    return losses, sum(piece.rows for piece in micro_batches)


def _other_sizes(inputs: Tensor, time_chunk: int | None) -> frozenset[int]:
    """The sizes of the inputs' dimensions after the rows, and of the chunks that time is cut into."""
    sizes = set(inputs.shape[1:])
    if time_chunk is not None and inputs.dim() > 1:
        sizes |= {time_chunk, inputs.shape[1] % time_chunk}
    return frozenset(sizes)
