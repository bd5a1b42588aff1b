"""The copy task: read some letters, then write them again. It needs memory and nothing else."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from zorn.errors import ConfigError
from zorn.models import Batch
from zorn.random import integers
from zorn.tasks.objectives import IGNORE, TokenCrossEntropy
from zorn.tasks.task import (
    SPLITS,
    EvaluationData,
    Task,
    check_seed,
    check_split,
    check_whole_number,
    data_stream,
)

SYMBOLS = "abcdefghijklmnopqrstuvwxyz|._"
"""How token 0, 1, … 28 is written: 26 letters, the separator `|`, the end `.`, the padding `_`."""

LETTERS, SEPARATOR, END, PADDING = 26, 26, 27, 28

EVALUATION_ROWS = 256
"""Sequences in an evaluation."""


@final
class CopyTask(Task):
    """Copy of random letters, as next-token prediction with teacher forcing.

    A sequence is x1 … xL | x1 … xL . with L drawn uniformly from minimum_length to maximum_length and each
    letter uniformly from 26. A row's inputs are its sequence without the last token, its targets the sequence
    without the first; only the tokens after the separator count (the L copies and the end), the others have
    target -100. Each row is padded to 2 · maximum_length + 1 time steps, with `_` as input and -100 as
    target. For the letters "cab" and a maximum of 4:

        inputs   c    a    b    |    c    a    b    _    _
        targets  -100 -100 -100 c    a    b    .    -100 -100

    There are 29 tokens, so a uniform guess costs ln 29 = 3.37 nats a token; a model that has learned only
    which tokens come after the separator pays for each letter about ln 26.

    Train, validation and test sequences are drawn from streams of random numbers that are disjoint. (Of very
    short sequences there are so few that the same one may come up in several.)

    Args:
        batch: sequences in a training batch, at least 1.
        minimum_length: fewest letters, at least 1.
        maximum_length: most letters, at least minimum_length.
        seed: of the data, 64 bits.
        overfit: the same one batch (that of step 0) at every step; `evaluate` then evaluates that batch,
            whichever split is asked for, and its `Evaluation.split` is "overfit batch".

    Raises:
        ConfigError: a setting outside its range.

    Example:
        >>> task = CopyTask(batch=2, minimum_length=1, maximum_length=3, seed=0)
        >>> task.training_batch(step=0).inputs.shape
        torch.Size([2, 7])
        >>> task.encode("cab|"), task.decode([2, 0, 1, 27])
        (tensor([ 2,  0,  1, 26]), 'cab.')
    """

    name = "copy"
    vocabulary = len(SYMBOLS)
    objective = TokenCrossEntropy()

    def __init__(
        self, *, batch: int, minimum_length: int, maximum_length: int, seed: int, overfit: bool = False
    ):
        check_whole_number("batch", batch, minimum=1)
        check_whole_number("minimum_length", minimum_length, minimum=1)
        check_whole_number("maximum_length", maximum_length, minimum=1)
        if maximum_length < minimum_length:
            raise ConfigError(
                f"maximum_length must be at least minimum_length, got {maximum_length} and {minimum_length}"
            )
        check_seed(seed)
        self._batch = batch
        self._minimum_length = minimum_length
        self._maximum_length = maximum_length
        self._seed = seed
        self._overfit = overfit

    def training_batch(self, step: int) -> Batch:
        """The sequences of a step, `[batch, 2 · maximum_length + 1]`."""
        return self._sequences("train", 0 if self._overfit else step, self._batch)

    def evaluation_data(self, split: str) -> EvaluationData:
        """256 sequences of the split, the same every time; or the one batch, when overfitting."""
        check_split(split)
        if self._overfit:
            name, batch = "overfit batch", self.training_batch(0)
        else:
            name, batch = split, self._sequences(split, 0, EVALUATION_ROWS)
        return EvaluationData(split=name, batch=batch, total_bytes=None, whole_sequences=True)

    def encode(self, text: str) -> Int[Tensor, " time"]:
        """The tokens of letters a to z, `|` (separator), `.` (end) and `_` (padding)."""
        for symbol in text:
            if symbol not in SYMBOLS:
                raise ConfigError(
                    f"the copy task knows the letters a to z, '|' (separator), '.' (end) and '_' (padding), "
                    f"got {symbol!r}; a prompt is for example 'hello|'"
                )
        return torch.tensor([SYMBOLS.index(symbol) for symbol in text], dtype=torch.int64)

    def decode(self, tokens: Int[Tensor, " time"] | Sequence[int]) -> str:
        """The symbols of some tokens."""
        return "".join(SYMBOLS[int(token)] for token in tokens)

    def _sequences(self, split: str, step: int, rows: int) -> Batch:
        stream = 2 * SPLITS.index(split)
        spread = self._maximum_length - self._minimum_length + 1
        lengths = self._minimum_length + integers(
            self._seed, step, data_stream(stream), rows, spread, device="cpu"
        )
        letters = integers(
            self._seed, step, data_stream(stream + 1), rows * self._maximum_length, LETTERS, device="cpu"
        )
        return copy_batch(letters.view(rows, self._maximum_length), lengths)


def copy_batch(letters: Int64[Tensor, "rows length"], lengths: Int64[Tensor, " rows"]) -> Batch:
    """Inputs and targets of the copy task, as `CopyTask` describes them.

    Args:
        letters: tokens in [0, 26); of row i the first lengths[i] are used.
        lengths: 1 to `length`.

    Returns:
        A batch of `[rows, 2 · length + 1]`.

    Example:
        >>> batch = copy_batch(torch.tensor([[2, 0, 1]]), torch.tensor([2]))
        >>> batch.inputs
        tensor([[ 2,  0, 26,  2,  0, 28, 28]])
        >>> batch.targets
        tensor([[-100, -100,    2,    0,   27, -100, -100]])
    """
    rows, longest = letters.shape
    length = lengths[:, None]
    time = torch.arange(2 * longest + 2).expand(rows, -1)
    copied = letters.gather(1, (time % (length + 1)).clamp(max=longest - 1))
    sequence = torch.where(time % (length + 1) < length, copied, SEPARATOR)
    sequence = torch.where(time == 2 * length + 1, END, sequence)
    sequence = torch.where(time > 2 * length + 1, PADDING, sequence)
    inputs = torch.where(sequence == END, PADDING, sequence)[:, :-1]
    counts = (time > length) & (time <= 2 * length + 1)
    targets = torch.where(counts, sequence, IGNORE)[:, 1:]
    return Batch(inputs.contiguous(), targets.contiguous())
