"""A linear map under dense perturbations, y± = x± (W ± ε Z)ᵀ, with the signs Z made from the counter in the
tile.

A perturbed copy of the weights exists only tile by tile, in registers, where it serves one product and is
gone: nothing is stored and nothing is changed. Both signs of a member share one reading of the weights and
one making of their signs. The structure is that of `zorn.Dense`, sign for sign and rounding for rounding.

What a tile costs beside the plain product is two calls of Philox for each 128 weights (one row of the tile)
and the rounding of W ± ε Z to the dtype of W.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zorn.kernels.arithmetic import product, rounded, signed
from zorn.kernels.counter import VARYING, counter_arguments, member_number, sign_at, sign_tile, signed_word
from zorn.kernels.language import jit, power_of_two, tl
from zorn.kernels.twins import Function, twins
from zorn.random import signs as draw_signs


@dataclass(frozen=True, kw_only=True)
class DenseNoise:
    """The dense noise of members on one map: s ε Z on its weight and s ε z on its bias.

    Args:
        seed: of the run, 0 to 2**64 - 1.
        step: 0 to 2**32 - 1.
        members: at least one, each 0 to 2**32 - 1.
        stream: the name of the weight's noise, 0 to 2**32 - 1.
        bias_stream: that of the bias's; None leaves the bias as it is.
        epsilon: ε, above 0.
        signs: one or two of +1 and −1.
    """

    seed: int
    step: int
    members: range
    stream: int
    bias_stream: int | None = None
    epsilon: float
    signs: tuple[int, ...] = (1, -1)


@torch.no_grad()
def perturbed_linear_kernel(x: Tensor, weight: Tensor, bias: Tensor | None, noise: DenseNoise) -> Tensor:
    """`perturbed_linear` by its Triton kernel, whatever the device.

    A tile has 64 outputs, as many rows of one member as its group has, 16 to 64, and 64 inputs (16 in
    float32, whose products go without tensor cores): the largest whose sums of both signs stay in the
    registers of eight warps. It is not tuned at run time, since another tile could be another order of the
    sums.
    """
    heads, (outputs, inputs) = weight.shape[0] if weight.dim() == 3 else 1, weight.shape[-2:]
    x = x.contiguous()
    members, signs = len(noise.members), noise.signs
    group = len(x) // (len(signs) * members)
    y = torch.empty(len(x), heads * outputs, dtype=x.dtype, device=x.device)
    block_rows, block_outputs = power_of_two(group, 16, 64), power_of_two(outputs, 16, 64)
    row_tiles, output_tiles = -(-group // block_rows), -(-outputs // block_outputs)
    _perturbed_linear[(members * heads * row_tiles * output_tiles,)](
        y,
        x,
        weight,
        y if bias is None else bias,
        **counter_arguments(noise.seed, noise.step, noise.members),
        stream=signed_word(noise.stream),
        other_stream=signed_word(noise.bias_stream or 0),
        first_scale=signs[0] * noise.epsilon,
        second_scale=signs[-1] * noise.epsilon,
        members=members,
        group=group,
        heads=heads,
        outputs=outputs,
        inputs=inputs,
        PAIRED=len(signs) == 2,
        BIAS=bias is not None,
        NOISY_BIAS=noise.bias_stream is not None,
        PRECISION="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        BLOCK_ROWS=block_rows,
        BLOCK_OUTPUTS=block_outputs,
        BLOCK_INPUTS=16 if x.dtype == torch.float32 else power_of_two(inputs, 16, 64),
        num_warps=8,
        enable_fp_fusion=True,
    )
    return y


@jit(varying=(*VARYING, "members"))
def _perturbed_linear(
    y, x, weight, bias, first_member, member_step, step, key_low, key_high, stream, other_stream,
    first_scale, second_scale, members, group, heads, outputs, inputs,
    PAIRED: tl.constexpr, BIAS: tl.constexpr, NOISY_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):  # fmt: skip
    output_tiles = tl.cdiv(outputs, BLOCK_OUTPUTS)
    row_tiles = tl.cdiv(group, BLOCK_ROWS)
    program = tl.program_id(0)
    output = program % output_tiles * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    place = program // output_tiles % row_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    lane = program // output_tiles // row_tiles
    head, index = lane % heads, lane // heads
    member = member_number(index, first_member, member_step)

    row = (index * group + place).to(tl.int64)
    pair = (members * group).to(tl.int64)  # rows from a sequence under one sign to the same under the other
    inside_rows, inside_outputs = (place < group)[:, None], output < outputs
    unit = (head * outputs + output).to(tl.int64)
    first = tl.zeros([BLOCK_ROWS, BLOCK_OUTPUTS], tl.float32)
    second = tl.zeros([BLOCK_ROWS, BLOCK_OUTPUTS], tl.float32)
    for start in range(0, inputs, BLOCK_INPUTS):
        column = start + tl.arange(0, BLOCK_INPUTS)
        inside = (column < inputs)[None, :]
        w = tl.load(
            weight + unit[:, None] * inputs + column[None, :],
            mask=inside_outputs[:, None] & inside,
            other=0.0,
        )
        negative = sign_tile(unit * inputs + start, stream, member, step, key_low, key_high, BLOCK_INPUTS)
        wide = w.to(tl.float32)
        of_row = x + row[:, None] * (heads * inputs) + head * inputs + column[None, :]
        moved = rounded(wide + signed(negative, first_scale), w.dtype)
        first = product(
            tl.load(of_row, mask=inside_rows & inside, other=0.0), tl.trans(moved), first, PRECISION
        )
        if PAIRED:
            moved = rounded(wide + signed(negative, second_scale), w.dtype)
            rows = tl.load(of_row + pair * (heads * inputs), mask=inside_rows & inside, other=0.0)
            second = product(rows, tl.trans(moved), second, PRECISION)

    dtype = y.dtype.element_ty
    if BIAS:
        b = tl.load(bias + unit, mask=inside_outputs, other=0.0)
        wide = b.to(tl.float32)
        if NOISY_BIAS:
            negative = sign_at(unit, other_stream, member, step, key_low, key_high)
            first += rounded(wide + signed(negative, first_scale), b.dtype).to(tl.float32)[None, :]
            second += rounded(wide + signed(negative, second_scale), b.dtype).to(tl.float32)[None, :]
        else:
            first += wide[None, :]
            second += wide[None, :]
    target = y + row[:, None] * (heads * outputs) + unit[None, :]
    inside = inside_rows & inside_outputs[None, :]
    tl.store(target, rounded(first, dtype), mask=inside)
    if PAIRED:
        tl.store(target + pair * (heads * outputs), rounded(second, dtype), mask=inside)


def _trial(run: Function, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Two heads, two members, both signs; more outputs than a tile has."""
    generator = torch.Generator().manual_seed(0)
    members, heads, outputs, inputs = range(1, 3), 2, 66, 17
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(device, dtype)
        for shape in ((8, heads * inputs), (heads, outputs, inputs), (heads * outputs,))
    )
    settings = {"seed": 2**40 + 1, "step": 3, "stream": 2**31 + 5, "bias_stream": 6, "epsilon": 0.5}
    return [run(x, weight / inputs**0.5, bias, DenseNoise(members=members, **settings))]


@twins(perturbed_linear_kernel, _trial)
@torch.no_grad()
def perturbed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, noise: DenseNoise) -> Tensor:
    """y = x (W + s ε Z)ᵀ + (b + s ε z), for all rows of several members and one or both signs s.

    Z is `zorn.random.signs` of (seed, step, member, stream), element e being that of the flattened weight; z
    is that of `bias_stream`. W + s ε Z is computed in float32 and rounded to the dtype of W, products are
    summed in float32 (as torch's `set_float32_matmul_precision` has it). Results of the kernel depend on
    neither which nor how many members share a call. In PyTorch it makes a perturbed copy of the weights for
    each member and sign.

    Args:
        x: [len(signs) · len(members) · g, heads · inputs], rows in the order signs, members, group.
        weight: [outputs, inputs], or [heads, outputs, inputs] of a block-diagonal map; contiguous.
        bias: [heads · outputs], or None.
        noise: of the members.

    Returns:
        [rows, heads · outputs], of the dtype of x.

    Source: the perturbation of Chaubard & Kochenderfer (2025, arXiv 2505.17852), without its copies.

    Example:
        >>> x, weight = torch.ones(4, 3), torch.zeros(2, 3)
        >>> noise = DenseNoise(seed=0, step=0, members=range(2), stream=0, epsilon=0.5)
        >>> perturbed_linear(x, weight, None, noise)
        tensor([[-0.5000,  0.5000],
                [ 0.5000,  0.5000],
                [ 0.5000, -0.5000],
                [-0.5000, -0.5000]])
    """
    blocks = weight if weight.dim() == 3 else weight.unsqueeze(0)
    wide = torch.promote_types(weight.dtype, torch.float32)

    def moved(parameter: Tensor, stream: int, member: int, sign: int) -> Tensor:
        vector = noise.seed, noise.step, range(member, member + 1), stream, parameter.numel()
        z = draw_signs(*vector, dtype=wide, device=parameter.device).view(parameter.shape)
        return torch.add(parameter.to(wide), z, alpha=sign * noise.epsilon).to(parameter.dtype)

    lanes = x.unflatten(0, (len(noise.signs), len(noise.members), -1)).unflatten(-1, (len(blocks), -1))
    results = []
    for sign, rows_of_sign in zip(noise.signs, lanes, strict=True):
        for member, rows in zip(noise.members, rows_of_sign, strict=True):
            w = moved(blocks, noise.stream, member, sign).to(wide)
            y = torch.einsum("ghk,hnk->ghn", rows.to(wide), w).flatten(1)
            if bias is not None:
                own = noise.bias_stream
                y = y + (bias if own is None else moved(bias, own, member, sign))
            results.append(y.to(x.dtype))
    return torch.cat(results)
