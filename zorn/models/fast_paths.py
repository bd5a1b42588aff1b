"""Fast paths of cells: compiled functions that compute the same as a cell, and register themselves here.

The cells in plain torch are the reference, and know none of their fast twins. A path applies to exactly the
class that it is registered for: a subclass may compute something else. It returns None where it does not
apply after all; then the cell runs as it is written.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Any, Any, Any], tuple[Tensor, Any] | None]
"""(cell, drive of one step, state) to the output and the next state, or None."""

Rollout = Callable[[Any, Tensor, Any], tuple[Tensor, Any] | None]
"""(cell, x `[time, rows, k]`, state) to the outputs `[time, rows, H]` and the last state, or None."""

_HOMES = {"cpu": "zorn.native.cells"}
"""Device -> the module that registers its paths when it is imported, at the first look-up."""

_STEPS: dict[tuple[type, str], Step] = {}
_ROLLOUTS: dict[tuple[type, str], Rollout] = {}


def register_fast_path(
    cell_type: type, device: str, *, step: Step | None = None, rollout: Rollout | None = None
) -> None:
    """Use compiled functions for the cells of exactly this type on a device, where nothing is recorded.

    Args:
        cell_type: the class of the cells.
        device: a type of device, such as "cpu".
        step: one step; None: the cell's own.
        rollout: all steps of a chunk of time; None: step by step.
    """
    if step is not None:
        _STEPS[cell_type, device] = step
    if rollout is not None:
        _ROLLOUTS[cell_type, device] = rollout


def fast_step(cell: Any, drive_t: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any] | None:
    """One step on the fast path of the cell; None where there is none."""
    if torch.is_grad_enabled():
        return None
    step = _found()[0].get((type(cell), drive_t[0].device.type))
    return None if step is None else step(cell, drive_t, state)


def fast_rollout(cell: Any, x: Tensor, state: Any) -> tuple[Tensor, Any] | None:
    """A chunk of time on the fast path of the cell; None where there is none."""
    if torch.is_grad_enabled():
        return None
    rollout = _found()[1].get((type(cell), x.device.type))
    return None if rollout is None else rollout(cell, x, state)


@cache
def _found() -> tuple[dict[tuple[type, str], Step], dict[tuple[type, str], Rollout]]:
    for module in _HOMES.values():
        import_module(module)
    return _STEPS, _ROLLOUTS
