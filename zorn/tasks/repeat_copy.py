"""The repeat-copy task: read a number and some letters, then write the letters that many times."""

from typing import Any, final

import torch
from jaxtyping import Int64
from torch import Tensor

from zorn.checks import check_whole_number
from zorn.tasks.transduction import LETTERS, MARKS, Drawer, Strings, TransductionTask, random_letters

DIGITS = "123456789"


@final
class RepeatCopyTask(TransductionTask):
    """Copy of random letters k times: k x1 … xL | x1 … xL … x1 … xL . with each letter uniform from 26.

    The digit k is uniform from 1 to maximum_repeats, in every split. There are 38 tokens, whatever the
    maximum: the letters a to z are 0 to 25, the digits 1 to 9 are 26 to 34, the separator `|` 35, the end `.`
    36, the padding `_` 37. Rows are padded to (1 + maximum_repeats) · maximum_length + 2 time steps. For the
    letters "cab", twice, a maximum of 3 letters and of 3 repeats:

        inputs   2    c    a    b    |    c    a    b    c    a    b    _    _    _
        targets  -100 -100 -100 -100 c    a    b    c    a    b    .    -100 -100 -100

    The k · L letters of the answer and the end count. In the repeat copy of Graves et al., "Neural Turing
    machines", 2014, the number is a real input that follows the sequence; here it is a token and comes first.

    L, the number of letters that are read, is uniform from minimum_length to maximum_length in "train",
    "validation" and "test", and from maximum_length + 1 to maximum_length + 50 in "validation-longer" and
    "test-longer". A setting outside its range raises ConfigError.

    Args:
        maximum_repeats: largest k, 1 to 9.

    Example:
        >>> task = RepeatCopyTask(batch=2, minimum_length=1, maximum_length=3, seed=0)
        >>> inputs, targets = task.training_batch(step=0)
        >>> [task.decode(row) for row in inputs]
        ['1sil|sil______', '3kv|kvkvkv____']
        >>> task.decode(targets[1][targets[1] != -100]), task.vocabulary
        ('kvkvkv.', 38)
    """

    name = "repeat-copy"
    symbols = LETTERS + DIGITS + MARKS
    vocabulary = len(symbols)
    content = "the letters a to z and the digits 1 to 9"
    prompt = "3cab|"

    def __init__(self, *, maximum_repeats: int = 3, **options: Any):
        super().__init__(**options)
        check_whole_number("maximum_repeats", maximum_repeats, minimum=1, maximum=len(DIGITS))
        self._maximum_repeats = maximum_repeats

    def sources_and_answers(
        self, lengths: Int64[Tensor, " rows"], longest: int, draw: Drawer
    ) -> tuple[Strings, Strings]:
        """A digit and letters, and the letters as often as the digit says."""
        letters = random_letters(lengths, longest, draw).tokens
        repeats = 1 + draw(2, len(lengths), self._maximum_repeats)
        digits = len(LETTERS) + repeats - 1
        time = torch.arange(longest * self._maximum_repeats)
        repeated = letters.gather(1, time % lengths[:, None])
        source = torch.cat([digits[:, None], letters], dim=1)
        return Strings(source, lengths + 1), Strings(repeated, lengths * repeats)
