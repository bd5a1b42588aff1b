"""Fused recurrent steps: kernels against twins over trajectories, twins against perturbed cells."""

import pytest
import torch
from pairs import each_once

import zorn
from zorn.kernels import RankOneNoise, gru_step, lstm_step, min_gru_steps
from zorn.models import GRUCell, LSTMCell, MinGRUCell
from zorn.noise import Draw
from zorn.random import sign_words

SHAPES = [  # heads, d, group, members, signs, scores, noise on the recurrent weight
    (1, 33, 3, 2, 2, "shared", True),
    (3, 20, 1, 5, 1, None, True),
    (2, 9, 9, 2, 1, "own", False),
    (1, 1, 1, 1, 2, "own", True),
]
TIME = 2
STEPS = {
    torch.float32: 2e-6,
    torch.bfloat16: 2**-7,
}  # one rounding of values up to 2; float32 sums' round-off

each_shape = pytest.mark.parametrize(("shape", "dtype"), each_once(SHAPES, STEPS))


def noise_of(device, heads, units, gates, members, signs, columns=True):
    rows = sign_words(1, 2, range(members), 0, heads * gates * units, device=device)
    b = sign_words(1, 2, range(members), 1, heads * units, device=device) if columns else None
    return RankOneNoise(rows, b, torch.tensor([0.1, -0.1][:signs], device=device))


def scores_of(kind, rows, heads):
    return None if kind is None else torch.randn(rows, 1 if kind == "shared" else heads)


@each_shape
def test_lstm_kernel_over_a_trajectory(device, dtype, shape):
    heads, d, group, members, signs, scored, columns = shape
    torch.manual_seed(0)
    rows, size = group * members * signs, heads * d
    noise = noise_of(device, heads, d, 4, members, signs, columns)
    weight = (torch.randn(heads, 4 * d, d) / d**0.5).to(device, dtype)
    state = torch.randn(rows, size).to(device, dtype), torch.randn(rows, size).to(device)
    twin = state
    for _ in range(TIME):
        drive = torch.randn(rows, 4 * size).to(device, dtype)
        scores = scores_of(scored, rows, heads)
        scores = None if scores is None else scores.to(device)
        state = lstm_step.kernel(drive, *state, weight, noise, scores)
        twin = lstm_step.reference(drive, *twin, weight, noise, scores)
        for found, expected in zip(state, twin, strict=True):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=0, atol=2 * STEPS[dtype])


@each_shape
def test_gru_kernel_over_a_trajectory(device, dtype, shape):
    heads, d, group, members, signs, scored, columns = shape
    torch.manual_seed(0)
    rows, size = group * members * signs, heads * d
    noise = noise_of(device, heads, d, 3, members, signs, columns)
    weight = (torch.randn(heads, 3 * d, d) / d**0.5).to(device, dtype)
    bias = torch.randn(3 * size).to(device, dtype)
    hidden = twin = torch.randn(rows, size).to(device)
    for _ in range(TIME):
        drive = torch.randn(rows, 3 * size).to(device, dtype)
        scores = scores_of(scored, rows, heads)
        scores = None if scores is None else scores.to(device)
        y, hidden = gru_step.kernel(drive, hidden, weight, bias, noise, scores)
        expected, twin = gru_step.reference(drive, twin, weight, bias, noise, scores)
        assert (y.dtype, hidden.dtype) == (dtype, torch.float32)
        torch.testing.assert_close(hidden, twin, rtol=0, atol=2 * STEPS[dtype])
        torch.testing.assert_close(y, expected, rtol=0, atol=2 * STEPS[dtype])


@each_shape
def test_min_gru_kernel_over_a_chunk(device, dtype, shape):
    _, units, group, members, signs, _, _ = shape
    torch.manual_seed(0)
    rows = group * members * signs
    noise = noise_of(device, 1, units, 2, members, signs)
    gates = torch.randn(TIME, rows, 2 * units).to(device, dtype)
    hidden, scores = torch.rand(rows, units, device=device), torch.randn(TIME, rows, device=device)
    found = min_gru_steps.kernel(gates, hidden, noise, scores)
    for part, expected in zip(found, min_gru_steps.reference(gates, hidden, noise, scores), strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=STEPS[dtype])


def test_members_in_two_calls_are_those_of_one(device):
    torch.manual_seed(0)
    weight, whole = torch.randn(1, 80, 20, device=device), noise_of(device, 1, 20, 4, 5, 1)
    drive, hidden, cell = (torch.randn(15, n, device=device) for n in (80, 20, 20))

    def run(first, last):
        noise = RankOneNoise(whole.rows[first:last], whole.columns[first:last], whole.scales)
        rows = slice(3 * first, 3 * last)
        return lstm_step.kernel(drive[rows], hidden[rows], cell[rows], weight, noise)

    together, parts = run(0, 5), [run(0, 2), run(2, 5)]
    # A GPU sums every row of a tile in one order. The interpreter leaves products to numpy's BLAS, which may
    # sum a row in another order when it stands elsewhere in the tile.
    tolerance = 0.0 if device.type == "cuda" else STEPS[torch.float32]
    for index in range(2):
        expected = torch.cat([part[index] for part in parts])
        torch.testing.assert_close(together[index], expected, rtol=0, atol=tolerance)


# Twins against the cells of a model under the same members ------------------------------------------------


def under_members(cell, x, state, members, signs):
    """A step of the cell as `zorn.RankOne` perturbs it, and the tables of the noise of its targets."""
    draw, bound = Draw(seed=1, step=2, epsilon=0.1), zorn.RankOne().bind(cell)
    with torch.no_grad(), bound.members(draw, range(members), signs):
        y, new = cell(x, state)

    def table(name, factor, count):
        number = next(t.number for t in bound.targets if t.name == name)
        return sign_words(1, 2, range(members), number << 8 | factor, count)

    return y, new, table


def signs_from(table, count):
    bits = table[:, :, None] >> torch.arange(32, dtype=torch.int32) & 1
    return (1 - 2 * bits.flatten(1)[:, :count]).double()


@pytest.mark.parametrize("heads", [1, 2])
def test_lstm_twin_is_the_cell_under_rank_one(heads):
    torch.manual_seed(0)
    members, group, signs = 3, 2, (1, -1)
    cell, rows = LSTMCell(5, 8, heads).double(), 12
    x, h, c = (torch.randn(rows, n, dtype=torch.float64) for n in (5, 8, 8))
    _, expected, table = under_members(cell, x, zorn.models.LSTMState(h, c), members, signs)
    scales = torch.tensor(signs).double() * 0.1
    noise = RankOneNoise(table("map.weight_state", 0, 32), table("map.weight_state", 1, 8), scales)
    b, b0 = signs_from(table("map.weight_input", 1, 5), 5), signs_from(table("map.bias", 1, 1), 1)
    scores = (x.view(2, members, group, 5) * b[None, :, None]).sum(-1, keepdim=True) + b0[None, :, None]
    drive = cell.map.drive(x[None])[0][0].detach()
    found = lstm_step(drive, h, c, cell.map.weight_state.detach(), noise, scores.view(rows, 1))
    torch.testing.assert_close(found, tuple(expected))


def test_min_gru_twin_is_the_cell_under_rank_one():
    torch.manual_seed(0)
    members, group, signs = 3, 2, (1, -1)
    cell = MinGRUCell(5, 8).double()
    x, h = torch.randn(12, 5, dtype=torch.float64), torch.rand(12, 8, dtype=torch.float64)
    _, expected, table = under_members(cell, x, zorn.models.min_gru.MinGRUState(h), members, signs)
    noise = RankOneNoise(table("input_map.weight", 0, 16), None, torch.tensor(signs).double() * 0.1)
    b, b0 = signs_from(table("input_map.weight", 1, 5), 5), signs_from(table("input_map.bias", 1, 1), 1)
    scores = ((x.view(2, members, group, 5) * b[None, :, None]).sum(-1) + b0[None]).view(1, 12)
    _, found = min_gru_steps(cell.input_map(x[None]).detach(), h, noise, scores)
    torch.testing.assert_close(found, expected.hidden)


def test_gru_twin_without_noise_is_the_cell():
    torch.manual_seed(0)
    cell = GRUCell(5, 8, 2).double()
    x, h = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    noise = noise_of("cpu", 2, 4, 3, 2, 2)._replace(scales=torch.zeros(2))
    weight, bias = cell.state_map.weight.detach(), cell.state_map.bias.detach()
    _, found = gru_step(cell.input_map(x).detach(), h, weight, bias, noise)
    torch.testing.assert_close(found, cell(x, zorn.models.gru.GRUState(h))[1].hidden.detach())
