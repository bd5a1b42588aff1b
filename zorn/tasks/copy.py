"""The copy task: read some letters, then write them again. It needs memory and nothing else."""

from typing import final

from jaxtyping import Int64
from torch import Tensor

from zorn.tasks.transduction import LETTERS, MARKS, Drawer, Strings, TransductionTask, random_letters


@final
class CopyTask(TransductionTask):
    """Copy of random letters: x1 … xL | x1 … xL . with each letter uniform from 26.

    There are 29 tokens: the letters a to z are 0 to 25, the separator `|` 26, the end `.` 27, the padding `_`
    28. Rows are padded to 2 · maximum_length + 1 time steps. For the letters "cab" and a maximum of 4:

        inputs   c    a    b    |    c    a    b    _    _
        targets  -100 -100 -100 c    a    b    .    -100 -100

    The L copies and the end count. A uniform guess costs ln 29 = 3.37 nats a token; a model that has learned
    only which tokens come after the separator pays for each letter about ln 26.

    L is uniform from minimum_length to maximum_length in "train", "validation" and "test", and from
    maximum_length + 1 to maximum_length + 50 in "validation-longer" and "test-longer". A setting outside its
    range raises ConfigError.

    Example:
        >>> task = CopyTask(batch=2, minimum_length=1, maximum_length=3, seed=0)
        >>> inputs, targets = task.training_batch(step=0)
        >>> [task.decode(row) for row in inputs]
        ['sil|sil', 'kv|kv__']
        >>> targets[1]
        tensor([-100, -100,   10,   21,   27, -100, -100])
        >>> task.encode("cab|"), task.decode([2, 0, 1, 27])
        (tensor([ 2,  0,  1, 26]), 'cab.')
    """

    name = "copy"
    symbols = LETTERS + MARKS
    vocabulary = len(symbols)
    content = "the letters a to z"
    prompt = "hello|"

    def sources_and_answers(
        self, lengths: Int64[Tensor, " rows"], longest: int, draw: Drawer
    ) -> tuple[Strings, Strings]:
        """Letters, and the same letters."""
        letters = random_letters(lengths, longest, draw)
        return letters, letters
