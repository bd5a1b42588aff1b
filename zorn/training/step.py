"""One training step: what schedules set, the estimate, and the update of the weights."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from zorn.config import Config
from zorn.estimators import Estimator
from zorn.estimators.update import FusedSGD
from zorn.run.loggers import Record
from zorn.tasks import Task
from zorn.training.build import fused_update
from zorn.training.schedules import epsilon_at, population_at, rate_factor_at

Made = TypeVar("Made")


def prepare_step(config: Config, task: Task, estimator: Estimator, step: int, share: float) -> Record:
    """Set the values of the schedules for a step (from 0) when `share` (0 to 1) of the budget is used, and
    forget carried states where new sequences begin. Returns what the schedules set, and the learning rate.

    >>> from zorn.config import BudgetConfig, resolve
    >>> from zorn.tasks import CopyTask
    >>> from zorn.training.build import build_estimator
    >>> config, _ = resolve(Config(budget=BudgetConfig(steps=1)))
    >>> prepare_step(config, CopyTask(batch=1), build_estimator(config), step=0, share=0.0)
    {'learning_rate': 0.01, 'epsilon': 0.05}
    """
    schedule, settings = config.schedule, config.estimator
    rate = config.optimizer.learning_rate * rate_factor_at(schedule, step, share)
    values: Record = {}
    if "epsilon" in estimator.scheduled:
        values["epsilon"] = epsilon_at(schedule, settings.epsilon, rate, share)
    if "population" in estimator.scheduled:
        multiple = estimator.population_multiple(config.task.get("batch") or 1)
        values["population"] = population_at(settings.population, schedule.final_population, multiple, share)
    for name, value in values.items():
        setattr(estimator, name, value)
    if task.begins(step):
        estimator.reset()
    return {"learning_rate": rate, **values}


def move_weights(
    config: Config,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    rate_factor: float,
    make_gradient: Callable[[FusedSGD | None], Made],
) -> Made:
    """Move the weights along a gradient, however it is made: the one path of a step and of its replay.

    Args:
        config: resolved.
        optimizers: none where the update is in place.
        rate_factor: above 0; the share of their first learning rates that the optimizers' groups have now.
        make_gradient: fills `.grad` when it is given None, else applies the update that it is given.

    Returns:
        what `make_gradient` returned.

    >>> from zorn.config import BudgetConfig
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.5)
    >>> sgd.param_groups[0]["initial_lr"] = 0.5
    >>> before = layer.weight.item()
    >>> def make_gradient(update):
    ...     layer.weight.grad = torch.ones(1, 1)
    >>> config = Config(budget=BudgetConfig(steps=1))
    >>> move_weights(config, layer, [sgd], 0.5, make_gradient)
    >>> round(before - layer.weight.item(), 6)
    0.25
    """
    if not optimizers:
        return make_gradient(fused_update(config, rate_factor))
    made = make_gradient(None)
    for optimizer in optimizers:
        if config.schedule.clip_norm is not None:
            clip(optimizer, config.schedule.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate_factor
        optimizer.step()
    return made


def clip(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """Scale the gradient of an optimizer's parameters down to `norm` where it is longer.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.grad = torch.tensor([[3.0, 4.0]])
    >>> clip(torch.optim.SGD(layer.parameters()), 1.0)
    >>> layer.weight.grad
    tensor([[0.6000, 0.8000]])
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        scale = (norm / (nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
