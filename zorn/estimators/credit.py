"""Credit in time: which losses the noise of a time step answers for."""

import torch
from jaxtyping import Float
from torch import Tensor

from zorn.models.scan import linear_scan


def reward_to_go(
    losses: Float[Tensor, "*rows time"], discount: float, *, causal: bool = True
) -> Float[Tensor, "*rows time"]:
    """C_t = Σ_{s ≥ t} γ^{s−t} ℓ_s: what follows each step, the step itself counted in.

    γ = 1 is the whole effect of the noise at t on a causal model; less forgets with a time constant of
    1 / (1 − γ) steps: a bias for less variance (Sutton 1984; the discount of reinforcement learning).

    Args:
        losses: of each time step, or differences of losses.
        discount: γ, 0 to 1; 0 credits a step with its own loss alone.
        causal: False where a step's output may depend on later inputs: every step gets the sum over all, and
            the discount must be 1.

    >>> reward_to_go(torch.tensor([[1.0, 0.0, 2.0]]), 0.5)
    tensor([[1.5000, 1.0000, 2.0000]])
    """
    if not causal:
        assert discount == 1.0
        return losses.sum(-1, keepdim=True).expand_as(losses)
    if discount == 1.0:
        return losses.flip(-1).cumsum(-1).flip(-1)
    if discount == 0.0:
        return losses
    backwards = losses.flip(-1).reshape(-1, losses.shape[-1]).t().unsqueeze(-1)  # [time, rows, 1]
    decay = torch.full_like(backwards, discount)
    found = linear_scan(decay, backwards, torch.zeros_like(backwards[0]))
    return found.squeeze(-1).t().reshape(losses.shape).flip(-1)
