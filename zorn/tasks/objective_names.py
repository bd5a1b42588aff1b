"""The objectives that have a name on the command line."""

from collections.abc import Callable

from zorn.models import RowObjective, TokenObjective
from zorn.registry import Registry, load_object
from zorn.tasks.objectives import TokenCrossEntropy, sequence_error, token_error_rate
from zorn.tasks.row_score import RowScore, edit_distance

OBJECTIVES: Registry[Callable[[], TokenObjective | RowObjective]] = Registry(
    "objective",
    {
        "cross-entropy": TokenCrossEntropy,
        "token-error": lambda: token_error_rate,
        "sequence-error": lambda: sequence_error,
        "edit-distance": lambda: RowScore(edit_distance),
    },
)
"""Makes an objective by its name: `OBJECTIVES["edit-distance"]()`. Only cross-entropy has a derivative, so
only it trains with BPTT, and only it adds up over tokens, so that memory does not grow with time."""


def objective_of(name: str) -> TokenObjective | RowObjective:
    """The objective of a name: one of `OBJECTIVES`, or `path/to/file.py:function` of (outputs, targets) ->
    [rows].

    Raises:
        ConfigError: an unknown name.

    >>> type(objective_of("cross-entropy")).__name__
    'TokenCrossEntropy'
    """
    return load_object(name, "objective") if ":" in name else OBJECTIVES[name]()


def has_derivative(name: str) -> bool:
    """False for the objectives that are known to have none.

    >>> has_derivative("edit-distance")
    False
    """
    return name == "cross-entropy" or name not in OBJECTIVES
