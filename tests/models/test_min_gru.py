"""minGRU: the parallel form against the steps and against the paper's own form, values, gradients, chunks."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from zorn.errors import ConfigError
from zorn.models import MinGRUCell, MinGRUState, ParallelCell, linear_scan, run

ROWS, INPUT, HIDDEN = 3, 5, 7
LENGTHS = [1, 2, 3, 7, 8, 17, 64, 500]
SATURATION = [1, 30, 1000]  # times the weights: from open gates to ones that are 0 or 1 to the last bit

every_length = pytest.mark.parametrize("time", LENGTHS)
every_saturation = pytest.mark.parametrize("scale", SATURATION)


def cell(scale: float = 1, dtype: torch.dtype = torch.float32) -> MinGRUCell:
    made = MinGRUCell(INPUT, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        made.input_map.weight[:HIDDEN] *= scale  # the gate z
        made.input_map.weight[HIDDEN:] *= 3  # the candidate: both branches of g
    return made


def vectors(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state(dtype: torch.dtype = torch.float32) -> MinGRUState:
    return MinGRUState(vectors(ROWS, HIDDEN, seed=3).exp().to(dtype))


def stepwise(model: MinGRUCell, x: Tensor, before: MinGRUState) -> tuple[Tensor, MinGRUState]:
    outputs = []
    for x_t in x:
        y, before = model(x_t, before)
        outputs.append(y)
    return torch.stack(outputs), before


def log_space(model: MinGRUCell, x: Tensor, before: MinGRUState) -> Tensor:
    """The paper's parallel form: logarithms of coefficients and values, their sums over time (Heinsen)."""
    k, c = model.input_map(x).chunk(2, dim=-1)
    candidate = torch.where(c >= 0, (c.relu() + 0.5).log(), -F.softplus(-c))
    sums = torch.cat([torch.zeros_like(k[:1]), -F.softplus(k).cumsum(0)])
    values = torch.cat([before.hidden.log().unsqueeze(0), candidate - F.softplus(-k)])
    return (sums + (values - sums).logcumsumexp(0)).exp()[1:]


@every_length
@every_saturation
def test_parallel_equals_the_steps_in_float32(time: int, scale: float) -> None:
    model, x = cell(scale), vectors(time, ROWS, INPUT).float()
    y, last = model.parallel(model.drive(x), state())
    expected, after = stepwise(model, x, state())
    assert_close(y, expected)
    assert_close(last.hidden, after.hidden)
    assert (y > 0).all()


@every_saturation
def test_a_thousand_saturated_steps_are_exact_in_float32(scale: float) -> None:
    """The roundings of at most three operations a step add up like a random walk, for nothing cancels."""
    model, x = cell(scale), vectors(1000, ROWS, INPUT).float()
    z, candidate = model.drive(x)
    exact = linear_scan(1 - z.double(), z.double() * candidate.double(), state().hidden.double())
    y, _ = model.parallel((z, candidate), state())
    assert ((y - exact).abs() / exact).max() < 3 * 1000**0.5 * torch.finfo(torch.float32).eps


@every_length
@every_saturation
def test_parallel_and_steps_equal_the_form_of_the_paper(time: int, scale: float) -> None:
    model, x = cell(scale, torch.float64), vectors(time, ROWS, INPUT)
    expected = log_space(model, x, state(torch.float64))
    assert_close(model.parallel(model.drive(x), state(torch.float64))[0], expected)
    assert_close(stepwise(model, x, state(torch.float64))[0], expected)


@every_length
@every_saturation
def test_gradients_equal_those_of_the_steps(time: int, scale: float) -> None:
    model = cell(scale, torch.float64)
    weights = vectors(time, ROWS, HIDDEN, seed=4)

    def gradients(form) -> list[Tensor]:
        x = vectors(time, ROWS, INPUT).requires_grad_()
        before = state(torch.float64).hidden.requires_grad_()
        y, last = form(model, x, MinGRUState(before))
        loss = (weights * y).sum() + (weights[0] * last.hidden).sum()
        return list(torch.autograd.grad(loss, [x, before, *model.parameters()]))

    parallel = gradients(lambda model, x, before: model.parallel(model.drive(x), before))
    for mine, theirs in zip(parallel, gradients(stepwise), strict=True):
        assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 13, 64])
def test_the_state_carries_over_chunks(chunk: int) -> None:
    model, x = cell(), vectors(100, ROWS, INPUT).float()
    whole, last = model.parallel(model.drive(x), state())
    carried, outputs = state(), []
    for part in x.split(chunk):
        y, carried = model.parallel(model.drive(part), carried)
        outputs.append(y)
    assert_close(torch.cat(outputs), whole)
    assert_close(carried.hidden, last.hidden)


def test_the_last_state_does_not_keep_the_chunk_in_memory() -> None:
    model = cell()
    _, last = model.parallel(model.drive(vectors(100, ROWS, INPUT).float()), state())
    assert last.hidden.untyped_storage().nbytes() == 4 * ROWS * HIDDEN


def test_run_takes_the_parallel_form_where_gradients_are_recorded_and_only_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, calls = cell(), vectors(20, ROWS, INPUT).float(), []
    assert isinstance(model, ParallelCell)
    for name in ("parallel", "step"):
        plain = getattr(model, name)
        monkeypatch.setattr(
            model, name, lambda *given, plain=plain, name=name: (calls.append(name), plain(*given))[1]
        )
    with_gradients, _ = run(model, x, state())
    assert calls == ["parallel"]
    for without in (torch.no_grad(), torch.inference_mode()):
        calls.clear()
        with without:
            y, _ = run(model, x, state())
        assert calls == ["step"] * 20
        assert_close(y, with_gradients.detach())


def test_one_step_by_hand() -> None:
    model = MinGRUCell(1, 2)
    with torch.no_grad():
        model.input_map.weight.zero_()
        model.input_map.bias.copy_(torch.tensor([0.0, 1.0986123, 2.0, -1.0986123]))
    y, after = model(torch.zeros(1, 1), model.initial_state(1))
    # z = 1/2 and 3/4; h̃ = 2 + 1/2 and σ(−log 3) = 1/4; h = 1/2.
    assert_close(y, torch.tensor([[0.5 * 0.5 + 0.5 * 2.5, 0.25 * 0.5 + 0.75 * 0.25]]))
    assert_close(after.hidden, y)


def test_a_gate_that_is_shut_keeps_the_state_to_the_last_bit() -> None:
    model, x = cell(), vectors(300, ROWS, INPUT).float()
    with torch.no_grad():
        model.input_map.weight[:HIDDEN] = 0
        model.input_map.bias[:HIDDEN] = -200
    for last in (run(model, x, state())[1], stepwise(model, x, state())[1]):
        assert_close(last.hidden, state().hidden, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 2, 3), (9, 2, 3)])
def test_the_scan_takes_any_sign_and_is_differentiable_twice(shape: tuple[int, ...]) -> None:
    decay, inflow, before = vectors(*shape), vectors(*shape, seed=5), vectors(*shape[1:], seed=6)
    h, expected = before, []
    for a, b in zip(decay, inflow, strict=True):
        h = a * h + b
        expected.append(h)
    assert_close(linear_scan(decay, inflow, before), torch.stack(expected))
    inputs = [tensor.requires_grad_() for tensor in (decay, inflow, before)]
    assert torch.autograd.gradcheck(linear_scan, inputs)
    assert torch.autograd.gradgradcheck(linear_scan, inputs)


def test_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_heads must be 1 in a minGRU, got 2: heads are blocks of"):
        MinGRUCell(INPUT, 8, 2)
