"""NRES: noise-reuse evolution strategies, one perturbation a member for the whole segment.

ĝ_t = (1/n) Σ_j z_j (L_t(s⁺_j, θ + ε z_j) − L_t(s⁻_j, θ − ε z_j)) / 2ε

L_t is the loss of window t and s±_j the states that member j carries under ± its own z_j, which is drawn at
`reset` and kept. For fixed θ the sum of a segment's estimates is CD-RGE of the whole segment.

Li, Harrison, Sohl-Dickstein, Smith and Metz (2023), "Noise-Reuse in Online Evolution Strategies", arXiv
2304.12180.
"""

from typing import final

from zorn.estimators.streaming import StreamingEstimator


@final
class NRES(StreamingEstimator):
    """The gradient of the long-horizon loss of streams, window by window, with the noise of a segment reused.

    Its variance is that of `CDRGE` on the whole segment, usually well below that of `PES`, and its cost does
    not grow with the windows since `reset`.

    Example:
        >>> from zorn.models import LanguageModel
        >>> from zorn.estimators.update import FusedSGD
        >>> from zorn.tasks import TextTask
        >>> model = LanguageModel(256, 16)
        >>> task = TextTask(source="python-docs", batch=4, length=8, stream=10, seed=0)
        >>> estimator = NRES(population=8, epsilon=0.02)
        >>> for step in range(20):
        ...     if task.begins(step):
        ...         estimator.reset()
        ...     update = FusedSGD(learning_rate=0.01)
        ...     found = estimator.estimate(model, task.training_batch(step), task.objective, update)
        >>> found.forward_passes
        16
    """

    fresh = False
