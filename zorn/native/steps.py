"""The kernels as functions of tensors. Letters: H = heads · d hidden units, g gates of a unit."""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from zorn.errors import ConfigError
from zorn.native.arguments import AffineStructure, LaneNoise, StepStructure, Summands, address
from zorn.native.loading import compiled


def lstm_step(
    drive: Tensor, summands: Summands, hidden: Tensor, cell: Tensor, *, output_last: bool = False
) -> tuple[Tensor, Tensor]:
    """(h', c') of an LSTM whose gates (i, f, o, u), head by head, are `drive` plus `summands`.

    c' = σ(f) c + σ(i) tanh(u), h' = σ(o) tanh(c'), in float32 throughout; h' is rounded once.

    Args:
        drive: `[rows, 4 · H]`, float32 or bfloat16.
        summands: of the map, for `hidden`.
        hidden: h `[rows, H]`, of the dtype of the drive.
        cell: c `[rows, H]` float32.
        output_last: the gates lie as (i, f, u, o), as in torch.

    Raises:
        ConfigError: tensors that do not fit each other.

    >>> from zorn.native import available
    >>> gates = Summands(torch.zeros(1, 2, 12), None, None, None)
    >>> if available():
    ...     h, c = lstm_step(torch.zeros(2, 12), gates, torch.zeros(2, 3), torch.ones(2, 3))
    ...     assert torch.equal(c, torch.full((2, 3), 0.5))
    """
    hidden, cell = hidden.contiguous(), cell.contiguous()
    next_hidden, next_cell = torch.empty_like(hidden), torch.empty_like(cell)
    step = _step(drive, summands, hidden, cell, gates=4)
    step.next_hidden, step.next_state = next_hidden.data_ptr(), next_cell.data_ptr()
    step.output_last = output_last
    _call("zorn_lstm", step)
    return next_hidden, next_cell


def gru_step(drive: Tensor, summands: Summands, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """(h' rounded to the dtype of the drive, h') of a GRU whose gates (r, z, n) are `drive` of the input and
    `summands` of the state.

    r = σ(x_r + h_r);  z = σ(x_z + h_z);  n = tanh(x_n + r h_n);  h' = (1 − z) n + z h, in float32.

    Args:
        drive: `[rows, 3 · H]`, float32 or bfloat16; rows may be any distance apart.
        summands: of the map, for `hidden`.
        hidden: h as the map read it, `[rows, H]`, of the dtype of the drive.
        state: h `[rows, H]` float32.

    Raises:
        ConfigError: tensors that do not fit each other.

    >>> from zorn.native import available
    >>> gates, h = Summands(torch.zeros(1, 2, 9), None, None, None), torch.ones(2, 3)
    >>> if available():
    ...     y, h = gru_step(torch.zeros(2, 9), gates, h, h)
    ...     assert torch.equal(y, torch.full((2, 3), 0.5))
    """
    hidden, state = hidden.contiguous(), state.contiguous()
    next_state = torch.empty_like(state)
    y = next_state if drive.dtype == state.dtype else torch.empty_like(hidden)
    step = _step(drive, summands, hidden, state, gates=3)
    step.next_state = next_state.data_ptr()
    step.next_hidden = None if y is next_state else y.data_ptr()
    _call("zorn_gru", step)
    return y, next_state


def scores(x: Tensor, noise: LaneNoise) -> Tensor:
    """b·x + c, unscaled: `[time, rows, 1]` float32 for x `[time, rows, inputs]`, noise of one block.

    Raises:
        ConfigError: tensors that do not fit each other.
    """
    time, rows, _ = x.shape
    x, y = x.contiguous(), x.new_empty(time, rows, 1, dtype=torch.float32)
    _call("zorn_scores", _affine(x, y, noise, rows=rows, inner=1))
    return y


def add_rank_one_(y: Tensor, x: Tensor, noise: LaneNoise) -> Tensor:
    """Add to y = W x its noise, in place, and return it.

    Args:
        y: `[rows, …, blocks · outputs]`, contiguous, float32 or bfloat16.
        x: `[rows, …, blocks · inputs]`, of the dtype of y.
        noise: its rows are `[members, blocks, outputs]`.

    Raises:
        ConfigError: tensors that do not fit each other.
    """
    outputs = noise.blocks * noise.outputs
    if y.shape[:-1] != x.shape[:-1] or y.shape[-1] != outputs or not y.is_contiguous() or y.dtype != x.dtype:
        raise ConfigError(
            f"add_rank_one_: got y {y.dtype} {tuple(y.shape)} and x {x.dtype} {tuple(x.shape)}, expected "
            f"both of one dtype, y contiguous with {outputs} outputs and x with as many vectors"
        )
    inner = math.prod(y.shape[1:-1])
    x = x.contiguous()  # held: the kernel has only its address
    _call("zorn_add_rank_one", _affine(x, y, noise, rows=len(y), inner=inner))
    return y


def _step(drive: Tensor, summands: Summands, hidden: Tensor, state: Tensor, gates: int) -> Any:
    """The arguments of a step but for its results; raises unless every address reaches what it should."""
    product, bias, noise, carried = summands
    rows, width = hidden.shape
    heads = len(product)
    size = width // heads
    fits = (
        drive.shape == (rows, gates * width)
        and drive.stride(1) == 1
        and product.shape == (heads, rows, gates * size)
        and product.stride(2) == 1
        and state.shape == hidden.shape
        and state.dtype == torch.float32
        and state.is_cpu
        and hidden.is_contiguous()
        and state.is_contiguous()
        and drive.dtype == product.dtype == hidden.dtype
        and (bias is None or (bias.shape == drive.shape[1:] and bias.dtype == drive.dtype))
        and (noise is None or (noise.fits(drive.dtype, rows, heads, size) and noise.outputs == gates * size))
        and (
            carried is None or (noise is not None and carried.shape == (rows, 1) and carried.is_contiguous())
        )
    )
    if not fits:
        raise ConfigError(
            f"fused step of {gates} gates: drive {drive.dtype} {tuple(drive.shape)}, product "
            f"{product.dtype} {tuple(product.shape)}, hidden {hidden.dtype} {tuple(hidden.shape)} and state "
            f"{state.dtype} {tuple(state.shape)} do not fit: expected one dtype, a float32 state, the same "
            f"rows everywhere and {gates} gates a unit"
        )
    return StepStructure(
        is_bfloat16=drive.dtype == torch.bfloat16,
        rows=rows,
        heads=heads,
        size=size,
        product=product.data_ptr(),
        product_row=product.stride(1),
        product_head=product.stride(0),
        drive=drive.data_ptr(),
        drive_row=drive.stride(0),
        bias=address(bias),
        hidden=hidden.data_ptr(),
        state=state.data_ptr(),
        noise=None if noise is None else noise.address,
        carried=address(carried),
        group=0 if noise is None else rows // noise.lanes,
    )


def _affine(x: Tensor, y: Tensor, noise: LaneNoise, *, rows: int, inner: int) -> Any:
    """The arguments of a pass over the vectors of x, which is contiguous."""
    inputs = x.shape[-1] // noise.blocks
    if not noise.fits(x.dtype, rows, noise.blocks, inputs) or x.shape[-1] % noise.blocks:
        raise ConfigError(
            f"rank-one noise of {noise.lanes} lanes, {noise.blocks} blocks and {noise.inputs} inputs each "
            f"does not fit x {x.dtype} {tuple(x.shape)} with {rows} rows: expected its dtype, a multiple of "
            "the lanes as rows and its inputs"
        )
    return AffineStructure(
        is_bfloat16=x.dtype == torch.bfloat16,
        positions=x.numel() // x.shape[-1],
        inner=inner,
        rows=rows,
        blocks=noise.blocks,
        outputs=noise.outputs,
        inputs=inputs,
        x=x.data_ptr(),
        y=y.data_ptr(),
        noise=noise.address,
        group=rows // noise.lanes,
    )


def _call(function: str, arguments: ctypes.Structure) -> None:
    loaded = compiled()
    assert loaded is not None, "usable() was not asked"
    getattr(loaded, function)(ctypes.byref(arguments), torch.get_num_threads())
