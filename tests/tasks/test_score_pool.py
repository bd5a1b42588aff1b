"""Rows scored in worker processes: the same numbers, clear errors, and no process left behind."""

import copy
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from scores_elsewhere import count_wrong, die, moody, worker_id

from zorn.errors import ConfigError, ZornError
from zorn.tasks import RowScore, edit_distance
from zorn.tasks.score_pool import ScorePool

ROWS = 40


def _example():
    targets = torch.arange(ROWS)[:, None].expand(ROWS, 3).contiguous()
    outputs = torch.randn(ROWS, 3, ROWS, generator=torch.Generator().manual_seed(0))
    outputs[::3] += 20 * torch.nn.functional.one_hot(targets[::3], ROWS)
    return outputs, targets


def _wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.02)


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()


def test_two_processes_give_the_numbers_and_the_order_of_none_and_end_with_the_block():
    before = set(multiprocessing.active_children())
    with RowScore(count_wrong, processes=2) as objective:
        assert set(multiprocessing.active_children()) == before  # made at the first use
        losses = objective(*_example())
        assert torch.equal(losses, RowScore(count_wrong)(*_example()))
        assert len(set(losses.tolist())) == ROWS
        assert len(set(multiprocessing.active_children()) - before) == 2
        few = [part[:1] for part in _example()]
        assert torch.equal(objective(*few), losses[:1])
        objective.close()
        assert set(multiprocessing.active_children()) == before
        assert torch.equal(objective(*few), losses[:1])  # a new one
    assert set(multiprocessing.active_children()) == before


@pytest.fixture(scope="module")
def moody_in_a_worker():
    with RowScore(moody, processes=1) as objective:
        yield objective


def _rows(part):
    return [tensor[part] for tensor in _example()]


def test_an_exception_comes_back_with_the_first_row_that_failed_and_the_worker_goes_on(moody_in_a_worker):
    with pytest.raises(KeyError, match="no score for 7") as caught:
        moody_in_a_worker(*_example())
    assert any("moody for row 7 of the rows" in note for note in caught.value.__notes__)
    children = multiprocessing.active_children()
    assert moody_in_a_worker(*_rows(slice(7))).tolist() == [0.0] * 7
    assert multiprocessing.active_children() == children


def test_an_exception_that_cannot_come_back_is_told(moody_in_a_worker):
    message = r"UnreachableError: simulator:80 \(raised by the score moody for row 10 "
    with pytest.raises(RuntimeError, match=message):
        moody_in_a_worker(*_rows(slice(10, 25)))


def test_what_is_no_number_is_told_from_a_worker_too(moody_in_a_worker):
    message = r"the score moody returned 'good' \(str\) for row 9, expected a real number"
    with pytest.raises(ConfigError, match=message):
        moody_in_a_worker(*_rows(slice(21, 35)))


def test_a_worker_that_dies_is_an_error_and_not_a_wait():
    before = set(multiprocessing.active_children())
    objective = RowScore(die, processes=1)
    with pytest.raises(ZornError, match=r"a worker process died over the score die: .* processes=0"):
        objective(*_example())
    assert set(multiprocessing.active_children()) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_copy_has_workers_of_its_own(moody_in_a_worker):
    """It would wait for ever for those of its parent, whose threads it has not."""
    moody_in_a_worker(*_rows(slice(7)))
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        right = moody_in_a_worker(*_rows(slice(7))).tolist() == [0.0] * 7
        moody_in_a_worker.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert moody_in_a_worker(*_rows(slice(7))).tolist() == [0.0] * 7


def test_a_score_that_cannot_be_sent_is_refused_before_any_work():
    with pytest.raises(
        ConfigError, match=r"score <lambda> cannot be sent to 2 processes .*: define it at mod"
    ):
        RowScore(lambda prediction, target: 0.0, processes=2)

    def inner(prediction, target):
        return 0.0

    with pytest.raises(ConfigError, match=r"the score inner cannot be sent to 1 processes"):
        RowScore(inner, processes=1)


def test_the_workers_end_with_the_object():
    before = set(multiprocessing.active_children())
    objective = RowScore(worker_id, processes=1)
    worker = int(objective(*_example())[0])
    assert worker != os.getpid()
    del objective
    gc.collect()
    _wait_until(lambda: set(multiprocessing.active_children()) == before)
    assert not _alive(worker)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_workers_end_with_a_killed_parent():
    """And a parent that just ends does not hang on workers that were never closed."""
    program = (
        "import sys, time, torch; sys.path.insert(0, sys.argv[1]);"
        "from scores_elsewhere import worker_id; from zorn.tasks import RowScore;"
        "objective = RowScore(worker_id, processes=1);"
        "targets = torch.zeros(2, 1, dtype=torch.int64);"
        "print(int(objective(torch.zeros(2, 1, 3), targets)[0]), flush=True);"
        "time.sleep(float(sys.argv[2]))"
    )
    folder = str(Path(__file__).parent)
    parents = [
        subprocess.Popen(
            [sys.executable, "-c", program, folder, seconds], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for seconds in ("600", "0")
    ]
    killed, ending = parents
    workers = [int(parent.stdout.readline()) for parent in parents]
    assert _alive(workers[0])
    killed.send_signal(signal.SIGKILL)
    _, errors = ending.communicate(timeout=60)
    assert (ending.returncode, errors) == (0, b"")
    killed.communicate(timeout=60)
    _wait_until(lambda: not any(map(_alive, workers)))


def test_a_copy_starts_workers_of_its_own():
    with closing(ScorePool(edit_distance, processes=1)) as pool:
        pairs = [([1], [1]), ([1], [2])]
        assert pool.scores(pairs) == [0.0, 1.0]
        with closing(copy.deepcopy(pool)) as other:
            assert other.scores(pairs) == pool.scores(pairs) == [0.0, 1.0]
