"""First values of parameters.

They are drawn on the CPU in float32, so that one seed gives the same weights on every device and in every
dtype.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def without_values(module: Module) -> Module:
    """A module built on the meta device, brought to the default device with values still to be filled in.

    Its constructor thus draws nothing from torch's global generator.

    >>> without_values(nn.Linear(3, 4, device="meta")).weight.shape
    torch.Size([4, 3])
    """
    return module.to_empty(device=torch.get_default_device())


@torch.no_grad()
def uniform_(parameter: Tensor, bound: float, generator: torch.Generator | None = None) -> None:
    """Fill `parameter` in place from Uniform(−bound, bound); `generator` None is torch's global one.

    >>> weight = torch.empty(2, 3)
    >>> uniform_(weight, 0.5, torch.Generator().manual_seed(0))
    >>> bool(weight.abs().max() <= 0.5)
    True
    """
    values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
    parameter.copy_(values.uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def normal_(parameter: Tensor, generator: torch.Generator | None = None) -> None:
    """Fill `parameter` in place from N(0, 1); `generator` None is torch's global one.

    >>> weight = torch.empty(2, 3)
    >>> normal_(weight, torch.Generator().manual_seed(0))
    >>> bool(weight.isfinite().all())
    True
    """
    values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
    parameter.copy_(values.normal_(generator=generator))
