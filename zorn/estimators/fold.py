"""The few numbers that an update in weight space comes down to, and the gradient made from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from zorn.estimators.update import FusedSGD, applied
from zorn.noise import BoundPerturbation, Draw


@final
@dataclass(frozen=True, kw_only=True)
class Fold:
    """All that determines one update of a weight-space estimator, ĝ = Σ_j w_j z_j, beside the structure of
    the directions: from it and the weights before a step, the weights after it can be made again without
    data and without a forward pass, to the bit.

    Args:
        draw: seed, step and ε of the step; seeds the rounding of bfloat16 weights.
        coded: [population] w_j: coefficients after shaping over the number of members kept, 0 for dropped
            ones. float32 (float64 where a parameter is float64).
        origin: the step whose directions are folded; None: the draw's own.
        draws: directions of one member, added up: member j's k-th is number k · population + j of the origin.

    Example:
        >>> import torch, zorn
        >>> model = torch.nn.Linear(3, 1)
        >>> batch = zorn.Batch(torch.randn(8, 3), torch.randn(8, 1))
        >>> estimator = zorn.CDRGE(population=16, epsilon=0.1)
        >>> loss = lambda outputs, targets: (outputs - targets).square().mean(-1)
        >>> estimate = estimator.estimate(model, batch, loss)
        >>> gradient = model.weight.grad.clone()
        >>> norm = estimate.fold.apply(estimator.perturbation.bind(model))
        >>> norm == estimate.gradient_norm and torch.equal(model.weight.grad, gradient)
        True
    """

    draw: Draw
    coded: Float[Tensor, " population"]
    origin: int | None = None
    draws: int = 1

    @classmethod
    def of(
        cls, draw: Draw, weights: Float64[Tensor, " population"], *, wide: bool = False, **options: Any
    ) -> Fold:
        """The fold of some weights, which it rounds to float32, or float64 when `wide`.

        Args:
            weights: [population] finite numbers, within float32 unless `wide`.
            options: `origin` and `draws`.
        """
        return cls(draw=draw, coded=weights.to(torch.float64 if wide else torch.float32), **options)

    @property
    def weights(self) -> Float64[Tensor, " population"]:
        """w, [population] float64: what is folded."""
        return self.coded.double()

    @torch.inference_mode(mode=False)  # or a caller's inference mode would get into .grad
    @torch.no_grad()
    def apply(self, bound: BoundPerturbation, update: FusedSGD | None = None) -> float:
        """Fill `.grad`, or apply `update` to the weights in place; returns the gradient's norm.

        Args:
            bound: the structure that the directions were drawn with, bound to a model with the weights from
                before the step.
            update: as in `estimate`.

        Raises:
            ConfigError: a parameter that `update` cannot update in place.
            NonFiniteLossError: a gradient that float16 cannot hold.
        """
        if update is not None:
            update.check(bound.targets)
        directions = self.draw if self.origin is None else replace(self.draw, step=self.origin)
        blocks = bound.fold(directions, self.weights.repeat(self.draws))
        return applied(blocks, bound.targets, update, self.draw)
