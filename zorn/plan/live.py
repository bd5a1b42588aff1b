"""Bytes of the tensors that live at once, counted while code runs: on tensors that hold numbers, or on the
device "meta", whose tensors have sizes only and take no memory.

Code that asks a tensor without numbers for some is given some, so that whole training steps run on sizes
alone: losses are finite and differ from each other, integers are 1, and conditions on floats are true.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Iterator
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
        peaks: the most that were alive at once in each part of the code: by `part`, and by whether torch
            records for a backward pass, or infers.
        part: of the code that runs; whoever knows sets it.

    Example:
        >>> with LiveBytes() as live:
        ...     sum_ = (torch.zeros(100) + torch.zeros(100)).sum()
        >>> live.now, live.peak
        (4, 1200)
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch asks its compiler at every operation

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peaks: dict[Hashable, int] = {}
        self.part: Hashable = None
        self._alive: dict[int, weakref.ref[Any]] = {}

    @property
    def peak(self) -> int:
        """The most bytes that were alive at once."""
        return max(self.peaks.values(), default=0)

    def restart(self) -> None:
        """Forget the peaks, but for what is alive now."""
        self.peaks = {self.part: self.now}

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive[key] = weakref.ref(storage, lambda _: self._freed(key, size))
        self.now += size
        part = self.part, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        if self.now > self.peaks.get(part, 0):
            self.peaks[part] = self.now

    def _freed(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = _operation(func)
        if operation.composite:  # inference mode shows it as one, and the others that it is made of allocate
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = operation(args, kwargs)
        for result in (made,) if isinstance(made, Tensor) else _tensors((made,)):
            if not operation.views:
                self._count(result)
            if result.is_meta and not result.dtype.is_floating_point:
                _remember(operation, result, (*args, *kwargs.values()))
        return made


class _Operation:
    """One of torch's operations. Of sizes alone, those of its results are kept by those of its arguments:
    torch takes several times as long to find them."""

    def __init__(self, func: Any) -> None:
        self.func = func
        returns = [each.alias_info for each in func._schema.returns]
        self.views = any(alias is not None and not alias.is_write for alias in returns)
        self.pointwise = torch.Tag.pointwise in func.tags
        self.composite = torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        )
        self._answer = _ANSWERS.get(func)
        self._known: dict[Any, Any] = {}

    def __call__(self, args: Any, kwargs: Any) -> Any:
        if self.views:
            return self.func(*args, **kwargs)
        key = _sizes(args), _sizes(tuple(kwargs.items())) if kwargs else ()
        known = self._known.get(key)
        if known is _IN_PLACE:
            return kwargs["out"] if "out" in kwargs else args[0]
        if known is not None:
            return torch.empty_strided(known[0], known[1], dtype=known[2], device=_META)
        if not any(tensor.is_meta for tensor in _tensors((args, *kwargs.values()))):
            return self.func(*args, **kwargs)
        if self._answer is not None:
            return self._answer(self.func, *args, **kwargs)
        target = kwargs.get("out", args[0] if args else None)
        size = target.untyped_storage().nbytes() if isinstance(target, Tensor) else 0
        made = self.func(*args, **kwargs)
        if isinstance(made, Tensor) and made.is_meta:
            if made is not target:
                self._known[key] = made.shape, made.stride(), made.dtype
            elif made.untyped_storage().nbytes() == size:
                self._known[key] = _IN_PLACE
        return made


_META = torch.device("meta")

_IN_PLACE = object()
"""The result is the first argument, or the one called out, and its size is what it was."""

_operation = functools.cache(_Operation)


def _remember(operation: _Operation, made: Tensor, args: Any) -> None:
    """The one integer that a tensor holds everywhere: what a condition says of those that it is asked about,
    true where it is asked about floats; of sums the count; else that of the first argument."""
    first = next(_tensors(args), made)
    value = getattr(first, "_integer", 1)
    if made.dtype == torch.bool and operation.pointwise:
        floats = any(tensor.is_floating_point() for tensor in _tensors(args))
        value = 1 if floats else int(operation.func(*map(_one, args)))
    elif operation.func in (aten.sum.default, aten.sum.dim_IntList):
        value = value * first.numel() // max(1, made.numel())
    if value != 1:
        made._integer = value  # type: ignore[attr-defined]


def _one(value: Any) -> Any:
    """The one integer of a tensor, as a tensor of its own; another value as it is."""
    if isinstance(value, Tensor) and value.is_meta:
        return torch.tensor(getattr(value, "_integer", 1)).to(value.dtype)
    return value


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
