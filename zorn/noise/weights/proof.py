"""The way that a model's members run, proved before the first estimate of a model.

The noise z is the same in all ways; only the speed differs. Side by side is compared with each member on
moved weights, at two numbers of members. What differs, or what cannot run, goes the next slower way, with a
warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from zorn.errors import ConfigError, SlowerWayWarning
from zorn.models import RecurrentModel, evaluation_mode
from zorn.noise.draw import Draw
from zorn.noise.weights.lanes import Lanes, Outputs

Way: TypeAlias = Literal["by layer", "by operation", "one at a time"]
"""By layer: each layer runs all members, by its rule. By operation: the members are an axis of the whole
model.
One at a time: each member on moved weights."""

WAYS: tuple[Way, ...] = ("by layer", "by operation", "one at a time")
"""From the fastest to the slowest."""

STEPS = 64
"""Time steps of a recurrent model that the proof looks at."""

EPSILON = 0.01
MEMBERS = (2, 3)
TOLERANCE = 0.02
"""Of the noise's own effect on the outputs, beside 1,000 roundings of them."""

_PROVED: WeakKeyDictionary[nn.Module, dict[Any, Way]] = WeakKeyDictionary()


def remembered(model: nn.Module, key: Any) -> Way | None:
    """The way that was proved for a model, None before."""
    return _PROVED.get(model, {}).get(key)


def prove(
    model: nn.Module,
    key: Any,
    first: Way,
    under: Callable[[Way, Draw, range], AbstractContextManager[Lanes]],
    inputs: Tensor,
) -> Way:
    """The fastest way, from `first` on, whose outputs are those on moved weights; it is remembered.

    Args:
        model: as it is.
        key: of the model's parameters and structure, as they are.
        first: the fastest way that fits the model.
        under: gives the block in which the model runs members, with the signs +1 and −1.
        inputs: of a batch; rows of them are run.

    Raises:
        ConfigError: the model's outputs differ from call to call.
    """
    reasons: list[str] = []
    way = first
    for way in WAYS[WAYS.index(first) :]:
        reason = None if way == WAYS[-1] else _difference(model, way, under, inputs)
        if reason is None:
            break
        reasons.append(f"{way}, {reason}")
    if reasons:
        text = f"the members of {type(model).__name__} run {way}: {'; '.join(reasons)}"
        warnings.warn(text, SlowerWayWarning, stacklevel=3)
    _PROVED.setdefault(model, {})[key] = way
    return way


def _difference(
    model: nn.Module,
    way: Way,
    under: Callable[[Way, Draw, range], AbstractContextManager[Lanes]],
    inputs: Tensor,
) -> str | None:
    """Why the members may not run this way; None where they may."""
    draw = Draw(seed=0, step=0, epsilon=EPSILON)
    with evaluation_mode(model), torch.inference_mode():
        for members in MEMBERS:
            rows = inputs[torch.arange(2 * members, device=inputs.device) % len(inputs)]
            try:
                with under(way, draw, range(members)) as lanes:
                    found = Outputs(_run(model, rows)).leaves
                if any(tensor.dim() == 0 or len(tensor) != len(rows) for tensor in _tensors(found)):
                    return "an output mixes the rows of members"
            except Exception as error:  # noqa: BLE001 - whatever a model of anyone raises under vmap or a rule
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            for lane in range(len(lanes)):
                own = rows[lane : lane + 1]
                with lanes.moved(lane):
                    expected, again = (Outputs(_run(model, own)).leaves for _ in range(2))
                pairs = zip(_tensors(expected), _tensors(again), strict=True)
                if any(not torch.equal(a, b) for a, b in pairs if not _has_nan(a)):
                    raise ConfigError(
                        f"{type(model).__name__} gives other outputs for the same inputs and weights: random "
                        "numbers in its forward (dropout called with training=True?) hide what a member's "
                        "noise does; switch them off in evaluation mode"
                    )
                plain = Outputs(_run(model, own)).leaves
                for number, (one, alone, still) in enumerate(zip(found, expected, plain, strict=True)):
                    if isinstance(one, Tensor) and not _same(one[lane : lane + 1], alone, still):
                        return f"output {number} of a member differs from that on moved weights"
    return None


def _run(model: nn.Module, rows: Tensor) -> Any:
    if isinstance(model, RecurrentModel):
        return model(rows[:, :STEPS], model.initial_state(len(rows)))[0]
    return model(rows)


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _has_nan(tensor: Tensor) -> bool:
    return bool(torch.isnan(tensor).any())


def _same(found: Tensor, expected: Tensor, plain: Tensor) -> bool:
    """True if an output under noise is the expected one, but for rounding and little of the noise's
    effect."""
    if not expected.is_floating_point():
        return True  # a choice (an index) may turn with a rounding
    if expected.dim() == 0:
        found = found.squeeze(0)  # a number for the rows of a lane
    if found.shape != expected.shape:
        return False
    if not torch.isfinite(expected).all():
        return True
    effect = (expected - plain).double().norm()
    rounding = 1000 * torch.finfo(expected.dtype).eps * expected.double().norm()
    return bool((found - expected).double().norm() <= TOLERANCE * effect + rounding)
