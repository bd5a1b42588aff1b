"""The reverse task: read some letters, then write them backwards."""

from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from zorn.tasks.transduction import LETTERS, MARKS, Drawer, Strings, TransductionTask, random_letters


@final
class ReverseTask(TransductionTask):
    """Random letters backwards: x1 … xL | xL … x1 . with each letter uniform from 26.

    There are 29 tokens: the letters a to z are 0 to 25, the separator `|` 26, the end `.` 27, the padding `_`
    28. Rows are padded to 2 · maximum_length + 1 time steps. For the letters "cab" and a maximum of 4:

        inputs   c    a    b    |    b    a    c    _    _
        targets  -100 -100 -100 b    a    c    .    -100 -100

    The L letters of the answer and the end count.

    L is uniform from minimum_length to maximum_length in "train", "validation" and "test", and from
    maximum_length + 1 to maximum_length + 50 in "validation-longer" and "test-longer". A setting outside its
    range raises ConfigError.

    Example:
        >>> task = ReverseTask(batch=2, minimum_length=1, maximum_length=3, seed=0)
        >>> inputs, targets = task.training_batch(step=0)
        >>> [task.decode(row) for row in inputs]
        ['sil|lis', 'kv|vk__']
        >>> targets[1]
        tensor([-100, -100,   21,   10,   27, -100, -100])
    """

    name = "reverse"
    symbols = LETTERS + MARKS
    vocabulary = len(symbols)
    content = "the letters a to z"
    prompt = "hello|"

    def sources_and_answers(
        self, lengths: Int64[Tensor, " rows"], longest: int, draw: Drawer
    ) -> tuple[Strings, Strings]:
        """Letters, and the same letters from the last to the first."""
        letters = random_letters(lengths, longest, draw)
        backwards = (lengths[:, None] - 1 - torch.arange(longest)).clamp(min=0)
        return letters, Strings(letters.tokens.gather(1, backwards), lengths)
