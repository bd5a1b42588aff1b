"""One training step: what schedules set, the estimate, and the update of the weights."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from zorn.estimators import Estimate
from zorn.estimators.two_part import GRADIENTS
from zorn.models import Batch
from zorn.perturbations import FusedSGD
from zorn.tasks import Task
from zorn.training.build import Estimator, fused_update
from zorn.training.config import Config, OptimizerConfig
from zorn.training.loggers import Record
from zorn.training.schedules import epsilon_at, learning_rate_at, population_at
from zorn.training.usage import WEIGHT_SPACE, ZERO_ORDER

Made = TypeVar("Made")


def prepare_step(config: Config, task: Task, estimator: Estimator, step: int, share: float) -> Record:
    """Set what the step (from 0) asks of the estimator when `share` (0 to 1) of the budget is used: ε and the
    population of the schedules, the rounding for a journal, and no carried state where new sequences begin.
    Returns what the schedules set, and the learning rate.

    >>> from zorn.tasks import CopyTask
    >>> from zorn.training import BudgetConfig
    >>> from zorn.training.build import build_estimator
    >>> from zorn.training.defaults import resolve
    >>> config, _ = resolve(Config(budget=BudgetConfig(steps=1)))
    >>> task = CopyTask(batch=1, minimum_length=1, maximum_length=2, seed=0)
    >>> prepare_step(config, task, build_estimator(config.estimator, seed=0), step=0, share=0.0)
    {'learning_rate': 0.01, 'epsilon': 0.05}
    """
    settings, name = config.estimator, config.estimator.estimator
    set_: Record = {}
    if name in ZERO_ORDER:
        assert settings.epsilon is not None, "settings are resolved before a run"
        set_["epsilon"] = epsilon_at(config.optimizer, settings.epsilon, step, share)
    if name in WEIGHT_SPACE:
        set_["population"] = population_at(settings, config.population_multiple, share)
    rounding = {"half_weights": config.run.journal_half} if hasattr(estimator, "half_weights") else {}
    for attribute, value in (set_ | rounding).items():
        setattr(estimator, attribute, value)
    reset = getattr(estimator, "reset", None)
    if reset is not None and task.begins(step):
        reset()
    return {"learning_rate": learning_rate_at(config.optimizer, step, share), **set_}


def update_weights(
    config: Config,
    task: Task,
    model: nn.Module,
    estimator: Estimator,
    optimizer: torch.optim.Optimizer | None,
    batch: Batch,
    rate_factor: float,
) -> Estimate:
    """Estimate the gradient of a batch and move the weights along it: in place without an optimizer, else
    through it, with its gradient clipped.

    Args:
        rate_factor: above 0; the share of their first learning rates that the optimizer's groups have now.

    Raises:
        NonFiniteLossError: the estimator's; the weights are unchanged.
    """
    return move_weights(
        config.optimizer,
        model,
        optimizer,
        rate_factor,
        lambda update: estimator.estimate(model, batch, task.objective, update=update),
    )


def move_weights(
    settings: OptimizerConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    rate_factor: float,
    make_gradient: Callable[[FusedSGD | None], Made],
) -> Made:
    """Move the weights along a gradient, however it is made: the one path of a step and of its replay.

    Args:
        settings: with a learning rate that is not None.
        optimizer: None with fused-sgd.
        rate_factor: as in `update_weights`.
        make_gradient: fills `.grad` when it is given None, else applies the update that it is given.

    Returns:
        what `make_gradient` returned.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.5)
    >>> sgd.param_groups[0]["initial_lr"] = 0.5
    >>> before = layer.weight.item()
    >>> def make_gradient(update):
    ...     layer.weight.grad = torch.ones(1, 1)
    >>> move_weights(OptimizerConfig(), layer, sgd, 0.5, make_gradient)
    >>> round(before - layer.weight.item(), 6)
    0.25
    """
    if optimizer is None:
        assert settings.learning_rate is not None, "settings are resolved before a run"
        return make_gradient(fused_update(settings, settings.learning_rate * rate_factor))
    made = make_gradient(None)
    if settings.clip_norm is not None:
        clip(model, settings.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate_factor
    optimizer.step()
    return made


def clip(model: nn.Module, norm: float) -> None:
    """Scale the gradient down to `norm` where it is longer; of a gradient in two parts, each on its own.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.grad = torch.tensor([[3.0, 4.0]])
    >>> clip(layer, 1.0)
    >>> layer.weight.grad
    tensor([[0.6000, 0.8000]])
    """
    for name in GRADIENTS:
        parts = [getattr(parameter, name, None) for parameter in model.parameters()]
        gradients = [part for part in parts if part is not None]
        if gradients:
            scale = (norm / (nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(scale)
