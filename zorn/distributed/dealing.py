"""Who does what: pieces of work dealt in order, in runs as long as a process is fast."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise


def dealt(costs: Sequence[int], speeds: Sequence[float]) -> list[range]:
    """A run of pieces for each process, all pieces in order, each exactly once.

    A piece goes to the process whose share of the whole work its middle falls into. Every process gets at
    least one piece where there are enough, so that its speed goes on being measured.

    Args:
        costs: of each piece, at least 0, in any unit (rows).
        speeds: of each process, above 0, in any unit.

    Example:
        >>> dealt([1, 1, 1, 1, 1, 1], speeds=[1.0, 2.0])
        [range(0, 2), range(2, 6)]
    """
    pieces, processes = len(costs), len(speeds)
    ends = list(accumulate(costs, initial=0))
    middles = [(first + last) / 2 for first, last in pairwise(ends)]
    shares = [ends[-1] * part / sum(speeds) for part in accumulate(speeds)]
    least = int(pieces >= processes)
    bounds = [0]
    for process, share in enumerate(shares[:-1], start=1):
        latest = pieces - least * (processes - process)
        bounds.append(min(max(bisect_left(middles, share), bounds[-1] + least), latest))
    bounds.append(pieces)
    return [range(first, last) for first, last in pairwise(bounds)]


def owners(sizes: Sequence[int], processes: int) -> list[int]:
    """The process that each thing belongs to: the largest first, each to the one that has least.

    Args:
        sizes: of each thing (elements of a parameter).
        processes: how many, at least 1.

    Example:
        >>> owners([10, 90, 60, 40], processes=2)
        [0, 0, 1, 1]
    """
    loads, found = [0] * processes, [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        found[place] = loads.index(min(loads))
        loads[found[place]] += sizes[place]
    return found
