"""The Differentiable Neural Computer, whole and simplified: the slow reference, its state, gradients."""

import dnc_reference as reference
import pytest
import torch
from dnc_cells import HIDDEN, INPUT, KINDS, ROWS, every_kind, random_cell, random_input
from torch import Tensor, nn
from torch.testing import assert_close

from zorn.errors import ConfigError
from zorn.models import DNCCell, DNCState, map_state, run
from zorn.models.dynamic_memory import DynamicMemoryState


def tensors(state: DNCState) -> list[Tensor]:
    return [*state.controller, *state.external, state.reads]


def later_state(cell: DNCCell, rows: int = ROWS) -> DNCState:
    """One that has been written, linked and read: after a few steps."""
    with torch.no_grad():
        x = 2 * torch.randn(5, rows, INPUT, generator=torch.Generator().manual_seed(8))
        return run(cell, x.to(cell.output.weight.dtype), cell.initial_state(rows))[1]


# --------------------------------------------------------------------------------- the reference


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("seed", [1, 2])
def test_the_cell_is_the_slow_reference(kind: str, seed: int) -> None:
    """Outputs and every part of the state, step by step, in float64."""
    cell, x = random_cell(kind, seed), random_input()
    weights = {name: parameter.tolist() for name, parameter in cell.named_parameters()}
    step = reference.simple_step if KINDS[kind].simple_memory else reference.step
    state = cell.initial_state(ROWS)
    twins = [
        reference.row_state(map_state(lambda part, row=row: part[row : row + 1], state))
        for row in range(ROWS)
    ]
    for x_t in x:
        y, state = cell(x_t, state)
        found = {
            "hidden": state.controller.hidden,
            "cell": state.controller.cell,
            "reads": state.reads,
            **state.external._asdict(),
        }
        for row in range(ROWS):
            y_row, twins[row] = step(weights, x_t[row].tolist(), twins[row])
            assert_close(y[row], torch.tensor(y_row, dtype=torch.float64), rtol=1e-9, atol=1e-11)
            assert found.keys() == twins[row].keys()
            for name, part in twins[row].items():
                assert_close(found[name][row], torch.tensor(part, dtype=torch.float64), rtol=1e-9, atol=1e-11)


def test_the_states_of_these_tests_use_all_of_the_memory() -> None:
    """Else the comparison with the reference would say little."""
    external = later_state(random_cell("whole, heads")).external
    assert isinstance(external, DynamicMemoryState)
    for part in external:
        assert ((part != 0).flatten(1).sum(1) > 1).all()
    assert (external.usage > 0.3).any()
    assert (external.link > 0.05).any()


# --------------------------------------------------------------------------------- what the memory keeps


def tell(cell: DNCCell, start: int, stop: int, value: float) -> None:
    """Fix numbers start … stop of the interface to `value`, whatever the controller says."""
    with torch.no_grad():
        cell.memory.interface.weight[start:stop] = 0
        cell.memory.interface.bias[start:stop] = value


def gates(kind: str) -> dict[str, tuple[int, int]]:
    """Where the gates lie in the interface."""
    width, heads = KINDS[kind].memory_width, KINDS[kind].read_heads
    if KINDS[kind].simple_memory:
        start = (heads + 2) * width
        return {"erase": (start, start + width), "write": (start + width, start + width + 1)}
    start = (heads + 2) * width
    free = start + width
    allocation = free + heads
    return {
        "erase": (start, free),
        "free": (free, allocation),
        "allocation": (allocation, allocation + 1),
        "write": (allocation + 1, allocation + 2),
    }


CLOSED, OPEN = -1e4, 1e4  # sigmoid exactly 0 and exactly 1


@torch.no_grad()
@every_kind
def test_a_closed_write_gate_keeps_every_bit_of_the_memory(kind: str) -> None:
    cell = random_cell(kind, dtype=torch.float32)
    before = later_state(cell).external
    assert before.memory.abs().sum() > 0
    tell(cell, *gates(kind)["write"], CLOSED)
    _, after = run(cell, random_input(dtype=torch.float32), later_state(cell)._replace(external=before))
    assert torch.equal(after.external.memory, before.memory)
    if isinstance(before, DynamicMemoryState):
        assert torch.equal(after.external.link, before.link)
        assert torch.equal(after.external.precedence, before.precedence)


@torch.no_grad()
@every_kind
def test_without_erasure_a_write_only_adds(kind: str) -> None:
    """M' − M = w vᵀ then: of rank one."""
    cell = random_cell(kind)
    tell(cell, *gates(kind)["erase"], CLOSED)
    state = later_state(cell)
    _, after = cell(random_input()[0], state)
    change = after.external.memory - state.external.memory
    assert change.abs().amax((1, 2)).min() > 1e-6
    assert torch.linalg.matrix_rank(change, rtol=1e-9).max() == 1


@torch.no_grad()
def test_open_gates_fill_the_memory_slot_by_slot_and_overwrite_whole() -> None:
    """Allocation alone, full writes, nothing freed: step t takes slot t, until all are used."""
    kind, sizes = "whole", KINDS["whole"]
    cell = random_cell(kind)
    for name, value in {"allocation": OPEN, "write": OPEN, "erase": OPEN, "free": CLOSED}.items():
        tell(cell, *gates(kind)[name], value)
    state, x = cell.initial_state(ROWS), random_input()
    for t in range(sizes.memory_slots):
        before = state
        _, state = cell(x[t], state)
        external = state.external
        assert torch.equal(external.write_weights, torch.eye(sizes.memory_slots).double()[t].expand(ROWS, -1))
        untouched = torch.arange(sizes.memory_slots) != t
        assert torch.equal(external.memory[:, untouched], before.external.memory[:, untouched])
        assert torch.equal(external.precedence, external.write_weights)
        if t > 0:
            assert (external.link[:, t, t - 1] == 1).all()
    _, last = cell(x[sizes.memory_slots], state)
    assert (last.external.usage == 1).all()
    assert torch.equal(last.external.memory, state.external.memory)  # nowhere is free


@torch.no_grad()
@pytest.mark.parametrize("free", [CLOSED, OPEN])
def test_free_gates_free_what_was_read(free: float) -> None:
    kind = "whole, heads"
    cell = random_cell(kind)
    tell(cell, *gates(kind)["free"], free)
    state = later_state(cell)
    _, after = cell(random_input()[0], state)
    old = state.external
    unfreed = old.usage + old.write_weights - old.usage * old.write_weights
    kept = (1 - old.read_weights).prod(1) if free == OPEN else torch.ones_like(unfreed)
    assert_close(after.external.usage, unfreed * kept)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["whole", "whole, heads"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_over_slots_stay_weights(kind: str, dtype: torch.dtype) -> None:
    cell, rounding = random_cell(kind, dtype=dtype), 1e-5
    state = cell.initial_state(32)
    x = 3 * torch.randn(30, 32, INPUT, generator=torch.Generator().manual_seed(1)).to(dtype)
    for x_t in x:
        _, state = cell(x_t, state)
        _, usage, precedence, link, written, read = state.external
        assert ((usage >= 0) & (usage <= 1)).all()
        assert (link.diagonal(dim1=1, dim2=2) == 0).all()
        for part in (precedence, written, read, link, link.mT):
            assert (part >= -rounding).all()
            assert (part.sum(-1) <= 1 + rounding).all()


@torch.no_grad()
def test_slots_of_a_simple_memory_come_apart() -> None:
    """Started from equal slots, as in the paper's public code, they would stay equal for ever."""
    cell, x = random_cell("simple"), random_input()
    _, after = run(cell, x, cell.initial_state(ROWS))
    assert (after.external.memory - after.external.memory[:, :1]).abs().amax((1, 2)).min() > 0.1
    equal = cell.initial_state(ROWS)
    equal = equal._replace(external=type(equal.external)(torch.zeros_like(equal.external.memory)))
    _, after = run(cell, x, equal)
    assert_close(after.external.memory, after.external.memory[:, :1].expand_as(after.external.memory))


# --------------------------------------------------------------------------------- state and rows


@torch.no_grad()
@every_kind
def test_rows_are_independent(kind: str) -> None:
    cell, x = random_cell(kind), random_input()
    order = torch.tensor([2, 0, 1])
    y, last = run(cell, x, later_state(cell))
    shuffled, state = run(cell, x[:, order], map_state(lambda part: part[order], later_state(cell)))
    assert_close(shuffled, y[:, order], rtol=1e-12, atol=1e-13)
    for mine, theirs in zip(tensors(state), tensors(last), strict=True):
        assert_close(mine, theirs[order], rtol=1e-12, atol=1e-13)


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_of_time_carry_the_state_exactly(kind: str, dtype: torch.dtype, chunk: int) -> None:
    cell, x = random_cell(kind, dtype=dtype), random_input(dtype=dtype)
    whole, last = run(cell, x, cell.initial_state(ROWS))
    state, outputs = cell.initial_state(ROWS), []
    for part in x.split(chunk):
        y, state = run(cell, part, state)
        outputs.append(y)
    assert torch.equal(torch.cat(outputs), whole)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(tensors(state), tensors(last), strict=True))


@every_kind
def test_the_input_and_the_state_that_comes_in_are_left_as_they_were(kind: str) -> None:
    cell, x = random_cell(kind), random_input()
    for state in (cell.initial_state(ROWS), later_state(cell)):
        before, seen = map_state(torch.clone, state), x.clone()
        with torch.inference_mode():
            run(cell, x, state)
        assert torch.equal(x, seen)
        assert all(torch.equal(now, then) for now, then in zip(tensors(state), tensors(before), strict=True))


@torch.no_grad()
@every_kind
def test_bfloat16_weights_keep_the_memory_in_float32(kind: str) -> None:
    cell, x = random_cell(kind, dtype=torch.bfloat16), random_input(dtype=torch.bfloat16)
    y, state = run(cell, x, cell.initial_state(ROWS))
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()
    assert state.controller.hidden.dtype == torch.bfloat16
    for part in (state.controller.cell, *state.external, state.reads):
        assert part.dtype == torch.float32
        assert part.isfinite().all()


# --------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", ["whole, heads", "simple, heads"])
def test_gradients_through_time_are_right(kind: str) -> None:
    cell = random_cell(kind)
    state = later_state(cell, rows=2)
    names = [name for name, _ in cell.named_parameters()]

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor) -> Tensor:
            y, last = run(self.cell, x, state)
            return torch.cat([y.flatten(), *(part.flatten() for part in tensors(last))])

    unrolled = Unrolled()

    def function(x: Tensor, *values: Tensor) -> Tensor:
        parameters = {f"cell.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(unrolled, parameters, (x,))

    inputs = [random_input(rows=2, time=3), *(parameter.detach() for parameter in cell.parameters())]
    inputs = [part.clone().requires_grad_() for part in inputs]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_from_the_first_state_are_finite_and_reach_every_parameter(
    kind: str, dtype: torch.dtype
) -> None:
    cell = DNCCell(INPUT, HIDDEN, **vars(KINDS[kind]), generator=torch.Generator().manual_seed(0)).to(dtype)
    y, last = run(cell, random_input(time=12, dtype=dtype), cell.initial_state(ROWS))
    (y.square().sum() + last.external.memory.square().sum()).backward()
    for name, parameter in cell.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or KINDS[kind].memory_width == 1, name


# --------------------------------------------------------------------------------- building


@every_kind
def test_first_values_depend_on_the_generator_alone(kind: str) -> None:
    before = torch.get_rng_state()
    cells = [
        DNCCell(INPUT, HIDDEN, **vars(KINDS[kind]), generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = (list(cell.named_parameters()) for cell in cells)
    for (name, one), (_, same), (_, different) in zip(first, again, other, strict=True):
        assert torch.equal(one, same)
        assert "norm" in name or not torch.equal(one, different)


def test_heads_divide_the_controller() -> None:
    cell = DNCCell(INPUT, HIDDEN, 3, **vars(KINDS["whole"]))
    assert cell.controller.map.weight_state.shape == (3, 4 * HIDDEN // 3, HIDDEN // 3)


def test_sizes_are_checked() -> None:
    with pytest.raises(ConfigError, match="hidden_size 6 is not a multiple of num_heads 4"):
        DNCCell(INPUT, HIDDEN, 4)
    with pytest.raises(ConfigError, match="input_size must be a whole number of at least 1, got 0"):
        DNCCell(0, HIDDEN)
    with pytest.raises(ConfigError, match="hidden_size must be a whole number of at least 1, got -4"):
        DNCCell(INPUT, -4)
