"""The LSTM over a chunk on packed weights: its arithmetic, against the equations in float64."""

import logging

import pytest
import torch
from torch.testing import assert_close

from zorn.native import LaneNoise, has_rollout, loading, lstm_rollout
from zorn.native import rollout as rollouts

DTYPES = [torch.float32, torch.bfloat16]
ULP = torch.finfo(torch.float32).eps


@pytest.fixture(params=DTYPES, ids=["float32", "bfloat16"])
def dtype(request):
    if not has_rollout(request.param):
        pytest.skip("not on this processor")
    return request.param


def signs(generator, *shape):
    return torch.randint(0, 2, shape, generator=generator) * 2.0 - 1


def equations(x, h, c, weights, scale, lanes, factors):
    """h and c of every step, in float64; h rounded to the dtype of x between steps, as the cell does."""
    rows, (w, r, b) = x.shape[1], (t.double() for t in weights)
    heads, _, d = r.shape
    signs, members = len(scale), lanes // len(scale)
    group = rows // lanes
    member = torch.arange(rows) // group % members
    sized = scale.double()[torch.arange(rows) // group // members]
    assert signs * members == lanes
    a, columns, input_columns, offsets = (factor[member].double() for factor in factors)
    hidden, cell, outputs = h.double(), c.double(), []
    for x_t in x.double():
        gates = (x_t @ w.t() + b).view(rows, heads, -1)
        blocks = hidden.view(rows, heads, d)
        gates = gates + torch.einsum("rhd,hgd->rhg", blocks, r)
        score = (blocks * columns).sum(-1) + (x_t * input_columns[:, 0]).sum(-1, True) + offsets[:, 0]
        gates = gates + sized.view(-1, 1, 1) * score.unsqueeze(-1) * a
        i, f, o, u = gates.view(rows, heads, 4, d).unbind(2)
        cell = (f.sigmoid() * cell.view(i.shape) + i.sigmoid() * u.tanh()).flatten(1)
        hidden = (o.sigmoid().flatten(1) * cell.tanh()).to(x.dtype).double()
        outputs.append(hidden)
    return torch.stack(outputs), cell


SIZES = [  # inputs, heads, units a head, members, sequences of a member, steps
    (40, 1, 40, 19, 1, 4),
    (33, 2, 17, 3, 11, 3),
    (5, 3, 64, 2, 40, 1),
    (256, 1, 256, 70, 1, 2),  # weights of more than CACHE
]


@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_the_lstm_of_the_equations_under_noise(sizes, dtype):
    inputs, heads, d, members, group, time = sizes
    generator, rows = torch.Generator().manual_seed(inputs), 2 * members * group
    time = max(time, -(-rollouts.FEWEST_VECTORS // rows))

    def normal(*shape, size=1.0):
        return (torch.randn(*shape, generator=generator) * size).to(dtype)

    x, h, c = normal(time, rows, inputs), normal(rows, heads * d, size=0.3), normal(rows, heads * d).float()
    weights = (
        normal(heads * 4 * d, inputs, size=inputs**-0.5),
        normal(heads, 4 * d, d, size=d**-0.5),
        normal(heads * 4 * d),
    )
    scale = torch.tensor([0.03, -0.03])
    a, of_h, of_x, offsets = (
        signs(generator, members, blocks, size).to(dtype)
        for blocks, size in ((heads, 4 * d), (heads, d), (1, inputs), (1, 1))
    )
    noise = LaneNoise(scale, a.view(members, 1, -1), of_x, offsets), LaneNoise(scale, a, of_h, None)
    done = lstm_rollout(x, h, c, weights, noise)
    assert done is not None
    wanted, cell = equations(x, h, c, weights, scale, 2 * members, (a, of_h, of_x, offsets))
    half = dtype == torch.bfloat16
    assert_close(done[0].double(), wanted, rtol=0, atol=0.01 if half else 5e-6)
    # A bfloat16 h may round the other way, and be felt one step later; in one step sums are of float32.
    exact = not half or time == 1
    assert_close(done[1].double(), cell, rtol=0, atol=1e-5 if exact else 0.01)


def converted(weights, dtype):
    w, r, b = weights
    return w.to(dtype), r.to(dtype), b.to(dtype)


def gates_of(values, dtype, cell):
    """c' of 16-unit heads whose gates are `values` [4, n], n a multiple of 16, and whose c is `cell` [n]."""
    heads = values.shape[1] // 16
    bias = values.view(4, heads, 16).transpose(0, 1).flatten().to(dtype)
    weights = torch.zeros(4 * heads * 16, 1), torch.zeros(heads, 64, 16), bias
    x, h = torch.zeros(1, rollouts.FEWEST_VECTORS, 1), torch.zeros(rollouts.FEWEST_VECTORS, heads * 16)
    done = lstm_rollout(x.to(dtype), h.to(dtype), cell.expand_as(h).contiguous(), converted(weights, dtype))
    assert done is not None
    assert_close(done[1][0], done[1][-1], rtol=0, atol=0, equal_nan=True)
    return done[1][0].double()


def test_nonlinearities_are_within_a_few_ulps(dtype):
    x = torch.cat([torch.linspace(-100, 100, 3000), torch.logspace(-7, 1, 500), -torch.logspace(-7, 1, 500)])
    x = x.to(dtype).float()
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    shut, wide = zero - 200, zero + 200
    sigmoid = gates_of(torch.stack([shut, x, zero, zero]), dtype, one)
    tanh = gates_of(torch.stack([wide, shut, zero, x]), dtype, zero)
    inside = x > -33  # e³³ is about 2⁴⁸
    wanted = x.double().sigmoid()
    error = (sigmoid - wanted).abs() / wanted / (4 + x.abs())  # the rounding of x in e⁻ˣ grows with x
    assert error[inside].max() < ULP
    assert (sigmoid - wanted)[~inside].abs().max() < 1e-14
    error = (tanh - x.double().tanh()).abs() / x.double().tanh().abs().clamp(min=1e-30)
    assert error[x != 0].max() < 4 * ULP


def test_infinite_gates_saturate(dtype):
    infinity, zero = torch.full((16,), float("inf")), torch.zeros(16)
    one = torch.ones(16)
    assert_close(gates_of(torch.stack([infinity, -infinity, zero, infinity]), dtype, one), one.double())
    assert_close(gates_of(torch.stack([infinity, -infinity, zero, -infinity]), dtype, one), -one.double())
    assert_close(gates_of(torch.stack([-infinity, infinity, zero, infinity]), dtype, one), one.double())
    assert gates_of(torch.stack([zero, zero, zero, zero / 0]), dtype, one).isnan().all()


def test_a_processor_without_it_is_said_once_and_the_rest_of_the_library_serves(monkeypatch, caplog):
    class Library:
        def zorn_has_rollout(self, is_bfloat16):
            return 0

        zorn_rollout = None

    monkeypatch.setattr(rollouts, "compiled", Library)
    has_rollout.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="zorn"):
            for _ in range(2):
                assert not has_rollout(torch.bfloat16)
        assert caplog.text.count("has no AMX, so bfloat16 LSTMs take a chunk of time step by step") == 1
        x, h, c = torch.zeros(8, 32, 16).bfloat16(), torch.zeros(32, 16).bfloat16(), torch.zeros(32, 16)
        weights = torch.zeros(64, 16), torch.zeros(1, 64, 16), torch.zeros(64)
        assert lstm_rollout(x, h, c, converted(weights, torch.bfloat16)) is None
    finally:
        has_rollout.cache_clear()


def test_a_library_that_was_not_built_is_a_warning_once(monkeypatch, tmp_path, caplog):
    monkeypatch.delenv(loading.LIMITED_BY, raising=False)
    monkeypatch.setattr(loading, "__file__", str(tmp_path / "loading.py"))
    loading.compiled.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="zorn"):
            for _ in range(2):
                assert loading.available() is None
                assert not loading.usable(torch.zeros(2))
                with torch.inference_mode():
                    assert not loading.usable(torch.zeros(2))
        assert caplog.text.count("install a C compiler and reinstall zorn") == 1
        assert "LSTMs under weight noise take" in caplog.text
        assert "pip install ." in caplog.text
    finally:
        loading.compiled.cache_clear()


def test_a_library_of_another_version_is_left_alone(monkeypatch, caplog):
    """As after an update of a checkout that was not installed again: its functions read other things."""
    monkeypatch.delenv(loading.LIMITED_BY, raising=False)
    monkeypatch.setattr(loading, "INTERFACE", loading.INTERFACE + 1)
    loading.compiled.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="zorn"):
            assert loading.available() is None
        assert "of another version of zorn" in caplog.text
        assert "needs a C compiler" in caplog.text
    finally:
        loading.compiled.cache_clear()
