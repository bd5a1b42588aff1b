"""Recurrent models with explicit state, and the rollout of any model over a batch."""

from zorn.models.cell import RecurrentCell, run
from zorn.models.generate import sample
from zorn.models.gru import GRUCell, GRUState
from zorn.models.language_model import CELLS, LanguageModel, parameter_count
from zorn.models.lstm import LSTMCell, LSTMState
from zorn.models.maps import BlockLinear, Drive, RecurrentMap
from zorn.models.rollout import (
    Batch,
    RecurrentModel,
    RowObjective,
    TokenObjective,
    evaluation_mode,
    mean_tokens,
    row_losses,
)
from zorn.models.state import State, map_state

__all__ = [
    "CELLS",
    "Batch",
    "BlockLinear",
    "Drive",
    "GRUCell",
    "GRUState",
    "LSTMCell",
    "LSTMState",
    "LanguageModel",
    "RecurrentCell",
    "RecurrentMap",
    "RecurrentModel",
    "RowObjective",
    "State",
    "TokenObjective",
    "evaluation_mode",
    "map_state",
    "mean_tokens",
    "parameter_count",
    "row_losses",
    "run",
    "sample",
]
