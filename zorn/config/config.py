"""All settings of a run: the components by name with their settings, and the groups that belong to none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zorn.checks import wrong
from zorn.config.groups import BudgetConfig, RunConfig, ScheduleConfig
from zorn.estimators import ESTIMATORS
from zorn.models import cell_settings
from zorn.models.language_model import LanguageModel
from zorn.optimizers import optimizer_kind
from zorn.settings import Choice, Setting, check_setting, settings_of
from zorn.tasks import TASKS, objective_of

AUTO = "auto"
"""Name of a component that zorn chooses."""

COMPONENTS = ("task", "model", "estimator", "optimizer")
"""The fields of `Config` that are a `Choice`."""

GROUPS = {"schedule": ScheduleConfig, "budget": BudgetConfig, "run": RunConfig}
"""The fields of `Config` that are dataclasses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of a run. As they are asked for, a choice holds what is given; once they are resolved (see
    `zorn.config.resolve`), it holds every setting.

    Args:
        task: one of `zorn.tasks.TASKS`, and its settings.
        objective: the function that is minimised: one of `zorn.tasks.OBJECTIVES`, or
        path/to/file.py:function.
        model: a cell of `zorn.models.CELLS`, and the settings of the language model and the cell.
        estimator: one of `zorn.estimators.ESTIMATORS`, or "auto".
        optimizer: one of `zorn.optimizers.OPTIMIZERS`, or "auto".

    Raises:
        ConfigError: a component that is unknown, or a setting that it lacks or of another type.

    >>> config = Config(budget=BudgetConfig(steps=10), model=Choice("gru", hidden_size=8))
    >>> config.model.hidden_size, config.task.name, config.estimator.name
    (8, 'text', 'auto')
    """

    task: Choice = field(default=Choice("text"))
    objective: str = "cross-entropy"
    model: Choice = field(default=Choice("lstm"))
    estimator: Choice = field(default=Choice(AUTO))
    optimizer: Choice = field(default=Choice(AUTO))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    budget: BudgetConfig
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        objective_of(self.objective)
        for name in COMPONENTS:
            choice: Choice = getattr(self, name)
            if not isinstance(choice, Choice):
                raise wrong(name, "a Choice", repr(choice), f'for example Choice("{AUTO}")')
            if choice.name == AUTO:
                continue
            settings = component_settings(name, choice.name)
            for key, value in choice.given.items():
                check_setting(key, value, settings, f"{name} {choice.name}")


def component_settings(kind: str, name: str) -> Mapping[str, Setting]:
    """The settings of a component by its kind (a field of `Config`) and name.

    >>> list(component_settings("optimizer", "sgd"))
    ['learning_rate', 'momentum', 'weight_decay']
    """
    if kind == "task":
        return settings_of(TASKS[name])
    if kind == "model":
        return model_settings(name)
    if kind == "estimator":
        return settings_of(ESTIMATORS[name])
    return settings_of(optimizer_kind(name).make)


def model_settings(cell: str) -> Mapping[str, Setting]:
    """The settings of a language model of a cell: its own, `parameters` in place of a size, and the
    cell's."""
    own = dict(settings_of(LanguageModel))
    for name in ("vocabulary", "cell"):
        own.pop(name, None)
    hidden = own["hidden_size"]
    own["hidden_size"] = Setting("hidden_size", int, 64, hidden.help)
    help_ = (
        "aim at this many trained parameters, at least 1: chooses the hidden size in place of hidden_size."
    )
    own["parameters"] = Setting("parameters", int | None, None, help_)
    return own | dict(cell_settings(cell))
