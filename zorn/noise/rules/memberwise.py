"""A rule for layers that have none of their own: run the layer once a member and sign, on moved weights.

The noise of each of the layer's parameters is dense, as in `Dense`; the rest of the model still runs members
side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.rnn import PackedSequence

from zorn.errors import ConfigError
from zorn.noise.layout import Layout
from zorn.noise.rules.rule import Rule
from zorn.noise.weights.member_noise import MemberNoise


@final
class MemberwiseRule(Rule):
    """Runs a layer of any type once for each member and sign, on its own parameters moved to θ + s ε z.

    Slow but right. The layer is called S · M times instead of once (and twice more, to find the dimension of
    the outputs that holds rows). The noise of all members that share a pass is held: members × parameters
    numbers. It suits layers that are small or called seldom. Write a `Rule` where the layer takes much of the
    time: most layers are a product with a matrix and a few vectors, which `MemberNoise` perturbs for all
    members at once.

    What a layer needs:

    - All of its trainable parameters are its own, not those of modules inside it, and only its `forward`
      reads them. Of torch.nn's recurrent layers, those with `batch_first=True`.
    - The first tensor it is called with has rows along its first dimension. Every other tensor that has as
      many entries there (for a state of torch.nn's recurrent layers: along the second) is cut into members
      too; all else is given whole to every member. So a tensor that all rows share must not be as long as
      there are rows: keep it as a buffer of the layer.
    - It returns a tensor or a (nested) tuple, list or dictionary of tensors and None, rows along any
      dimension.
    - It writes no buffer, as a running mean or a count of calls: members would not see the same one.
    - Rows do not mix, as they do in BatchNorm in training mode (estimators evaluate in inference mode).

    Example:
        >>> import torch, zorn
        >>> class Scale(torch.nn.Module):
        ...     def __init__(self, size):
        ...         super().__init__()
        ...         self.gain = torch.nn.Parameter(torch.ones(size))
        ...     def forward(self, x):
        ...         return x * self.gain
        >>> zorn.register_rule(Scale, zorn.noise.MemberwiseRule())
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), Scale(4))
        >>> batch = zorn.Batch(torch.ones(2, 3), torch.ones(2, 4))
        >>> loss = lambda outputs, targets: (outputs - targets).square().mean(1)
        >>> zorn.CDRGE(population=8, epsilon=0.01).estimate(model, batch, loss).forward_passes
        16
    """

    def layouts(self, module: nn.Module) -> dict[str, Layout]:
        """Dense noise on each of the module's own parameters.

        Raises:
            ConfigError: the module is none that can be run so, see `obstacle`.
        """
        reason = obstacle(module)
        if reason is not None:
            raise ConfigError(
                f"MemberwiseRule cannot run {type(module).__name__}, which {reason}: freeze its parameters "
                "with requires_grad_(False), register a rule of your own (help(zorn.noise.Rule)), or use "
                "zorn.Dense()"
            )
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        return {name: Layout(rows=parameter.numel()) for name, parameter in own}

    def perturbed(self, module: nn.Module, noise: MemberNoise) -> dict[str, Callable[..., Any]]:
        """The module's own forward, lane by lane (a lane: the rows of one sign and member)."""
        plain, lanes = module.forward, noise.signs * noise.members
        state_dimension = 1 if isinstance(module, nn.RNNBase) else 0

        def forward(*arguments: Any, **options: Any) -> Any:
            noise.visited = True
            inputs = arguments, options
            if lanes == 1:
                with _moved(module, noise, 0):
                    return plain(*arguments, **options)
            rows = _number_of_rows(inputs, noise)
            group = rows // lanes

            def run(first: int, length: int, copies: int = 1) -> Any:
                arguments, options = _some_rows(inputs, rows, state_dimension, first, length, copies)
                return plain(*arguments, **options)

            buffers = _buffer_states(module)
            dimensions = iter(_row_dimensions(run(0, 1, 2), run(0, 1, 3), type(module).__name__))
            if _buffer_states(module) != buffers:
                raise ConfigError(
                    f"{type(module).__name__} runs member by member and writes a buffer in its forward, so "
                    "that members would not see the same one: keep it from writing in evaluation mode, or "
                    "freeze its parameters with requires_grad_(False)"
                )
            outputs = []
            for lane in range(lanes):
                with _moved(module, noise, lane):
                    outputs.append(run(lane * group, group))
            return _map_tensors(lambda *parts: torch.cat(parts, dim=next(dimensions)), *outputs)

        return {"forward": forward}


def obstacle(module: nn.Module) -> str | None:
    """Why `MemberwiseRule` cannot run this module; None if nothing speaks against it.

    Example:
        >>> obstacle(nn.Bilinear(2, 3, 4)) is None
        True
        >>> obstacle(nn.GRU(2, 3))
        'puts time in front of rows (make it with batch_first=True)'
    """
    inside = [
        name
        for name, child in module.named_children()
        if any(parameter.requires_grad for parameter in child.parameters())
    ]
    if inside:
        return f"holds modules that are perturbed by themselves ({', '.join(inside)})"
    if type(module).forward is nn.Module.forward or isinstance(module, ParametrizationList):
        return "is no layer with a forward of rows (its parameters are read by the module that holds it)"
    if module._forward_pre_hooks:
        return (
            "has a forward pre-hook (weight_norm, spectral_norm, prune?) that reads its parameters before a "
            "member's are in place"
        )
    if isinstance(module, nn.RNNBase) and not module.batch_first:
        return "puts time in front of rows (make it with batch_first=True)"
    return None


@contextmanager
def _moved(module: nn.Module, noise: MemberNoise, lane: int) -> Iterator[None]:
    """The module's parameters at θ + s ε z of a lane. Their data is exchanged, not the Parameter objects, to
    which recurrent layers of torch.nn and others keep references of their own."""
    parameters = {name: module.get_parameter(name) for name in noise.factors}
    originals = [(parameter, parameter.data) for parameter in parameters.values()]
    with torch.inference_mode(mode=False), torch.no_grad():
        moved = [noise.moved(parameter, name, lane) for name, parameter in parameters.items()]
    try:
        for (parameter, _), data in zip(originals, moved, strict=True):
            parameter.data = data
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data


def _buffer_states(module: nn.Module) -> list[tuple[str, int, int]]:
    """The buffers of a module, and how often each was written."""
    return [
        (name, id(buffer), -1 if buffer.is_inference() else buffer._version)
        for name, buffer in module.named_buffers()
    ]


def _number_of_rows(inputs: Any, noise: MemberNoise) -> int:
    """The rows of the first tensor; `ConfigError` where it holds none, or not those of this pass."""
    tensors: list[Tensor] = []
    _map_tensors(tensors.append, inputs)
    if not tensors or tensors[0].dim() == 0:
        raise ConfigError(
            f"module {noise.site!r} runs member by member and was called without rows to tell members by: "
            "give its forward a tensor with rows in front, such as the layer's input, or use the Dense "
            "structure"
        )
    noise.split(tensors[0])
    return len(tensors[0])


def _some_rows(inputs: Any, rows: int, state_dimension: int, first: int, length: int, copies: int) -> Any:
    """The inputs with `length` of the rows from `first` on, `copies` times over."""
    dimension = 0  # of the first tensor; after it, that of states

    def cut(tensor: Tensor) -> Tensor:
        nonlocal dimension
        mine, dimension = dimension, state_dimension
        if tensor.dim() <= mine or tensor.shape[mine] != rows:
            return tensor
        part = tensor.narrow(mine, first, length)
        return part.contiguous() if copies == 1 else torch.cat([part] * copies, mine)

    return _map_tensors(cut, inputs)


def _row_dimensions(two: Any, three: Any, name: str) -> list[int]:
    """Along which dimension each tensor of an output holds rows: the one that grows from 2 to 3 with them.

    Raises:
        ConfigError: an output without one, or one that is no tensor.
    """
    dimensions: list[int] = []

    def compare(small: Tensor, large: Tensor) -> None:
        shapes = list(small.shape), list(large.shape)
        grown = [i for i, sizes in enumerate(zip(*shapes, strict=False)) if sizes == (2, 3)]
        if len(grown) != 1 or small.dim() != large.dim():
            raise ConfigError(
                f"{name} runs member by member, and an output of it has shape {shapes[0]} for 2 rows and "
                f"{shapes[1]} for 3: expected one dimension of rows. Let it return something for each row, "
                "register a rule of your own (help(zorn.noise.Rule)), or use the Dense structure"
            )
        dimensions.append(grown[0])

    def refuse(other: Any) -> Any:
        if other is not None:
            raise ConfigError(
                f"{name} runs member by member and returned a {type(other).__name__}: expected tensors, "
                "None, or tuples, lists or dictionaries of them. Register a rule of your own "
                "(help(zorn.noise.Rule)), or use the Dense structure"
            )

    _map_tensors(compare, two, three, otherwise=refuse)
    return dimensions


def _map_tensors(
    function: Callable[..., Any], tree: Any, *others: Any, otherwise: Callable[[Any], Any] = lambda leaf: leaf
) -> Any:
    """`tree` with each tensor replaced by `function` of it and of the tensors in its place in `others`, in a
    fixed order; what is neither a tensor nor a container goes through `otherwise`."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, PackedSequence):
        raise ConfigError(
            "a PackedSequence cannot be cut into members: run padded sequences, or use the Dense structure"
        )
    if isinstance(tree, dict):
        parts = [(key, tree[key], *(other[key] for other in others)) for key in tree]
        return {key: _map_tensors(function, *trees, otherwise=otherwise) for key, *trees in parts}
    if isinstance(tree, tuple | list):
        items = [
            _map_tensors(function, *trees, otherwise=otherwise) for trees in zip(tree, *others, strict=True)
        ]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return otherwise(tree)
