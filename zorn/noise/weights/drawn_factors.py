"""Row factors of large tables, drawn where they are read: the noise of a vocabulary of 100,000 tokens costs a
step what it reads of it, not a sign a member and token.

Signs only: one of them is a bit of a word that its own counter gives, so that any can be drawn alone, and is
the same sign however it is drawn.
"""

from functools import cached_property

import torch
from torch import Tensor

from zorn.noise.draw import Draw, noise, stream_of
from zorn.noise.layout import Layout
from zorn.noise.targets import StructuredTarget
from zorn.noise.weights.member_noise import Factors
from zorn.random import signs_at

LARGEST_TABLE = 8192
"""Rows of a parameter whose factors are drawn whole."""


def row_stream(target: StructuredTarget) -> int:
    """The stream of a of a parameter's noise a bᵀ."""
    return stream_of(target.row_number, 0)


def column_stream(target: StructuredTarget) -> int:
    """The stream of b."""
    return stream_of(target.number, 1)


class DrawnFactors(Factors):
    """The factors of a parameter of one block, its row factor a drawn when they are asked for.

    Args:
        layout: of the parameter.
        draw: of the step.
        members: of this pass.
        target: the parameter.
        columns: b, [members, 1, columns].
        dtype, device: of the factors.
    """

    def __init__(
        self,
        layout: Layout,
        draw: Draw,
        members: range,
        target: StructuredTarget,
        columns: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        for name, value in (("layout", layout), ("columns", columns)):
            object.__setattr__(self, name, value)  # a Factors is frozen
        self.__dict__["_drawn"] = draw, members, row_stream(target), dtype, device

    @cached_property
    def rows(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All of a, [members, 1, rows]: for a module that reads it whole."""
        return self.rows_between(0, self.layout.rows)

    def rows_at(self, index: Tensor) -> Tensor:
        """Entries of a that an index [S, M, …] names, each of its own member: of its shape."""
        draw, members, stream, dtype, device = self.__dict__["_drawn"]
        mine = index.movedim(1, 0)
        a = signs_at(
            draw.seed, draw.step, members, stream, mine.flatten(1).long(), dtype=dtype, device=device
        )
        a = a.view(mine.shape).movedim(0, 1)
        for row in self.layout.fixed_rows:
            a = a.masked_fill(index == row, 0)
        return a

    def rows_between(self, first: int, last: int) -> Tensor:
        """Entries first .. last of a, [members, 1, last − first]."""
        draw, members, stream, dtype, device = self.__dict__["_drawn"]
        count = last - first
        a = noise("rademacher", draw, members, stream, count, offset=first, dtype=dtype, device=device)
        for row in self.layout.fixed_rows:
            if first <= row < last:
                a[:, row - first] = 0
        return a.unsqueeze(1)
