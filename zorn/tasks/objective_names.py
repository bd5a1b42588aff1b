"""The objectives that have a name on the command line."""

from collections.abc import Callable

from zorn.models import RowObjective, TokenObjective
from zorn.tasks.objectives import TokenCrossEntropy, sequence_error, token_error_rate
from zorn.tasks.row_score import RowScore
from zorn.tasks.scores import edit_distance

OBJECTIVES: dict[str, Callable[[], TokenObjective | RowObjective]] = {
    "cross-entropy": TokenCrossEntropy,
    "token-error": lambda: token_error_rate,
    "sequence-error": lambda: sequence_error,
    "edit-distance": lambda: RowScore(edit_distance),
}
"""Makes an objective by its name: `OBJECTIVES["edit-distance"]()`. Only cross-entropy has a derivative, so
only it trains with BPTT, and only it adds up over tokens, so that memory does not grow with time."""
