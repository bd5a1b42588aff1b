"""The parts whose sum a recurrent map computes, for a kernel that adds them up itself."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zorn.models import BlockLinear, RecurrentMap
from zorn.models.maps import has_hooks
from zorn.native.arguments import LaneNoise, Summands

LaneNoises = tuple[LaneNoise | None, LaneNoise | None]


class SumForward:
    """A `forward` in place of a map's own, which can also give the parts of its sum: see `sum_forward`.

    Args:
        forward: the sum, computed by a call.
        summands: its parts, from the same arguments.
        lanes: of a `RecurrentMap`, (x, h) to the noise of W and b and that of R; others have none.
    """

    def __init__(
        self,
        forward: Callable[..., Tensor],
        summands: Callable[..., Summands],
        lanes: Callable[[Tensor, Tensor], LaneNoises] = lambda x, h: (None, None),
    ) -> None:
        self._forward, self.summands, self.lanes = forward, summands, lanes

    def __call__(self, *inputs: Any) -> Tensor:
        """The sum."""
        return self._forward(*inputs)


def sum_forward(map: Any) -> SumForward | None:
    """The parts of `map(…)`; None where a call may not be their sum.

    None means that the map is neither exactly a `RecurrentMap` nor a `BlockLinear`, has hooks, or has been
    given a `forward` that is not a `SumForward`.
    """
    summands = _PLAIN.get(type(map))
    if summands is None or has_hooks(map):
        return None
    own = map.__dict__.get("forward")
    if own is None:
        return SumForward(map.forward, lambda *inputs: summands(map, *inputs))
    inner = getattr(own, "func", None)  # of a method that a rule has put there
    return inner if isinstance(inner, SumForward) else None


def products(weight: Float[Tensor, "heads outside inside"], x: Float[Tensor, "rows columns"]) -> Tensor:
    """A_h x of every head h, `[heads, rows, outside]`."""
    heads, _, inside = weight.shape
    if heads == 1:
        return torch.mm(x, weight[0].t()).unsqueeze(0)
    return torch.bmm(x.unflatten(-1, (heads, inside)).transpose(0, 1), weight.mT)


_PLAIN: dict[type[nn.Module], Callable[..., Summands]] = {
    BlockLinear: lambda map, x: Summands(products(map.weight, x), map.bias, None, None),
    RecurrentMap: lambda map, drive_t, h: Summands(products(map.weight_state, h), None, None, None),
}
