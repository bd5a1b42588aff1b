"""An objective out of any Python function that scores one row; two such functions, lower is better."""

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from zorn.checks import check_whole_number
from zorn.errors import ConfigError
from zorn.tasks.objectives import IGNORE
from zorn.tasks.score_pool import ScorePool, score_rows


def greedy_tokens(outputs: Float[Tensor, "... vocabulary"]) -> Int64[Tensor, "..."]:
    """The likeliest token of each place: the argmax over the last dimension; of equals, the first.

    Example:
        >>> greedy_tokens(torch.tensor([[[0.1, 0.9], [0.8, 0.2]]]))
        tensor([[1, 0]])
    """
    return outputs.argmax(-1)


@final
class RowScore:
    """A row objective `(outputs, targets) -> [rows]` from a Python function of one row.

    losses[i] = score(prediction of row i, target of row i)

    Lower is better: to maximise a reward, return minus the reward. The function may do anything (compare
    strings, run a program, ask a simulator); nothing is differentiated, so it suits the zero-order estimators
    only. It is called once for each row that a step evaluates, members and signs included, in the order of
    the rows. A NaN or an infinite score is passed on: the estimator drops that member, see
    `maximum_nonfinite_share`.

    What the function is given:

    - targets of integers `[rows, time, …]`: only the places that count, those whose target is not -100, of
      the target and of a prediction that has the same places; so `[rows, time]` tokens come as two lists of
      int of the same length. The predictions of a language model are those under teacher forcing.
    - other integers (a class a row): as int, or as nested lists of int.
    - anything else: as read-only numpy arrays (bfloat16 as float32).

    Args:
        score: `score(prediction, target) -> float`, where float is any real number.
        readout: maps the raw outputs `[rows, time, …]` to what the function should see, `[rows, …]`; None
            passes the outputs as they are.
        processes: 0 calls the function here. Else that many worker processes share the rows, with the same
            result. They are spawned at the first use, which takes seconds, since each imports zorn, and every
            row is sent to one; so it is worth it only where one score takes about a millisecond or more. The
            score must then be a function at module level that a fresh process can import, and a script that
            uses it needs `if __name__ == "__main__":`. `close()`, a `with` block, or the end of the object's
            life stops them; used again after that, it starts new ones.

    Raises:
        ConfigError: processes below 0; with processes, a score that cannot be sent to another process. When
            called: a readout without one result a row, or a score that returns no real number.
        ZornError: when called, a worker process that died.
        Exception: what the score itself raises comes through as it is, with a note that names the row.

    Example:
        >>> from zorn.tasks import edit_distance
        >>> objective = RowScore(edit_distance)
        >>> outputs = torch.eye(4)[None].expand(2, 4, 4)  # predicts 0, 1, 2, 3 in both rows
        >>> objective(outputs, torch.tensor([[0, 1, 2, 3], [-100, 2, 3, -100]]))
        tensor([0., 1.], dtype=torch.float64)
        >>> reward = RowScore(lambda prediction, target: -float(prediction.max()), readout=None)
        >>> reward(torch.tensor([[0.5, 2.0]]), torch.zeros(1, 2))
        tensor([-2.], dtype=torch.float64)
    """

    def __init__(
        self,
        score: Callable[[Any, Any], Any],
        *,
        readout: Callable[[Any], Tensor] | None = greedy_tokens,
        processes: int = 0,
    ):
        check_whole_number("processes", processes, minimum=0)
        self._score = score
        self._readout = readout
        self._pool = ScorePool(score, processes) if processes else None

    def __call__(self, outputs: Any, targets: Shaped[Tensor, "rows ..."]) -> Float64[Tensor, " rows"]:
        """The score of each row, on the device of the targets."""
        predictions = outputs if self._readout is None else self._readout(outputs)
        if not isinstance(predictions, Tensor) or predictions.shape[:1] != targets.shape[:1]:
            got = tuple(predictions.shape) if isinstance(predictions, Tensor) else type(predictions).__name__
            raise ConfigError(
                f"RowScore scores one prediction a row, expected a tensor whose first dimension is the "
                f"{len(targets)} rows, got {got}: give a readout that makes one of the model's outputs"
            )
        pairs = _pairs(_array(predictions), _array(targets))
        scores = score_rows(self._score, pairs) if self._pool is None else self._pool.scores(pairs)
        return torch.tensor(scores, dtype=torch.float64, device=targets.device)

    def close(self) -> None:
        """Stops the worker processes, if there are any, and waits until they have ended."""
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> "RowScore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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


def _array(tensor: Tensor) -> numpy.ndarray:
    """The tensor as a numpy array that shares its memory and cannot be written."""
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    array.flags.writeable = False
    return array


def _pairs(predictions: numpy.ndarray, targets: numpy.ndarray) -> list[tuple[Any, Any]]:
    """The two arguments of `score` for each row."""
    pairs = zip(predictions, targets, strict=True)
    if targets.ndim > 1 and targets.dtype.kind in "iu":
        aligned = predictions.shape[: targets.ndim] == targets.shape
        pairs = (
            (one[wanted != IGNORE] if aligned else one, wanted[wanted != IGNORE]) for one, wanted in pairs
        )
    return [(_plain(one), _plain(wanted)) for one, wanted in pairs]


def _plain(array: Any) -> Any:
    return array.tolist() if array.dtype.kind in "iu" else array
