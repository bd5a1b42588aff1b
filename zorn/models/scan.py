"""A linear recurrence over time, all steps at once."""

import torch
from jaxtyping import Float
from torch import Tensor


def linear_scan(
    decay: Float[Tensor, "time rows size"],
    inflow: Float[Tensor, "time rows size"],
    before: Float[Tensor, "rows size"],
) -> Float[Tensor, "time rows size"]:
    """h_t = decay_t h_{t−1} + inflow_t for all t of at least one step, with h before the first = `before`.

    An associative scan (Blelloch 1990; Martin & Cundy 2018): two steps in a row are one step with the decay
    a₂ a₁ and the inflow a₂ b₁ + b₂, so the pairs are scanned first and the steps between them follow. 2 T
    products in 2 log₂ T operations, differentiable, its memory proportional to time.

    Where decays lie in [0, 1] and inflows are not negative, nothing cancels: the result is as exact as step
    by step, and decays that underflow to 0 need no special care. The scan of logarithms (Heinsen 2023), which
    the minGRU's paper takes, subtracts sums over the whole of time: in float32 it is off by 1 in 100 after
    1,000 steps of saturated gates, and in float64 it takes several times as long as this one.

    >>> linear_scan(torch.full((3, 1, 1), 0.5), torch.ones(3, 1, 1), torch.zeros(1, 1)).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    pairs = len(decay) // 2
    if pairs == 0:
        return torch.addcmul(inflow, decay, before)
    first, second = slice(0, 2 * pairs, 2), slice(1, None, 2)
    after_pairs = linear_scan(
        decay[second] * decay[first],
        torch.addcmul(inflow[second], decay[second], inflow[first]),
        before,
    )
    before_pairs = torch.cat([before.unsqueeze(0), after_pairs])[: len(decay) - pairs]
    between = torch.addcmul(inflow[::2], decay[::2], before_pairs)
    woven = torch.stack([between[:pairs], after_pairs], dim=1).flatten(0, 1)
    return torch.cat([woven, between[pairs:]])
