"""Triton's language (Tillet, Kung & Cox 2019). Without Triton the kernels can be read, but not run."""

import inspect
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]

    TritonError: type[Exception] = import_module("triton.errors").TritonError
    """The error that Triton raises before it launches a kernel."""
except ImportError:
    triton, tl = None, SimpleNamespace(constexpr=Any)
    TritonError = AssertionError  # without Triton nothing is launched


installed = triton is not None
"""True where Triton is installed."""

interpreted = installed and os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "y", "yes", "true", "on")
"""True where kernels run in Triton's interpreter on the CPU; read from TRITON_INTERPRET at import."""

INTERPRETED = tl.constexpr(interpreted) if installed else interpreted


def jit(function: Callable[..., Any] | None = None, *, varying: Sequence[str] = ()) -> Any:
    """`triton.jit`; without Triton the function as it is.

    Args:
        function: the kernel, or a part of one.
        varying: integers that differ from call to call, for whose values no kernel of their own is compiled.

    Example:
        >>> @jit
        ... def double(x):
        ...     return x + x
    """
    if function is None:
        return lambda kernel: jit(kernel, varying=varying)
    # Triton reads the source and the globals of the function itself: not of what checks its shapes in tests.
    own = inspect.unwrap(function)
    if interpreted:
        return import_module("triton.runtime.interpreter").InterpretedFunction(own)
    compiled: Any = None if triton is None else triton.jit
    return own if compiled is None else compiled(own, do_not_specialize=list(varying))


def power_of_two(size: int, smallest: int, largest: int) -> int:
    """The least power of two that holds `size`, within two powers of two: the side of a tile.

    Example:
        >>> [power_of_two(size, 16, 64) for size in (1, 17, 1000)]
        [16, 32, 64]
    """
    return min(max(1 << (size - 1).bit_length(), smallest), largest)
