"""A gradient that exists whole, cut into the blocks that updates take."""

from collections.abc import Iterator

import torch
from torch import Tensor

from zorn.noise.targets import Target
from zorn.noise.weights.structure import GradientBlock, fold_elements


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The flattened tensor in views of at most `fold_elements` elements, so that temporaries stay small.

    If the tensor is not contiguous, they are views of a copy.

    Example:
        >>> [len(piece) for piece in pieces(torch.zeros(300, 1000))]
        [131072, 131072, 37856]
    """
    yield from tensor.detach().reshape(-1).split(fold_elements(tensor))


def gradient_blocks(target: Target, gradient: Tensor) -> Iterator[GradientBlock]:
    """Blocks of a gradient of the target's shape, in float32, or in float64 for a float64 parameter.

    Example:
        >>> target = Target("weight", 0, torch.nn.Parameter(torch.zeros(300, 1000)))
        >>> [block.start for block in gradient_blocks(target, torch.ones(300, 1000))]
        [0, 131072, 262144]
    """
    wide, start = torch.promote_types(target.parameter.dtype, torch.float32), 0
    for piece in pieces(gradient):
        yield GradientBlock(target, start, piece.to(wide))
        start += len(piece)
