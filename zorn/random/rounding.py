"""Stochastic rounding of float32 to bfloat16, and the bits that it takes."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from zorn.random.draws import words

ROUNDING_COLUMNS = 4096
"""Weights that share a word of the rows."""

_LOW_HALF = 0xFFFF


def rounding_halves(
    seed: int, step: int, stream: int, count: int, *, device: torch.device | str | None = None
) -> tuple[Int32[Tensor, " 4096"], Int32[Tensor, " rows"]]:
    """Bits that round `count` weights stochastically: columns[j] xor rows[k], 16 bits, for weight 4096 k + j.

    The bits of any two weights are independent. So roundings are uncorrelated, and a sum of them has the
    variance of independent ones, at the cost of one word for 4096 weights.

    Args:
        seed: of the run, 0 to 2**64 - 1.
        step: 0 to 2**32 - 1.
        stream: the name of the words, those of member 0, 0 to 2**32 - 1.
        count: of weights, from 1 up.
        device: where the halves are made.

    Returns:
        (columns, rows): the low halves of words 0 to 4095 of the stream, and of the ⌈count / 4096⌉ next.

    Raises:
        ConfigError: a number is outside its range.

    Example:
        >>> columns, rows = rounding_halves(seed=0, step=0, stream=0, count=5000)
        >>> len(columns), len(rows)
        (4096, 2)
    """
    rows = -(-count // ROUNDING_COLUMNS)
    found = words(seed, step, range(1), stream, ROUNDING_COLUMNS + rows, device=device)[0]
    columns, rows = (found & _LOW_HALF).to(torch.int32).split([ROUNDING_COLUMNS, rows])
    return columns, rows


def round_stochastically(values: Float[Tensor, " n"], bits: Tensor) -> Float[Tensor, " n"]:
    """Round float32 to bfloat16, up or down with probability in proportion to the distance, so that the mean
    is kept.

    Args:
        values: [n] float32.
        bits: [n] integers, their low 16 bits uniformly random.

    Returns:
        [n] bfloat16; infinities stay what they are, and so does the NaN of arithmetic.

    Example:
        >>> round_stochastically(torch.tensor([1.003, 1.003]), torch.tensor([0, 0xFFFF]))
        tensor([1.0000, 1.0078], dtype=torch.bfloat16)
    """
    kept = rounded_upper_(values.contiguous(), bits.to(torch.int32, copy=True).bitwise_and_(_LOW_HALF))
    return kept.to(torch.int16).view(torch.bfloat16)


def rounded_upper_(values: Tensor, bits: Tensor) -> Tensor:
    """The upper halves of contiguous float32, as int32, rounded with int32 bits below 2¹⁶, in whose place
    they are put.

    Adding to the half that is discarded carries into the kept one with the right probability.
    """
    return bits.add_(values.view(torch.int32)).bitwise_right_shift_(16)
