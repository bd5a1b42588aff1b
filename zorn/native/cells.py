"""The LSTM and the GRU on their compiled steps; importing this file registers them."""

import torch
from torch import Tensor

from zorn.models.fast_paths import register_fast_path
from zorn.models.gru import GRUCell, GRUState
from zorn.models.lstm import LSTMCell, LSTMState
from zorn.models.maps import Drive
from zorn.native.loading import usable
from zorn.native.rollout import lstm_rollout
from zorn.native.steps import gru_step, lstm_step
from zorn.native.sums import sum_forward


def _lstm_step(cell: LSTMCell, drive_t: Drive, state: LSTMState) -> tuple[Tensor, LSTMState] | None:
    if state.cell.dtype != torch.float32 or not usable(drive_t[0], state.hidden):
        return None
    summed = sum_forward(cell.map)
    if summed is None:
        return None
    hidden, memory = lstm_step(drive_t[0], summed.summands(drive_t, state.hidden), *state)
    return hidden, LSTMState(hidden, memory)


def _lstm_rollout(cell: LSTMCell, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState] | None:
    """On packed weights: see `lstm_rollout`. Not where a method or hook has been put on the cell or its map,
    or where the processor or the sizes do not suit."""
    map = cell.map
    if {"drive", "step"} & cell.__dict__.keys():
        return None
    if "drive" in map.__dict__ and "forward" not in map.__dict__:
        return None
    weights = map.weight_input, map.weight_state, map.bias
    if not usable(x, state.hidden, *weights):
        return None
    summed = sum_forward(map)
    done = summed and lstm_rollout(x, *state, weights, summed.lanes(x, state.hidden))
    if not done:
        return None
    y, memory = done
    return y, LSTMState(y[-1].clone(), memory)


def _gru_step(cell: GRUCell, drive_t: Drive, state: GRUState) -> tuple[Tensor, GRUState] | None:
    (drive,) = drive_t
    if state.hidden.dtype != torch.float32 or not usable(drive):
        return None
    summed = sum_forward(cell.state_map)
    if summed is None:
        return None
    read = state.hidden.to(drive.dtype)
    y, hidden = gru_step(drive, summed.summands(read), read, state.hidden)
    return y, GRUState(hidden)


register_fast_path(LSTMCell, "cpu", step=_lstm_step, rollout=_lstm_rollout)
register_fast_path(GRUCell, "cpu", step=_gru_step)
