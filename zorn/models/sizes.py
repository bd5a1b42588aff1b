"""Checks of what a user gives to a model: one clear line instead of an error inside torch."""

from typing import Any

import torch

from zorn.checks import check_whole_number
from zorn.errors import ConfigError


def require_positive(**sizes: int) -> None:
    """Raise `ConfigError` naming the first of `sizes` that is not a whole number from 1 to 2**31 - 1."""
    for name, size in sizes.items():
        check_whole_number(name, size, minimum=1)


def head_size(hidden_size: int, num_heads: int) -> int:
    """Units per head, d = H / heads; `ConfigError` unless the heads divide the hidden size."""
    require_positive(hidden_size=hidden_size, num_heads=num_heads)
    if hidden_size % num_heads:
        raise ConfigError(
            f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}, but every head needs the "
            f"same number of units: take hidden_size {hidden_size - hidden_size % num_heads + num_heads}, or "
            "another num_heads."
        )
    return hidden_size // num_heads


def require_floating(dtype: Any) -> None:
    """Raise `ConfigError` unless `dtype` is None or one that weights can have.

    >>> require_floating(torch.bfloat16)
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(
            f"dtype is {dtype!r}, but weights need a floating dtype: give torch.float32 or torch.bfloat16."
        )


def device_of(device: Any) -> torch.device | None:
    """The device of that name, None for None; `ConfigError` where there is no such name."""
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'device is {device!r}, which torch does not know ({reason}): give "cpu" or "cuda".'
        ) from error
