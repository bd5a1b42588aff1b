"""The cells that a model can be built of, by name, and the settings of each."""

from collections.abc import Callable, Mapping
from typing import Any

from zorn.models.dnc import DNCCell
from zorn.models.gru import GRUCell
from zorn.models.lstm import LSTMCell
from zorn.models.min_gru import MinGRUCell
from zorn.registry import Registry
from zorn.settings import Setting, check_setting, settings_of, takes

CELLS: Registry[Callable[..., Any]] = Registry(
    "cell", {"lstm": LSTMCell, "gru": GRUCell, "min-gru": MinGRUCell, "dnc": DNCCell}
)
"""Classes by name. A cell is made of (input size, hidden size, heads, generator=…) and its settings."""

SIZES = ("input_size", "hidden_size", "num_heads")
"""Arguments of a cell that the model chooses."""


def find_cell(cell: str | Callable[..., Any]) -> Callable[..., Any]:
    """The class of that name; any other class or function that makes cells is returned as it is.

    Raises:
        ConfigError: no such name.

    >>> find_cell("gru").__name__
    'GRUCell'
    """
    return cell if callable(cell) else CELLS[cell]


def cell_settings(cell: str | Callable[..., Any]) -> dict[str, Setting]:
    """The settings of a cell beside its sizes, by name: the further arguments of its constructor.

    >>> list(cell_settings("dnc")), list(cell_settings("gru"))
    (['memory_slots', 'memory_width', 'read_heads', 'simple_memory'], [])
    """
    return {name: found for name, found in settings_of(find_cell(cell)).items() if name not in SIZES}


def check_cell_settings(cell: str | Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise ConfigError for a setting that the cell does not have, or of another type.

    >>> check_cell_settings("dnc", {"memory_slots": 8})
    """
    make, known = find_cell(cell), cell_settings(cell)
    name = cell if isinstance(cell, str) else getattr(cell, "__name__", repr(cell))
    for setting, value in given.items():
        if setting in known or not takes(make, setting):
            check_setting(setting, value, known, f"cell {name}")
