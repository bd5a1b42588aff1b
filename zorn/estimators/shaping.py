"""Loss shaping: plain functions of a step's coefficients, applied before they are folded.

Coefficients have mean near zero over random directions, so subtracting their mean is a control variate: it
shrinks the estimate by (n − 1) / n and changes its direction in nothing but noise.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Shaping = Callable[[Float[Tensor, " population"]], Float[Tensor, " population"]]


def none(coefficients: Float[Tensor, " population"]) -> Float[Tensor, " population"]:
    """The coefficients as they are: the estimate of the gradient itself.

    >>> import torch
    >>> none(torch.tensor([3.0, -1.0]))
    tensor([ 3., -1.])
    """
    return coefficients


def zscore(coefficients: Float[Tensor, " population"]) -> Float[Tensor, " population"]:
    """(c − mean) / standard deviation; zeros where all are equal. Makes the step's length independent of the
    loss's scale.

    >>> import torch
    >>> zscore(torch.tensor([2.0, 0.0]))
    tensor([ 1., -1.])
    """
    return _over_deviation(coefficients - coefficients.mean(), coefficients)


def sign(coefficients: Float[Tensor, " population"]) -> Float[Tensor, " population"]:
    """The sign of each coefficient: each member votes, outliers do not count for more.

    >>> import torch
    >>> sign(torch.tensor([3.0, -0.1]))
    tensor([ 1., -1.])
    """
    return coefficients.sign()


def std(coefficients: Float[Tensor, " population"]) -> Float[Tensor, " population"]:
    """c / standard deviation, the mean kept (as FZOO, 2025, divides its step); zeros where all are equal.

    >>> import torch
    >>> std(torch.tensor([4.0, 2.0]))
    tensor([4., 2.])
    """
    return _over_deviation(coefficients, coefficients)


def _over_deviation(values: Tensor, coefficients: Tensor) -> Tensor:
    """`values` over the standard deviation of the coefficients. Equal ones are compared, as their mean is
    rounded: the deviation from it is then some 1e-17, not 0."""
    deviation = (coefficients - coefficients.mean()).square().mean().sqrt()
    spread = bool((coefficients != coefficients[:1]).any()) and bool(deviation > 0)
    return values / deviation if spread else torch.zeros_like(values)


SHAPINGS: dict[str, Shaping] = {"none": none, "zscore": zscore, "sign": sign, "std": std}
"""The shapings by the names that configurations use."""

OF_SEVERAL: tuple[Shaping, ...] = (zscore, std)
"""The shapings that make 0 of a single coefficient, whatever it is."""
