"""Tasks of random letters: read some, then write them again, backwards, sorted, or several times."""

from abc import abstractmethod
from typing import Any, ClassVar, final

import torch
from jaxtyping import Int64
from torch import Tensor

from zorn.checks import check_whole_number
from zorn.tasks.transduction import MARKS, Drawer, Strings, TransductionTask

LETTERS = "abcdefghijklmnopqrstuvwxyz"
REPEATS = "123456789"


class LetterTask(TransductionTask):
    """A transduction whose source is L letters, each uniform from 26, and whose answer is as many.

    There are 29 tokens: the letters a to z are 0 to 25, the separator `|` 26, the end `.` 27, the padding `_`
    28. Rows are padded to 2 · maximum_length + 1 time steps.
    """

    symbols = LETTERS + MARKS
    content: ClassVar[str] = "the letters a to z"
    prompt: ClassVar[str] = "hello|"

    def sources_and_answers(
        self, lengths: Int64[Tensor, " rows"], longest: int, draw: Drawer
    ) -> tuple[Strings, Strings]:
        """Letters, and the answer to them."""
        letters = random_letters(len(lengths), longest, draw)
        return Strings(letters, lengths), Strings(self.answers(letters, lengths), lengths)

    @abstractmethod
    def answers(
        self, letters: Int64[Tensor, "rows longest"], lengths: Int64[Tensor, " rows"]
    ) -> Int64[Tensor, "rows longest"]:
        """The answer to each row's first L letters; what follows its first L tokens is never read."""


@final
class CopyTask(LetterTask):
    """Copy of random letters: x1 … xL | x1 … xL . with each letter uniform from 26.

    It needs memory and nothing else. There are 29 tokens: the letters a to z are 0 to 25, the separator `|`
    26, the end `.` 27, the padding `_` 28. For the letters "cab" and a maximum of 4:

        inputs   c    a    b    |    c    a    b    _    _
        targets  -100 -100 -100 c    a    b    .    -100 -100

    A uniform guess costs ln 29 = 3.37 nats a token; a model that has learned only which tokens come after the
    separator pays for each letter about ln 26.

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

    def answers(self, letters: Tensor, lengths: Tensor) -> Tensor:
        """The same letters."""
        del lengths
        return letters


@final
class ReverseTask(LetterTask):
    """Random letters backwards: x1 … xL | xL … x1 . with each letter uniform from 26.

    The tokens are those of `CopyTask`. For the letters "cab" and a maximum of 4:

        inputs   c    a    b    |    b    a    c    _    _
        targets  -100 -100 -100 b    a    c    .    -100 -100

    Example:
        >>> task = ReverseTask(batch=2, minimum_length=1, maximum_length=3, seed=0)
        >>> [task.decode(row) for row in task.training_batch(step=0).inputs]
        ['sil|lis', 'kv|vk__']
    """

    name = "reverse"

    def answers(self, letters: Tensor, lengths: Tensor) -> Tensor:
        """The letters from the last to the first."""
        return letters.gather(1, (lengths[:, None] - 1 - torch.arange(letters.shape[1])).clamp(min=0))


@final
class SortTask(LetterTask):
    """Random letters in alphabetical order, each as often as it was read, and each uniform from 26.

    The tokens are those of `CopyTask`. For the letters "cab" and a maximum of 4:

        inputs   c    a    b    |    a    b    c    _    _
        targets  -100 -100 -100 a    b    c    .    -100 -100

    Example:
        >>> task = SortTask(batch=2, minimum_length=1, maximum_length=3, seed=0)
        >>> [task.decode(row) for row in task.training_batch(step=0).inputs]
        ['sil|ils', 'kv|kv__']
    """

    name = "sort"

    def answers(self, letters: Tensor, lengths: Tensor) -> Tensor:
        """The letters sorted."""
        beyond = torch.arange(letters.shape[1]) >= lengths[:, None]
        return letters.masked_fill(beyond, len(LETTERS)).sort(1).values  # those beyond come last


@final
class RepeatCopyTask(TransductionTask):
    """Copy of random letters k times: k x1 … xL | x1 … xL … x1 … xL . with each letter uniform from 26.

    The digit k is uniform from 1 to maximum_repeats, in every split; L is the number of letters that are
    read. There are 38 tokens, whatever the maximum: the letters a to z are 0 to 25, the digits 1 to 9 are 26
    to 34, the separator `|` 35, the end `.` 36, the padding `_` 37. Rows are padded to (1 + maximum_repeats)
    · maximum_length + 2 time steps. For the letters "cab", twice, a maximum of 3 letters and of 3 repeats:

        inputs   2    c    a    b    |    c    a    b    c    a    b    _    _    _
        targets  -100 -100 -100 -100 c    a    b    c    a    b    .    -100 -100 -100

    In the repeat copy of Graves et al., "Neural Turing machines", 2014, the number is a real input that
    follows the sequence; here it is a token and comes first.

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
    symbols = LETTERS + REPEATS + MARKS
    content = "the letters a to z and the digits 1 to 9"
    prompt = "3cab|"

    def __init__(self, *, maximum_repeats: int = 3, **options: Any):
        super().__init__(**options)
        check_whole_number("maximum_repeats", maximum_repeats, minimum=1, maximum=len(REPEATS))
        self._maximum_repeats = maximum_repeats

    def sources_and_answers(
        self, lengths: Int64[Tensor, " rows"], longest: int, draw: Drawer
    ) -> tuple[Strings, Strings]:
        """A digit and letters, and the letters as often as the digit says."""
        letters = random_letters(len(lengths), longest, draw)
        repeats = 1 + draw(2, len(lengths), self._maximum_repeats)
        source = torch.cat([(len(LETTERS) + repeats - 1)[:, None], letters], dim=1)
        repeated = letters.gather(1, torch.arange(longest * self._maximum_repeats) % lengths[:, None])
        return Strings(source, lengths + 1), Strings(repeated, lengths * repeats)


def random_letters(rows: int, longest: int, draw: Drawer) -> Int64[Tensor, "rows longest"]:
    """Tokens 0 to 25, each uniform: stream 1 of the drawer."""
    return draw(1, rows * longest, len(LETTERS)).view(rows, longest)
