"""EProp against autograd with the recurrent matrices' reading cut by hand, and its contract."""

import pytest
import torch
from small_language import assert_close, assert_same, gradients, language_batch, language_model, weights
from torch import nn

from zorn.errors import ConfigError
from zorn.estimators import BPTT, TBPTT, EProp
from zorn.models import Batch
from zorn.tasks import TokenCrossEntropy

OBJECTIVE = TokenCrossEntropy()


def estimated(estimator, model, batch=None):
    estimate = estimator.estimate(model, batch or language_batch(), OBJECTIVE)
    return gradients(model), estimate


def by_hand(model, gates_of) -> dict[str, torch.Tensor]:
    """Step by step, the state that the recurrent matrix reads detached."""
    batch = language_batch()
    rows, time = batch.inputs.shape
    state, total = model.cells[0].initial_state(rows), torch.zeros((), dtype=torch.float64)
    for t in range(time):
        state = gates_of(model.cells[0], model.embedding(batch.inputs[:, t]), state)
        logits = model.head(state.hidden).unsqueeze(1)
        total = total + OBJECTIVE.token_losses(logits, batch.targets[:, t : t + 1]).sum()
    loss = total / (batch.targets != -100).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def lstm_step(cell, x, state):
    map_ = cell.map
    gates = x @ map_.weight_input.mT + state.hidden.detach() @ map_.weight_state[0].mT + map_.bias
    i, f, o, u = gates.chunk(4, 1)
    memory = f.sigmoid() * state.cell + i.sigmoid() * u.tanh()
    return type(state)(o.sigmoid() * memory.tanh(), memory)


def gru_step(cell, x, state):
    x_r, x_z, x_n = cell.input_map(x).chunk(3, 1)
    h_r, h_z, h_n = cell.state_map(state.hidden.detach()).chunk(3, 1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    return type(state)((1 - z) * (x_n + r * h_n).tanh() + z * state.hidden)


@pytest.mark.parametrize(("cell", "step"), [("lstm", lstm_step), ("gru", gru_step)])
def test_it_leaves_out_the_recurrent_matrix_and_nothing_else(cell, step):
    model = language_model(cell=cell)
    found, estimate = estimated(EProp(), model)
    assert_close(found, by_hand(model, step), rtol=1e-9, atol=1e-12)
    exact, bptt = estimated(BPTT(), model)
    assert estimate.loss == pytest.approx(bptt.loss)
    name = "cells.0.map.bias" if cell == "lstm" else "cells.0.input_map.bias"
    assert not torch.allclose(found[name], exact[name], rtol=1e-3)


def test_a_min_gru_has_no_recurrent_matrix_to_leave_out():
    model = language_model(cell="min-gru", num_layers=2)
    found, _ = estimated(EProp(), model)
    exact, _ = estimated(BPTT(), model)
    assert_close(found, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru", "dnc"])
def test_with_one_step_there_is_only_what_tbptt_has(cell):
    model = language_model(cell=cell)
    found, _ = estimated(EProp(truncation=1), model)
    exact, _ = estimated(TBPTT(truncation=1), model)
    assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_the_model_is_left_as_it_was():
    model = language_model(cell="dnc")
    before = weights(model)
    estimated(EProp(truncation=2), model)
    assert_same(weights(model), before)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_state_is_carried_over_a_stream():
    model, batch = language_model(), language_batch()
    halves = [Batch(*(part[:, i : i + 2].contiguous() for part in batch)) for i in (0, 2)]
    estimator, twin = EProp(carry=True), TBPTT(truncation=2, carry=True)
    for half in halves:
        assert estimated(estimator, model, half)[1].loss == estimated(twin, model, half)[1].loss


def test_a_model_without_known_cells_is_refused():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 7)

        def initial_state(self, rows):
            return torch.zeros(rows, 1)

        def forward(self, x, state):
            return self.layer(x), state

    batch = Batch(torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(
        ConfigError, match=r"say which of their modules read the state, .*, got Own, which has none"
    ):
        EProp().estimate(Own(), batch, OBJECTIVE)


def test_truncation_must_be_a_whole_number():
    with pytest.raises(ConfigError, match="truncation"):
        EProp(truncation=0)
