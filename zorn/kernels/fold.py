"""Weighted sums of directions straight into the weights: w ← keep · w + scale · Σ_j c_j z_j, no gradient
held.

The signs of z_j are made from the counter in the tile that they are added to. The sums are float32; bfloat16
weights are rounded stochastically, with bits of the counter, as `zorn.estimators.FusedSGD` rounds
them, so that updates below one unit in the last place are not lost and a run can be repeated.

- `fold_rank_one_`: Σ_j c_j a_j b_jᵀ is a matrix product. Its signs are exact in bfloat16 and each coefficient
  is the sum of three bfloat16 numbers (24 bits), so three products on tensor cores give what a float32 one
  would.
- `fold_dense_`: two or three integer operations a weight and member, and one call of Philox for 128 of them.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zorn.checks import check_number
from zorn.errors import ConfigError
from zorn.kernels.checks import check_contiguous, check_counter, check_tensor
from zorn.kernels.fold_kernels import fold_dense_kernel_, fold_rank_one_kernel_
from zorn.kernels.twins import Function, Twins
from zorn.random import round_stochastically, rounding_halves
from zorn.random import signs as draw_signs

Rounding = tuple[int, int, int]
"""Seed, step and stream of the words that round bfloat16 stochastically."""

_FOLDED = (torch.float32, torch.bfloat16, torch.float64)


def fold_rank_one_(
    weight: Any,
    coefficients: Any,
    *,
    seed: int,
    step: int,
    members: Any,
    row_stream: int,
    column_stream: int,
    keep: Any = 1.0,
    scale: Any = 1.0,
    rounding: Any = None,
    fixed: range = range(0),
) -> Float[Tensor, ""]:
    """w ← keep · w + scale · Σ_j c_j a_j b_jᵀ, block by block, in place.

    Args:
        weight: [rows, columns], or [blocks, rows, columns] with a pair of factors for each block; contiguous
            float32, bfloat16 or float64.
        coefficients: [members], c; at least float32 inside.
        seed: of the run, 0 to 2**64 - 1.
        step: 0 to 2**32 - 1.
        members: whose directions are added up, each 0 to 2**32 - 1.
        row_stream: of a, [blocks · rows] signs a member, 0 to 2**32 - 1.
        column_stream: of b, [blocks · columns] signs a member, 0 to 2**32 - 1.
        keep: what is kept of the weights; 1 − learning rate · decay in SGD.
        scale: of the sum; − learning rate in SGD.
        rounding: (seed, step, stream) of the words that round bfloat16 stochastically, as `rounding_halves`
            has them; None rounds to nearest. Other dtypes need none.
        fixed: elements of the flattened weight whose sum is 0, as of a padding row.

    Returns:
        |Σ_j c_j a_j b_jᵀ|², the squared norm of the gradient, float64.

    Raises:
        ConfigError: shapes that do not fit, dtypes or devices that differ, a number outside its range.

    Source: low-rank directions, Sarkar et al. (2025, arXiv 2511.16652).

    Example:
        >>> weight = torch.zeros(2, 3)
        >>> noise = dict(seed=0, step=0, members=range(2), row_stream=0, column_stream=1)
        >>> float(fold_rank_one_(weight, torch.tensor([1.0, 0.5]), **noise, scale=-1))
        5.5
        >>> weight
        tensor([[ 0.5000,  1.5000, -0.5000],
                [-0.5000, -1.5000,  0.5000]])
    """
    check_counter(seed, step, members, row_stream=row_stream, column_stream=column_stream)
    _check(weight, coefficients, members, keep, scale, rounding, fixed, dimensions=(2, 3))
    return FOLD_RANK_ONE.run(
        weight,
        weight,
        coefficients,
        seed=seed,
        step=step,
        members=members,
        row_stream=row_stream,
        column_stream=column_stream,
        keep=float(keep),
        scale=float(scale),
        rounding=rounding,
        fixed=fixed,
    )


def fold_dense_(
    weight: Any,
    coefficients: Any,
    *,
    seed: int,
    step: int,
    members: Any,
    stream: int,
    keep: Any = 1.0,
    scale: Any = 1.0,
    rounding: Any = None,
    fixed: range = range(0),
) -> Float[Tensor, ""]:
    """w ← keep · w + scale · Σ_j c_j z_j with signs z_j, one a weight, in place.

    Args:
        weight: of any shape; contiguous float32, bfloat16 or float64.
        stream: of z, as many signs a member as the weight has elements, 0 to 2**32 - 1.
        coefficients, seed, step, members, keep, scale, rounding, fixed: as in `fold_rank_one_`.

    Returns:
        |Σ_j c_j z_j|², float64.

    Raises:
        ConfigError: as in `fold_rank_one_`.

    Source: Chaubard & Kochenderfer (2025, arXiv 2505.17852).

    Example:
        >>> weight = torch.zeros(4)
        >>> float(fold_dense_(weight, torch.tensor([1.0, 0.5]), seed=0, step=0, members=range(2), stream=0))
        7.0
        >>> weight
        tensor([-1.5000,  1.5000, -0.5000,  1.5000])
    """
    check_counter(seed, step, members, stream=stream)
    _check(weight, coefficients, members, keep, scale, rounding, fixed)
    return FOLD_DENSE.run(
        weight,
        weight,
        coefficients,
        seed=seed,
        step=step,
        members=members,
        stream=stream,
        keep=float(keep),
        scale=float(scale),
        rounding=rounding,
        fixed=fixed,
    )


@torch.no_grad()
def fold_rank_one_reference_(
    weight: Tensor,
    coefficients: Tensor,
    *,
    seed: int,
    step: int,
    members: range,
    row_stream: int,
    column_stream: int,
    keep: float = 1.0,
    scale: float = 1.0,
    rounding: Rounding | None = None,
    fixed: range = range(0),
) -> Tensor:
    """The twin of `fold_rank_one_` in plain PyTorch; holds the gradient whole."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    rows, columns = weight.shape[-2:]
    blocks = weight.numel() // (rows * columns)
    left, right = (
        draw_signs(seed, step, members, stream, blocks * size, dtype=wide, device=weight.device)
        .reshape(len(members), blocks, size)
        .transpose(0, 1)
        for stream, size in ((row_stream, rows), (column_stream, columns))
    )
    gradient = torch.bmm((left * coefficients.to(wide)[:, None]).mT, right).flatten()
    return _apply(weight, gradient, keep, scale, rounding, fixed)


@torch.no_grad()
def fold_dense_reference_(
    weight: Tensor,
    coefficients: Tensor,
    *,
    seed: int,
    step: int,
    members: range,
    stream: int,
    keep: float = 1.0,
    scale: float = 1.0,
    rounding: Rounding | None = None,
    fixed: range = range(0),
) -> Tensor:
    """The twin of `fold_dense_` in plain PyTorch; holds the gradient and every direction whole."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    z = draw_signs(seed, step, members, stream, weight.numel(), dtype=wide, device=weight.device)
    gradient = coefficients.to(wide) @ z
    return _apply(weight, gradient, keep, scale, rounding, fixed)


def _apply(
    weight: Tensor,
    gradient: Tensor,
    keep: float,
    scale: float,
    rounding: Rounding | None,
    fixed: range,
) -> Tensor:
    """w ← keep · w + scale · gradient, rounded; returns the gradient's squared norm."""
    gradient[fixed.start : fixed.stop] = 0
    new = weight.flatten().to(gradient.dtype).mul_(keep) + gradient * scale
    if weight.dtype == torch.bfloat16 and rounding is not None:
        halves = rounding_halves(*rounding, weight.numel(), device=weight.device)
        new = round_stochastically(new, (halves[1][:, None] ^ halves[0]).flatten()[: weight.numel()])
    weight.copy_(new.view(weight.shape))
    return gradient.double().square().sum()


def _trial(
    run: Function, device: torch.device, dtype: torch.dtype, members: range, **streams: int
) -> tuple[Tensor, Tensor]:
    """Two blocks of more weights than a tile has."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 9, 70, generator=generator).to(device, dtype)
    c = torch.randn(len(members), generator=generator).to(device)
    noise = {"seed": 2**40 + 1, "step": 3, "members": members, **streams}
    norm = run(weight, c / len(members), **noise, keep=0.5, scale=-1.0, rounding=(1, 2, 3), fixed=range(3, 9))
    return weight, norm / weight.numel()


FOLD_RANK_ONE = Twins(
    fold_rank_one_kernel_,
    fold_rank_one_reference_,
    lambda run, device, dtype: _trial(
        run, device, dtype, range(3, 37), row_stream=2**31 + 5, column_stream=6
    ),  # more members than are added up at once
)
"""`fold_rank_one_` without its checks."""

FOLD_DENSE = Twins(
    fold_dense_kernel_,
    fold_dense_reference_,
    lambda run, device, dtype: _trial(run, device, dtype, range(3, 6), stream=2**31 + 5),
)
"""`fold_dense_` without its checks."""


def _check(
    weight: Any,
    coefficients: Any,
    members: range,
    keep: Any,
    scale: Any,
    rounding: Any,
    fixed: Any,
    *,
    dimensions: tuple[int, ...] = (),
) -> None:
    shape = (-1,) * weight.dim() if isinstance(weight, Tensor) else (-1, -1)
    if dimensions and len(shape) not in dimensions:
        raise ConfigError(
            f"weight must have two or three dimensions, got {len(shape)}: use fold_dense_ or view it"
        )
    check_tensor("weight", weight, shape, dtypes=_FOLDED)
    check_contiguous("weight", weight)
    check_tensor("coefficients", coefficients, (len(members),), dtypes=(torch.float32, torch.float64))
    check_number("keep", keep, minimum=-float("inf"))
    check_number("scale", scale, minimum=-float("inf"))
    if rounding is not None:
        if not isinstance(rounding, tuple) or len(rounding) != 3:
            raise ConfigError(
                f"rounding must be None or (seed, step, stream), got {rounding!r}: give three numbers"
            )
        check_counter(rounding[0], rounding[1], members, rounding_stream=rounding[2])
    if (
        not isinstance(fixed, range)
        or fixed.step != 1
        or not 0 <= fixed.start <= fixed.stop <= weight.numel()
    ):
        raise ConfigError(
            f"fixed must be a range of the weight's {weight.numel()} elements, got {fixed!r}: "
            "take range(0) for none"
        )
