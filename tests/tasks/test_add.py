import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transducers import make, written

from zorn.tasks import AddTask
from zorn.tasks.add import add_digits

# Nines and zeros are drawn more often than by chance: carries run through the one and stop at the other.
digit = st.one_of(st.integers(0, 9), st.sampled_from([0, 4, 5, 9]))


def _number(places):
    return int("".join(map(str, reversed(places))))


@given(st.lists(st.lists(st.tuples(digit, digit), min_size=12, max_size=12), min_size=1, max_size=8))
def test_digits_add_up_as_integers_do(rows):
    first, second = torch.tensor(rows).unbind(2)
    for one, other, total in zip(first, second, add_digits(first, second), strict=True):
        assert _number(total.tolist()) == _number(one.tolist()) + _number(other.tolist())


@pytest.mark.parametrize("length", [1, 2, 60, 110])
def test_a_carry_runs_through_every_place(length):
    nines, one = torch.full((1, length), 9), torch.zeros(1, length, dtype=torch.int64)
    one[0, 0] = 1
    assert add_digits(nines, one).tolist() == [[0] * length + [1]]
    assert add_digits(nines, one - one).tolist() == [[9] * length + [0]]


@pytest.mark.parametrize(("length", "kinds"), [(1, 10), (2, 9)])
def test_leading_digits_are_uniform_and_zero_only_where_a_number_has_one_digit(length, kinds):
    task = make(AddTask, minimum_length=length, maximum_length=length, batch=4000)
    rows = written(task, task.training_batch(0))
    for number in range(2):
        leading = torch.tensor([int(source.split("+")[number][0]) for source, _ in rows])
        share = torch.bincount(leading, minlength=10)[10 - kinds :] / len(rows)
        assert int(leading.min()) == 10 - kinds
        assert (share - 1 / kinds).abs().max() < 5 * math.sqrt(1 / kinds * (1 - 1 / kinds) / len(rows))


def test_a_sum_has_as_many_digits_as_its_numbers_or_one_more():
    task = make(AddTask, batch=500)
    extra = {len(answer) - 1 - source.index("+") for source, answer in written(task, task.training_batch(0))}
    assert extra == {0, 1}
