"""Row factors of large tables, drawn where they are read: the noise of a vocabulary of 100,000 tokens costs a
step what it reads of it, not a sign a member and token.

Signs only: one of them is a bit of a word that its own counter gives, so that any can be drawn alone, and is
the same sign however it is drawn.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from zorn.perturbations.draw import Draw, noise, stream_of
from zorn.perturbations.layout import Layout
from zorn.perturbations.member_noise import Factors
from zorn.perturbations.targets import StructuredTarget
from zorn.random import signs_at

LARGEST_TABLE = 8192
"""Rows of a parameter whose factors are drawn whole."""


def row_stream(target: StructuredTarget, i: int = 0) -> int:
    """The stream of a_i of a parameter's noise Σ_i a_i b_iᵀ."""
    return stream_of(target.row_number, 2 * i)


def column_stream(target: StructuredTarget, i: int = 0) -> int:
    """The stream of b_i."""
    return stream_of(target.number, 2 * i + 1)


class DrawnFactors(Factors):
    """The factors of a parameter of one block, its row factors a_i drawn when they are asked for.

    Args:
        layout: of the parameter.
        draw: of the step.
        members: of this pass.
        streams: of a_i for each rank.
        columns: b_i, each [members, 1, columns].
        dtype, device: of the factors.
    """

    def __init__(
        self,
        layout: Layout,
        draw: Draw,
        members: range,
        streams: Sequence[int],
        columns: list[Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        for name, value in (("layout", layout), ("columns", columns)):
            object.__setattr__(self, name, value)  # a Factors is frozen
        self.__dict__["_drawn"] = draw, members, streams, dtype, device

    @cached_property
    def rows(self) -> list[Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All of a_i, [members, 1, rows]: for a module that reads them whole."""
        return [self.rows_between(i, 0, self.layout.rows) for i in range(len(self.columns))]

    def rows_at(self, i: int, index: Tensor) -> Tensor:
        """Entries of a_i that an index [S, M, …] names, each of its own member: of its shape."""
        draw, members, streams, dtype, device = self.__dict__["_drawn"]
        mine = index.movedim(1, 0)
        a = signs_at(
            draw.seed, draw.step, members, streams[i], mine.flatten(1).long(), dtype=dtype, device=device
        )
        a = a.view(mine.shape).movedim(0, 1)
        for row in self.layout.fixed_rows:
            a = a.masked_fill(index == row, 0)
        return a

    def rows_between(self, i: int, first: int, last: int) -> Tensor:
        """Entries first .. last of a_i, [members, 1, last − first]."""
        draw, members, streams, dtype, device = self.__dict__["_drawn"]
        count = last - first
        a = noise("rademacher", draw, members, streams[i], count, offset=first, dtype=dtype, device=device)
        for row in self.layout.fixed_rows:
            if first <= row < last:
                a[:, row - first] = 0
        return a.unsqueeze(1)
