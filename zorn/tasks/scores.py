"""Scores of one row for `RowScore`: numbers without a derivative, lower is better."""

from collections.abc import Sequence


def edit_distance(prediction: Sequence[object], target: Sequence[object]) -> float:
    """Fewest tokens to insert, delete or replace to turn the prediction into the target, per target token.

    0 for equal sequences, 1 for one that has nothing of the target in order, more than 1 only for a
    prediction that is longer than its target: the token error rate of speech recognition. Of an empty target
    it is the length of the prediction. Takes |prediction| · |target| steps of Python.

    References:
        V. I. Levenshtein: Binary codes capable of correcting deletions, insertions, and reversals, 1966. The
        table, row by row, is that of R. A. Wagner and M. J. Fischer, 1974.

    Example:
        >>> edit_distance("kitten", "sitting")  # 3 edits, 7 letters
        0.42857142857142855
        >>> edit_distance([1, 2, 3, 4], [2, 3, 4, 9])  # shifted by one: 2 edits, though no place is right
        0.5
    """
    row = list(range(len(target) + 1))
    for length, token in enumerate(prediction, start=1):
        above, row = row, [length]
        for place, wanted in enumerate(target):
            row.append(min(above[place] + (token != wanted), above[place + 1] + 1, row[place] + 1))
    return row[-1] / max(len(target), 1)


def exact_match(prediction: Sequence[object], target: Sequence[object]) -> float:
    """The error of an exact match: 0 where prediction and target are equal as a whole, else 1.

    Example:
        >>> exact_match([1, 2], [1, 2]), exact_match([1, 2], [1, 3])
        (0.0, 1.0)
    """
    return float(list(prediction) != list(target))
