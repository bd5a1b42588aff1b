"""Pieces of work dealt to processes in order, as evenly as whole pieces can be."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise


def dealt(costs: Sequence[int], processes: int) -> list[range]:
    """A run of pieces for each process, all pieces in order, each exactly once.

    A piece goes to the process whose share of the whole work its middle falls into. Every process gets at
    least one piece where there are enough.

    Args:
        costs: of each piece, at least 0, in any unit (rows).
        processes: how many, at least 1.

    Example:
        >>> dealt([2, 2, 2, 1], processes=2)
        [range(0, 2), range(2, 4)]
    """
    pieces = len(costs)
    ends = list(accumulate(costs, initial=0))
    middles = [(first + last) / 2 for first, last in pairwise(ends)]
    least = int(pieces >= processes)
    bounds = [0]
    for process in range(1, processes):
        share = bisect_left(middles, ends[-1] * process / processes)
        bounds.append(min(max(share, bounds[-1] + least), pieces - least * (processes - process)))
    bounds.append(pieces)
    return [range(first, last) for first, last in pairwise(bounds)]
