"""Maps of recurrent cells under a dense direction on a GPU: the direction is made inside the product, so that
no moved copy of their weights exists.

Only maps that a cell declares (`zorn.models.Cell`) and owns alone: what else reads a weight, a module that
shares it or a forward that reads it by itself, needs the moved copy.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zorn.errors import ConfigError
from zorn.kernels import DenseNoise, perturbed_linear
from zorn.kernels.availability import SWITCH, available
from zorn.models import BlockLinear, RecurrentMap
from zorn.models.maps import Drive
from zorn.noise.attach import Replace
from zorn.noise.draw import Draw, stream_of

_WEIGHTS: dict[type[nn.Module], tuple[str, ...]] = {
    RecurrentMap: ("weight_input", "weight_state"),
    BlockLinear: ("weight",),
    nn.Linear: ("weight",),
}


def maps_in_kernels(model: nn.Module) -> list[nn.Module]:
    """The maps that a kernel can run: trained, of one cell, in a dtype and on a device that it serves."""
    if not any(available(device) for device in {p.device for p in model.parameters()}):
        return []
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return [map for map in _maps(model) if _serves(map, uses)]


def _maps(model: nn.Module) -> Iterator[nn.Module]:
    """The maps of cells that declare them, in the class itself, and run as their class says."""
    for cell in model.modules():
        if not {"forward", "drive", "step", "rollout", "parallel"} & cell.__dict__.keys():
            declared = vars(type(cell))
            names = (*declared.get("input_maps", ()), *declared.get("state_maps", ()))
            yield from (cell.get_submodule(name) for name in names)


def _serves(map: nn.Module, uses: Counter[int]) -> bool:
    weights = [getattr(map, name) for name in _WEIGHTS.get(type(map), ())]
    own = list(map.parameters(recurse=False))
    return (
        bool(weights)
        and not {"forward", "drive"} & map.__dict__.keys()
        and all(uses[id(p)] == 1 and p.dtype == weights[0].dtype and p.is_contiguous() for p in own)
        and all(weight.requires_grad for weight in weights)
        and perturbed_linear.serves(weights[0])
    )


def perturb_map(
    map: Any, numbers: dict[int, int], draw: Draw, members: range, sign: int, replace: Replace
) -> None:
    """Put a map of `maps_in_kernels` under s ε z of one member for the length of a block; `numbers` are those
    of the model's trained parameters, by their `id`."""

    def linear(x: Tensor, weight: nn.Parameter, bias: nn.Parameter | None) -> Tensor:
        if torch.is_grad_enabled():
            raise ConfigError(
                "a dense direction made inside a GPU kernel has no derivative, and gradients are recorded: "
                f"call the model under torch.no_grad(), or set {SWITCH}=0 to have a moved copy of the weights"
            )
        noise = DenseNoise(
            seed=draw.seed,
            step=draw.step,
            members=members,
            stream=stream_of(numbers[id(weight)], 0),
            bias_stream=None if id(bias) not in numbers else stream_of(numbers[id(bias)], 0),
            epsilon=draw.epsilon,
            signs=(sign,),
        )
        own = None if bias is None else bias.detach()
        y = perturbed_linear(x.reshape(-1, x.shape[-1]), weight.detach(), own, noise)
        return y.view(*x.shape[:-1], -1)

    replace(map, _methods(map, linear))


def _methods(
    map: Any, linear: Callable[[Tensor, nn.Parameter, nn.Parameter | None], Tensor]
) -> dict[str, Callable[..., Any]]:
    """The methods of a map, by name, with its products made by `linear`."""
    if not isinstance(map, RecurrentMap):
        return {"forward": lambda x: linear(x, map.weight, map.bias)}

    def drive(x: Tensor) -> Drive:
        return (linear(x, map.weight_input, map.bias),)

    def forward(drive_t: Drive, h: Tensor) -> Tensor:
        (of_input,) = drive_t
        return linear(h, map.weight_state, None).add_(of_input)

    return {"drive": drive, "forward": forward}
