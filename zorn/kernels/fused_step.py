"""One step of a recurrent cell for many members with rank-one noise, in one kernel: product, noise, gates,
state.

The gates of a row are drive + R h + s ε (b·h + score) a, with a and b the signs of the row's member. R h is
one matrix product for all rows; while its tiles of h are at hand they are also added up with the signs of b,
and the noise and the gates follow in the registers that hold the sums. All that is written is the new state:
the gates of the rows, four or three times as large, never reach memory.

Signs are read from tables of one bit each (`sign_words`), made once for all time steps of a member: a bit
from the cache costs less than a call of Philox at every step, and a member's table is a thousandth of its
state's weights. Sums, gates and noise are float32, rounded once, when they are written.

Letters: H = heads · d hidden units, d = units per head, S = signs, M = members, g = rows of a member and
sign.
"""

import torch
from torch import Tensor

from zorn.kernels.arithmetic import product, rounded, sigmoid, signed, tanh
from zorn.kernels.language import jit, power_of_two, tl
from zorn.kernels.rank_one_noise import RankOneNoise, noise_by_row, place, signs_of, trial_noise, wide_dtype
from zorn.kernels.twins import Function, twins
from zorn.random import unpack_signs

# Kernels ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def lstm_step_kernel(
    drive: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight: Tensor,
    noise: RankOneNoise,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`lstm_step` by its Triton kernel, whatever the device."""
    drive, hidden, cell = drive.contiguous(), hidden.contiguous(), cell.contiguous()
    next_hidden, next_cell = torch.empty_like(hidden), torch.empty_like(cell)
    _launch(4, weight, noise, scores, next_hidden, next_cell, drive, hidden, cell, drive)
    return next_hidden, next_cell


@torch.no_grad()
def gru_step_kernel(
    drive: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    noise: RankOneNoise,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`gru_step` by its Triton kernel, whatever the device."""
    drive, hidden, bias = drive.contiguous(), hidden.contiguous(), bias.contiguous()
    next_hidden = torch.empty_like(hidden)
    output = next_hidden if drive.dtype == hidden.dtype else torch.empty_like(hidden, dtype=drive.dtype)
    _launch(3, weight, noise, scores, output, next_hidden, drive, hidden, hidden, bias)
    return output, next_hidden


def _launch(gates: int, weight: Tensor, noise: RankOneNoise, scores: Tensor | None, *tensors: Tensor) -> None:
    """Run the kernel on output, next state, drive, h, state and bias, which an LSTM (four gates) does not
    read.

    A tile has 32 units of all gates, 16 to 64 rows of any members and 32 inputs (16 in float32): the largest
    whose sums stay in the registers of eight warps. It is not tuned at run time, since another tile could be
    another order of the sums.
    """
    rows, (heads, _, size) = len(tensors[0]), weight.shape
    block_rows, block_units = power_of_two(rows, 16, 64), power_of_two(size, 16, 32)
    inside = 16 if weight.dtype == torch.float32 else 32
    score = weight if scores is None else scores.expand(rows, heads)
    _step[(-(-rows // block_rows) * -(-size // block_units) * heads,)](
        *tensors,
        weight,
        row_table=noise.rows.contiguous(),
        column_table=noise.rows if noise.columns is None else noise.columns.contiguous(),
        scales=noise.scales.float(),
        scores=score,
        rows=rows,
        members=len(noise.rows),
        group=rows // (len(noise.rows) * len(noise.scales)),
        heads=heads,
        size=size,
        row_words=noise.rows.shape[1],
        column_words=0 if noise.columns is None else noise.columns.shape[1],
        score_row_stride=0 if scores is None else score.stride(0),
        score_head_stride=0 if scores is None else score.stride(1),
        GATES=gates,
        NOISY_WEIGHT=noise.columns is not None,
        SCORED=scores is not None,
        PRECISION="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        BLOCK_ROWS=block_rows,
        BLOCK_UNITS=block_units,
        BLOCK_INPUTS=power_of_two(size, 16, inside),
        num_warps=8,
        enable_fp_fusion=True,
    )


@jit(varying=("rows", "members", "group", "score_head_stride"))
def _step(
    output, next_state, drive, hidden, state, bias, weight, row_table, column_table, scales, scores,
    rows, members, group, heads, size, row_words, column_words, score_row_stride, score_head_stride,
    GATES: tl.constexpr, NOISY_WEIGHT: tl.constexpr, SCORED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_UNITS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):  # fmt: skip
    """(i, f, o, u) of an LSTM, whose noise is on the drive; (r, z, n) of a GRU, on the bias."""
    head, unit, row, member, sign = place(rows, members, group, size, BLOCK_ROWS, BLOCK_UNITS)
    first, second, third, fourth, score = _products(
        hidden, weight, column_table, row, member, head, unit, rows, heads, size, column_words,
        GATES, NOISY_WEIGHT, PRECISION, BLOCK_ROWS, BLOCK_UNITS, BLOCK_INPUTS,
    )  # fmt: skip
    if SCORED:
        place_of_score = scores + row * score_row_stride + head * score_head_stride
        score += tl.load(place_of_score, mask=row < rows, other=0.0).to(tl.float32)
    noise = score * tl.load(scales + sign)
    in_units = unit < size
    inside = (row < rows)[:, None] & in_units[None, :]
    gate = head * GATES * size + unit  # the first gate's place in a row
    drive += row[:, None] * (heads * GATES * size) + gate[None, :]
    if GATES == 4:
        source, mask = drive, inside
    else:
        source, mask = bias + gate[None, :], in_units[None, :]
    first += _driven(source, mask, noise, row_table, row_words, member, gate, in_units)
    second += _driven(source + size, mask, noise, row_table, row_words, member, gate + size, in_units)
    third += _driven(source + 2 * size, mask, noise, row_table, row_words, member, gate + 2 * size, in_units)
    element = row[:, None] * (heads * size) + (head * size + unit)[None, :]
    before = tl.load(state + element, mask=inside, other=0.0)
    if GATES == 4:
        source += 3 * size
        fourth += _driven(source, mask, noise, row_table, row_words, member, gate + 3 * size, in_units)
        new = sigmoid(second) * before + sigmoid(first) * tanh(fourth)
        y = sigmoid(third) * tanh(new)
    else:
        r = sigmoid(first + tl.load(drive, mask=inside, other=0.0).to(tl.float32))
        z = sigmoid(second + tl.load(drive + size, mask=inside, other=0.0).to(tl.float32))
        n = tanh(tl.load(drive + 2 * size, mask=inside, other=0.0).to(tl.float32) + r * third)
        new = (1.0 - z) * n + z * before
        y = new
    tl.store(next_state + element, new, mask=inside)
    if GATES == 4 or output.dtype.element_ty != tl.float32:  # the output of a float32 GRU is its state
        tl.store(output + element, rounded(y, output.dtype.element_ty), mask=inside)


@jit
def _products(
    hidden, weight, column_table, row, member, head, unit, rows, heads, size, column_words,
    GATES: tl.constexpr, NOISY_WEIGHT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_UNITS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):  # fmt: skip
    """R h of each gate, [rows, units], and b·h, [rows]; the fourth gate of three is 0."""
    first = tl.zeros([BLOCK_ROWS, BLOCK_UNITS], tl.float32)
    second = tl.zeros([BLOCK_ROWS, BLOCK_UNITS], tl.float32)
    third = tl.zeros([BLOCK_ROWS, BLOCK_UNITS], tl.float32)
    fourth = tl.zeros([BLOCK_ROWS, BLOCK_UNITS], tl.float32)
    score = tl.zeros([BLOCK_ROWS], tl.float32)
    dtype = weight.dtype.element_ty
    for start in range(0, size, BLOCK_INPUTS):
        column = start + tl.arange(0, BLOCK_INPUTS)
        inside = column < size
        h = tl.load(
            hidden + row[:, None] * (heads * size) + (head * size + column)[None, :],
            mask=(row < rows)[:, None] & inside[None, :],
            other=0.0,
        )
        h = rounded(h.to(tl.float32), dtype)
        if NOISY_WEIGHT:
            negative = signs_of(column_table, column_words, member, head * size + column, inside)
            score += tl.sum(signed(negative, h.to(tl.float32)), axis=1)
        mask = inside[:, None] & (unit < size)[None, :]
        gate = head * GATES * size + unit
        first = product(h, _weights_of(weight, gate, column, size, mask), first, PRECISION)
        second = product(h, _weights_of(weight, gate + size, column, size, mask), second, PRECISION)
        third = product(h, _weights_of(weight, gate + 2 * size, column, size, mask), third, PRECISION)
        if GATES == 4:
            fourth = product(h, _weights_of(weight, gate + 3 * size, column, size, mask), fourth, PRECISION)
    return first, second, third, fourth, score


@jit
def _weights_of(weight, gate, column, size, mask):
    """The weights from the columns to rows `gate`, [columns, gates]."""
    return tl.load(weight + gate.to(tl.int64)[None, :] * size + column[:, None], mask=mask, other=0.0)


@jit
def _driven(drive, mask, noise, table, words, member, element, inside):
    """A gate's drive and its noise: noise [rows] with the signs of a."""
    negative = signs_of(table, words, member, element, inside)
    return tl.load(drive, mask=mask, other=0.0).to(tl.float32) + signed(negative, noise[:, None])


# Twins ------------------------------------------------------------------------------------------------------


def _step_trial(
    device: torch.device, dtype: torch.dtype, gates: int
) -> tuple[list[Tensor], Tensor, RankOneNoise]:
    """Values [rows, …] for two heads and three members under both signs, more than a tile has, and more
    weights than it reads at once."""
    generator, heads, size, rows = torch.Generator().manual_seed(0), 2, 33, 18
    drive, hidden, cell, scores, weight = (
        torch.randn(*shape, generator=generator)
        for shape in (
            (rows, heads * gates * size),
            (rows, heads * size),
            (rows, heads * size),
            (rows, heads),
            (heads, gates * size, size),
        )
    )
    values = [drive.to(device, dtype), hidden.to(device), cell.to(device), scores.to(device, dtype)]
    noise = trial_noise(device, heads * gates * size, heads * size)
    return values, (weight / size**0.5).to(device, dtype), noise


def _lstm_trial(run: Function, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    (drive, hidden, cell, scores), weight, noise = _step_trial(device, dtype, 4)
    return run(drive, hidden.to(dtype), cell, weight, noise, scores)


def _gru_trial(run: Function, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    (drive, hidden, _, scores), weight, noise = _step_trial(device, dtype, 3)
    return run(drive, hidden, weight, drive[0], noise, scores)


@twins(lstm_step_kernel, _lstm_trial)
@torch.no_grad()
def lstm_step(
    drive: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight: Tensor,
    noise: RankOneNoise,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `zorn.models.LSTMCell` under rank-one noise, for rows in the order signs, members, group.

    (i, f, o, u) = drive + R h + s ε (b·h + score) a;  c' = σ(f) c + σ(i) tanh(u);  h' = σ(o) tanh(c').

    Args:
        drive: [rows, heads · 4 · d], W x + b without noise; rows = S · M · g.
        hidden: [rows, H], of the dtype of drive and weight: float32, bfloat16, float16 or float64.
        cell: [rows, H], float32 (float64 beside float64).
        weight: R, [heads, 4 · d, d], contiguous.
        noise: of the members.
        scores: what W and b add to b·h, [rows, heads] or, where all heads share it, [rows, 1]; None for
            nothing.

    Returns:
        (h', c'), of the dtypes of `hidden` and `cell`. Nothing that is given is changed.

    Sources: Hochreiter & Schmidhuber (1997); low-rank members, Sarkar et al. (2025, arXiv 2511.16652).

    Example:
        >>> from zorn.random import sign_words
        >>> rows, columns = (sign_words(0, 0, range(3), stream, count) for stream, count in ((0, 32), (1, 8)))
        >>> noise = RankOneNoise(rows, columns, torch.tensor([0.1, -0.1]))
        >>> h, c = torch.ones(12, 8), torch.zeros(12, 8)
        >>> h, c = lstm_step(torch.zeros(12, 32), h, c, torch.zeros(2, 16, 4), noise)
        >>> h.shape, c.shape
        (torch.Size([12, 8]), torch.Size([12, 8]))
    """
    recurrent = _recurrent(hidden, weight, noise, scores)
    i, f, o, u = (drive.to(cell.dtype).view(recurrent.shape) + recurrent).unflatten(2, (4, -1)).unbind(2)
    new = f.sigmoid() * cell.view(i.shape) + i.sigmoid() * u.tanh()
    return (o.sigmoid() * new.tanh()).flatten(1).to(hidden.dtype), new.flatten(1)


@twins(gru_step_kernel, _gru_trial)
@torch.no_grad()
def gru_step(
    drive: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    noise: RankOneNoise,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `zorn.models.GRUCell` under rank-one noise, for rows in the order signs, members, group.

    (h_r, h_z, h_n) = R h + b' + s ε (b·h + score) a;  r = σ(x_r + h_r);  z = σ(x_z + h_z);
    n = tanh(x_n + r h_n);  h' = (1 − z) n + z h.

    Args:
        drive: [rows, heads · 3 · d], (x_r, x_z, x_n) of each head with the noise of their own map in them.
        hidden: [rows, H], float32 (float64 beside float64); rounded to the dtype of the weight for the
            product.
        weight: R, [heads, 3 · d, d], contiguous, of the dtype of drive.
        bias: b', [3 · H].
        noise: of the members.
        scores: what the noise of b' adds to b·h, [rows, heads] or [rows, 1]; None for nothing.

    Returns:
        (y, h'): the new state in the dtype of drive, and as it is.

    Sources: Cho et al. (2014); low-rank members, Sarkar et al. (2025, arXiv 2511.16652).

    Example:
        >>> from zorn.random import sign_words
        >>> noise = RankOneNoise(sign_words(0, 0, range(3), 0, 12), None, torch.tensor([0.1]))
        >>> weight, bias = torch.zeros(1, 12, 4), torch.zeros(12)
        >>> y, h = gru_step(torch.zeros(3, 12), torch.ones(3, 4), weight, bias, noise)
        >>> h[0]
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    recurrent = _recurrent(hidden.to(weight.dtype), weight, noise, scores)
    recurrent = recurrent + bias.to(hidden.dtype).view(len(weight), -1)
    x_r, x_z, x_n = drive.to(hidden.dtype).view(recurrent.shape).unflatten(2, (3, -1)).unbind(2)
    h_r, h_z, h_n = recurrent.unflatten(2, (3, -1)).unbind(2)
    z, n = (x_z + h_z).sigmoid(), (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    new = ((1 - z) * n + z * hidden.view(n.shape)).flatten(1)
    return new.to(drive.dtype), new


def _recurrent(hidden: Tensor, weight: Tensor, noise: RankOneNoise, scores: Tensor | None) -> Tensor:
    """R h and its noise, [rows, heads, gates · d], at least in float32."""
    heads, outside, size = weight.shape
    wide = wide_dtype(weight)
    h = hidden.to(wide).view(-1, heads, size)
    score = h.new_zeros(len(h), heads) if scores is None else scores.to(wide).expand(-1, heads)
    if noise.columns is not None:
        b = unpack_signs(noise.columns, heads * size, wide).view(-1, heads, size)
        group = len(h) // (len(b) * len(noise.scales))
        score = score + (h.view(-1, len(b), group, heads, size) * b[None, :, None]).sum(-1).view(-1, heads)
    a = unpack_signs(noise.rows, heads * outside, wide).view(-1, heads, outside)
    return torch.einsum("rhk,hnk->rhn", h, weight.to(wide)) + noise_by_row(noise, score[:, :, None], a)
