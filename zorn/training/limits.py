"""Where a run meets a limit: numbers that are not finite, and memory that is not there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from zorn.errors import ConfigError

ELEMENTS_AT_ONCE = 2**20

_REFUSALS = (
    *("out of memory", "not enough memory", "can't allocate memory", "bad_alloc"),
    "Storage size calculation overflowed",
)
"""What torch says where it gets no memory: on a device, on the CPU of Windows and of Linux, where one of the
libraries that it calls got none, and where a tensor would have more than 2⁶³ bytes."""


def is_finite(parameter: Tensor) -> bool:
    """Whether no element is infinite or NaN, looked at slice by slice: `isfinite` of a whole large tensor
    needs several times its memory.

    >>> is_finite(torch.tensor([1.0, float("nan")]))
    False
    """
    parts = parameter.detach().reshape(-1).split(ELEMENTS_AT_ONCE)
    return all(bool(part.isfinite().all()) for part in parts)


def out_of_memory(error: Exception) -> str | None:
    """Why, in a line, where an error says that memory was asked for and not there; None for another error. On
    the CPU torch has no class of its own for that.

    >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 TiB"))
    "DefaultCPUAllocator: can't allocate memory: you tried 4 TiB"
    >>> out_of_memory(MemoryError())
    'no memory is left'
    >>> out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    """
    refused = any(words in str(error) for words in _REFUSALS)
    if not refused and not isinstance(error, MemoryError | torch.OutOfMemoryError):
        return None
    return (str(error) or "no memory is left").splitlines()[0]


@contextmanager
def memory_of(device: str) -> Iterator[None]:
    """Within the `with` block, an error that says that memory is not there becomes a ConfigError with a fix.

    >>> with memory_of("cpu"):
    ...     raise MemoryError  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    zorn.errors.ConfigError: a step does not fit into the memory of cpu (no memory is left): choose a ...
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (reason := out_of_memory(error)) is None:
            raise
        raise ConfigError(
            f"a step does not fit into the memory of {device} ({reason}): choose a smaller --micro-batch, "
            "--time-chunk, --batch or memory of a dnc; zorn plan with these settings says what a step needs, "
            "and with --fit 8GiB what would fit"
        ) from error
