"""Noise where a parameter is read: any model, its members side by side as an axis of `torch.vmap`.

Inside, the model sees the rows of one member in whatever layout it likes, and members cannot mix. A mode
around the call looks at the arguments of each operation of torch. `F.linear(x, W)` becomes F.linear(x, W) + s
ε (x·b) a, so that the weights are read once for all members; matrix products and embeddings likewise. Any
other operation gets θ + s ε z in place of a parameter, made for each member: little work for gains, filters
and other small tensors. It makes no difference which module owns a parameter, how often it is read, or
whether it is tied."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from zorn.noise.weights.lanes import Inputs, Lanes, Outputs
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
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
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
        named = {name: tree_map(self.moved, value) for name, value in kwargs.items()}
        return func(*tree_map(self.moved, args), **named)

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

    def matrix(self, value: Any) -> tuple[Tensor, Tensor] | None:
        """s ε a and b of a matrix whose noise is the one of its rows and columns; None for anything else."""
        a, b = self.reads.get(id(value), (None, None))
        if a is None or b is None or tuple(value.shape) != (a.shape[-1], b.shape[-1]) or len(a) != 1:
            return None
        return a[0], b[0]


def _linear(reads: NoisyReads, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """W x + b."""
    factors = reads.matrix(weight)
    if id(input) in reads.reads or (factors is None and id(weight) in reads.reads):
        return None
    y = F.linear(input, weight, reads.moved(bias))
    return y if factors is None else y + (input @ factors[1]).unsqueeze(-1) * factors[0]


def _matmul(reads: NoisyReads, left: Tensor, right: Tensor) -> Tensor | None:
    """x W, or W x."""
    if id(left) not in reads.reads:
        factors = reads.matrix(right)
        return factors and left @ right + (left @ factors[0]).unsqueeze(-1) * factors[1]
    factors = reads.matrix(left)
    if factors is None or id(right) in reads.reads or right.dim() > 2:
        return None
    scores = factors[1] @ right
    return left @ right + (factors[0] * scores if right.dim() == 1 else factors[0].unsqueeze(-1) * scores)


def _addmm(
    reads: NoisyReads, bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor | None:
    """β b + α x W."""
    noisy = id(left) in reads.reads or id(right) in reads.reads
    product = _matmul(reads, left, right) if noisy else left @ right
    return None if product is None else beta * reads.moved(bias) + alpha * product


def _embedding(
    reads: NoisyReads, input: Tensor, weight: Tensor, *further: Any, **options: Any
) -> Tensor | None:
    """W[i]."""
    factors = reads.matrix(weight)
    if factors is None:
        return None
    return F.embedding(input, weight, *further, **options) + factors[0][input].unsqueeze(-1) * factors[1]


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
"""Operations that take the noise as a term of their own; None from one of them: it does not serve this
call."""

_METADATA = {"size", "dim", "stride", "numel", "element_size", "is_floating_point", "is_complex", "__len__"}
"""Methods of a tensor that do not read its values."""


@cache
def _body_of(func: FunctionType) -> Callable[..., Any]:
    """A function of torch written in Python, without the look for modes at its head."""
    never = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), lambda *_: False
    )
    found = FunctionType(
        func.__code__, func.__globals__ | never, func.__name__, func.__defaults__, func.__closure__
    )
    found.__kwdefaults__ = func.__kwdefaults__
    return found


def side_by_side(forward: Callable[..., Any], lanes: Lanes) -> Callable[..., Any]:
    """A model's forward on rows [signs, members, group], each member and sign under its own noise."""
    numbers = [id(parameter) for parameter, _ in lanes.parameters]

    def run(*arguments: Any, **options: Any) -> Any:
        inputs = Inputs(arguments, options, len(lanes))
        last: list[Outputs] = []

        def lane(a: list[Tensor], b: list[Tensor], own: list[Tensor]) -> list[Tensor]:
            mine, named = inputs.of(own)
            with NoisyReads(dict(zip(numbers, zip(a, b, strict=True), strict=True))):
                last[:] = [Outputs(forward(*mine, **named))]
            return last[0].tensors

        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # others know no axis of members
            warnings.filterwarnings("ignore", "There is a performance drop")
            found = torch.vmap(lane, randomness="different")(*lanes.stacked(), inputs.split)
        return last[0].joined(found, inputs.group)

    return run
