"""Rank-one noise of members side by side, as the kernels of recurrent steps read it."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from zorn.kernels.counter import packed_sign
from zorn.kernels.language import jit, tl
from zorn.random import sign_words


class RankOneNoise(NamedTuple):
    """The noise of the members that share a step: s ε a bᵀ on the recurrent weight, one a and b for each
    head.

    Args:
        rows: a of each member, the `sign_words` of all its gates, as the weight has them: heads, gates,
            units.
        columns: b of each member, the `sign_words` of its H units; None where the recurrent weight has no
            noise (and where there is none).
        scales: s ε of each sign, on the device of the words.
    """

    rows: Int32[Tensor, "members row_words"]
    columns: Int32[Tensor, "members column_words"] | None
    scales: Float[Tensor, " signs"]


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that a tensor is computed in: its own, but never below float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def noise_by_row(noise: RankOneNoise, score: Tensor, a: Tensor) -> Tensor:
    """s ε score a of each row: score [rows, .., 1] and a [members, .., n] to [rows, .., n]."""
    lanes = score.unflatten(0, (len(noise.scales), len(a), -1))
    scale = noise.scales.to(score.dtype).view(-1, *(1,) * (lanes.dim() - 1))
    return (scale * lanes * a[None, :, None]).flatten(0, 2)


def trial_noise(device: torch.device, row_signs: int, column_signs: int) -> RankOneNoise:
    """Large noise of three members and both signs, for `Twins`."""
    rows, columns = (
        sign_words(2**40 + 1, 2, range(3), stream, count, device=device)
        for stream, count in ((0, row_signs), (1, column_signs))
    )
    return RankOneNoise(rows, columns, torch.tensor([0.5, -0.5], device=device))


@jit
def place(rows, members, group, size, BLOCK_ROWS: tl.constexpr, BLOCK_UNITS: tl.constexpr):
    """The head, units and rows of a program, and the member and sign of each row; rows past the last have the
    last one's."""
    unit_tiles, row_tiles = tl.cdiv(size, BLOCK_UNITS), tl.cdiv(rows, BLOCK_ROWS)
    program = tl.program_id(0)
    unit = program % unit_tiles * BLOCK_UNITS + tl.arange(0, BLOCK_UNITS)
    row = program // unit_tiles % row_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    head = program // unit_tiles // row_tiles
    lane = tl.minimum(row, rows - 1) // group
    return head, unit, row.to(tl.int64), lane % members, lane // members


@jit
def signs_of(table, words, member, element, inside):
    """Signs of each row's member at elements of its vector, [rows, elements]: True for −1."""
    return packed_sign(table, words, member[:, None], tl.where(inside, element, 0)[None, :])
