"""The result of an estimator, and the question that it asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from zorn.checks import wrong
from zorn.estimators.fold import Fold
from zorn.noise import Draw, Perturbation


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The outcome of one estimate; the gradient itself is in the parameters' `.grad`, or already in the
    weights.

    Args:
        loss: nats, or the objective's unit. CD-RGE: mean of L⁺ and L⁻ over members (an estimate of the
            smoothed loss); FD-RGE, the exact ones and credit of tokens: L(θ).
        coefficients: [population] float64, before shaping and averaging; 0 for dropped members; empty for
            BPTT.
        gradient_norm: Euclidean norm of the gradient over all trained parameters.
        forward_passes: sequences run through the model, a backward pass counted as two forward passes.
        dropped: members left out because a loss of theirs was not finite.
        fold: the numbers that the gradient was made from, for noise on the weights; None for others.
    """

    loss: float
    gradient_norm: float
    forward_passes: int
    coefficients: Float64[Tensor, " population"] = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.float64)
    )
    dropped: int = 0
    fold: Fold | None = None

    @property
    def coefficient_norm(self) -> float:
        """Root mean square of the coefficients: the size of the slopes that the members met."""
        return float(self.coefficients.square().mean().sqrt()) if len(self.coefficients) else 0.0


@dataclass(frozen=True, kw_only=True)
class Population:
    """A question: the losses of `size` members at θ + s ε z_j, for each of `signs`. Plain data: send it
    anywhere, answer in any order.

    Args:
        draw: seed, step and ε: all that determines the directions.
        size: n, the members.
        signs: what to evaluate for each member, in the order of the rows of `tell`'s losses; 0 is θ itself.
        perturbation: the structure of the directions.
    """

    draw: Draw
    size: int
    signs: tuple[int, ...]
    perturbation: Perturbation

    @contextmanager
    def perturbed(self, model: nn.Module, member: int, sign: int) -> Iterator[None]:
        """Within the `with` block, `model` computes with θ + sign · ε z_member, for any batch. Weights are
        not changed.

        Raises:
            ConfigError: a member or sign outside the population.
        """
        if not 0 <= member < self.size:
            raise wrong("member", f"from 0 to {self.size - 1}", member)
        if sign not in self.signs:
            raise wrong("sign", f"one of {self.signs}", sign)
        if sign == 0:
            yield
        else:
            with self.perturbation.bind(model).members(self.draw, range(member, member + 1), (sign,)):
                yield
