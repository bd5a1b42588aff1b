"""What a forward pass without gradients holds: a chunk of time, its logits, its losses (`row_losses`)."""

from __future__ import annotations

from zorn.models.sliced_head import LOGITS_AT_ONCE, OUTPUT_SLICE
from zorn.native import rollout_bytes
from zorn.planning.cells import WIDE, CellBytes, cell_bytes, drive_block
from zorn.planning.sizes import ModelSizes
from zorn.planning.stages import Stage

TOKEN = 8
"""Bytes of a token, int64."""


def logits_bytes(tokens: int, vocabulary: int, e: int, *, differentiated: bool = False) -> int:
    """Logits of `tokens`, and what becomes of them in `TokenCrossEntropy.token_losses`.

    The logits (e bytes each) and their log-softmax (float32; below float32 the logits are first copied into
    it). Differentiated: the logits are dropped before the backward pass, in which the log-softmax, the
    gradient of the losses picked from it, and that of the logits live at once.

    >>> logits_bytes(tokens=10, vocabulary=100, e=4), logits_bytes(10, 100, e=2)
    (8000, 10000)
    """
    forward = e + WIDE + (0 if e == WIDE else WIDE)
    return tokens * vocabulary * (max(forward, 3 * WIDE) if differentiated else forward)


def cell_of(sizes: ModelSizes, layer: int) -> CellBytes:
    """The bytes of a layer's cell."""
    return cell_bytes(sizes.cell, sizes.inputs[layer], sizes.hidden, sizes.heads, sizes.element, sizes.memory)


def layers_stage(
    sizes: ModelSizes, rows: int, steps: int, *, step_bytes: int | None = None, factors: int | None = None
) -> Stage:
    """The fullest moment of the layers over a chunk, and the states before and after it.

    A layer holds its input (twice with a norm, once more with a residual), the outputs of all steps, and
    either drives and the temporaries of a step, or the stack of all outputs (`run`). `step_bytes`: of a
    step's temporaries, where they are not the plain cell's. `factors`: row factors of noise, members × rank,
    where an LSTM may go in one compiled call (`rollout_bytes`); None where it may not.
    """
    rolls = sizes.cell == "lstm" and factors is not None
    width, moments = sizes.hidden * sizes.element, []
    for layer, size in enumerate(sizes.inputs):
        cell = cell_of(sizes, layer)
        read = size * sizes.element * (1 if sizes.norm == "none" else 2)
        step = (cell.step if step_bytes is None else step_bytes) + drive_block(cell, steps)
        stacked = steps * width + min(steps, 8) * cell.drive
        held = steps * (read + width)
        place = sizes.dtype, size, sizes.heads, sizes.hidden // sizes.heads
        compiled = rollout_bytes(*place, rows=rows, time=steps, factors=factors or 0) if rolls else 0
        moments.append(rows * held + (compiled or rows * max(step, stacked)))
        if sizes.residual:
            moments.append(rows * steps * (read + 2 * width))
    return Stage(activations=max(moments) + 2 * rows * steps * TOKEN, states=2 * rows * sizes.state_bytes)


def head_stage(sizes: ModelSizes, rows: int, steps: int, *, noisy: bool) -> Stage:
    """The head: the layers' outputs, their copy with rows first, the logits; with rank-one noise its
    products."""
    copies = 2 + noisy + (sizes.norm != "none")
    return Stage(
        activations=copies * rows * steps * sizes.hidden * sizes.element,
        logits=rows * steps * sizes.vocabulary * sizes.element,
        states=2 * rows * sizes.state_bytes,
    )


def loss_stage(sizes: ModelSizes, rows: int, steps: int) -> Stage:
    """The losses of a chunk's logits."""
    logits = logits_bytes(rows * steps, sizes.vocabulary, sizes.element)
    return Stage(logits=logits, states=rows * sizes.state_bytes)


def sliced_stages(sizes: ModelSizes, rows: int, steps: int, *, noisy: bool) -> dict[str, Stage]:
    """Head and loss of a large vocabulary, read in slices (`zorn.models.streamed`): the features, with rows
    first; then, of as many steps as make `LOGITS_AT_ONCE` logits, a copy of them, their product with noise,
    and two slices of logits in float32: while one is made there is the one before, then its exponentials."""
    features = rows * steps * sizes.hidden * sizes.element
    width = OUTPUT_SLICE
    tokens = rows * min(steps, max(1, LOGITS_AT_ONCE // (rows * width)))
    piece = (1 + noisy) * tokens * sizes.hidden * sizes.element
    return {
        "head": Stage(
            activations=(2 + (sizes.norm != "none")) * features, states=2 * rows * sizes.state_bytes
        ),
        "loss": Stage(
            activations=features + piece, logits=2 * tokens * width * WIDE, states=rows * sizes.state_bytes
        ),
    }


def forward_stages(
    sizes: ModelSizes,
    rows: int,
    steps: int,
    *,
    noisy: bool,
    factors: int | None = None,
    sliced: bool = False,
) -> dict[str, Stage]:
    """The stages of a chunk of `steps` time steps of `rows` rows: layers, head, loss.

    Args:
        noisy: under rank-one noise, which every map multiplies its input by.
        factors: see `layers_stage`.
        sliced: the logits are read in slices.

    >>> from zorn.training import ModelConfig
    >>> sizes = ModelSizes.of(ModelConfig(hidden_size=64), vocabulary=256)
    >>> forward_stages(sizes, rows=8, steps=32, noisy=False)["loss"].logits == 2 * 8 * 32 * 256 * 4
    True
    """
    layers = {"layers": layers_stage(sizes, rows, steps, factors=factors)}
    if sliced:
        return layers | sliced_stages(sizes, rows, steps, noisy=noisy)
    head = head_stage(sizes, rows, steps, noisy=noisy)
    return layers | {"head": head, "loss": loss_stage(sizes, rows, steps)}
