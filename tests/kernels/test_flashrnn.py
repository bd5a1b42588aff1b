"""FlashRNN as a backend: its equations in plain torch against ours, layouts, what is refused."""

import copy
import sys

import pytest
import torch

import zorn
from zorn.config import BudgetConfig, Choice, Config, RunConfig, resolve
from zorn.errors import ConfigError
from zorn.kernels.flashrnn import FlashRollout, use_flashrnn
from zorn.models import LSTMCell, LSTMState, run
from zorn.noise import Draw
from zorn.training import Trainer
from zorn.training.build import build_task
from zorn.training.learner import Learner

DRAW = Draw(seed=1, step=2, epsilon=0.3)


def documented(Wx, R, b, *, states, function, backend, dtype):
    """FlashRNN's LSTM from its documented equations; Wx [B, T, G, N, D], R [G, N, D, D], b [G, N, D], states
    [S, B, 1, N, D], gates (i, f, z, o); the states of all steps and the last."""
    assert (function, dtype) == ("lstm", str(Wx.dtype).removeprefix("torch."))
    h, c = states[:, :, 0]
    found = []
    for x in Wx.unbind(1):
        i, f, z, o = (x + torch.einsum("gndp,bnp->bgnd", R, h) + b).unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * z.tanh()
        h = o.sigmoid() * c.tanh()
        found.append(torch.stack([h, c]))
    return torch.stack(found, 2), found[-1].unsqueeze(2)


def case(heads, function=documented, backend="of this test"):
    """A cell, the same cell run by FlashRNN, and an input and a state."""
    torch.manual_seed(0)
    plain = LSTMCell(5, 6, heads)
    flash = copy.deepcopy(plain)
    flash.rollout = FlashRollout(flash, function, backend)
    return plain, flash, torch.randn(4, 3, 5), LSTMState(torch.randn(3, 6), torch.randn(3, 6))


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_flashrnn_is_the_cell(heads):
    plain, flash, x, state = case(heads)
    with torch.inference_mode():
        (y, last), (expected, reference) = run(flash, x, state), run(plain, x, state)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(tuple(last), tuple(reference))


def test_the_package_itself_is_the_cell():
    package = pytest.importorskip("flashrnn")
    plain, flash, x, state = case(2, package.flashrnn, "vanilla")
    with torch.inference_mode():
        torch.testing.assert_close(run(flash, x, state)[0], run(plain, x, state)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu():
    pytest.importorskip("flashrnn")
    model = zorn.LanguageModel(29, 256, num_heads=2, dtype=torch.bfloat16, device="cuda")
    tokens = torch.randint(0, 29, (16, 5), device="cuda")
    with torch.inference_mode():
        expected = model(tokens)[0]
        assert use_flashrnn(model) == 1
        torch.testing.assert_close(model(tokens)[0], expected, rtol=0, atol=0.02)


def test_a_dense_direction_moves_what_flashrnn_reads():
    plain, flash, x, state = case(2)
    found = []
    for cell in (plain, flash):
        with zorn.Dense().bind(cell).members(DRAW, range(1), (1,)), torch.inference_mode():
            found.append(run(cell, x, state)[0])
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], run(plain, x, state)[0])


def refuse(*inputs, **options):
    raise AssertionError("FlashRNN was called")


def test_noise_hooks_and_gradients_are_left_to_the_cell():
    plain, flash, x, state = case(2, refuse)
    with zorn.RankOne().bind(flash).members(DRAW, range(3), (1,)), torch.inference_mode():
        run(flash, x, state)
    torch.testing.assert_close(run(flash, x, state)[0], run(plain, x, state)[0])  # gradients are recorded
    flash.map.register_forward_hook(lambda module, inputs, output: None)
    with torch.no_grad():
        run(flash, x, state)


def test_a_copy_runs_on_its_own_weights():
    _, flash, x, state = case(2)
    twin = copy.deepcopy(flash)
    with torch.no_grad():
        twin.map.bias += 1
        assert not torch.allclose(run(flash, x, state)[0], run(twin, x, state)[0])


@pytest.mark.parametrize(
    ("cell", "backend", "installed", "message"),
    [
        ("lstm", "cuda_fused", False, r"FlashRNN cannot be imported.*pip install 'zorn\[flashrnn\]'"),
        ("lstm", "cuda_fused", True, "FlashRNN needs a CUDA device.* on cpu: move the model"),
        ("gru", "cuda_fused", True, "runs LSTM cells, and LanguageModel has none"),
        ("lstm", "fast", True, "backend must be one of cuda_fused, cuda, triton_fused or None, got 'fast'"),
    ],
)
def test_what_cannot_be_is_named(monkeypatch, cell, backend, installed, message):
    module = type(sys)("flashrnn")
    module.flashrnn = documented
    monkeypatch.setitem(sys.modules, "flashrnn", module if installed else None)
    model = zorn.LanguageModel(29, 8, cell=cell)
    with pytest.raises(ConfigError, match=message):
        use_flashrnn(model, backend)
    assert "rollout" not in model.cells[0].__dict__


def test_a_run_asks_for_it_by_a_flag(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    asked = Config(task=Choice("copy"), budget=BudgetConfig(steps=1), run=RunConfig(kernels="flashrnn"))
    config, _ = resolve(asked)
    with pytest.raises(ConfigError, match=r"FlashRNN cannot be imported.*--kernels own"):
        Learner.build(config, build_task(config))
    with pytest.raises(ConfigError, match=r"FlashRNN cannot be imported.*--kernels own"):
        Trainer(asked)


def test_it_can_be_turned_off():
    _, flash, _, _ = case(1, refuse)
    assert use_flashrnn(flash, None) == 1
    assert "rollout" not in flash.__dict__
