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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch loads its compiler, for seconds, and asks it at every operation

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

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
        key = (func, _sizes(args), _sizes(tuple(kwargs.items()))) if kwargs else (func, _sizes(args))
        known = _KNOWN.get(key)
        if known is _IN_PLACE:
            return kwargs["out"] if "out" in kwargs else args[0]
        if known is not None:
            made = torch.empty_strided(known[0], known[1], dtype=known[2], device=_META)
        elif _composite(func) and (made := self._decomposed(func, args, kwargs)) is not NotImplemented:
            return made
        else:
            made = self._done(key, func, args, kwargs)
        for result in (made,) if isinstance(made, Tensor) else _tensors((made,)):
            self._count(result)
            if result.is_meta and not result.dtype.is_floating_point:
                _remember(func, result, next(_tensors((args, *kwargs.values())), result))
        return made

    def _decomposed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation of several others, which inference mode shows as one."""
        with self:
            return func.decompose(*args, **kwargs)

    def _done(self, key: Any, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation. Of sizes alone, the sizes of its result are kept: torch takes a hundred
        times as long to find them."""
        if not any(tensor.is_meta for tensor in _tensors((args, *kwargs.values()))):
            return func(*args, **kwargs)
        if func in _ANSWERS:
            return _ANSWERS[func](func, *args, **kwargs)
        target = kwargs.get("out", args[0] if args else None)
        size = target.untyped_storage().nbytes() if isinstance(target, Tensor) else 0
        made = func(*args, **kwargs)
        if isinstance(target, Tensor) and made is target:
            if made.untyped_storage().nbytes() == size:
                _KNOWN[key] = _IN_PLACE
        elif (
            isinstance(made, Tensor) and made.is_meta and not any(r.alias_info for r in func._schema.returns)
        ):
            _KNOWN[key] = made.shape, made.stride(), made.dtype
        return made


_META = torch.device("meta")

_IN_PLACE = object()
"""The result is the first argument, or the one called out, and its size is what it was."""

_KNOWN: dict[Any, Any] = {}
"""Operation and sizes -> the sizes of what it makes."""


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


def _sizes(values: Any) -> tuple[Any, ...]:
    """Values that a dictionary can have as a key, with the sizes of tensors in their place."""
    return tuple(
        [
            (value.shape, value.stride(), value.dtype, value.is_meta)
            if isinstance(value, Tensor)
            else _sizes(value)
            if isinstance(value, (tuple, list))
            else (type(value), value)
            for value in values
        ]
    )


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
