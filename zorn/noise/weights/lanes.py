"""A whole model under the noise of members: which rows are whose, and each member on moved weights.

A lane is one member and sign; rows lie as [signs, members, group], so that lane l = s · M + j holds the rows
from l · group on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from zorn.errors import ConfigError
from zorn.noise.weights.member_noise import Factors


class Inputs:
    """The arguments of a call, the rows of each lane by themselves.

    The first tensor tells the number of rows; every tensor with as many in front holds rows, any other value
    is the same for all lanes.

    Args:
        arguments, options: of the call.
        lanes: their number.

    Attributes:
        group: rows of a lane.
        split: the tensors that hold rows, as [lanes, group, …].

    Raises:
        ConfigError: no tensor, or rows that the lanes do not divide.
    """

    def __init__(self, arguments: Any, options: Any, lanes: int) -> None:
        self._leaves, self._spec = tree_flatten((arguments, options))
        tensors = [leaf for leaf in self._leaves if isinstance(leaf, Tensor) and leaf.dim()]
        if not tensors or len(tensors[0]) % lanes:
            got = f"a tensor of shape {tuple(tensors[0].shape)}" if tensors else "no tensor"
            raise ConfigError(
                f"the model was called with {got}; {lanes} members and signs side by side need their rows in "
                f"front, a multiple of {lanes}"
            )
        rows = len(tensors[0])
        self._places = [
            place
            for place, leaf in enumerate(self._leaves)
            if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows
        ]
        self.group = rows // lanes
        self.split = [self._leaves[place].unflatten(0, (lanes, self.group)) for place in self._places]

    def of(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with these tensors, of one lane, in place of those that hold rows."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, self._spec)


class Outputs:
    """The outputs of a call, their tensors by themselves.

    Args:
        returned: by a model, for the rows of one lane.
    """

    def __init__(self, returned: Any) -> None:
        self.leaves, self._spec = tree_flatten(returned)
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def joined(self, tensors: Sequence[Tensor], group: int) -> Any:
        """The same with tensors [lanes, …] of all lanes in place of the lane's.

        Rows come in front again. A number that a lane gave for all of its rows becomes that of each. A tensor
        without rows in front has no meaning for all lanes, and is None.
        """
        found = iter(tensors)
        leaves = [_in_front(next(found), group) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return tree_unflatten(leaves, self._spec)


def _in_front(tensor: Tensor, group: int) -> Tensor | None:
    """[lanes, group, …] to [rows, …]."""
    if tensor.dim() == 1:
        return tensor.repeat_interleave(group)
    return tensor.flatten(0, 1) if tensor.shape[1] == group else None


@dataclass(frozen=True)
class Lanes:
    """The noise of the lanes of one block.

    Args:
        parameters: those with noise, each with its factors.
        signs: that run side by side.
        members: M.
        epsilon: ε.
    """

    parameters: Sequence[tuple[nn.Parameter, Factors]]
    signs: tuple[int, ...]
    members: int
    epsilon: float

    def __len__(self) -> int:
        return len(self.signs) * self.members

    def stacked(self) -> tuple[list[Tensor], list[Tensor]]:
        """s ε a, [lanes, blocks, rows], and b, [lanes, blocks, columns], of every parameter."""
        count = len(self.signs)
        scales = torch.tensor(self.signs, dtype=torch.float64) * self.epsilon
        scales = scales.repeat_interleave(self.members).view(-1, 1, 1)
        rows = [f.rows.repeat(count, 1, 1) * scales.to(f.rows) for _, f in self.parameters]
        return rows, [f.columns.repeat(count, 1, 1) for _, f in self.parameters]

    @contextmanager
    def moved(self, lane: int) -> Iterator[None]:
        """Every parameter at θ + s ε z of one lane, summed at least in float32; on leaving, at θ bit for bit.

        The data is exchanged, not the `Parameter`, to which recurrent layers of torch keep references."""
        sign, member = divmod(lane, self.members)
        scale = self.signs[sign] * self.epsilon
        originals = [(parameter, parameter.data) for parameter, _ in self.parameters]
        with torch.inference_mode(mode=False), torch.no_grad():
            data = [_moved(parameter, factors, member, scale) for parameter, factors in self.parameters]
        try:
            for (parameter, _), moved in zip(originals, data, strict=True):
                parameter.data = moved
            yield
        finally:
            for parameter, original in originals:
                parameter.data = original

    def one_at_a_time(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A model's forward that runs each lane by itself on moved weights: any model, slowly."""

        def run(*arguments: Any, **options: Any) -> Any:
            inputs = Inputs(arguments, options, len(self))
            outputs: list[Outputs] = []
            for lane in range(len(self)):
                own, named = inputs.of([tensor[lane] for tensor in inputs.split])
                with self.moved(lane):
                    outputs.append(Outputs(forward(*own, **named)))
            tensors = zip(*(each.tensors for each in outputs), strict=True)
            return outputs[0].joined([torch.stack(of_lanes) for of_lanes in tensors], inputs.group)

        return run


def _moved(parameter: nn.Parameter, factors: Factors, member: int, scale: float) -> Tensor:
    """θ + scale · a bᵀ of one member, in the parameter's dtype."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    z = factors.rows[member].to(wide).unsqueeze(-1) * factors.columns[member].to(wide).unsqueeze(-2)
    return torch.add(parameter.to(wide), z.reshape(parameter.shape), alpha=scale).to(parameter.dtype)


@contextmanager
def kept_tensors(model: nn.Module) -> Iterator[None]:
    """On leaving, tensors that a forward has put on a module (a state, a weight made from others) are those
    of before: what was computed for members must not outlive them. What it writes in place stays."""
    own = [module for module in model.modules() if not type(module).__module__.startswith("torch.nn.")]
    places = [each for module in own for each in (module.__dict__, module._buffers)]
    before = [{name: value for name, value in place.items() if isinstance(value, Tensor)} for place in places]
    try:
        yield
    finally:
        for place, kept in zip(places, before, strict=True):
            for name in [name for name, value in place.items() if isinstance(value, Tensor)]:
                if name not in kept:
                    del place[name]
            place.update(kept)
