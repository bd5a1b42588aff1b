"""First values of parameters, and where they are allocated.

They are drawn on the CPU in float32, slice by slice, so that one seed gives the same weights on every device
and in every dtype, and nothing is held beside the weights but a slice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)

Source: TypeAlias = torch.Generator | None
"""The generator of first values; None is torch's global one."""

SLICE = 2**20
"""Values that are drawn at once: 4 MiB."""

_NORMALS_AT_ONCE = 16
"""torch's normals come in pieces of 16, and the last 16 of a draw are drawn anew where they do not fit."""


@contextmanager
def allocation(dtype: torch.dtype | None, device: torch.device | None) -> Iterator[None]:
    """Within the `with` block of this thread, new matrices of numbers have this dtype and device; None leaves
    torch's choice.

    Vectors keep torch's dtype: they cost no memory, and what a cell adds to the first values of its biases is
    then rounded once, when the model is converted.

    >>> with allocation(torch.bfloat16, None):
    ...     layer = nn.Linear(3, 4)
    >>> layer.weight.dtype, layer.bias.dtype
    (torch.bfloat16, torch.float32)
    """
    with nullcontext() if device is None else torch.device(device), _Matrices(dtype):
        yield


class _Matrices(TorchFunctionMode):
    """Gives `torch.empty`, which all modules allocate their weights with, a dtype for two dimensions or
    more."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and self._dtype is not None and kwargs.get("dtype") is None:
            size = args[0] if args and not isinstance(args[0], int) else args
            if len(size) > 1:
                kwargs = {**kwargs, "dtype": self._dtype}
        return func(*args, **kwargs)


def without_values(module: Module) -> Module:
    """A module built on the meta device, brought to the default device with values still to be filled in.

    Its constructor thus draws nothing from torch's global generator.

    >>> without_values(nn.Linear(3, 4, device="meta")).weight.shape
    torch.Size([4, 3])
    """
    return module.to_empty(device=torch.empty(0).device)  # get_default_device of torch 2.6 misses a `with`


def linear(
    inputs: int, outputs: int, *, bound: float | None = None, bias: bool = True, generator: Source
) -> nn.Linear:
    """A linear map with first values from Uniform(−bound, bound); None is 1/√inputs, as torch has it.

    >>> linear(3, 4, generator=None).weight.shape
    torch.Size([4, 3])
    """
    made = without_values(nn.Linear(inputs, outputs, bias=bias, device="meta"))
    for parameter in made.parameters():
        uniform_(parameter, inputs**-0.5 if bound is None else bound, generator)
    return made


@torch.no_grad()
def uniform_(parameter: Tensor, bound: float, generator: Source = None) -> None:
    """Fill `parameter` in place from Uniform(−bound, bound).

    The values are those of one draw in float32, rounded to the parameter's dtype; on the meta device none are
    drawn.
    """
    _fill(parameter, lambda values: values.uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def normal_(parameter: Tensor, generator: Source = None) -> None:
    """Fill `parameter` in place from N(0, 1), as `uniform_` does."""
    _fill(parameter, lambda values: values.normal_(generator=generator))


def _fill(parameter: Tensor, draw: Callable[[Tensor], Tensor]) -> None:
    """Fill a contiguous tensor slice by slice, with the values of one draw for all."""
    if parameter.is_meta:
        return
    flat = parameter.view(-1)
    for part in slices(len(flat)):
        flat[part] = draw(torch.empty(part.stop - part.start, dtype=torch.float32, device="cpu"))


def slices(count: int) -> Iterator[slice]:
    """Cuts of `count` values into `SLICE` each, none of which is shorter than `_NORMALS_AT_ONCE` but an only
    one: a draw in these pieces gives the bits of one draw.
    """
    start = 0
    while start < count:
        stop = start + SLICE if count - start >= SLICE + _NORMALS_AT_ONCE else count
        yield slice(start, stop)
        start = stop
