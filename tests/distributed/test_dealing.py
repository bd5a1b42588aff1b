"""Who does what: every piece exactly once, in order, for any number of processes and any speeds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zorn.distributed.dealing import dealt, owners
from zorn.distributed.group import Group, Note
from zorn.distributed.workers import GroupWorkers
from zorn.perturbations.evaluate import MicroBatch

costs = st.lists(st.integers(1, 500), max_size=40)
speeds = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=9)


@given(costs=costs, speeds=speeds)
def test_every_piece_is_dealt_exactly_once_in_order(costs, speeds):
    runs = dealt(costs, speeds)
    assert len(runs) == len(speeds)
    assert [piece for run in runs for piece in run] == list(range(len(costs)))


@given(costs=costs, speeds=speeds)
def test_nobody_is_idle_where_there_is_enough(costs, speeds):
    if len(costs) >= len(speeds):
        assert all(dealt(costs, speeds))


@given(pieces=st.integers(1, 50), processes=st.integers(1, 9))
def test_equal_processes_do_as_much_but_for_one_piece(pieces, processes):
    sizes = [len(run) for run in dealt([3] * pieces, [2.0] * processes)]
    assert max(sizes) - min(sizes) <= 1


@given(speeds=st.lists(st.floats(0.1, 10), min_size=2, max_size=6))
def test_shares_go_with_the_speeds(speeds):
    """A thousand equal pieces: each process's share is that of its speed, but for its ends."""
    for run, speed in zip(dealt([1] * 1000, speeds), speeds, strict=True):
        assert len(run) == pytest.approx(1000 * speed / sum(speeds), abs=1 + 1e-6)


@given(sizes=st.lists(st.integers(0, 10**6), max_size=30), processes=st.integers(1, 8))
def test_nobody_owns_more_than_a_fair_share_and_one_thing(sizes, processes):
    loads = [0] * processes
    for size, owner in zip(sizes, owners(sizes, processes), strict=True):
        loads[owner] += size
    assert sum(loads) == sum(sizes)
    assert max(loads) <= sum(sizes) / processes + max(sizes, default=0)


class WithSlowOther(Group):
    """Two processes, of which the other takes ten times as long for the same, and says what this one says."""

    def message(self, values=None, **said):
        return [Note(values, said["work"], seconds, left_out=False) for seconds in (1.0, 10.0)]


@pytest.mark.parametrize("balance", [False, True])
def test_balance_gives_a_slow_process_less(balance):
    workers = GroupWorkers(WithSlowOther(size=2), balance=balance, partial=False)
    pieces = [MicroBatch(range(member, member + 1), (1, -1), range(3)) for member in range(22)]
    for _ in range(3):
        shares = workers.deal(pieces)
        assert [piece for share in shares for piece in share] == pieces
        workers.gather(shares, lambda share: torch.zeros(2 * len(share), dtype=torch.float64))
    assert len(shares[0]) == (20 if balance else 11)


def test_too_few_micro_batches_are_told_once():
    workers = GroupWorkers(Group(size=3), balance=False, partial=False)
    pieces = [MicroBatch(range(8), (1, -1), range(4))]
    with pytest.warns(RuntimeWarning, match="1 micro-batches for 3 processes.*micro_batch below 64"):
        workers.deal(pieces)
    assert sum(map(len, workers.deal(pieces))) == 1
