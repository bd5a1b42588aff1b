"""CD-RGE: central differences along random directions.

ĝ = (1/n) Σ_j c_j z_j,  c_j = (L(θ + ε z_j) − L(θ − ε z_j)) / 2ε

Its mean is the gradient of the smoothed loss L_ε(θ) = E_z[L(θ + ε z)], exactly for Gaussian z (dense), up to
O(ε²) for signs and rank-one.
Chaubard and Kochenderfer (2025), arXiv 2505.17852; two-sided SPSA with many directions, Spall (1992).
"""

from typing import final

from jaxtyping import Float64
from torch import Tensor

from zorn.estimators.weight_noise import WeightNoise
from zorn.estimators.zero_order import ZeroOrderEstimator


class CentralDifferences(WeightNoise):
    """The coefficients of central differences, c_j = (L⁺ − L⁻) / 2ε."""

    signs = (1, -1)

    def coefficients(
        self, losses: Float64[Tensor, "signs members"], epsilon: float
    ) -> Float64[Tensor, " members"]:
        """(L⁺ − L⁻) / 2ε."""
        return (losses[0] - losses[1]) / (2 * epsilon)


@final
class CDRGE(CentralDifferences, ZeroOrderEstimator):
    """Central-difference random-vector gradient estimation: 2 n g forward passes a step.

    Example:
        >>> import torch, zorn
        >>> model = torch.nn.Linear(3, 1)
        >>> batch = zorn.Batch(torch.randn(8, 3), torch.randn(8, 1))
        >>> def squared_error(outputs, targets):
        ...     return (outputs - targets).square().mean(-1)
        >>> estimator = zorn.CDRGE(population=64, epsilon=0.01)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        >>> estimate = estimator.estimate(model, batch, squared_error)
        >>> optimizer.step()
        >>> estimate.forward_passes
        128
    """
