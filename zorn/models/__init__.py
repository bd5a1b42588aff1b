"""Recurrent models with explicit state, and the rollout of any model over a batch."""

from zorn.models.cell import Cell, ParallelCell, RecurrentCell, run
from zorn.models.cell_registry import CELLS, cell_settings, find_cell
from zorn.models.dnc import DNCCell, DNCState
from zorn.models.dnc_memory import DNCSettings
from zorn.models.generate import sample
from zorn.models.gru import GRUCell, GRUState
from zorn.models.language_model import LanguageModel, parameter_count
from zorn.models.lstm import LSTMCell, LSTMState
from zorn.models.maps import BlockLinear, Drive, RecurrentMap
from zorn.models.min_gru import MinGRUCell, MinGRUState
from zorn.models.rollout import (
    Batch,
    RecurrentModel,
    RowObjective,
    TokenObjective,
    evaluation_mode,
    mean_tokens,
    row_losses,
)
from zorn.models.scan import linear_scan
from zorn.models.sliced_head import linear_slice, streamed
from zorn.models.state import State, map_state

__all__ = [
    "CELLS",
    "Batch",
    "BlockLinear",
    "Cell",
    "DNCCell",
    "DNCSettings",
    "DNCState",
    "Drive",
    "GRUCell",
    "GRUState",
    "LSTMCell",
    "LSTMState",
    "LanguageModel",
    "MinGRUCell",
    "MinGRUState",
    "ParallelCell",
    "RecurrentCell",
    "RecurrentMap",
    "RecurrentModel",
    "RowObjective",
    "State",
    "TokenObjective",
    "cell_settings",
    "evaluation_mode",
    "find_cell",
    "linear_scan",
    "linear_slice",
    "map_state",
    "mean_tokens",
    "parameter_count",
    "row_losses",
    "run",
    "sample",
    "streamed",
]
