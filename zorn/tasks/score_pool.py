"""Rows scored by a Python function, here or in worker processes."""

import math
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from numbers import Real
from typing import Any, TypeAlias, final

from zorn.errors import ConfigError, ZornError

Score: TypeAlias = Callable[[Any, Any], Any]

_PARTS_PER_PROCESS = 4  # so that a process which got quick rows takes another part


def score_rows(score: Score, pairs: Sequence[tuple[Any, Any]], first: int = 0) -> list[float]:
    """score(prediction, target) for each pair, in order.

    Args:
        score: returns a real number, NaN and infinity included.
        pairs: (prediction, target) of each row.
        first: number of the first row, for messages.

    Raises:
        ConfigError: a score that is no real number.
        Exception: what the score raises, with a note that names the row.
    """
    scores = []
    for row, (prediction, target) in enumerate(pairs, start=first):
        try:
            value = score(prediction, target)
        except Exception as error:
            error.add_note(f"raised by the score {_name(score)} for row {row} of the rows it was called with")
            raise
        if not isinstance(value, Real):
            raise ConfigError(
                f"the score {_name(score)} returned {value!r} ({type(value).__name__}) for row {row}, "
                "expected a real number: return a float, lower for a better row"
            )
        scores.append(float(value))
    return scores


@final
class ScorePool:
    """Worker processes that score rows: spawned at the first use, and again after `close`.

    They are spawned, not forked, so threads and CUDA of this process do not matter; a forked copy of this
    process starts workers of its own. The workers end with `close`, with the object's life, and with this
    process, also when it is killed.

    Args:
        score: what `score_rows` takes; it is sent to each worker once, by pickle.
        processes: workers at most, at least 1.

    Raises:
        ConfigError: a score that cannot be pickled.
    """

    def __init__(self, score: Score, processes: int):
        try:
            pickle.dumps(score)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"the score {_name(score)} cannot be sent to {processes} processes ({error}): define it at "
                "module level, with def, in a file that can be imported; or take processes=0"
            ) from error
        self._score = score
        self._processes = processes
        self._executor: ProcessPoolExecutor | None = None
        self._owner = os.getpid()

    def __reduce__(self) -> tuple[type["ScorePool"], tuple[Score, int]]:
        """A copy starts workers of its own."""
        return ScorePool, (self._score, self._processes)

    def scores(self, pairs: Sequence[tuple[Any, Any]]) -> list[float]:
        """The results of `score_rows` for these pairs, in the same order.

        Raises:
            ZornError: a worker died.
            Exception: what `score_rows` raises for the first row that fails. (One that cannot be pickled
                comes as a RuntimeError with its text.)
        """
        size = math.ceil(len(pairs) / (self._processes * _PARTS_PER_PROCESS))
        firsts = range(0, len(pairs), size)
        parts = (pairs[first : first + size] for first in firsts)
        try:
            return list(chain.from_iterable(self._started().map(_score_part, firsts, parts)))
        except BrokenProcessPool as error:
            self.close()
            raise ZornError(
                f"a worker process died over the score {_name(self._score)}: it was killed (out of memory?), "
                "the score ended the process, or a fresh process could not import it. Define the score in a "
                'file of its own, keep what a script does under `if __name__ == "__main__":`, and see what '
                "processes=0 does"
            ) from error

    def close(self) -> None:
        """Ends the workers and waits for them; nothing to do where none was started."""
        executor, self._executor = self._executor, None
        if executor is not None and self._owner == os.getpid():  # a fork does not end its parent's workers
            executor.shutdown(cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None or self._owner != os.getpid():
            self._owner = os.getpid()
            self._executor = ProcessPoolExecutor(
                self._processes,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._score,),
            )
        return self._executor


def _name(score: Score) -> str:
    return getattr(score, "__name__", type(score).__name__)


# What follows runs in a worker. -------------------------------------------------------------------------

_worker_scores: list[Score] = []
"""The one score of this worker process."""


def _start_worker(score: Score) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, which then ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_scores.append(score)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _score_part(first: int, pairs: Sequence[tuple[Any, Any]]) -> list[float]:
    (score,) = _worker_scores
    try:
        return score_rows(score, pairs, first)
    except Exception as error:
        if _comes_back(error):
            raise
        notes = "; ".join(error.__notes__)
        raise RuntimeError(f"{type(error).__name__}: {error} ({notes})") from error


def _comes_back(error: Exception) -> bool:
    """True if an exception survives pickling to another process and back."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  it is the user's class, and may fail in any way
        return False
    return True
