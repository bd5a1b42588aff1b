"""Row factors of large tables, drawn where they are read: the noise of a vocabulary of 100,000 tokens costs a
step what it reads of it, not a sign a member and token.

Signs only: one of them is a bit of a word that its own counter gives, so that any can be drawn alone, and is
the same sign however it is drawn.
"""

from functools import cached_property

from torch import Tensor

from zorn.noise.draw import Draw
from zorn.noise.layout import Layout
from zorn.noise.weights.member_noise import Factors
from zorn.random import signs, signs_at

LARGEST_TABLE = 8192
"""Rows of a parameter whose factors are drawn whole."""


class DrawnFactors(Factors):
    """The factors of a parameter of one block, its row factor a drawn when they are asked for.

    Args:
        columns: b, [members, 1, columns]; a has its dtype and device.
        stream: of a.
    """

    def __init__(self, layout: Layout, columns: Tensor, draw: Draw, members: range, stream: int) -> None:
        self.layout, self.columns = layout, columns
        self._vector = draw.seed, draw.step, members, stream

    @cached_property
    def rows(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All of a, [members, 1, rows]: for a module that reads it whole."""
        return self.rows_between(0, self.layout.rows)

    def rows_at(self, index: Tensor) -> Tensor:
        """Entries of a that an index [S, M, …] names, each of its own member: of its shape."""
        mine, b = index.movedim(1, 0), self.columns
        a = signs_at(*self._vector, mine.flatten(1).long(), dtype=b.dtype, device=b.device)
        a = a.view(mine.shape).movedim(0, 1)
        for row in self.layout.fixed_rows:
            a = a.masked_fill(index == row, 0)
        return a

    def rows_between(self, first: int, last: int) -> Tensor:
        """Entries first .. last of a, [members, 1, last − first]."""
        b = self.columns
        a = signs(*self._vector, last - first, offset=first, dtype=b.dtype, device=b.device)
        return self.layout.without_fixed_rows_(a, first).unsqueeze(1)
