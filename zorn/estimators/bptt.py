"""BPTT: the exact gradient by backpropagation through time, the baseline that every estimate is compared
with.

Rumelhart, Hinton and Williams (1986); Werbos (1990). Memory grows with the context: every activation is kept.
"""

from typing import final

from zorn.estimators.exact import ExactGradient


@final
class BPTT(ExactGradient):
    """The exact gradient of the batch's loss, by autograd. Any module and any differentiable objective.

    Example:
        >>> import torch, zorn
        >>> model = torch.nn.Linear(3, 1)
        >>> batch = zorn.Batch(torch.randn(8, 3), torch.randn(8, 1))
        >>> def squared_error(outputs, targets):
        ...     return (outputs - targets).square().mean(-1)
        >>> estimate = zorn.BPTT().estimate(model, batch, squared_error)
        >>> estimate.forward_passes
        24
    """
