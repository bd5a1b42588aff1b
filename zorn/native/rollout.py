"""An LSTM over a chunk of time in one call, on packed weights."""

import ctypes
import logging
from functools import cache

import torch
from torch import Tensor

from zorn.native.arguments import LaneNoise, RolloutStructure
from zorn.native.loading import available, compiled

LARGEST_PACKED_BYTES = 2**26
"""Larger weights are not packed: the copy would cost more memory than its speed is worth."""

FEWEST_VECTORS = 128
"""Rows × steps that packing is worth."""

NEEDED = {torch.float32: "AVX-512", torch.bfloat16: "AMX"}
"""The instructions that the processor must have, by the dtype of the weights."""

_logger = logging.getLogger("zorn")


@cache
def has_rollout(dtype: torch.dtype) -> bool:
    """True if this processor runs `lstm_rollout`: float32 needs AVX-512, bfloat16 needs AMX as well.

    A processor that lacks them is logged once at level INFO, since the user can do nothing about it. A
    library that was not compiled is not logged here: `compiled` warns of that.

    >>> has_rollout(torch.float64)
    False
    """
    loaded = compiled()
    if loaded is None or dtype not in NEEDED or not hasattr(loaded, "zorn_rollout"):
        return False
    found = available() == "avx512" and bool(loaded.zorn_has_rollout(dtype == torch.bfloat16))
    if not found:
        _logger.info(
            "zorn: this processor (or system) has no %s, so %s LSTMs take a chunk of time step by step",
            NEEDED[dtype],
            str(dtype).removeprefix("torch."),
        )
    return found


def lstm_rollout(
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    noise: tuple[LaneNoise | None, LaneNoise | None] = (None, None),
) -> tuple[Tensor, Tensor] | None:
    """Outputs `[time, rows, H]` and the last c `[rows, H]` of an LSTM; None where it does not apply: another
    processor, weights too large to pack or a chunk too short, or tensors that do not fit each other.

    A row's result depends on that row alone, to the last bit: not on the other rows, threads or chunks.

    Args:
        x: `[time, rows, inputs]`, float32 or bfloat16, its last dimension contiguous.
        hidden: h `[rows, H]`, of the dtype of x.
        cell: c `[rows, H]` float32.
        weights: W `[heads · 4 · d, inputs]`, R `[heads, 4 · d, d]` and b `[heads · 4 · d]`.
        noise: of W and b, with one block, and of R; the scores of both add up, the row factors are R's.
    """
    (time, rows, inputs), (weight_input, weight_state, bias) = x.shape, weights
    heads, gates, size = weight_state.shape
    of_input, of_state = noise
    width, dtype = heads * size, x.dtype
    hidden, cell = hidden.contiguous(), cell.contiguous()
    fits = (
        gates == 4 * size
        and weight_input.shape == (4 * width, inputs)
        and bias.shape == (4 * width,)
        and hidden.shape == cell.shape == (rows, width)
        and all(t.dtype == dtype for t in (hidden, *weights))
        and all(t.is_contiguous() for t in weights)
        and cell.dtype == torch.float32
        and cell.is_cpu
        and x.stride(2) == 1
        and (of_state is None or (of_state.fits(dtype, rows, heads, size) and of_state.outputs == 4 * size))
        and (of_input is None or (of_state is not None and of_input.fits(dtype, rows, 1, inputs)))
        and (weight_input.numel() + weight_state.numel()) * dtype.itemsize <= LARGEST_PACKED_BYTES
        and time * rows >= FEWEST_VECTORS
        and has_rollout(dtype)
    )
    if not fits:
        return None
    outputs, next_cell = x.new_empty(time, rows, width), torch.empty_like(cell)
    arguments = RolloutStructure(
        is_bfloat16=dtype == torch.bfloat16,
        time=time,
        rows=rows,
        heads=heads,
        size=size,
        inputs=inputs,
        x=x.data_ptr(),
        x_step=x.stride(0),
        x_row=x.stride(1),
        weight_input=weight_input.data_ptr(),
        weight_state=weight_state.data_ptr(),
        bias=bias.data_ptr(),
        hidden=hidden.data_ptr(),
        cell=cell.data_ptr(),
        outputs=outputs.data_ptr(),
        next_cell=next_cell.data_ptr(),
        input_noise=None if of_input is None else of_input.address,
        state_noise=None if of_state is None else of_state.address,
        group=0 if of_state is None else rows // of_state.lanes,
    )
    loaded = compiled()
    assert loaded is not None
    sizes = (ctypes.c_int64 * 4)()
    loaded.zorn_rollout_bytes(ctypes.byref(arguments), sizes)
    memory = [torch.empty(count, dtype=torch.uint8) for count in sizes]  # torch begins at multiples of 64
    for name, tensor in zip(("packed", "factors", "scratch", "coefficients"), memory, strict=True):
        setattr(arguments, name, tensor.data_ptr())
    loaded.zorn_rollout(ctypes.byref(arguments), ctypes.c_int64(torch.get_num_threads()))
    return outputs, next_cell
