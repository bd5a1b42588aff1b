"""Successive halving: all candidates get a little time, the better ones more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Candidate = TypeVar("Candidate")

KEPT = 3
"""One in this many candidates goes on to the next round (η)."""


@dataclass(frozen=True, slots=True)
class Round(Generic[Candidate]):
    """One round.

    Attributes:
        seconds: that each candidate got.
        ranking: candidates with their losses, the best first; infinite where training diverged.
    """

    seconds: float
    ranking: tuple[tuple[Candidate, float], ...]


def rounds_of(candidates: int) -> int:
    """Rounds until one is left of this many candidates, at least 1.

    >>> [rounds_of(candidates) for candidates in (1, 2, 3, 4, 9, 10)]
    [0, 1, 1, 2, 2, 3]
    """
    return math.ceil(round(math.log(candidates, KEPT), 9))


def affordable(seconds: float, least: float, most: int) -> int:
    """How many candidates, at most `most`, can have at least `least` seconds each in the first of their
    rounds, which share `seconds` equally; 0 or 1: there is nothing to compare.

    >>> affordable(seconds=18.0, least=1.0, most=100), affordable(1.0, 1.0, 100)
    (9, 1)
    """
    fits = (n for n in range(most, 1, -1) if seconds / rounds_of(n) / n >= least)
    return next(fits, 1 if seconds >= least and most else 0)


def successive_halving(
    candidates: Sequence[Candidate],
    score: Callable[[Candidate, float], float],
    left: Callable[[], float],
) -> list[Round[Candidate]]:
    """Compare candidates in rounds: in each, those that are left get equal time, and one in three goes on.
    The rounds get equal shares of the time, so a candidate's time about triples from one to the next.

    Args:
        candidates: at least one; of equal losses the earlier wins.
        score: (candidate, seconds) -> loss after that much time, from the beginning; infinite where training
            diverged.
        left: seconds that are left for all that is still to be done.

    Returns:
        The rounds; the winner is first in the ranking of the last. None for a single candidate.

    Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
    AISTATS 2016; with η = 3 as in Li et al., "Hyperband", JMLR 2018.

    Example:
        >>> time = iter((18.0, 9.0))
        >>> rounds = successive_halving("ihgfedcba", lambda letter, _: ord(letter) / 1, lambda: next(time))
        >>> [len(each.ranking) for each in rounds], rounds[-1].ranking[0][0]
        ([9, 3], 'a')
    """
    rounds: list[Round[Candidate]] = []
    staying = list(candidates)
    while len(staying) > 1:
        slot = left() / rounds_of(len(staying)) / len(staying)
        losses = [score(candidate, slot) for candidate in staying]
        order = sorted(range(len(staying)), key=losses.__getitem__)
        rounds.append(Round(slot, tuple((staying[place], losses[place]) for place in order)))
        staying = [staying[place] for place in order[: math.ceil(len(staying) / KEPT)]]
    return rounds
