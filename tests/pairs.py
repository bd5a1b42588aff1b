"""Pairs of values in place of whole products, where parameters do not act on each other."""

import itertools
from collections.abc import Iterable


def pairwise(*choices: Iterable) -> list[tuple]:
    """Rows of one value from each of the choices, in which every two values of different choices meet.

    Most faults need one value, or two together; about as few rows as there can be find them (greedy, as in
    Cohen, Dalal, Fredman & Patton 1997). Two choices alone are their whole product.
    """
    values = [list(choice) for choice in choices]
    rows = list(itertools.product(*(range(len(choice)) for choice in values)))
    pairs = {row: set(itertools.combinations(enumerate(row), 2)) for row in rows}
    missing, found = set().union(*pairs.values()), []
    while missing:
        best = max(rows, key=lambda row: len(pairs[row] & missing))
        missing -= pairs[best]
        found.append(tuple(choice[index] for choice, index in zip(values, best, strict=True)))
    return found


def each_once(*choices: Iterable) -> list[tuple]:
    """Rows in which every value of each of the choices comes at least once: the shorter ones begin again."""
    values = [list(choice) for choice in choices]
    return [tuple(choice[row % len(choice)] for choice in values) for row in range(max(map(len, values)))]
