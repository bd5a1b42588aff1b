"""FD-RGE: forward differences along random directions.

ĝ = (1/n) Σ_j c_j z_j,  c_j = (L(θ + ε z_j) − L(θ)) / ε

Half of the evaluations of CD-RGE, but no cancellation of the even terms: an error of O(ε) in each
coefficient.
Nesterov and Spokoiny (2017), "Random gradient-free minimization of convex functions".
"""

from typing import final

from jaxtyping import Float64
from torch import Tensor

from zorn.estimators.zero_order import ZeroOrderEstimator


@final
class FDRGE(ZeroOrderEstimator):
    """Forward-difference random-vector gradient estimation: n g + B forward passes a step.

    L(θ) is evaluated once for each sequence of the batch and shared by the members.

    Example:
        >>> import zorn
        >>> estimator = zorn.FDRGE(population=16, epsilon=1e-3)
    """

    signs = (1, 0)

    def coefficients(
        self, losses: Float64[Tensor, "signs members"], epsilon: float
    ) -> Float64[Tensor, " members"]:
        """(L⁺ − L) / ε."""
        return (losses[0] - losses[1]) / epsilon
