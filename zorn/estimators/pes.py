"""PES: persistent evolution strategies, a fresh perturbation a member in every window.

ĝ_t = (1/n) Σ_j (Σ_{τ ≤ t} z_{j,τ}) (L_t(s⁺_j, θ + ε z_{j,t}) − L_t(s⁻_j, θ − ε z_{j,t})) / 2ε

L_t is the loss of window t and s±_j the states that member j carries under ± its perturbations; the sum is
over the windows since `reset`. A segment keeps the ε of its start while a schedule moves: with an ε_τ of each
window the sum would have to be one of z_{j,τ} ε_t / ε_τ.

Vicol, Metz and Sohl-Dickstein (2021), "Unbiased Gradient Estimation in Unrolled Computation Graphs with
Persistent Evolution Strategies", arXiv 2112.13835.
"""

from typing import final

from zorn.estimators.streaming import StreamingEstimator


@final
class PES(StreamingEstimator):
    """The gradient of the long-horizon loss of streams, window by window, with fresh noise in each.

    The past perturbations are not stored but drawn again in every fold, which therefore costs t times that of
    `CDRGE` in the t-th window since `reset`: keep segments to some tens of windows, or take `NRES`. The
    variance grows as fast: over a segment of T windows it is (T + 1) / 2 times that of `NRES` where the
    gradients of windows are orthogonal.

    Example:
        >>> import torch
        >>> from zorn.models import Batch, LanguageModel
        >>> from zorn.tasks import TokenCrossEntropy
        >>> model, tokens = LanguageModel(29, 16), torch.randint(0, 29, (4, 31))
        >>> estimator = PES(population=8, epsilon=0.02)
        >>> for start in range(0, 30, 10):
        ...     window = tokens[:, start : start + 11]
        ...     batch = Batch(window[:, :-1], window[:, 1:])
        ...     found = estimator.estimate(model, batch, TokenCrossEntropy())
        >>> found.forward_passes, estimator.step
        (16, 3)
    """

    fresh = True
