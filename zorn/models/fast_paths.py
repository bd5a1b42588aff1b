"""Fast paths of cells: compiled functions that compute the same as a cell, and register themselves here.

The cells in plain torch are the reference, and know none of their fast twins. A path applies to exactly the
class that it is registered for: a subclass may compute something else. It returns None where it does not
apply after all; then the cell runs as it is written.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

import torch
from torch import Tensor

Path: TypeAlias = Callable[[Any, Any, Any], tuple[Tensor, Any] | None]
"""A step, (cell, drive of one step, state) to the output and the next state; or a rollout, (cell, x `[time,
rows, k]`, state) to the outputs `[time, rows, H]` and the last state. None where it does not apply."""

_PATHS: dict[tuple[str, type, str], Path] = {}


def register_fast_path(
    cell_type: type, device: str, *, step: Path | None = None, rollout: Path | None = None
) -> None:
    """Use compiled functions for the cells of exactly this type on a device, where nothing is recorded.

    Args:
        cell_type: the class of the cells.
        device: a type of device, such as "cpu".
        step: one step; None: the cell's own.
        rollout: all steps of a chunk of time; None: step by step.
    """
    for kind, path in (("step", step), ("rollout", rollout)):
        if path is not None:
            _PATHS[kind, cell_type, device] = path


def fast_step(cell: Any, drive_t: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any] | None:
    """One step on the fast path of the cell; None where there is none."""
    path = _path("step", cell, drive_t[0])
    return None if path is None else path(cell, drive_t, state)


def fast_rollout(cell: Any, x: Tensor, state: Any) -> tuple[Tensor, Any] | None:
    """A chunk of time on the fast path of the cell; None where there is none."""
    path = _path("rollout", cell, x)
    return None if path is None else path(cell, x, state)


def _path(kind: str, cell: Any, x: Tensor) -> Path | None:
    return None if torch.is_grad_enabled() else _registered().get((kind, type(cell), x.device.type))


@cache
def _registered() -> dict[tuple[str, type, str], Path]:
    import_module("zorn.native.cells")  # registers its paths when it is imported, here at the first look-up
    return _PATHS
