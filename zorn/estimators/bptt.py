"""BPTT: the exact gradient by backpropagation through time, the baseline that every estimate is compared
with.

Rumelhart, Hinton and Williams (1986); Werbos (1990). Memory grows with the context: every activation is kept.
"""

from collections.abc import Iterator
from typing import final

from torch import Tensor, nn

from zorn.estimators.exact import ExactGradient
from zorn.estimators.population import Objective
from zorn.models import Batch, row_losses


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

    def _check(self, model: nn.Module, batch: Batch, objective: Objective) -> None:
        del model, batch, objective  # row_losses says what is wrong with them

    def _losses(
        self, model: nn.Module, batch: Batch, objective: Objective, normaliser: float | None
    ) -> Iterator[Tensor]:
        yield row_losses(model, batch, objective, normaliser=normaliser)
