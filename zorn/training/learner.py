"""The learning part of a run, without folder, log or clock: model, estimator and optimizer, step by step. It
can be put back to where it was, so that settings can be tried out."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from zorn.config import Config
from zorn.errors import NonFiniteLossError
from zorn.estimators import Estimate, Estimator
from zorn.kernels.flashrnn import use_flashrnn
from zorn.models import Batch
from zorn.tasks import Task
from zorn.tasks.held_out import objective_value
from zorn.training.build import build_estimator, build_model, build_optimizers
from zorn.training.schedules import rate_factor_at
from zorn.training.step import prepare_step, update_weights

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

    Example:
        >>> from zorn.config import BudgetConfig, Choice, resolve
        >>> from zorn.training import build
        >>> config = Config(
        ...     task=Choice("copy", batch=4, maximum_length=2), model=Choice("lstm", hidden_size=4),
        ...     estimator=Choice("cd-rge", population=8), budget=BudgetConfig(steps=2),
        ... )
        >>> config, _ = resolve(config)
        >>> learner = Learner.build(config, build.build_task(config))
        >>> state, before = learner.state_dict(), learner.held_out_loss()
        >>> learner.train_step(share=0.0).forward_passes
        16
        >>> learner.load_state_dict(state)
        >>> learner.held_out_loss() == before
        True
    """

    config: Config
    task: Task
    model: nn.Module
    estimator: Estimator
    optimizers: list[torch.optim.Optimizer]
    step: int = 0

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

    def next_batch(self) -> Batch:
        """The batch of the next step, on the model's device."""
        return Batch(*(part.to(self.config.run.device) for part in self.task.training_batch(self.step)))

    def train_step(self, share: float, *, rate_factor: float = 1.0) -> Estimate:
        """Do one step on the task's next batch.

        Args:
            share: of the budget that is used, 0 to 1: where the schedules are.
            rate_factor: above 0, what the schedule's learning rates are multiplied by (not an ε that is
                tied to them).

        Raises:
            NonFiniteLossError: the estimator's; the weights are unchanged.
        """
        prepare_step(self.config, self.task, self.estimator, self.step, share)
        factor = rate_factor * rate_factor_at(self.config.schedule, self.step, share)
        parts = self.model, self.estimator, self.optimizers
        estimate = update_weights(self.config, self.task, *parts, self.next_batch(), factor)
        self.step += 1
        return estimate

    def held_out_loss(self) -> float:
        """The mean of the objective on rows of the validation split, never of the test split (on the one
        batch when overfitting); infinite where it is no number.

        A text is read in windows as long as those of training, at least `HELD_OUT_WINDOW` tokens.
        """
        split, window = (
            self.task.validation_splits[0],
            max(self.config.task.get("length", 0), HELD_OUT_WINDOW),
        )
        loss = objective_value(self.model, self.task, split, window=window)
        return loss if math.isfinite(loss) else math.inf

    def probe(self, steps: int, *, rate_factor: float = 1.0, share: float | None = None) -> float:
        """The held-out loss after some steps from here; everything is put back afterwards.

        Args:
            steps: how many, at least 1.
            rate_factor: above 0, what the schedule's learning rate is multiplied by.
            share: of the budget used, throughout; None: the schedules run through from 0 to 1.

        Returns:
            The loss; infinite where training diverged: it ended in NonFiniteLossError or in no number.
        """
        before = self.state_dict()
        try:
            for index in range(steps):
                self.train_step(index / steps if share is None else share, rate_factor=rate_factor)
            return self.held_out_loss()
        except NonFiniteLossError:
            return math.inf
        finally:
            self.load_state_dict(before)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that steps change: weights, optimizer, estimator (with the streams' carried state)
        and the position in the data."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "estimator": self.estimator.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` gave, which stays as it is and can be loaded again."""
        state = copy.deepcopy(state)  # or the optimizer would go on in these tensors
        self.model.load_state_dict(state["model"])
        self.estimator.load_state_dict(state["estimator"])
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        self.step = state["step"]
