"""The compiled steps beside the steps in torch."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import zorn.noise.rules.standard
import zorn.noise.weights.member_noise
from zorn.errors import ConfigError
from zorn.models import BlockLinear, GRUCell, LSTMCell, run
from zorn.native import LaneNoise, Summands, available, gru_step, has_rollout, loading, lstm_step
from zorn.native import cells as native_cells
from zorn.noise import Draw, RankOne

compiled = pytest.mark.skipif(available() is None, reason="the compiled kernels were not built")
USERS = (native_cells, zorn.noise.weights.member_noise, zorn.noise.rules.standard)
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 0.02}
SIZES = [(16, 1, 5, 1), (37, 1, 64, 31), (36, 3, 7, 22), (128, 4, 33, 9), (7, 7, 16, 2)]
DRAW = Draw(seed=1, step=2, epsilon=0.1)


def in_torch(monkeypatch):
    for module in USERS:
        monkeypatch.setattr(module, "usable", lambda *tensors: False)


def trajectories(cell, x, group, time_chunk=None):
    """Outputs and last states, plain and of 3 members with both signs."""
    bound, rows = RankOne().bind(cell), x.shape[1]

    def over_chunks():
        state, pieces = cell.initial_state(rows), []
        for piece in x.split(time_chunk or len(x)):
            y, state = run(cell, piece, state)
            pieces.append(y)
        return torch.cat(pieces), *state

    with torch.inference_mode():
        plain = over_chunks()
        with bound.members(DRAW, range(3), (1, -1), group=group):
            return [*plain, *over_chunks()]


def made(cell_class, hidden, heads, inputs, rows, dtype, time=9):
    generator = torch.Generator().manual_seed(hidden)
    cell = cell_class(inputs, hidden, heads, generator=generator).to(dtype)
    return cell, torch.randn(time, rows, inputs, generator=generator).to(dtype)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("cell_class", [LSTMCell, GRUCell])
def test_whole_trajectories_equal_those_of_torch(cell_class, packed, sizes, dtype, monkeypatch):
    hidden, heads, inputs, group = sizes
    cell, x = made(cell_class, hidden, heads, inputs, 6 * group, dtype)
    if not packed:
        monkeypatch.setattr(native_cells, "lstm_rollout", lambda *arguments: None)
    found = trajectories(cell, x, group)
    in_torch(monkeypatch)
    wanted = trajectories(cell, x, group)
    assert (wanted[0] - wanted[len(wanted) // 2]).abs().max() > 0.1  # the noise is there
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, rtol=0, atol=TOLERANCE[dtype])


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("frozen", ["weight_input", "weight_state", "bias"])
def test_frozen_parameters_have_no_noise(frozen, dtype, monkeypatch):
    cell, x = made(LSTMCell, 20, 2, 6, 6 * 20, dtype)
    getattr(cell.map, frozen).requires_grad_(False)
    found = trajectories(cell, x, 20)
    in_torch(monkeypatch)
    for one, other in zip(found, trajectories(cell, x, 20), strict=True):
        assert_close(one, other, rtol=0, atol=TOLERANCE[dtype])


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_rollout_is_the_same_to_the_last_bit_for_any_threads_rows_and_chunks(dtype):
    if not has_rollout(dtype):
        pytest.skip("not on this processor")
    cell, x = made(LSTMCell, 40, 1, 24, 6 * 64, dtype)
    whole = trajectories(cell, x, 64)
    for one, other in zip(trajectories(cell, x, 64, time_chunk=4), whole, strict=True):
        assert torch.equal(one, other)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        for one, other in zip(trajectories(cell, x, 64), whole, strict=True):
            assert torch.equal(one, other)
    finally:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        part, _ = run(cell, x[:, 50:150], cell.initial_state(100))
    assert torch.equal(part, whole[0][:, 50:150])


@compiled
@pytest.mark.parametrize("instructions", [0, 1, 2])
def test_nonlinearities_are_within_a_few_ulps(instructions):
    """An LSTM step and a GRU step that single out one nonlinearity, against float64."""
    x = torch.cat([torch.linspace(-95, 95, 4001), torch.logspace(-6, 1, 500), -torch.logspace(-6, 1, 500)])
    zero = torch.zeros_like(x)
    loaded = loading.compiled()
    loaded.zorn_limit_instruction_set(instructions)
    try:
        with torch.inference_mode():
            # f = x, i shut, c = 1: c' = σ(x).  GRU: z shut, n = tanh(x).
            gates = torch.stack([zero - 200, x, zero, zero], 1).view(1, -1)
            gates = gates.view(len(x), 4)
            none = Summands(torch.zeros(1, len(x), 4), None, None, None)
            _, sigmoid = lstm_step(gates, none, zero.view(-1, 1), zero.view(-1, 1) + 1)
            none = Summands(torch.zeros(1, len(x), 3), None, None, None)
            tanh, _ = gru_step(
                torch.stack([zero, zero - 200, x], 1), none, zero.view(-1, 1), zero.view(-1, 1)
            )
    finally:
        loaded.zorn_limit_instruction_set(loading.INSTRUCTION_SETS.index(available()))
    inside = x.abs() < 86  # beyond, float32 itself ends
    ulp = torch.finfo(torch.float32).eps
    for found, wanted in ((sigmoid, x.double().sigmoid()), (tanh, x.double().tanh())):
        error = (found.view(-1).double() - wanted).abs() / wanted.abs().clamp(min=1e-37)
        assert error[inside].max() < 3 * ulp
        assert (found.view(-1) - wanted)[~inside].abs().max() < 1e-30 + ulp


@compiled
def test_not_a_number_stays_one():
    cell, x = made(LSTMCell, 20, 1, 6, 200, torch.bfloat16)
    x[4, 3, 2] = float("nan")
    with torch.inference_mode():
        y, _ = run(cell, x, cell.initial_state(200))
    assert y[4:, 3].isnan().all()
    assert not y[:4].isnan().any()
    assert not y[:, 4:].isnan().any()


@compiled
@pytest.mark.parametrize("layer", [lambda: nn.Linear(19, 21), lambda: BlockLinear(18, 21, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_of_a_layer_equals_that_of_torch(layer, dtype, monkeypatch):
    layer = layer().to(dtype)
    bound = RankOne().bind(layer)
    inputs = 19 if isinstance(layer, nn.Linear) else 18
    x = torch.randn(12, 5, inputs, generator=torch.Generator().manual_seed(0)).to(dtype)

    def result():
        with torch.inference_mode(), bound.members(DRAW, range(3), (1, -1), group=2):
            return layer(x)

    found = result()
    in_torch(monkeypatch)
    assert_close(found, result(), rtol=0, atol=TOLERANCE[dtype])


class Stranger(LSTMCell):
    def step(self, drive_t, state):
        y, state = super().step(drive_t, state)
        return y + 1, state


@compiled
def test_what_a_user_puts_on_a_cell_or_map_is_called():
    x = torch.randn(9, 200, 6)
    with torch.inference_mode():
        cell = Stranger(6, 20)
        y, state = run(cell, x, cell.initial_state(200))
        assert_close(y[-1], state.hidden + 1)
        calls = []
        cell = LSTMCell(6, 20)
        plain, _ = run(cell, x, cell.initial_state(200))
        handle = cell.map.register_forward_hook(lambda module, inputs, output: calls.append(1))
        hooked, _ = run(cell, x, cell.initial_state(200))
        handle.remove()
        assert len(calls) == 9
        assert_close(hooked, plain)
        forward = cell.map.forward
        cell.map.forward = lambda drive, h: 0 * forward(drive, h)
        zeros, _ = run(cell, x, cell.initial_state(200))
    assert not zeros.any()


@compiled
def test_gradients_take_the_step_in_torch():
    cell, x = made(LSTMCell, 20, 1, 6, 200, torch.float32)
    y, _ = run(cell, x, cell.initial_state(200))
    y.sum().backward()
    assert cell.map.weight_state.grad is not None


@compiled
def test_tensors_that_do_not_fit_are_refused():
    gates = Summands(torch.zeros(1, 2, 12), None, None, None)
    h = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="fused step of 4 gates"):
        lstm_step(torch.zeros(3, 12), gates, h, h)
    with pytest.raises(ConfigError, match="same"):
        LaneNoise(torch.ones(2), torch.ones(3, 1, 4), torch.ones(2, 1, 4), None)


SCRIPT = """
import torch
from zorn.native import available
from zorn.models import LSTMCell, run
cell = LSTMCell(6, 20)
with torch.inference_mode():
    y, _ = run(cell, torch.ones(9, 200, 6), cell.initial_state(200))
print(available(), bool(y.isfinite().all()))
"""


@compiled
@pytest.mark.parametrize("limit", ["baseline", "avx2"])
def test_the_environment_caps_the_instruction_set(limit):
    """The steps have the bits of that instruction set, not of a wider one."""
    script = """
import torch
from zorn.native import Summands, available, lstm_step
torch.manual_seed(0)
gates, none = torch.randn(64, 400), Summands(torch.zeros(1, 64, 400), None, None, None)
with torch.inference_mode():
    _, cell = lstm_step(gates, none, torch.zeros(64, 100), torch.randn(64, 100))
print(available(), cell.view(torch.int32).long().sum().item())
"""

    def printed(before, environment):
        command = [sys.executable, "-c", before + script]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    number = loading.INSTRUCTION_SETS.index(limit)
    by_hand = f"from zorn.native import loading; loading.compiled().zorn_limit_instruction_set({number})"
    name, bits = printed("", {"ZORN_CPU_KERNELS": limit})
    assert bits == printed(by_hand, {"ZORN_CPU_KERNELS": "1"})[1]
    widest = loading.compiled().zorn_instruction_set()
    assert name == loading.INSTRUCTION_SETS[min(number, widest)]


def test_an_unknown_instruction_set_is_named(monkeypatch):
    monkeypatch.setenv("ZORN_CPU_KERNELS", "sse9")
    with pytest.raises(ConfigError, match=r"ZORN_CPU_KERNELS must be 0 .* got 'sse9': unset it"):
        loading.compiled.__wrapped__()


def test_without_the_library_everything_runs_in_torch(monkeypatch, tmp_path, caplog):
    environment = {**os.environ, "ZORN_CPU_KERNELS": "0"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["None", "True"], done.stderr
    monkeypatch.delenv("ZORN_CPU_KERNELS", raising=False)
    monkeypatch.setattr(loading, "__file__", str(tmp_path / "loading.py"))
    with caplog.at_level(logging.INFO, logger="zorn"):
        assert loading.compiled.__wrapped__() is None
    assert "install a C compiler" in caplog.text
    caplog.clear()
    suffix = loading.EXTENSION_SUFFIXES[0]
    (tmp_path / f"_recurrent{suffix}").write_bytes(b"no library")
    with caplog.at_level(logging.INFO, logger="zorn"):
        assert loading.compiled.__wrapped__() is None
    assert "do not load" in caplog.text
