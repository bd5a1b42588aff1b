"""From settings to parts: task, model, estimator, optimizer; each checks what the settings cannot tell."""

import os
from typing import Any

import torch
from torch import nn

from zorn.config import Config
from zorn.errors import ConfigError
from zorn.estimators import ESTIMATORS, Estimator
from zorn.estimators.update import FusedSGD
from zorn.models import LanguageModel, cell_settings
from zorn.optimizers import optimizer_kind
from zorn.run.folder import RunFolder
from zorn.settings import Choice, takes
from zorn.tasks import TASKS, Task, TextTask, objective_of
from zorn.training.limits import out_of_memory


def build_task(config: Config, folder: RunFolder | None = None) -> Task:
    """The task of a run. With the run's folder, a tokenizer that was learned is read from there.

    Raises ConfigError for settings that the task refuses, such as a text that is missing or too short, and
    for a learned tokenizer that is gone from the folder.

    >>> from zorn.config import BudgetConfig
    >>> task = build_task(Config(task=Choice("sort"), budget=BudgetConfig(steps=1)))
    >>> task.name, task.vocabulary
    ('sort', 29)
    """
    kind = TASKS[config.task.name]
    given = dict(config.task.given)
    if takes(kind, "seed"):
        given["seed"] = config.run.seed
    learned = issubclass(kind, TextTask) and given.get("tokenizer", "bytes") != "bytes"
    if folder is not None and learned:
        given |= {"tokenizer": folder.read_tokenizer(given["tokenizer"]), "vocabulary_size": None}
    task = kind(**given)
    task.objective = objective_of(config.objective)
    return task


def build_model(config: Config, vocabulary: int) -> LanguageModel:
    """The model of a run, freshly initialised from the seed, on its device and in its number format.

    Raises ConfigError for sizes that do not fit each other or the memory, and for a device that cannot
    compute.
    """
    device = checked_device(config.run.device)
    options = {"seed": config.run.seed, "dtype": getattr(torch, config.run.dtype), "device": device}
    try:
        return model_of(config.model, vocabulary, **options)
    except (RuntimeError, MemoryError) as error:
        if (reason := out_of_memory(error)) is None:
            raise
        raise ConfigError(
            f"the model does not fit into the memory of {config.run.device} ({reason}): choose a smaller "
            "--hidden-size or --parameters; zorn plan with these settings and --fit 8GiB (what there is) "
            "proposes some that fit"
        ) from error


def model_of(model: Choice, vocabulary: int, **options: Any) -> LanguageModel:
    """The model of a choice; `options` are those of `LanguageModel` that no setting tells, such as its
    device: on "meta" it has shapes and takes no memory.

    Raises ConfigError for sizes that do not fit each other.
    """
    given = {"cell": model.name, **model.given, **options}
    own = [name for name in cell_settings(model.name) if name in given]
    given["cell_settings"] = {name: given.pop(name) for name in own}
    parameters, hidden_size = given.pop("parameters", None), given.pop("hidden_size", 64)
    if parameters is None:
        return LanguageModel(vocabulary, hidden_size, **given)
    if given.pop("embedding_size", None) is not None:
        raise ConfigError(
            "embedding_size must be None with --parameters, which chooses all sizes: leave it out"
        )
    return LanguageModel.with_parameters(parameters, vocabulary, **given)


def build_estimator(config: Config) -> Estimator:
    """The estimator of a run, with its seed; it carries state where the task streams.

    Raises:
        ConfigError: the estimator is "auto" (see `zorn.config.resolve`), or a setting outside its range.

    >>> from zorn.config import BudgetConfig
    >>> build_estimator(Config(estimator=Choice("activity"), budget=BudgetConfig(steps=1))).epsilon
    0.05
    """
    kind = ESTIMATORS[config.estimator.name]
    run = {"seed": config.run.seed, "carry": config.task.get("stream") is not None}
    return kind(**config.estimator.given, **{name: value for name, value in run.items() if takes(kind, name)})


def build_optimizers(config: Config, model: nn.Module, estimator: Estimator) -> list[torch.optim.Optimizer]:
    """The torch optimizers of a run: its own, and those of parts of the gradient that the estimator keeps
    apart. None with an optimizer that works in place, which `fused_update` makes for each step.

    Args:
        config: resolved.
        model: the module whose parameters they move.
    """
    kind = optimizer_kind(config.optimizer.name)
    own = kind.make(list(model.parameters()), **config.optimizer.given)
    if kind.in_place:
        return []
    rate = config.optimizer.get("learning_rate") if kind.adaptive else None
    optimizers = [own, *estimator.own_optimizers(model, rate)]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]  # torch's name for what schedules multiply
    return optimizers


def fused_update(config: Config, rate_factor: float) -> FusedSGD:
    """The in-place update of one step, with the learning rate times a factor."""
    given = dict(config.optimizer.given)
    given["learning_rate"] = config.optimizer.learning_rate * rate_factor
    return optimizer_kind(config.optimizer.name).make([], **given)


def set_threads(threads: int | None) -> None:
    """Let torch compute on this many CPU threads; None leaves its choice."""
    if threads is not None:
        available = os.cpu_count() or threads
        if threads > available:
            raise ConfigError(f"threads must be at most {available} here, got {threads}: lower --threads")
        torch.set_num_threads(threads)


def checked_device(name: str) -> torch.device:
    """The device of this name; ConfigError unless it is there and computes (the meta device does not)."""
    try:
        device = torch.device(name)
        (torch.ones(2, device=device) + 1).sum().item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name} cannot be used here ({reason}): for example --device cpu"
        ) from error
    return device
