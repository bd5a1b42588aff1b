"""The settings of a run: asked for, resolved, named, and as a file."""

from zorn.config.change import REGISTRIES, SELECTORS, change, possible_settings
from zorn.config.config import AUTO, COMPONENTS, GROUPS, Config, component_settings
from zorn.config.files import from_json, from_plain, to_json, to_plain
from zorn.config.groups import BudgetConfig, RunConfig, ScheduleConfig
from zorn.config.presets import PRESETS
from zorn.config.resolve import resolve
from zorn.settings import Choice

__all__ = [
    "AUTO",
    "COMPONENTS",
    "GROUPS",
    "PRESETS",
    "REGISTRIES",
    "SELECTORS",
    "BudgetConfig",
    "Choice",
    "Config",
    "RunConfig",
    "ScheduleConfig",
    "change",
    "component_settings",
    "from_json",
    "from_plain",
    "possible_settings",
    "resolve",
    "to_json",
    "to_plain",
]
