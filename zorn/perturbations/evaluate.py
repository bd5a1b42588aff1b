"""The losses of a population on a batch: which rows run together, and how their losses come back in member
order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from zorn.errors import ConfigError
from zorn.models import (
    Batch,
    RowObjective,
    TokenObjective,
    evaluation_mode,
    mean_tokens,
    row_losses,
    streamed,
)
from zorn.perturbations.draw import Draw
from zorn.perturbations.perturbation import BoundPerturbation

Objective: TypeAlias = TokenObjective | RowObjective

Lanes: TypeAlias = Callable[[Tensor, range, slice], Callable[..., Any]]
"""What runs the rows of some signs (their places, a tensor), members and part of their groups: the model,
started in states of their own."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Which sequences each member is evaluated on, and in what portions.

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
    time_chunk: int | None

    def check(self, sequences: int) -> None:
        """Raise `ConfigError` unless the members cover a batch of `sequences` evenly."""
        if not 1 <= self.group <= sequences or sequences % self.group:
            raise ConfigError(
                f"group_size: got {self.group} for a batch of {sequences} sequences, expected a divisor of "
                f"{sequences} "
                "(1: one sequence a member; None: the whole batch)"
            )
        blocks = sequences // self.group
        if self.population % blocks:
            raise ConfigError(
                f"population: got {self.population} members for a batch of {sequences} sequences in groups "
                f"of {self.group}, "
                f"expected a multiple of {blocks}, so that every sequence is used equally often"
            )

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
) -> tuple[Tensor, int]:
    """Each member's mean loss at θ + s ε z_j for every sign, in inference mode.

    Large vocabularies are read in slices, see `zorn.models.sliced_head`.

    Args:
        signs: of +1, −1 and 0; 0 is θ itself, evaluated once a sequence and shared by the members.
        normaliser: tokens per row that a token objective is divided by; None is `mean_tokens` of the batch.
        lanes: what runs which rows, for signs ±1; None: `model`, every row from its initial state.

    Returns:
        losses [len(signs), population] float64 on the CPU, and the number of forward passes (rows) that it
        took.
    """
    sequences = len(batch.inputs)
    work.check(sequences)
    assert lanes is None or 0 not in signs
    if normaliser is None and isinstance(objective, TokenObjective):
        normaliser = mean_tokens(objective, batch.targets)
    body, judge = streamed(model, objective) if lanes is None else (model, objective)
    losses = torch.full((len(signs), work.population, work.group), torch.nan, dtype=torch.float64)
    passes = 0

    def run(runner: Callable[..., Any], index: Tensor, copies: int) -> Tensor:
        nonlocal passes
        index = index.repeat(copies).to(batch.inputs.device)
        passes += len(index)
        with torch.inference_mode():
            losses = row_losses(
                runner, batch, judge, time_chunk=work.time_chunk, normaliser=normaliser, rows=index
            )
        return losses.cpu()

    with evaluation_mode(model):
        moved = tuple(sign for sign in signs if sign != 0)
        copies = len(moved) if side_by_side else 1
        avoid = _other_sizes(batch.inputs, work.time_chunk)
        for members, parts, pairs in work.portions(copies, side_by_side=side_by_side, avoid=avoid):
            for some in [moved] if pairs else [(sign,) for sign in moved]:
                places = torch.tensor([signs.index(sign) for sign in some])
                for length, same in groupby(parts, key=lambda part: part.stop - part.start):
                    with bound.members(draw, members, some, length):
                        for part in same:
                            index = work.sequences_of(members, part, sequences)
                            runner = body if lanes is None else lanes(places, members, part)
                            found = run(runner, index, len(some)).view(len(some), len(members), length)
                            losses[places, members.start : members.stop, part] = found
        if 0 in signs:
            pieces = torch.arange(sequences).split(work.micro_batch)
            base = torch.cat([run(body, piece, 1) for piece in pieces])
            index = work.sequences_of(range(work.population), slice(None), sequences)
            losses[signs.index(0)] = base[index].view(work.population, work.group)
    return losses.mean(-1), passes


def _other_sizes(inputs: Tensor, time_chunk: int | None) -> frozenset[int]:
    """The sizes of the inputs' dimensions after the rows, and of the chunks that time is cut into."""
    sizes = set(inputs.shape[1:])
    if time_chunk is not None and inputs.dim() > 1:
        sizes |= {time_chunk, inputs.shape[1] % time_chunk}
    return frozenset(sizes)
