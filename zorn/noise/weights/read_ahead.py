"""Vectors of noise, drawn ahead of what is read, so that many short reads share the overhead of one draw."""

from collections.abc import Callable

from torch import Tensor


class ReadAhead:
    """Reads pieces of the members' vectors, in rising order, from draws of `at_once` elements.

    What is read does not depend on the draws: noise is counter-based.

    Args:
        draw: of some members, the first element and how many: [len(members), count].
        size: elements of a member's vector.
        at_once: elements that are drawn at once, of all members together.

    Example:
        >>> import torch
        >>> numbers = ReadAhead(lambda m, first, count: torch.arange(first, first + count)[None], 100, 9)
        >>> numbers(range(1), 3, 2), numbers(range(1), 98, 2)
        (tensor([[3, 4]]), tensor([[98, 99]]))
    """

    def __init__(self, draw: Callable[[range, int, int], Tensor], size: int, at_once: int) -> None:
        self._draw, self._size, self._at_once = draw, size, at_once
        self._members, self._start = range(0), 0
        self._drawn: Tensor | None = None

    def __call__(self, members: range, start: int, count: int) -> Tensor:
        """Elements start .. start + count of each member's vector, [len(members), count]: a view, to read."""
        drawn, first = self._drawn, start - self._start
        if drawn is None or members != self._members or first < 0 or first + count > drawn.shape[1]:
            ahead = min(max(count, self._at_once // len(members)), self._size - start)
            drawn, first = self._draw(members, start, ahead), 0
            self._drawn, self._members, self._start = drawn, members, start
        return drawn[:, first : first + count]
