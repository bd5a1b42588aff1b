"""Noise where a parameter is read: any model, its members side by side as an axis of `torch.vmap`.

Inside, the model sees the rows of one member in whatever layout it likes, and members cannot mix. A mode around
the call looks at the arguments of each operation of torch. `F.linear(x, W)` becomes F.linear(x, W) + s ε (x·b) a,
so that the weights are read once for all members; matrix products and embeddings likewise. Any other operation
gets θ + s ε z in place of a parameter, made for each member: little work for gains, filters and other small
tensors. It makes no difference which module owns a parameter, how often it is read, or whether it is tied.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from zorn.noise.weights.member_noise import Factors
from zorn.noise.weights.recurrent_forms import STEPS, run_cell, run_layers

Reads = dict[int, tuple[Tensor, Tensor]]
"""By the id of a parameter: a [blocks, rows] times s ε, and b [blocks, columns], of one lane."""


class NoisyReads(TorchFunctionMode):
    """Every operation that reads one of the parameters computes with θ + s ε a bᵀ.

    Args:
        reads: the noise of this lane.
    """

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not (self._noisy(args) or self._noisy(tuple(kwargs.values()))):
            return func(*args, **kwargs)
        form = _FORMS.get(func)
        if form is not None:
            found = form(self, *args, **kwargs)
            if found is not None:
                return found
        if getattr(func, "__name__", "") in _METADATA:
            return func(*args, **kwargs)
        if func.__class__ is FunctionType and func.__module__.startswith("torch.nn"):
            with self:  # a function written in Python: its own operations are looked at instead
                return _body_of(func)(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__":
            plain = func(*args, **kwargs)
            if not isinstance(plain, Tensor):
                return plain
        args, kwargs = tree_map(self.moved, (args, kwargs))
        return func(*args, **kwargs)

    def _noisy(self, values: tuple[Any, ...]) -> bool:
        """True if some value, or an item of a list or tuple, is a parameter with noise."""
        for value in values:
            if isinstance(value, Tensor):
                if id(value) in self.reads:
                    return True
            elif isinstance(value, tuple | list) and self._noisy(tuple(value)):
                return True
        return False

    def moved(self, value: Any) -> Any:
        """θ + s ε z of a parameter with noise; anything else as it is."""
        if not isinstance(value, Tensor) or id(value) not in self.reads:
            return value
        a, b = self.reads[id(value)]
        return value + (a.unsqueeze(-1) * b.unsqueeze(-2)).reshape(value.shape)


def _linear(reads: NoisyReads, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """W x + b."""
    if id(input) in reads.reads:
        return None
    y = F.linear(input, weight, reads.moved(bias))
    if id(weight) not in reads.reads or weight.dim() != 2:
        return y if id(weight) not in reads.reads else None
    a, b = reads.reads[id(weight)]
    return y + (input @ b[0]).unsqueeze(-1) * a[0]


def _matmul(reads: NoisyReads, left: Tensor, right: Tensor) -> Tensor | None:
    """x W, or W x."""
    if id(left) in reads.reads and id(right) in reads.reads:
        return None
    if id(right) in reads.reads:
        if right.dim() != 2:
            return None
        a, b = reads.reads[id(right)]
        return left @ right + (left @ a[0]).unsqueeze(-1) * b[0]
    if left.dim() != 2 or right.dim() > 2:
        return None
    a, b = reads.reads[id(left)]
    scores = b[0] @ right
    return left @ right + (a[0] * scores if right.dim() == 1 else a[0].unsqueeze(-1) * scores)


def _addmm(
    reads: NoisyReads, bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor | None:
    """β b + α x W."""
    product = _matmul(reads, left, right) if reads._noisy((left, right)) else left @ right
    return None if product is None else beta * reads.moved(bias) + alpha * product


def _embedding(
    reads: NoisyReads, input: Tensor, weight: Tensor, padding_idx: int | None = None, *further: Any, **options: Any
) -> Tensor | None:
    """W[i]."""
    if weight.dim() != 2:
        return None
    a, b = reads.reads[id(weight)]
    return F.embedding(input, weight, padding_idx, *further, **options) + a[0][input].unsqueeze(-1) * b[0]


def _recurrent(func: Any, reads: NoisyReads, *args: Any, **options: Any) -> Any:
    """A recurrent layer over padded sequences, or one step of a cell; None for packed sequences."""
    if func.__name__.endswith("_cell"):
        return run_cell(func, partial(_affine, reads), *args, **options)
    packed = not isinstance(args[3], bool)
    return None if packed else run_layers(func, partial(_affine, reads), *args, **options)


def _affine(reads: NoisyReads, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b, whether they have noise or not."""
    found = _linear(reads, x, weight, bias)
    return F.linear(x, reads.moved(weight), reads.moved(bias)) if found is None else found


_FORMS: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.Tensor.mm: _matmul,
    torch.addmm: _addmm,
    F.embedding: _embedding,
    **{func: partial(_recurrent, func) for func in STEPS},
}
"""Operations that take the noise as a term of their own; None from one of them: it does not serve this call."""

_METADATA = frozenset("size dim stride numel element_size is_floating_point is_complex data_ptr __len__".split())


@cache
def _body_of(func: FunctionType) -> Callable[..., Any]:
    """A function of torch written in Python, without the look for modes at its head."""
    never = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), lambda *_: False
    )
    found = FunctionType(func.__code__, func.__globals__ | never, func.__name__, func.__defaults__, func.__closure__)
    found.__kwdefaults__ = func.__kwdefaults__
    return found


def run_side_by_side(
    forward: Callable[..., Any],
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    factors: dict[int, Factors],
    scales: Tensor,
    members: int,
    group: int | None,
) -> Any:
    """A model on rows [signs, members, group], each lane under its own noise.

    Args:
        forward: the model's.
        inputs: its arguments; tensors whose first dimension is that of the first one hold rows.
        factors: of each parameter, by its id.
        scales: s ε of each sign.
        members: M.
        group: g, None: as the rows give it.
    """
    lanes = len(scales) * members
    leaves, spec = tree_flatten(inputs)
    rows = next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim())
    group = rows // lanes
    split = [
        leaf.unflatten(0, (lanes, group)) if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows else leaf
        for leaf in leaves
    ]
    dims = [0 if mine is not leaf else None for mine, leaf in zip(split, leaves, strict=True)]
    signed = scales.repeat_interleave(members)
    numbers = list(factors)
    a = [(factor.rows.repeat(len(scales), 1, 1) * signed.view(-1, 1, 1).to(factor.rows.dtype)) for factor in factors.values()]
    b = [factor.columns.repeat(len(scales), 1, 1) for factor in factors.values()]
    tensors = [index for index, leaf in enumerate(split) if isinstance(leaf, Tensor)]
    outside: list[Any] = []

    def lane(a: list[Tensor], b: list[Tensor], *own: Tensor) -> tuple[Tensor, ...]:
        all_leaves = list(split)
        for index, tensor in zip(tensors, own, strict=True):
            all_leaves[index] = tensor
        arguments, options = tree_unflatten(all_leaves, spec)
        with NoisyReads(dict(zip(numbers, zip(a, b, strict=True), strict=True))):
            outputs = forward(*arguments, **options)
        found, found_spec = tree_flatten(outputs)
        outside[:] = [found_spec, [None if isinstance(leaf, Tensor) else leaf for leaf in found]]
        return tuple(leaf for leaf in found if isinstance(leaf, Tensor))

    own = [split[index] for index in tensors]
    results = torch.vmap(lane, in_dims=(0, 0, *(dims[index] for index in tensors)), randomness="different")(a, b, *own)
    found_spec, others = outside
    it = iter(results)
    merged = [
        leaf if leaf is not None else _rows_of(next(it), lanes, group) for leaf in others
    ]
    return tree_unflatten(merged, found_spec)


def _rows_of(output: Tensor, lanes: int, group: int) -> Tensor:
    """An output [lanes, group, …], or [lanes] where each lane gave one number, with its rows in front."""
    if output.dim() == 1:
        return output.repeat_interleave(group)
    return output.flatten(0, 1)
