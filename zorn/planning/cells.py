"""Bytes that the recurrent cells need for a row, step by step and kept for the backward pass.

Letters: H = hidden units, k = input size, e = bytes of a number in the weights' dtype; gates and states are
computed in float32, 4 bytes. Of a DNC: N slots, W width, R read heads. What autograd keeps was counted on
the tensors that live after a forward pass (2026-11-23, torch 2.13); tests/planning counts them again.
"""

from __future__ import annotations

from dataclasses import dataclass

from zorn.models import DNCSettings
from zorn.models.cell import DRIVE_STEPS
from zorn.perturbations.site_activity import STEPS_AHEAD

WIDE = 4
"""Bytes of a number in float32, in which gates, states, losses and activity credit are computed."""


@dataclass(frozen=True, kw_only=True)
class CellBytes:
    """Bytes for one row of a layer.

    Attributes:
        drive: the input made ready, a step (`cell.drive`).
        making: further bytes while a step's drive is made.
        step: temporaries of one step (`cell.step`), its new state included.
        kept: what autograd keeps, a step, the layer's input among it, without its output.
        site: numbers that activity noise is added to, a step, where the cell is one site.
        noisy_step: temporaries of a step under activity noise.
        replayed: a step whose gradient waits to be summed (`Replaying._pending`), and while it is.
        copies: temporary copies of the recurrent weight in the backward pass.
    """

    drive: int
    making: int
    step: int
    kept: int
    site: int
    noisy_step: int
    replayed: int
    copies: int


def cell_bytes(cell: str, k: int, hidden: int, heads: int, e: int, memory: DNCSettings | None) -> CellBytes:
    """The bytes of a cell; `memory` only with "dnc".

    lstm: the drive is 4 H; a step makes the gates (4 H), f σ c, tanh and the like (4 H in float32); kept are
    i, f, o, u, c' and tanh c' in float32, h and x.
    gru: the drive is 3 H; kept are r, z, n, h' and the three parts of R h + b' in float32, x, and below
    float32 a copy of h.
    min-gru: the drive is (z, h̃) in float32, from 2 H gates; differentiated, it is a scan, which keeps z, h̃
    with the two numbers that it is the maximum of, decay and inflow twice (each level of the scan is half of
    the one before) and the states between.
    dnc: the controller is an lstm of k + R W inputs; of the memory two links (N²) and two contents (N W) are
    kept, and vectors over slots and width.

    >>> cell_bytes("lstm", k=10, hidden=100, heads=1, e=4, memory=None).kept
    2840
    """
    gates = {"lstm": 4, "gru": 3, "min-gru": 2, "dnc": 4}[cell] * hidden
    copies = 0 if cell == "min-gru" else 2 if heads == 1 else 1
    if cell == "lstm":
        return CellBytes(
            drive=gates * e,
            making=k * e,
            step=gates * e + 4 * hidden * WIDE,
            kept=6 * hidden * WIDE + (hidden + k) * e,
            site=2 * hidden,
            noisy_step=gates * (e if e == WIDE else e + WIDE) + 6 * hidden * WIDE,
            replayed=2 * ((k + hidden) * e + hidden * WIDE + gates * e) + 15 * hidden * WIDE,
            copies=copies,
        )
    if cell == "gru":
        return CellBytes(
            drive=gates * e,
            making=k * e,
            step=gates * e + 5 * hidden * WIDE + (0 if e == WIDE else 2 * gates * WIDE),
            kept=7 * hidden * WIDE + (k + (0 if e == WIDE else hidden)) * e,
            site=hidden,
            noisy_step=gates * e + 6 * hidden * WIDE,
            replayed=2 * (k * e + hidden * WIDE + 2 * gates * e) + 14 * hidden * WIDE,
            copies=copies,
        )
    if cell == "min-gru":
        return CellBytes(
            drive=gates * WIDE,
            making=gates * e + 2 * hidden * WIDE,
            step=hidden * (WIDE + e % WIDE),
            kept=9 * hidden * WIDE + k * e,
            site=hidden,
            noisy_step=hidden * WIDE,
            replayed=2 * (k * e + 3 * hidden * WIDE) + 9 * hidden * WIDE,
            copies=copies,
        )
    assert memory is not None
    slots, width, reads = memory.memory_slots, memory.memory_width, memory.read_heads
    seen = k + reads * width
    numbers = 2 * slots * (slots + width) + (17 + 6 * reads) * slots + (5 + 4 * reads) * width
    return CellBytes(
        drive=0,
        making=0,
        step=(2 * gates + seen) * e + (4 * hidden + 2 * slots * (slots + width)) * WIDE,
        kept=(6 * hidden + numbers + 11 + 12 * reads) * WIDE + (seen + reads * width + 2 * hidden) * e,
        site=0,
        noisy_step=(2 * gates + seen) * e + (4 * hidden + 2 * slots * (slots + width)) * WIDE,
        replayed=0,
        copies=copies,
    )


def drive_block(bytes_: CellBytes, steps: int) -> int:
    """Drives that live while one is made: its steps', their input's, and the block before them
    (`zorn.models.cell.run`).

    >>> lstm = cell_bytes("lstm", k=10, hidden=100, heads=1, e=4, memory=None)
    >>> drive_block(lstm, steps=100) == 8 * (2 * lstm.drive + lstm.making)
    True
    """
    blocks = 1 if steps <= DRIVE_STEPS else 2
    return min(steps, DRIVE_STEPS) * (blocks * bytes_.drive + bytes_.making)


def waiting_steps(steps: int) -> int:
    """Steps whose activity noise is made, or whose gradient waits, at once.

    >>> waiting_steps(5), waiting_steps(1000)
    (5, 16)
    """
    return min(steps, STEPS_AHEAD)
