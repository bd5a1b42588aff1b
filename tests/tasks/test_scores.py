from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zorn.tasks import edit_distance, exact_match

tokens = st.lists(st.integers(0, 3), max_size=8)


def _edits(one, other):
    """The definition, by recursion on the first symbol."""

    @cache
    def edits(i, j):
        if i == len(one) or j == len(other):
            return len(one) - i + len(other) - j
        if one[i] == other[j]:
            return edits(i + 1, j + 1)
        return 1 + min(edits(i + 1, j), edits(i, j + 1), edits(i + 1, j + 1))

    return edits(0, 0)


@given(tokens, tokens)
def test_the_edit_distance_is_its_definition_per_token_of_the_target(prediction, target):
    assert edit_distance(prediction, target) == _edits(prediction, target) / max(len(target), 1)


@pytest.mark.parametrize(
    ("prediction", "target", "score"),
    [
        ("kitten", "sitting", 3 / 7),
        ("", "abc", 1.0),
        ("abc", "", 3.0),
        ("", "", 0.0),
        ("abc", "abc", 0.0),
        ("xyz", "abc", 1.0),
        ("bcd", "abcd", 1 / 4),
        ("abab", "ab", 1.0),
        ("ab", "abab", 1 / 2),
    ],
)
def test_edit_distances_by_hand(prediction, target, score):
    assert edit_distance(prediction, target) == score


@given(tokens, tokens)
def test_exact_match_is_all_or_nothing(prediction, target):
    assert exact_match(prediction, target) == (0.0 if prediction == target else 1.0)
