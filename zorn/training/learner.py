"""Model, estimator and optimizer of a run, step by step, without folder, log or clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import nn

from zorn.config import Config
from zorn.estimators import Estimate, Estimator
from zorn.kernels.flashrnn import use_flashrnn
from zorn.models import Batch
from zorn.run.loggers import Record
from zorn.tasks import Task
from zorn.tasks.held_out import objective_value
from zorn.training.build import build_estimator, build_model, build_optimizers
from zorn.training.schedules import rate_factor_at
from zorn.training.step import move_weights, prepare_step

HELD_OUT_WINDOW = 128
"""Fewest tokens of a window that a text's validation split is cut into."""


@final
@dataclass
class Learner:
    """The parts of a run that a training step changes.

    Args:
        config: the settings that the parts were built from.
        task: gives the batches.
        model, estimator, optimizers: the parts; no optimizers where the update is in place.
        step: steps done, which is also the number of the next batch.
        scheduled: what the schedules set for the last step, by name, and its "learning_rate".

    Example:
        >>> from zorn.config import BudgetConfig, Choice, resolve
        >>> from zorn.training import build
        >>> config = Config(
        ...     task=Choice("copy", batch=4, maximum_length=2), model=Choice("lstm", hidden_size=4),
        ...     estimator=Choice("cd-rge", population=8), budget=BudgetConfig(steps=2),
        ... )
        >>> config, _ = resolve(config)
        >>> learner = Learner.build(config, build.build_task(config))
        >>> learner.train_step(share=0.0).forward_passes
        16
    """

    config: Config
    task: Task
    model: nn.Module
    estimator: Estimator
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    scheduled: Record = field(default_factory=dict)

    @classmethod
    def build(cls, config: Config, task: Task) -> Learner:
        """A learner at its first step, from settings that leave nothing open (see `resolve`).

        Raises ConfigError for settings that cannot work, and for kernels that are not there.
        """
        model = build_model(config, task.vocabulary)
        if config.run.kernels == "flashrnn":
            use_flashrnn(model)
        estimator = build_estimator(config)
        return cls(config, task, model, estimator, build_optimizers(config, model, estimator))

    def train_step(self, share: float) -> Estimate:
        """Do one step on the task's next batch.

        Args:
            share: of the budget that is used, 0 to 1: where the schedules are.

        Raises:
            NonFiniteLossError: the estimator's; the weights are unchanged.
        """
        self.scheduled = prepare_step(self.config, self.task, self.estimator, self.step, share)
        factor = rate_factor_at(self.config.schedule, self.step, share)
        batch = Batch(*(part.to(self.config.run.device) for part in self.task.training_batch(self.step)))
        estimate = move_weights(
            self.config,
            self.model,
            self.optimizers,
            factor,
            lambda update: self.estimator.estimate(self.model, batch, self.task.objective, update=update),
        )
        self.step += 1
        return estimate

    def held_out_loss(self) -> float:
        """The mean of the objective on rows of the validation split, never of the test split (on the one
        batch when overfitting); infinite where it is no number.

        A text is read in windows as long as those of training, at least `HELD_OUT_WINDOW` tokens.
        """
        window = max(self.config.task.get("length", 0), HELD_OUT_WINDOW)
        loss = objective_value(self.model, self.task, self.task.validation_splits[0], window=window)
        return loss if math.isfinite(loss) else math.inf
