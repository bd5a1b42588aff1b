"""Signs kept in one bit each, a thirty-second of float32 weights."""

from functools import lru_cache

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F

_SIGNS_PER_BYTE = 8
_ONE_A_BYTE = 0x0101010101010101
_GATHER = 0x0102040810204080  # moves bit 8 i of a word to bit 56 + i, for i = 0 to 7


def pack_signs(signs: Shaped[Tensor, " count"]) -> UInt8[Tensor, " bytes"]:
    """Signs ±1 of any type as bits, a set bit for −1; the last byte is filled with what `unpack_signs` leaves
    out.

    Example:
        >>> pack_signs(torch.tensor([1.0, -1, -1, 1, 1, 1, 1, 1, -1]))
        tensor([6, 1], dtype=torch.uint8)
    """
    small = F.pad(signs.to(torch.int8), (0, -len(signs) % _SIGNS_PER_BYTE))
    words = small.view(torch.int64) >> 7  # the sign bit of each byte is now its lowest
    return words.bitwise_and_(_ONE_A_BYTE).mul_(_GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack_signs(packed: UInt8[Tensor, " bytes"], count: int, dtype: torch.dtype) -> Shaped[Tensor, " count"]:
    """The first `count` signs of what `pack_signs` gave.

    Example:
        >>> unpack_signs(torch.tensor([6, 1], dtype=torch.uint8), 9, torch.float32)
        tensor([ 1., -1., -1.,  1.,  1.,  1.,  1.,  1., -1.])
    """
    return _signs_of_byte(dtype, packed.device).index_select(0, packed.int()).flatten()[:count]


@lru_cache(maxsize=32)
def _signs_of_byte(dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, "256 8"]:
    """The 8 signs of each byte, lowest bit first."""
    with torch.inference_mode(mode=False):
        bits = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(_SIGNS_PER_BYTE, device=device)
        return (1 - 2 * (bits & 1)).to(dtype)
