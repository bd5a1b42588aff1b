"""Members side by side through a Differentiable Neural Computer: each parameter is reached, and each member
is the plain cell with its weights moved."""

import pytest
import torch
from dnc_cells import HIDDEN, INPUT, KINDS, ROWS, every_kind, random_cell, random_input
from torch import Tensor, nn
from torch.testing import assert_close

from zorn.models import DNCCell, run
from zorn.noise import Draw, RankOne

DRAW = Draw(seed=3, step=5, epsilon=0.1)
MEMBERS, SIGNS, GROUP = range(2, 5), (1, -1), 2


class Runner(nn.Module):
    """A cell over a batch-first sequence, as a plain module."""

    def __init__(self, cell: DNCCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        y, _ = run(self.cell, x.transpose(0, 1), self.cell.initial_state(len(x)))
        return y.transpose(0, 1)


def member_rows() -> Tensor:
    return random_input(rows=len(SIGNS) * len(MEMBERS) * GROUP, time=4).transpose(0, 1)


def moved_outputs(model: Runner, x: Tensor, structure: RankOne) -> Tensor:
    """Each member's rows through the plain model, its weights explicitly moved."""
    bound, outputs = structure.bind(model), []
    lanes = iter(x.split(GROUP))
    for sign in SIGNS:
        for member in MEMBERS:
            weights = torch.zeros(MEMBERS.stop, dtype=torch.float64)
            weights[member] = 1
            moved = {name: parameter.clone() for name, parameter in model.named_parameters()}
            for block in bound.fold(DRAW, weights):
                flat = moved[block.target.name].view(-1)
                flat[block.start : block.start + len(block.values)] += sign * DRAW.epsilon * block.values
            outputs.append(torch.func.functional_call(model, moved, (next(lanes),)))
    return torch.cat(outputs)


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("structure", [RankOne(), RankOne(noise="gaussian")], ids=["signs", "gaussian"])
def test_members_side_by_side_equal_each_member_alone(kind: str, structure: RankOne) -> None:
    model, x = Runner(random_cell(kind)), member_rows()
    with structure.bind(model).members(DRAW, MEMBERS, SIGNS, GROUP):
        found = model(x)
    assert not torch.allclose(found, model(x))
    assert_close(found, moved_outputs(model, x, structure), rtol=1e-8, atol=1e-10)


PARAMETERS = [
    (kind, name)
    for kind in ("whole, heads", "simple, heads")
    for name, _ in DNCCell(INPUT, HIDDEN, **vars(KINDS[kind])).named_parameters()
]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "name"), PARAMETERS)
def test_the_perturbation_of_each_parameter_alone_changes_the_output(kind: str, name: str) -> None:
    model, x = Runner(random_cell(kind)), member_rows()
    for other, parameter in model.named_parameters():
        parameter.requires_grad_(other == f"cell.{name}")
    plain = model(x)
    bound = RankOne().bind(model)
    assert [target.name for target in bound.targets] == [f"cell.{name}"]
    with bound.members(DRAW, MEMBERS, SIGNS, GROUP):
        found = model(x)
    assert ((found - plain).abs().amax((1, 2)) > 1e-9).all()  # every row, of every member and sign
    assert_close(found, moved_outputs(model, x, RankOne()), rtol=1e-8, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("part", range(10))
def test_a_member_reaches_every_part_of_the_interface(part: int) -> None:
    """Read keys, write key, vector, erase, free, allocation, write, read strengths, write strength, modes."""
    sizes = KINDS["whole, heads"]
    width, heads = sizes.memory_width, sizes.read_heads
    lengths = [heads * width, width, width, width, heads, 1, 1, heads, 1, 3 * heads]
    start = sum(lengths[:part])
    cell, x = random_cell("whole, heads"), random_input()
    plain, _ = run(cell, x, cell.initial_state(ROWS))
    assert start + lengths[part] <= len(cell.memory.interface.bias)
    cell.memory.interface.bias[start] += 0.1
    moved, _ = run(cell, x, cell.initial_state(ROWS))
    assert ((moved - plain).abs().amax((0, 2)) > 1e-9).all()
