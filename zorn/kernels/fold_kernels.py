"""The Triton kernels of `zorn.kernels.fold`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zorn.kernels.arithmetic import product, rounded, signed, stochastically_rounded
from zorn.kernels.counter import (
    VARYING,
    block_signs,
    counter_arguments,
    member_number,
    sign_tile,
    signed_word,
)
from zorn.kernels.language import jit, power_of_two, tl
from zorn.random import rounding_halves

_MEMBERS = 32  # of a product
_BLOCKS = 8  # of 128 signs, in a tile of a dense fold


@dataclass(frozen=True, kw_only=True)
class Fold:
    """The directions of a fold, and where their sum goes: w ← keep · w + scale · Σ_j c_j z_j.

    Args:
        seed: of the run, 0 to 2**64 - 1.
        step: 0 to 2**32 - 1.
        members: whose directions are added up, each 0 to 2**32 - 1.
        keep: what is kept of the weights; 1 − learning rate · decay in SGD.
        scale: of the sum; − learning rate in SGD.
        rounding: (seed, step, stream) of the words that round bfloat16 stochastically, as `rounding_halves`
            has them; None rounds to nearest. Other dtypes need none.
        fixed: elements of the flattened weight whose sum is 0, as of a padding row.
    """

    seed: int
    step: int
    members: range
    keep: float = 1.0
    scale: float = 1.0
    rounding: tuple[int, int, int] | None = None
    fixed: range = range(0)

    @property
    def counter(self) -> tuple[int, int, range]:
        """Seed, step and members."""
        return self.seed, self.step, self.members


@torch.no_grad()
def fold_rank_one_kernel_(
    weight: Tensor, coefficients: Tensor, streams: tuple[int, int], fold: Fold
) -> Tensor:
    """`fold_rank_one_` by its Triton kernel, whatever the device.

    Tiles of 64 × 64 weights, 32 members at a time: what the registers of eight warps hold.
    """
    rows, columns = weight.shape[-2:]
    blocks = weight.numel() // (rows * columns)
    block_rows, block_columns = power_of_two(rows, 16, 64), power_of_two(columns, 16, 64)
    tiles = blocks * -(-rows // block_rows) * -(-columns // block_columns)
    norms = torch.empty(tiles, dtype=torch.float32, device=weight.device)
    _fold_rank_one[(tiles,)](
        weight,
        norms,
        _in_three_parts(coefficients.to(weight.device, torch.float32)),
        **_shared_arguments(weight, fold, warps=8),
        stream=signed_word(streams[0]),
        other_stream=signed_word(streams[1]),
        rows=rows,
        columns=columns,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        BLOCK_MEMBERS=_MEMBERS,
    )
    return norms.double().sum()


@torch.no_grad()
def fold_dense_kernel_(weight: Tensor, coefficients: Tensor, streams: tuple[int], fold: Fold) -> Tensor:
    """`fold_dense_` by its Triton kernel, whatever the device, in tiles of 1024 weights, eight blocks of
    signs."""
    tiles = -(-weight.numel() // (128 * _BLOCKS))
    norms = torch.empty(tiles, dtype=torch.float32, device=weight.device)
    _fold_dense[(tiles,)](
        weight,
        norms,
        coefficients.to(weight.device, torch.float32),
        **_shared_arguments(weight, fold, warps=4),
        stream=signed_word(streams[0]),
        size=weight.numel(),
        BLOCKS=_BLOCKS,
    )
    return norms.double().sum()


def _shared_arguments(weight: Tensor, fold: Fold, *, warps: int) -> dict[str, Any]:
    columns = rows = weight
    rounding = fold.rounding if weight.dtype == torch.bfloat16 else None
    if rounding is not None:
        columns, rows = rounding_halves(*rounding, weight.numel(), device=weight.device)
    return {
        **counter_arguments(*fold.counter),
        "rounding_columns": columns,
        "rounding_rows": rows,
        "members": len(fold.members),
        "keep": float(fold.keep),
        "scale": float(fold.scale),
        "first_fixed": fold.fixed.start,
        "last_fixed": fold.fixed.stop,
        "STOCHASTIC": rounding is not None,
        "num_warps": warps,
        "enable_fp_fusion": False,  # product and sum of the update are rounded one by one, as in the twin
    }


def _in_three_parts(coefficients: Tensor) -> Tensor:
    """[3, members] bfloat16 with the float32 coefficients as their sum."""
    parts = []
    for _ in range(3):
        parts.append(coefficients.bfloat16())
        coefficients = coefficients - parts[-1].float()
    return torch.stack(parts)


@jit(varying=(*VARYING, "members", "first_fixed", "last_fixed"))
def _fold_rank_one(
    weight, norms, coefficients, first_member, member_step, step, key_low, key_high, stream, other_stream,
    rounding_columns, rounding_rows, members, keep, scale, first_fixed, last_fixed, rows, columns,
    STOCHASTIC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_MEMBERS: tl.constexpr,
):  # fmt: skip
    column_tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    row_tiles = tl.cdiv(rows, BLOCK_ROWS)
    program = tl.program_id(0)
    first_column = program % column_tiles * BLOCK_COLUMNS
    first_row = program // column_tiles % row_tiles * BLOCK_ROWS
    block = (program // column_tiles // row_tiles).to(tl.int64)

    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for start in range(0, members, BLOCK_MEMBERS):
        index = start + tl.arange(0, BLOCK_MEMBERS)
        member = member_number(index, first_member, member_step)
        origin = tl.zeros([BLOCK_MEMBERS], tl.int64) + block
        left = sign_tile(origin * rows + first_row, stream, member, step, key_low, key_high, BLOCK_ROWS)
        right = sign_tile(
            origin * columns + first_column, other_stream, member, step, key_low, key_high, BLOCK_COLUMNS
        )
        right = signed(right, tl.full([BLOCK_MEMBERS, BLOCK_COLUMNS], 1.0, tl.float32)).to(tl.bfloat16)
        for part in tl.static_range(3):  # pyright: ignore[reportGeneralTypeIssues]
            c = tl.load(coefficients + part * members + index, mask=index < members, other=0.0).to(tl.float32)
            scaled = signed(left, tl.broadcast_to(c[:, None], [BLOCK_MEMBERS, BLOCK_ROWS])).to(tl.bfloat16)
            total = product(tl.trans(scaled), right, total, "ieee")

    row = (first_row + tl.arange(0, BLOCK_ROWS))[:, None]
    column = (first_column + tl.arange(0, BLOCK_COLUMNS))[None, :]
    element = (block * rows + row) * columns + column
    inside = (row < rows) & (column < columns)
    _update(
        weight, norms + program, element, inside, total, keep, scale, first_fixed, last_fixed,
        rounding_columns, rounding_rows, STOCHASTIC,
    )  # fmt: skip


@jit(varying=(*VARYING, "members", "first_fixed", "last_fixed"))
def _fold_dense(
    weight, norms, coefficients, first_member, member_step, step, key_low, key_high, stream,
    rounding_columns, rounding_rows, members, keep, scale, first_fixed, last_fixed, size,
    STOCHASTIC: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    block = program.to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    total = tl.zeros([BLOCKS, 128], tl.float32)
    for index in range(0, members):
        member = member_number(index, first_member, member_step)
        negative = block_signs(block, stream, member, step, key_low, key_high)
        total += signed(negative, tl.load(coefficients + index))
    element = block[:, None] * 128 + tl.arange(0, 128)[None, :]
    _update(
        weight, norms + program, element, element < size, total, keep, scale, first_fixed, last_fixed,
        rounding_columns, rounding_rows, STOCHASTIC,
    )  # fmt: skip


@jit
def _update(
    weight, norm, element, inside, gradient, keep, scale, first_fixed, last_fixed,
    rounding_columns, rounding_rows, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """Write a tile of new weights, and the square of its gradient to `norm`."""
    gradient = tl.where(inside & ((element < first_fixed) | (element >= last_fixed)), gradient, 0.0)
    old = tl.load(weight + element, mask=inside, other=0.0).to(tl.float32)
    new = old * keep + gradient * scale
    if STOCHASTIC:
        column_bits = tl.load(rounding_columns + (element & 4095), mask=inside, other=0)
        row_bits = tl.load(rounding_rows + (element >> 12), mask=inside, other=0)
        new = stochastically_rounded(new, column_bits ^ row_bits)
    else:
        new = rounded(new, weight.dtype.element_ty)
    tl.store(weight + element, new, mask=inside)
    tl.store(norm, tl.sum(tl.sum(gradient * gradient, axis=1), axis=0))
