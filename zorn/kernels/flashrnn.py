"""LSTM cells run by FlashRNN, an optional backend: `pip install 'zorn[flashrnn]'`.

FlashRNN (Pöppel, Beck & Hochreiter 2024, arXiv 2412.07752; package `flashrnn`, licence Apache-2.0 from
release 1.0.8 on) runs all steps of a chunk in one CUDA kernel that keeps the recurrent weights on the chip.
It computes

    g_n = R_n h + x_n + b_n for the gates n = i, f, z, o
    c' = σ(g_f) c + σ(g_i) tanh(g_z);  h' = σ(g_o) tanh(c')

which is `LSTMCell` with the gates in another order. At the first use of each size it compiles a kernel, with
the CUDA toolkit.

Letters: H = heads · d hidden units, G = 4 gates, T steps, k = input size.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zorn.errors import ConfigError
from zorn.models import LSTMCell, LSTMState

BACKENDS = ("cuda_fused", "cuda", "triton_fused")
"""Of FlashRNN: one kernel for all steps; one product a step, for any head size; Triton, for d up to 64."""

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_ORDER = [0, 1, 3, 2]  # (i, f, o, u) here and (i, f, z, o) there: the same exchange both ways


def use_flashrnn(model: nn.Module, backend: Any = "cuda_fused") -> int:
    """Let FlashRNN run the LSTM cells of a model, wherever they run as their class does.

    That is: without perturbation, and under `zorn.Dense`, which then moves copies of the weights. Under
    rank-one or activity noise, where gradients are recorded, and on a CPU, cells run as before. FlashRNN
    keeps the memory c in the dtype of the weights, zorn in float32: in bfloat16 results differ by its
    rounding.

    Args:
        model: with at least one `LSTMCell`, its weights on a GPU in float32, bfloat16 or float16.
        backend: of FlashRNN, one of `BACKENDS`; None: the cells run as before.

    Returns:
        The number of cells.

    Raises:
        ConfigError: FlashRNN is not installed, there is no LSTM cell, its weights are not on a GPU of compute
            capability 8.0 or more, or of another dtype, or an unknown backend. The model is as it was.

    Example:
        >>> from zorn.models import LanguageModel
        >>> use_flashrnn(LanguageModel(29, 16), None)
        1
    """
    cells = [module for module in model.modules() if type(module) is LSTMCell]
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKENDS)} or None, got {backend!r}: take one")
    if not cells:
        raise ConfigError(
            f"FlashRNN runs LSTM cells, and {type(model).__name__} has none: build it with cell='lstm', or "
            "leave it out (zorn train --kernels own)"
        )
    if backend is None:
        for cell in cells:
            cell.__dict__.pop("rollout", None)
        return len(cells)
    function = _flashrnn()
    for cell in cells:
        _check(cell.map.weight_state)
    for cell in cells:
        cell.__dict__["rollout"] = FlashRollout(cell, function, backend)
    return len(cells)


class FlashRollout:
    """All steps of a chunk by FlashRNN, in place of the cell's own steps.

    Args:
        cell: whose weights are read at every call.
        function: `flashrnn.flashrnn`.
        backend: of FlashRNN.
    """

    def __init__(self, cell: LSTMCell, function: Callable[..., tuple[Tensor, Tensor]], backend: str) -> None:
        self._cell, self._function, self._backend = cell, function, backend

    def __call__(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState] | None:
        """Outputs [T, rows, H] and the last state, for x [T, rows, k]; None where FlashRNN does not apply."""
        map, weight = self._cell.map, self._cell.map.weight_state
        own = {"drive", "step"} & self._cell.__dict__.keys() or {"drive", "forward"} & map.__dict__.keys()
        if own or map._forward_hooks or map._forward_pre_hooks or torch.is_grad_enabled():
            return None
        if not _suits(weight, self._backend, x, state.hidden):
            return None
        heads, _, d = weight.shape
        gates = F.linear(x.contiguous(), map.weight_input).unflatten(-1, (heads, 4, d))[..., _ORDER, :]
        recurrent, bias = to_flashrnn(weight, map.bias)
        first = torch.stack([state.hidden, state.cell.to(weight.dtype)])  # [2, rows, H]
        states, last = self._function(
            gates.permute(1, 0, 3, 2, 4),  # [rows, T, G, heads, d]
            recurrent,
            bias,
            states=first.view(2, -1, 1, heads, d),
            function="lstm",
            backend=self._backend,
            dtype=_DTYPES[weight.dtype],
        )
        hidden, cell = last.flatten(-2)[:, :, 0]
        y = states[0].flatten(-2).transpose(0, 1)
        return y, LSTMState(hidden.to(y.dtype), cell.to(state.cell.dtype))


def to_flashrnn(
    weight_state: Float[Tensor, "heads gates_of_head d"], bias: Float[Tensor, " all_gates"]
) -> tuple[Float[Tensor, "gates heads d d"], Float[Tensor, "gates heads d"]]:
    """R and b in the layout of FlashRNN; contiguous copies.

    Example:
        >>> recurrent, bias = to_flashrnn(torch.zeros(2, 12, 3), torch.arange(24.0))
        >>> recurrent.shape, bias[:, 0, 0].tolist()
        (torch.Size([4, 2, 3, 3]), [0.0, 3.0, 9.0, 6.0])
    """
    heads, _, d = weight_state.shape
    recurrent = weight_state.view(heads, 4, d, d)[:, _ORDER].transpose(0, 1).contiguous()
    return recurrent, bias.view(heads, 4, d)[:, _ORDER].transpose(0, 1).contiguous()


def _suits(weight: Tensor, backend: str, *tensors: Tensor) -> bool:
    """True if FlashRNN runs with these: one dtype that it supports, on a GPU where the backend needs one."""
    placed = weight.is_cuda or backend not in BACKENDS
    return placed and weight.dtype in _DTYPES and all(tensor.dtype == weight.dtype for tensor in tensors)


def _flashrnn() -> Callable[..., tuple[Tensor, Tensor]]:
    try:
        return import_module("flashrnn").flashrnn
    except ImportError as error:
        raise ConfigError(
            f"FlashRNN cannot be imported ({error}): pip install 'zorn[flashrnn]' (licence Apache-2.0), or "
            "leave it out (zorn train --kernels own)"
        ) from None


def _check(weight: Tensor) -> None:
    """Raises unless FlashRNN can run with a weight."""
    if not weight.is_cuda:
        raise ConfigError(
            f"FlashRNN needs a CUDA device, and the LSTM's weights are on {weight.device}: move the model "
            "with .to('cuda'), or leave it out (zorn train --kernels own)"
        )
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < (8, 0):
        raise ConfigError(
            f"FlashRNN needs compute capability 8.0 or more, got {capability[0]}.{capability[1]}: take a "
            "newer GPU, or leave it out (zorn train --kernels own)"
        )
    if weight.dtype not in _DTYPES:
        raise ConfigError(
            f"FlashRNN runs in float32, bfloat16 or float16, and the LSTM is {weight.dtype}: convert it"
        )
