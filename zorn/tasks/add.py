"""The add task: read two decimal numbers, then write their sum."""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor

from zorn.tasks.transduction import MARKS, Drawer, Strings, TransductionTask

DIGITS = "0123456789"
PLUS = len(DIGITS)


@final
class AddTask(TransductionTask):
    """The sum of two random decimal numbers of L digits each, most significant digit first.

    Neither number has a leading zero: its first digit is uniform from 1 to 9 and the others from 0 to 9; a
    number of one digit is uniform from 0 to 9. The sum has L or L + 1 digits. There are 14 tokens: the digits
    are 0 to 9, the plus `+` is 10, the separator `|` 11, the end `.` 12, the padding `_` 13. Rows are padded
    to 3 · maximum_length + 3 time steps. For 95 + 17 and a maximum of 2:

        inputs   9    5    +    1    7    |    1    1    2
        targets  -100 -100 -100 -100 -100 1    1    2    .

    Example:
        >>> task = AddTask(batch=2, minimum_length=1, maximum_length=2, seed=0)
        >>> inputs, targets = task.training_batch(step=0)
        >>> [task.decode(row) for row in inputs]
        ['37+68|105', '74+38|112']
        >>> targets[0]
        tensor([-100, -100, -100, -100, -100,    1,    0,    5,   12])
    """

    name = "add"
    symbols = DIGITS + "+" + MARKS
    content = "the digits 0 to 9, '+'"
    prompt = "907+153|"

    def sources_and_answers(
        self, lengths: Int64[Tensor, " rows"], longest: int, draw: Drawer
    ) -> tuple[Strings, Strings]:
        """Two numbers and a plus, and their sum."""
        rows, length = len(lengths), lengths[:, None]
        numbers = draw(1, 2 * rows * longest, 10).view(2, rows, longest)
        leading = 1 + draw(2, 2 * rows, 9).view(2, rows, 1)
        place = torch.arange(longest)  # digit p stands for 10 ** p
        numbers = torch.where((place == length - 1) & (length > 1), leading, numbers)
        first, second = numbers.masked_fill(place >= length, 0)
        total = add_digits(first, second)
        time = torch.arange(2 * longest + 1)
        source = torch.where(time < length, _written(first, lengths, time), PLUS)
        source = torch.where(time > length, _written(second, lengths, time - length - 1), source)
        total_lengths = lengths + total.gather(1, length)[:, 0]  # the carry into one more place, 0 or 1
        answer = _written(total, total_lengths, torch.arange(longest + 1))
        return Strings(source, 2 * lengths + 1), Strings(answer, total_lengths)


def add_digits(
    first: Int64[Tensor, "rows places"], second: Int64[Tensor, "rows places"]
) -> Int64[Tensor, "rows places+1"]:
    """The decimal digits of sums, the least significant first, one place more than the numbers.

    A place whose digits do not add up to 9 decides its own carry: 1 if they give more than 9, else 0. A place
    whose digits give 9 passes on the carry of the nearest other place below it (0 if there is none), which a
    running maximum finds. So a sum of any length is exact, and takes no loop over places.
    """
    sums = first + second
    place = torch.arange(sums.shape[1])
    deciding = torch.where(sums == 9, 0, place).cummax(1).values  # place 0 decides for itself: carry 0
    carries = (sums.gather(1, deciding) > 9).long()
    return (F.pad(sums, (0, 1)) + F.pad(carries, (1, 0))) % 10


def _written(digits: Tensor, lengths: Tensor, time: Tensor) -> Tensor:
    """Digits that lie least significant first, as they are read: at time 0 the most significant one."""
    place = lengths[:, None] - 1 - time
    return digits.gather(1, place.clamp(0, digits.shape[1] - 1))
