"""A short search for the learning rate: bracket the best on a grid of equal ratios, halve the bracket."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from zorn.checks import check_number, check_whole_number

RATIO = math.sqrt(10)
"""Of two neighbours on the coarse grid."""
PROBES = 7
"""Most rates tried: three to begin with, two on the way, two to halve the bracket."""


@dataclass(frozen=True, slots=True)
class RateSearch:
    """What a search found.

    Attributes:
        start: the learning rate that it began with.
        rate: the best that was tried.
        losses: rate -> held-out loss, in the order of the rates; infinite where training diverged.
    """

    start: float
    rate: float
    losses: dict[float, float]

    @property
    def loss(self) -> float:
        """The held-out loss of the best rate; infinite when all diverged."""
        return self.losses[self.rate]


def search_rate(
    score: Callable[[float], float],
    start: float,
    *,
    most: int = PROBES,
    goes_on: Callable[[], bool] = lambda: True,
) -> RateSearch:
    """Find a learning rate near `start`, by a bracketing line search in its logarithm.

    `start` and its two neighbours at a ratio of √10 are tried; while the best is at an end, the next one
    beyond it; then the two between the best and its neighbours. Of equal losses the smaller rate wins. For a
    score that falls to one minimum the result is within a factor of √10 ** ½ of it where `most` allows.

    Args:
        score: held-out loss of a rate, for example `Learner.probe`: the same weights, batches and noise for
            each, so that the losses differ by the rate alone. Infinite where training diverged.
        start: the rate to begin with, above 0.
        most: rates tried at most, at least 1.
        goes_on: asked before each rate but the first; False ends the search with the best so far.

    Raises:
        ConfigError: an argument outside its range.

    Source: bracketing as in Brent, "Algorithms for minimization without derivatives", 1973.

    Example:
        >>> import math
        >>> search = search_rate(lambda rate: abs(math.log10(rate) + 1.5), start=0.01)
        >>> round(search.rate, 4), len(search.losses)
        (0.0316, 6)
    """
    check_number("start", start, above=True, hint="0.01 suits Adam")
    check_whole_number("most", most, minimum=1)
    losses = {0: score(start)}  # by position: the rate start · RATIO ** (position / 2)

    def best() -> int:
        return min(losses, key=lambda position: (losses[position], position))

    def attempt(position: int) -> bool:
        """Try a position; False where the search must end."""
        if position not in losses:
            if len(losses) >= most or not goes_on():
                return False
            losses[position] = score(start * RATIO ** (position / 2))
        return True

    bracketed = attempt(-2) and (math.isinf(losses[0]) or attempt(2))
    while bracketed and best() in (min(losses), max(losses)):
        bracketed = attempt(best() - 2 if best() == min(losses) else best() + 2)
    middle = best()
    if bracketed and attempt(middle - 1):
        attempt(middle + 1)
    rates = {start * RATIO ** (position / 2): losses[position] for position in sorted(losses)}
    return RateSearch(start, start * RATIO ** (best() / 2), rates)
