"""Weighted sums of directions straight into the weights: w ← keep · w + scale · Σ_j c_j z_j, no gradient
held.

The signs of z_j are made from the counter in the tile that they are added to. The sums are float32; bfloat16
weights are rounded stochastically, with bits of the counter, as `zorn.estimators.FusedSGD` rounds
them, so that updates below one unit in the last place are not lost and a run can be repeated.

- `fold_rank_one_` (low-rank directions: Sarkar et al. 2025, arXiv 2511.16652): Σ_j c_j a_j b_jᵀ is a matrix
  product. Its signs are exact in bfloat16 and each coefficient is the sum of three bfloat16 numbers (24
  bits), so three products on tensor cores give what a float32 one would.
- `fold_dense_` (Chaubard & Kochenderfer 2025, arXiv 2505.17852): two or three integer operations a weight and
  member, and one call of Philox for 128 of them.
"""

import torch
from torch import Tensor

from zorn.kernels.fold_kernels import Fold, fold_dense_kernel_, fold_rank_one_kernel_
from zorn.kernels.twins import Function, twins
from zorn.random import round_stochastically, rounding_halves, signs


def _apply(weight: Tensor, gradient: Tensor, fold: Fold) -> Tensor:
    """w ← keep · w + scale · gradient, rounded; returns the gradient's squared norm."""
    gradient[fold.fixed.start : fold.fixed.stop] = 0
    new = weight.flatten().to(gradient.dtype).mul_(fold.keep) + gradient * fold.scale
    if weight.dtype == torch.bfloat16 and fold.rounding is not None:
        halves = rounding_halves(*fold.rounding, weight.numel(), device=weight.device)
        new = round_stochastically(new, (halves[1][:, None] ^ halves[0]).flatten()[: weight.numel()])
    weight.copy_(new.view(weight.shape))
    return gradient.double().square().sum()


def _trial(
    streams: tuple[int, ...], members: range, run: Function, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Two blocks of more weights than a tile has; in rank one, more members than are added up at once."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 9, 70, generator=generator).to(device, dtype)
    c = torch.randn(len(members), generator=generator).to(device) / len(members)
    settings = {"keep": 0.5, "scale": -1.0, "rounding": (1, 2, 3), "fixed": range(3, 9)}
    norm = run(weight, c, streams, Fold(seed=2**40 + 1, step=3, members=members, **settings))
    return weight, norm / weight.numel()


@twins(fold_rank_one_kernel_, lambda *where: _trial((2**31 + 5, 6), range(3, 37), *where))
@torch.no_grad()
def fold_rank_one_(weight: Tensor, coefficients: Tensor, streams: tuple[int, int], fold: Fold) -> Tensor:
    """w ← keep · w + scale · Σ_j c_j a_j b_jᵀ, block by block, in place. In PyTorch it holds the gradient
    whole.

    Args:
        weight: [rows, columns], or [blocks, rows, columns] with a pair of factors for each block; contiguous
            float32, bfloat16 or float64.
        coefficients: [members], c; at least float32 inside.
        streams: of a, [blocks · rows] signs a member, and of b, [blocks · columns]; each 0 to 2**32 - 1.
        fold: the directions and the update.

    Returns:
        |Σ_j c_j a_j b_jᵀ|², the squared norm of the gradient, float64.

    Example:
        >>> weight, fold = torch.zeros(2, 3), Fold(seed=0, step=0, members=range(2), scale=-1.0)
        >>> float(fold_rank_one_(weight, torch.tensor([1.0, 0.5]), (0, 1), fold))
        5.5
        >>> weight
        tensor([[ 0.5000,  1.5000, -0.5000],
                [-0.5000, -1.5000,  0.5000]])
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    blocks = weight.numel() // weight.shape[-2:].numel()
    left, right = (
        signs(*fold.counter, stream, blocks * size, dtype=wide, device=weight.device)
        .reshape(len(fold.members), blocks, size)
        .transpose(0, 1)
        for stream, size in zip(streams, weight.shape[-2:], strict=True)
    )
    gradient = torch.bmm((left * coefficients.to(wide)[:, None]).mT, right).flatten()
    return _apply(weight, gradient, fold)


@twins(fold_dense_kernel_, lambda *where: _trial((2**31 + 5,), range(3, 6), *where))
@torch.no_grad()
def fold_dense_(weight: Tensor, coefficients: Tensor, streams: tuple[int], fold: Fold) -> Tensor:
    """w ← keep · w + scale · Σ_j c_j z_j with signs z_j, one a weight, in place: as `fold_rank_one_`, for a
    contiguous weight of any shape and the one stream of z. In PyTorch it holds every direction whole.

    Example:
        >>> weight, fold = torch.zeros(4), Fold(seed=0, step=0, members=range(2))
        >>> float(fold_dense_(weight, torch.tensor([1.0, 0.5]), (0,), fold))
        7.0
        >>> weight
        tensor([-1.5000,  1.5000, -0.5000,  1.5000])
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    z = signs(*fold.counter, *streams, weight.numel(), dtype=wide, device=weight.device)
    return _apply(weight, coefficients.to(wide) @ z, fold)
