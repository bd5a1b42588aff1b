"""A learning rate that is searched again where training no longer gets better."""

from __future__ import annotations

import math
from typing import Any, final

from zorn.training.config import OptimizerConfig
from zorn.training.learner import Learner
from zorn.training.loggers import Record
from zorn.training.plateau import Plateau
from zorn.training.rate_search import search_rate

PROBE_STEPS = 20
"""Training steps of a probe."""
PROBES = 5
"""Most rates tried in a search: the present one, its neighbours, and two to halve the bracket."""


@final
class RateWatch:
    """Watches a run's losses and, on a plateau, searches the learning rate again around the present one.

    The probes go on from the present weights, optimizer, noise and position in the data, which are put back;
    they are judged by the held-out loss, never by the test split. They count steps, not seconds: a run with a
    budget in steps stays reproducible, also over a stop and a resume, with `state_dict` in its checkpoints.
    A search costs up to `PROBES` × `PROBE_STEPS` steps and as many evaluations as probes.

    Args:
        window: losses in a window of the `Plateau`, at least 2.

    Attributes:
        factor: what the schedule's learning rates are multiplied by now; 1 at first.

    Raises:
        ConfigError: a window below 2.

    Example:
        >>> from zorn.training import BudgetConfig, Config, EstimatorConfig, ModelConfig, TaskConfig
        >>> from zorn.training.build import build_task
        >>> from zorn.training.defaults import resolve
        >>> config, _ = resolve(Config(
        ...     task=TaskConfig(task="copy", batch=2, maximum_length=2), model=ModelConfig(hidden_size=2),
        ...     estimator=EstimatorConfig(estimator="bptt"), budget=BudgetConfig(steps=9),
        ... ))
        >>> watch, learner = RateWatch(window=2), Learner.build(config, build_task(config))
        >>> records = [watch.trained(learner, loss, share=0.0) for loss in (2.0, 2.0, 2.0, 2.0)]
        >>> records[:3], sorted(records[3])[:4]
        ([None, None, None], ['factor', 'factor_before', 'held_out_loss', 'held_out_loss_before'])
    """

    def __init__(self, *, window: int) -> None:
        self.factor = 1.0
        self._plateau = Plateau(window=window)

    def trained(self, learner: Learner, loss: float, share: float) -> Record | None:
        """Take the loss of a step that was done.

        Args:
            learner: as it is after the step; put back after a search, bit for bit.
            loss: of the step.
            share: of the budget used, 0 to 1: where the schedules stay in the probes.

        Returns:
            After a search, a record of kind "rate": the factor and the held-out loss before and after, how
            many rates were tried, and "probe_steps", the training steps that it took. Where none is better
            than the present factor, as where all of them diverge, it stays.
        """
        if not self._plateau.update(loss):
            return None
        before, probes = self.factor, 0

        def score(factor: float) -> float:
            nonlocal probes
            if not _decays(learner.config.optimizer, factor):
                return math.inf
            probes += 1
            return learner.probe(PROBE_STEPS, rate_factor=factor, share=share)

        found = search_rate(score, before, most=PROBES)
        if found.loss < found.losses[before]:
            self.factor = found.rate
        return {
            "kind": "rate",
            "step": learner.step,
            "factor_before": before,
            "factor": self.factor,
            "held_out_loss_before": found.losses[before],
            "held_out_loss": found.loss,
            "tried": len(found.losses),
            "probe_steps": probes * PROBE_STEPS,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        return {"factor": self.factor, "plateau": self._plateau.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.factor = state["factor"]
        self._plateau.load_state_dict(state["plateau"])


def told(record: Record) -> str:
    """What a search found, in one line, from its record.

    >>> told({"step": 90, "tried": 5, "factor_before": 1.0, "factor": 0.316,
    ...       "held_out_loss_before": 2.5, "held_out_loss": 2.25})
    'step 90: the loss no longer falls; 5 learning rates tried, now times 0.316 (held-out loss 2.25, not 2.5)'
    """
    verdict = "kept"
    if record["factor"] != record["factor_before"]:
        losses = f"{record['held_out_loss']:.4g}, not {record['held_out_loss_before']:.4g}"
        verdict = f"now times {record['factor']:.3g} (held-out loss {losses})"
    return (
        f"step {record['step']}: the loss no longer falls; {record['tried']} learning rates tried, {verdict}"
    )


def _decays(config: OptimizerConfig, factor: float) -> bool:
    """Whether the schedule's largest rate times the weight decay is below 1, as `FusedSGD` asks."""
    assert config.learning_rate is not None, "settings are resolved before a run"
    return config.optimizer != "fused-sgd" or config.learning_rate * factor * config.weight_decay < 1
