"""Who does what: every piece exactly once, in order, for any number of processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zorn.distributed.dealing import dealt
from zorn.distributed.group import Group
from zorn.distributed.workers import GroupWorkers
from zorn.estimators.workers import MicroBatch

costs = st.lists(st.integers(1, 500), max_size=40)
processes = st.integers(1, 9)


@given(costs=costs, processes=processes)
def test_every_piece_is_dealt_exactly_once_in_order(costs, processes):
    runs = dealt(costs, processes)
    assert len(runs) == processes
    assert [piece for run in runs for piece in run] == list(range(len(costs)))


@given(costs=costs, processes=processes)
def test_nobody_is_idle_where_there_is_enough(costs, processes):
    if len(costs) >= processes:
        assert all(dealt(costs, processes))


@given(pieces=st.integers(1, 50), processes=processes)
def test_equal_processes_do_as_much_but_for_one_piece(pieces, processes):
    sizes = [len(run) for run in dealt([3] * pieces, processes)]
    assert max(sizes) - min(sizes) <= 1


def test_too_few_micro_batches_are_told_once():
    workers = GroupWorkers(Group(size=3), partial=False)
    pieces = [MicroBatch(range(8), (1, -1), range(4))]
    with pytest.warns(RuntimeWarning, match="1 micro-batches for 3 processes.*micro_batch below 64"):
        workers.deal(pieces)
    assert sum(map(len, workers.deal(pieces))) == 1
