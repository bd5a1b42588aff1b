"""Checks of a kernel's arguments, before any work: each mistake raises one clear line."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zorn.checks import check_seed, check_whole_number
from zorn.errors import ConfigError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LAST_WORD = 2**32 - 1


def check_tensor(
    name: str,
    value: Any,
    shape: Sequence[int],
    *,
    like: Tensor | None = None,
    dtypes: Sequence[torch.dtype] = FLOATS,
) -> None:
    """Checks a tensor's shape, dtype and device.

    Args:
        name: for the message.
        value: what was given.
        shape: what it must have; −1 is any size.
        like: the tensor on whose device it must lie; None for any device.
        dtypes: those it may have.

    Raises:
        ConfigError: it is no such tensor.

    Example:
        >>> check_tensor("scores", torch.zeros(3), (4, -1))
        Traceback (most recent call last):
        zorn.errors.ConfigError: scores must be a tensor [4, any], got [3]: reshape it
    """
    wanted = ", ".join("any" if size < 0 else str(size) for size in shape)
    if not isinstance(value, Tensor):
        raise ConfigError(f"{name} must be a tensor [{wanted}], got {type(value).__name__}: give a tensor")
    fits = value.dim() == len(shape) and all(b in (-1, a) for a, b in zip(value.shape, shape, strict=True))
    if not fits:
        raise ConfigError(f"{name} must be a tensor [{wanted}], got {list(value.shape)}: reshape it")
    if value.dtype not in dtypes:
        raise ConfigError(f"{name} must be {' or '.join(map(str, dtypes))}, got {value.dtype}: convert it")
    if like is not None and value.device != like.device:
        raise ConfigError(f"{name} must be on {like.device}, got {value.device}: move it there")


def check_counter(seed: Any, step: Any, members: Any, **streams: Any) -> None:
    """Checks what names random bits: the seed, the step, the members and the streams.

    Raises:
        ConfigError: one is outside its range.

    Example:
        >>> check_counter(0, 0, range(4), stream=-1)
        Traceback (most recent call last):
        zorn.errors.ConfigError: stream must be a whole number of at least 0 and at most 4294967295, got -1
    """
    check_seed(seed)
    check_whole_number("step", step, minimum=0, maximum=_LAST_WORD)
    if not isinstance(members, range) or not members:
        raise ConfigError(f"members must be a range of at least one member, got {members!r}: take range(n)")
    for member in (members[0], members[-1]):
        check_whole_number("member", member, minimum=0, maximum=_LAST_WORD)
    for name, stream in streams.items():
        check_whole_number(name, stream, minimum=0, maximum=_LAST_WORD)


def check_contiguous(name: str, value: Tensor) -> None:
    """Checks that a tensor lies in one piece, row after row.

    Raises:
        ConfigError: it does not.

    Example:
        >>> check_contiguous("weight", torch.zeros(2, 3))
    """
    if not value.is_contiguous():
        raise ConfigError(f"{name} must be contiguous, got strides {value.stride()}: call .contiguous()")
