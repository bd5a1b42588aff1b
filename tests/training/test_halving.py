"""Successive halving, on candidates whose losses are known."""

import math

import pytest

from zorn.training.halving import affordable, rounds_of, successive_halving


class Clock:
    """A budget that scores use up."""

    def __init__(self, seconds):
        self.left, self.spent = seconds, []

    def score(self, candidate, seconds):
        self.left -= seconds
        self.spent.append((candidate, seconds))
        return float(candidate)


@pytest.mark.parametrize("count", [2, 3, 4, 9, 10, 27])
def test_the_best_wins_and_the_budget_is_used_up_in_equal_rounds(count):
    clock = Clock(60.0)
    rounds = successive_halving(list(range(count, 0, -1)), clock.score, lambda: clock.left)
    assert rounds[-1].ranking[0] == (1, 1.0)
    assert len(rounds) == rounds_of(count)
    assert clock.left == pytest.approx(0.0, abs=1e-9)
    for one in rounds:
        assert one.seconds * len(one.ranking) == pytest.approx(60.0 / len(rounds))
        assert [loss for _, loss in one.ranking] == sorted(loss for _, loss in one.ranking)


def test_one_in_three_goes_on():
    clock = Clock(1.0)
    rounds = successive_halving(range(10), clock.score, lambda: clock.left)
    assert [len(one.ranking) for one in rounds] == [10, 4, 2]
    assert [candidate for candidate, _ in rounds[1].ranking] == [0, 1, 2, 3]


def test_who_diverges_is_last_and_of_equal_losses_the_first_wins():
    losses = {"a": math.inf, "b": 2.0, "c": 2.0, "d": math.inf}
    (first, *_) = successive_halving("abcd", lambda name, _: losses[name], lambda: 1.0)
    assert [name for name, _ in first.ranking] == ["b", "c", "a", "d"]


def test_one_candidate_needs_no_round():
    assert successive_halving(["a"], lambda *_: 0.0, lambda: 1.0) == []


def test_as_many_are_compared_as_have_time():
    for seconds in (2.0, 7.0, 30.0, 200.0):
        count = affordable(seconds, 1.0, 100)
        assert seconds / rounds_of(count) / count >= 1.0
        assert count == 100 or seconds / rounds_of(count + 1) / (count + 1) < 1.0
    assert affordable(0.5, 1.0, 100) == 0
    assert affordable(1e9, 1.0, 7) == 7
