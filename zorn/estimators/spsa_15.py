"""1.5-SPSA: central differences, each divided by the curvature along its own direction.

ĝ = (1/n) Σ_j c_j z_j / max(κ_j^α, λ),  c_j = (L⁺_j − L⁻_j) / 2ε,  κ_j = |L⁺_j − 2 L(θ) + L⁻_j| / ε²

κ_j estimates |z_jᵀ H z_j|, the second derivative along z_j: one number a member, for one more evaluation, at
θ. It is not the second-order SPSA of Spall (2000), which averages estimates of the whole Hessian H over steps
and preconditions with them: nothing here tells one parameter from another. A member that meets a sharp
direction counts for less; since zᵀ H z has the mean tr H, the step as a whole shortens where the loss is
sharp. Divisors that depend on the direction bend the mean of the estimate away from the gradient, more so the
larger α is: with α = 1 and a small λ, members that met almost no curvature drown the others.

Chaubard, Kochenderfer and Ré (2026), "Probe-Space Preconditioning for Fast and Stable Zero-Order Training",
arXiv 2609.38095.
"""

from typing import final

from jaxtyping import Float64
from torch import Tensor

from zorn.checks import Positive, Share
from zorn.estimators.zero_order import ZeroOrderEstimator


@final
class SPSA15(ZeroOrderEstimator):
    """1.5-SPSA, central differences over the curvature along each direction: 2 n g + B forward passes a step.

    L(θ) is evaluated once for each sequence of the batch and shared by the members. The curvature is a
    second difference over ε²: where ε is too small it is rounding (in float32 some 1e-7 L / ε²).

    Args:
        curvature_power: α, 0 to 1. 1 makes the estimate independent of the scale of the objective; 0 leaves
            the curvature out. The defaults of α and λ are those that the authors' code recommends.
        curvature_floor: λ > 0, the least divisor; with 1 or more no coefficient is ever enlarged.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch, zorn
        >>> model = torch.nn.Linear(3, 1)
        >>> batch = zorn.Batch(torch.randn(8, 3), torch.randn(8, 1))
        >>> def squared_error(outputs, targets):
        ...     return (outputs - targets).square().mean(-1)
        >>> estimator = zorn.SPSA15(population=64, epsilon=0.1, curvature_power=0.5)
        >>> estimator.estimate(model, batch, squared_error).forward_passes
        136
    """

    signs = (1, -1, 0)

    curvature_power: Share = 0.1
    curvature_floor: Positive = 1.0

    def coefficients(
        self, losses: Float64[Tensor, "signs members"], epsilon: float
    ) -> Float64[Tensor, " members"]:
        """(L⁺ − L⁻) / 2ε / max(κ^α, λ)."""
        above, below, centre = losses
        slope = (above - below) / (2 * epsilon)
        curvature = (above - 2 * centre + below).abs() / epsilon**2
        return slope / curvature.pow(self.curvature_power).clamp(min=self.curvature_floor)
