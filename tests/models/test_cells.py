"""Every cell: step against sequence, chunks against the whole, torch's own layers, and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from zorn.errors import ConfigError, ZornError
from zorn.models import CELLS, GRUCell, GRUState, LSTMCell, LSTMState, State, map_state, run

TIME, ROWS, INPUT, HIDDEN = 19, 5, 3, 8  # time: more than two portions of the drive
FURTHER: dict[Any, dict] = {CELLS["dnc"]: {"memory_slots": 5, "memory_width": 4, "read_heads": 2}}
Cell = Any  # a RecurrentCell that is a Module

every_cell = pytest.mark.parametrize("cell_class", [CELLS[name] for name in CELLS], ids=list(CELLS))
every_cell_and_head = pytest.mark.parametrize(
    ("cell_class", "heads"),
    [
        pytest.param(cell_class, heads, id=f"{name}-{heads}")
        for name, cell_class in CELLS.items()
        for heads in ([1] if name == "min-gru" else [1, 4])
    ],
)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def random_cell(cell_class: type[Cell], heads: int = 1, dtype: torch.dtype = torch.float32) -> Cell:
    """Weights large enough for the recurrence to matter."""
    generator, further = torch.Generator().manual_seed(7), FURTHER.get(cell_class, {})
    cell = cell_class(INPUT, HIDDEN, heads, generator=generator, **further)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(2)
    return cell.to(dtype)


@torch.no_grad()
def some_state(cell: Cell) -> State:
    """One that the cell can be in: after a few steps."""
    x = torch.randn(4, ROWS, INPUT, generator=torch.Generator().manual_seed(8))
    dtype = next(cell.parameters()).dtype
    return run(cell, x.to(dtype), cell.initial_state(ROWS))[1]


def flat(state: State) -> list[Tensor]:
    """The tensors of a nested state."""
    parts: list[Tensor] = []
    map_state(lambda tensor: (parts.append(tensor), tensor)[1], state)
    return parts


def random_input(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(TIME, ROWS, INPUT, generator=torch.Generator().manual_seed(9)).to(dtype)


def assert_states_close(actual: State, expected: State) -> None:
    assert type(actual) is type(expected)
    for mine, theirs in zip(flat(actual), flat(expected), strict=True):
        assert_close(mine, theirs)


@every_cell_and_head
@every_dtype
def test_sequence_equals_steps(cell_class: type[Cell], heads: int, dtype: torch.dtype) -> None:
    cell, x = random_cell(cell_class, heads, dtype), random_input(dtype)
    state = some_state(cell)
    y, last = run(cell, x, state)
    assert y.shape == (TIME, ROWS, HIDDEN)
    assert y.dtype == dtype
    for t in range(TIME):
        y_t, state = cell(x[t], state)
        assert_close(y[t], y_t)
    assert_states_close(last, state)


@every_cell_and_head
@every_dtype
@pytest.mark.parametrize("chunk", [1, 5, 8])
def test_chunks_equal_the_whole(cell_class: type[Cell], heads: int, dtype: torch.dtype, chunk: int) -> None:
    cell, x = random_cell(cell_class, heads, dtype), random_input(dtype)
    whole, last = run(cell, x, some_state(cell))
    state, outputs = some_state(cell), []
    for part in x.split(chunk):
        y, state = run(cell, part, state)
        outputs.append(y)
    assert_close(torch.cat(outputs), whole)
    assert_states_close(state, last)


@every_cell_and_head
def test_the_state_that_comes_in_is_left_as_it_was(cell_class: type[Cell], heads: int) -> None:
    cell = random_cell(cell_class, heads)
    state = some_state(cell)
    before = map_state(torch.clone, state)
    with torch.inference_mode():
        run(cell, random_input(), state)
    assert all(torch.equal(now, then) for now, then in zip(flat(state), flat(before), strict=True))


def test_one_head_equals_torch_lstm() -> None:
    cell, reference = random_cell(LSTMCell), nn.LSTM(INPUT, HIDDEN)
    order = [0, 1, 3, 2]  # ours: input, forget, output, candidate; torch's: input, forget, candidate, output

    def permuted(parameter: Tensor) -> Tensor:
        return parameter.detach().unflatten(0, (4, HIDDEN))[order].flatten(0, 1)

    reference.load_state_dict(
        {
            "weight_ih_l0": permuted(cell.map.weight_input),
            "weight_hh_l0": permuted(cell.map.weight_state[0]),
            "bias_ih_l0": permuted(cell.map.bias),
            "bias_hh_l0": torch.zeros(4 * HIDDEN),
        }
    )
    state, x = some_state(cell), random_input()
    y, last = run(cell, x, state)
    expected, (hidden, memory) = reference(x, (state[0].unsqueeze(0), state[1].unsqueeze(0)))
    assert_close(y, expected)
    assert_states_close(last, LSTMState(hidden[0], memory[0]))


def test_one_head_equals_torch_gru() -> None:
    cell, reference = random_cell(GRUCell), nn.GRU(INPUT, HIDDEN)
    reference.load_state_dict(
        {
            "weight_ih_l0": cell.input_map.weight,
            "weight_hh_l0": cell.state_map.weight[0],
            "bias_ih_l0": cell.input_map.bias,
            "bias_hh_l0": cell.state_map.bias,
        }
    )
    state, x = some_state(cell), random_input()
    y, last = run(cell, x, state)
    expected, hidden = reference(x, state[0].unsqueeze(0))
    assert_close(y, expected)
    assert_states_close(last, GRUState(hidden[0]))


@pytest.mark.parametrize(("cell_class", "gates"), [(LSTMCell, 4), (GRUCell, 3)])
def test_heads_equal_a_dense_cell_with_zeros_off_the_diagonal(cell_class: type[Cell], gates: int) -> None:
    heads, size = 4, HIDDEN // 4
    cell, dense = random_cell(cell_class, heads), random_cell(cell_class)

    def gate_major(parameter: Tensor) -> Tensor:
        return parameter.unflatten(0, (heads, gates, size)).transpose(0, 1).flatten(0, 2)

    weights = {}
    for name, value in cell.state_dict().items():
        if value.ndim == 3:  # the state's weight, [heads, gates · size, size]
            value = torch.block_diag(*value)
        weights[name] = gate_major(value)
        if dense.state_dict()[name].ndim == 3:
            weights[name] = weights[name].unsqueeze(0)
    dense.load_state_dict(weights)
    y, last = run(cell, random_input(), some_state(cell))
    expected, state = run(dense, random_input(), some_state(dense))
    assert_close(y, expected)
    assert_states_close(last, state)


@every_cell_and_head
def test_gradients_through_time_are_right(cell_class: type[Cell], heads: int) -> None:
    cell = random_cell(cell_class, heads, torch.float64)
    names = [name for name, _ in cell.named_parameters()]
    x, state = random_input(torch.float64)[:3, :2], map_state(lambda t: t[:2], some_state(cell))
    leaves = flat(state)

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor, *given: Tensor) -> Tensor:
            parts = iter(given)
            y, last = run(self.cell, x, map_state(lambda _: next(parts), state))
            return torch.cat([y.flatten(), *(part.flatten() for part in flat(last))])

    unrolled = Unrolled()

    def function(x: Tensor, *rest: Tensor) -> Tensor:
        parameters = {f"cell.{name}": value for name, value in zip(names, rest[len(leaves) :], strict=True)}
        return torch.func.functional_call(unrolled, parameters, (x, *rest[: len(leaves)]))

    inputs = [x, *leaves, *(parameter.detach() for parameter in cell.parameters())]
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@every_cell
def test_state_of_bfloat16_weights_accumulates_in_float32(cell_class: type[Cell]) -> None:
    cell = random_cell(cell_class, dtype=torch.bfloat16)
    _, state = run(cell, random_input(torch.bfloat16), cell.initial_state(ROWS))
    assert flat(state)[-1].dtype == torch.float32
    exact = random_cell(cell_class)
    exact.load_state_dict(cell.state_dict())  # the same rounded weights, float32 arithmetic
    y, last = run(exact, random_input(torch.bfloat16).float(), exact.initial_state(ROWS))
    mine, wanted = flat(state)[-1], flat(last)[-1]
    assert (mine - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert y.dtype == torch.float32


def test_lstm_keeps_increments_that_bfloat16_would_lose() -> None:
    cell = LSTMCell(1, 1)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        # Forget nothing, let in 2**-10 a step.
        cell.map.bias.copy_(torch.tensor([20.0, 20.0, 0.0, 2.0**-10]))
    cell.to(torch.bfloat16)
    _, state = run(
        cell,
        torch.zeros(64, 1, 1, dtype=torch.bfloat16),
        LSTMState(torch.zeros(1, 1).bfloat16(), torch.ones(1, 1)),
    )
    assert_close(state.cell, torch.tensor([[1 + 64 * 2.0**-10]]))


@pytest.mark.parametrize("heads", [1, 2])
def test_first_forget_bias_is_one_higher(heads: int) -> None:
    bias = LSTMCell(INPUT, HIDDEN, heads).map.bias.detach().view(heads, 4, -1)
    bound = HIDDEN**-0.5
    assert (bias[:, 1] >= 1 - bound).all()
    assert (bias[:, [0, 2, 3]] <= bound).all()


@every_cell
def test_building_a_cell_with_a_generator_leaves_the_global_one_alone(cell_class: type[Cell]) -> None:
    before = torch.get_rng_state()
    cell_class(INPUT, HIDDEN, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


@every_cell
def test_sizes_are_checked(cell_class: type[Cell]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"hidden_size 8 is not a multiple of num_heads 3|num_heads must be 1 in a minGRU, got 3",
    ):
        cell_class(INPUT, 8, 3)
    with pytest.raises(ConfigError, match="input_size must be a whole number of at least 1, got 0"):
        cell_class(0, 8)
    with pytest.raises(ConfigError, match="hidden_size must be a whole number of at least 1, got -8"):
        cell_class(INPUT, -8)


@every_cell
def test_a_chunk_without_a_step_is_refused(cell_class: type[Cell]) -> None:
    cell = random_cell(cell_class)
    with pytest.raises(ZornError, match="no time step"):
        run(cell, torch.zeros(0, ROWS, INPUT), cell.initial_state(ROWS))


def test_the_cell_slices_whatever_drive_its_map_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, x = random_cell(LSTMCell), random_input()
    plain, _ = run(cell, x, cell.initial_state(ROWS))
    drive, forward = cell.map.drive, cell.map.forward
    monkeypatch.setattr(cell.map, "drive", lambda x: (*drive(x), x.sum(-1, keepdim=True)), raising=False)
    monkeypatch.setattr(cell.map, "forward", lambda d, h: forward(d[:1], h) + 0 * d[1], raising=False)
    y, _ = run(cell, x, cell.initial_state(ROWS))
    assert_close(y, plain)
    monkeypatch.setattr(cell.map, "forward", lambda d, h: forward(d[:1], h) + d[1], raising=False)
    y, _ = run(cell, x, cell.initial_state(ROWS))
    assert (y - plain).abs().max() > 0.01


def test_map_state_keeps_nesting_and_names() -> None:
    state = (LSTMState(torch.ones(4, 2), torch.zeros(4, 2)), (torch.ones(4), ()))
    picked = map_state(lambda tensor: tensor[1:3], state)
    assert isinstance(picked[0], LSTMState)
    assert picked[0].hidden.shape == (2, 2)
    assert picked[1][0].shape == (2,)
    assert picked[1][1] == ()
