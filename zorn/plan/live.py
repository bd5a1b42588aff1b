"""Bytes of the tensors that live at once, counted while code runs: on tensors that hold numbers, or on the
device "meta", whose tensors have sizes only and take no memory.

Code that asks a tensor without numbers for some is given some, so that whole training steps run on sizes
alone: losses are finite and differ from each other, masks are true, integers are 1.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """Counts the storages of tensors that are made while it is entered, from when each is made until nothing
    refers to it any more; what autograd saves lives, too. Memory that a kernel takes for itself is not seen.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at once.

    Example:
        >>> with LiveBytes() as live:
        ...     sum_ = (torch.zeros(100) + torch.zeros(100)).sum()
        >>> live.now, live.peak
        (4, 1200)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._known: dict[Any, Any] = {}

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _, key=key, size=size: self._freed(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _composite(func):
            with self:  # of several operations, which inference mode shows as one
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        tensors = list(_tensors((args, *kwargs.values())))
        if not any(tensor.is_meta for tensor in tensors):
            made = func(*args, **kwargs)
        elif func in _ANSWERS:
            made = _ANSWERS[func](func, *args, **kwargs)
        else:
            made = self._again(func, args, kwargs)
        for result in _tensors((made,)):
            self._count(result)
            if result.is_meta and not result.is_floating_point():
                _remember(func, result, tensors[0] if tensors else result)
        return made

    def _again(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation; for sizes seen before, one of the same sizes without running it.

        torch takes a hundred times as long to find the sizes of a result.
        """
        key = func, _sizes(args), _sizes(tuple(kwargs.items()))
        known = self._known.get(key)
        if known is not None:
            if known is _IN_PLACE:
                return args[0]
            return torch.empty_strided(*known[:2], dtype=known[2], device="meta")
        made = func(*args, **kwargs)
        if args and made is args[0] and func is not aten.resize_.default:
            self._known[key] = _IN_PLACE
        elif (
            isinstance(made, Tensor) and made.is_meta and not any(r.alias_info for r in func._schema.returns)
        ):
            self._known[key] = made.shape, made.stride(), made.dtype
        return made


_IN_PLACE = object()


def _remember(func: Any, made: Any, first: Tensor) -> None:
    """The one integer that a tensor holds everywhere: of a mask 1, of its opposite 0, of sums their count."""
    value = getattr(first, "_integer", 1)
    if func in (aten.bitwise_not.default, aten.logical_not.default):
        made._integer = 1 - value
    elif func in (aten.sum.default, aten.sum.dim_IntList):
        made._integer = value * first.numel() // max(1, made.numel())
    elif value != 1:
        made._integer = value


@functools.cache
def _composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _sizes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device.type
    if isinstance(value, (tuple, list)):
        return tuple(map(_sizes, value))
    return type(value), value


def _numbers(like: Tensor) -> Tensor:
    """On the CPU, in place of those that a tensor does not have."""
    if not like.is_floating_point():
        return torch.full(like.shape, getattr(like, "_integer", 1), dtype=like.dtype)
    return torch.linspace(1.0, 2.0, like.numel()).to(like.dtype).reshape(like.shape)


def _moved(func: Any, tensor: Tensor, **options: Any) -> Tensor:
    device = options.get("device")
    on_host = device is not None and torch.device(device).type != "meta"
    return _numbers(tensor).to(options.get("dtype") or tensor.dtype) if on_host else func(tensor, **options)


def _copied(func: Any, target: Tensor, source: Tensor, *rest: Any) -> Tensor:
    return target if target.is_meta else func(target, _numbers(source), *rest)


def _chosen(func: Any, tensor: Tensor, places: list[Tensor | None], *rest: Any) -> Tensor:
    masks = [
        _numbers(place) if place is not None and place.dtype == torch.bool else place for place in places
    ]
    return func(tensor, masks, *rest)


def _repeated(func: Any, repeats: Tensor, **options: Any) -> Tensor:
    return func(repeats, **{"output_size": repeats.numel(), **options})


_ANSWERS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: lambda func, tensor: _numbers(tensor).tolist(),
    aten._to_copy.default: _moved,
    aten.copy_.default: _copied,
    aten.index.Tensor: _chosen,
    aten.index_put_.default: lambda func, tensor, *rest: tensor,
    aten.equal.default: lambda func, *tensors: True,
    aten.repeat_interleave.Tensor: _repeated,
}
