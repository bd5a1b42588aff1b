"""A chunk of minGRU steps for many members with rank-one noise, in one kernel.

No gate of a minGRU reads the state (Feng et al. 2024, arXiv 2410.01201), so the product with the weights is
one for the whole chunk and stands before it; noise, gates and recurrence follow in one kernel, which reads
the gates once, writes the outputs once and holds the state in registers from the first step to the last.
"""

import torch
from torch import Tensor

from zorn.kernels.arithmetic import rounded, sigmoid, signed
from zorn.kernels.language import jit, power_of_two, tl
from zorn.kernels.rank_one_noise import RankOneNoise, noise_by_row, place, signs_of, trial_noise
from zorn.kernels.twins import Function, twins
from zorn.random import unpack_signs


@torch.no_grad()
def min_gru_steps_kernel(
    gates: Tensor, hidden: Tensor, noise: RankOneNoise, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """`min_gru_steps` by its Triton kernel, whatever the device."""
    time, rows, units = *gates.shape[:2], hidden.shape[1]
    gates, hidden = gates.contiguous(), hidden.contiguous()
    output = torch.empty(time, rows, units, dtype=gates.dtype, device=gates.device)
    next_hidden = torch.empty_like(hidden)
    block_rows, block_units = 4, power_of_two(units, 32, 256)
    _min_gru_steps[(-(-rows // block_rows) * -(-units // block_units),)](
        output,
        next_hidden,
        gates,
        hidden,
        noise.rows.contiguous(),
        noise.scales.float(),
        scores.contiguous(),
        time=time,
        rows=rows,
        units=units,
        members=len(noise.rows),
        group=rows // (len(noise.rows) * len(noise.scales)),
        row_words=noise.rows.shape[1],
        BLOCK_ROWS=block_rows,
        BLOCK_UNITS=block_units,
        enable_fp_fusion=True,
    )
    return output, next_hidden


@jit(varying=("time", "rows", "members", "group"))
def _min_gru_steps(
    output, next_hidden, gates, hidden, row_table, scales, scores,
    time, rows, units, members, group, row_words, BLOCK_ROWS: tl.constexpr, BLOCK_UNITS: tl.constexpr,
):  # fmt: skip
    _, unit, row, member, sign = place(rows, members, group, units, BLOCK_ROWS, BLOCK_UNITS)
    inside_rows, inside_units = row < rows, unit < units
    inside = inside_rows[:, None] & inside_units[None, :]
    k_sign = signs_of(row_table, row_words, member, unit, inside_units)
    c_sign = signs_of(row_table, row_words, member, units + unit, inside_units)
    scale = tl.load(scales + sign)
    element = row[:, None] * units + unit[None, :]
    gate = gates + row[:, None] * (2 * units) + unit[None, :]
    h = tl.load(hidden + element, mask=inside, other=0.0)
    for _ in range(0, time):
        noise = scale * tl.load(scores + row, mask=inside_rows, other=0.0).to(tl.float32)
        k = tl.load(gate, mask=inside, other=0.0).to(tl.float32) + signed(k_sign, noise[:, None])
        c = tl.load(gate + units, mask=inside, other=0.0).to(tl.float32) + signed(c_sign, noise[:, None])
        z = sigmoid(k)
        h = (1.0 - z) * h + z * tl.where(c >= 0, c + 0.5, sigmoid(c))
        tl.store(output + element, rounded(h, output.dtype.element_ty), mask=inside)
        gate += rows.to(tl.int64) * (2 * units)
        output += rows.to(tl.int64) * units
        scores += rows
    tl.store(next_hidden + element, h, mask=inside)


def _trial(run: Function, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Three steps of three members under both signs."""
    generator, time, rows, units = torch.Generator().manual_seed(0), 3, 18, 33
    gates, hidden, scores = (
        torch.randn(*shape, generator=generator)
        for shape in ((time, rows, 2 * units), (rows, units), (time, rows))
    )
    noise = trial_noise(device, 2 * units, units)
    return run(gates.to(device, dtype), hidden.to(device), noise, scores.to(device))


@twins(min_gru_steps_kernel, _trial)
@torch.no_grad()
def min_gru_steps(
    gates: Tensor, hidden: Tensor, noise: RankOneNoise, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """All steps of a chunk of `zorn.models.MinGRUCell` under rank-one noise; rows as in `lstm_step`.

    (k, c) = gates + s ε score a;  z = σ(k);  h̃ = c + ½ where c ≥ 0, else σ(c);  h' = (1 − z) h + z h̃.

    Args:
        gates: [time, rows, 2 · H], W x + b without noise.
        hidden: [rows, H], float32 (float64 beside float64).
        noise: of the members; its `columns` are not read.
        scores: b·x + b₀ of each step, [time, rows].

    Returns:
        (y [time, rows, H] in the dtype of gates, the last state [rows, H]).

    Sources: Feng et al. (2024, arXiv 2410.01201); low-rank members, Sarkar et al. (2025, arXiv 2511.16652).

    Example:
        >>> from zorn.random import sign_words
        >>> noise = RankOneNoise(sign_words(0, 0, range(3), 0, 8), None, torch.tensor([0.1, -0.1]))
        >>> y, h = min_gru_steps(torch.zeros(5, 6, 8), torch.ones(6, 4), noise, torch.zeros(5, 6))
        >>> y.shape, h[0]
        (torch.Size([5, 6, 4]), tensor([0.5156, 0.5156, 0.5156, 0.5156]))
    """
    wide, states = hidden.dtype, [hidden]
    a = unpack_signs(noise.rows, gates.shape[2], wide)
    for gates_t, scores_t in zip(gates, scores, strict=True):
        noisy = gates_t.to(wide) + noise_by_row(noise, scores_t.to(wide)[:, None], a)
        k, c = noisy.chunk(2, dim=1)
        z, candidate = k.sigmoid(), torch.where(c >= 0, c + 0.5, c.sigmoid())
        states.append((1 - z) * states[-1] + z * candidate)
    return torch.stack(states[1:]).to(gates.dtype), states[-1]
