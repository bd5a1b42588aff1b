"""State of a recurrent model: a (nested) tuple of tensors whose first dimension is rows."""

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

State: TypeAlias = Any
"""A tensor, or a (named) tuple of states; the first dimension of every tensor is rows."""


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """The state with `function` applied to each of its tensors: rows picked, detached, moved, copied.

    >>> import torch
    >>> state = (torch.zeros(4, 2), (torch.ones(4, 3),))
    >>> first, (second,) = map_state(lambda tensor: tensor[:2], state)
    >>> first.shape, second.shape
    (torch.Size([2, 2]), torch.Size([2, 3]))
    """
    if isinstance(state, Tensor):
        return function(state)
    parts = [map_state(function, part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
