"""A number that was measured several times."""

import math
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """A mean and its standard error, NaN where it was measured once (the error) or does not exist (both).

    Example:
        >>> print(Measured(0.25, 0.01))
        0.250 ± 0.010
    """

    mean: float
    standard_error: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.3f}"
        return f"{self.mean:.3f}{error}"


def measured(samples: Float64[Tensor, " samples"]) -> Measured:
    """The mean of independent samples, at least one, with its standard error.

    >>> import torch
    >>> measured(torch.tensor([1.0, 3.0], dtype=torch.float64))
    Measured(mean=2.0, standard_error=1.0)
    """
    error = float(samples.std()) / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
    return Measured(float(samples.mean()), error)
