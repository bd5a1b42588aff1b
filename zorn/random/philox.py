"""Philox 4x32-10, a counter-based generator: the bits are a pure function of a counter and a key.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Written in int64 tensor
arithmetic, which is exact and the same on every device: a product of two 32-bit words wraps in int64 without
losing a bit, and its high word is `(product >> 32) & 0xffffffff`.
"""

from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF

# Tensors, since a call with a Python number spends more time on wrapping it than on a small array.
# On the CPU, since every device takes such a tensor as a number.
_FIRST_MULTIPLIER, _SECOND_MULTIPLIER, _WORD_BITS, _LOW_WORD = (
    torch.tensor(number, dtype=torch.int64, device="cpu") for number in (*_MULTIPLIERS, 32, _LOW)
)


@lru_cache(maxsize=16)
def _round_keys(key: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
    """The key of each round, [2, 1], its two words exchanged as `philox4x32` keeps its rows."""
    return tuple(
        torch.tensor(
            [[(word + number * step) & _LOW] for word, step in zip(key, _KEY_STEPS, strict=True)][::-1],
            dtype=torch.int64,
            device=device,
        )
        for number in range(_ROUNDS)
    )


def philox4x32(counter: Int64[Tensor, "4 n"], key: tuple[int, int]) -> Int64[Tensor, "4 n"]:
    """Ten rounds of Philox 4x32 on n counters at once.

    A round multiplies words 0 and 2; the high words, xored with words 3 and 1 and the key, become words 2 and
    0, the low words become words 3 and 1. Here words 0 and 2 live exchanged in one [2, n] buffer and the
    products in another, so that what is xored lies side by side; and a low word is not cut out of its product
    before the end, because the one mask after the xor does for both.

    Args:
        counter: n counters of four words, int64 with values 0 to 2**32 - 1, on any device. Not changed.
            Fastest on a CPU in calls of a few thousand counters, whose buffers stay in the cache.
        key: two words, 0 to 2**32 - 1.

    Returns:
        Four random words for each counter, int64 with values 0 to 2**32 - 1.

    Example:
        >>> words = philox4x32(torch.zeros(4, 1, dtype=torch.int64), key=(0, 0))
        >>> [f"{word:08x}" for word in words[:, 0].tolist()]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    even = counter.new_empty(2, counter.shape[1])
    products = counter[1::2].flip(0), torch.empty_like(even)
    product_rows = products[0].unbind(0), products[1].unbind(0)
    factors, exchanged = (counter[0], counter[2]), (even[1], even[0])
    for number, round_key in enumerate(_round_keys(key, counter.device)):
        odd, product = products[number % 2], products[(number + 1) % 2]
        first, second = product_rows[(number + 1) % 2]
        torch.mul(factors[0], _FIRST_MULTIPLIER, out=first)
        torch.mul(factors[1], _SECOND_MULTIPLIER, out=second)
        torch.bitwise_right_shift(product, _WORD_BITS, out=even)
        even.bitwise_xor_(odd).bitwise_xor_(round_key).bitwise_and_(_LOW_WORD)
        factors = exchanged
    third, first = product_rows[_ROUNDS % 2]
    return torch.stack((even[1], first, even[0], third)).bitwise_and_(_LOW_WORD)
