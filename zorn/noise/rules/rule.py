"""The registry of rules. A rule runs modules of one type under the noise of many members at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zorn.errors import ConfigError
from zorn.noise.layout import Layout

if TYPE_CHECKING:
    from zorn.noise.activity.site import SiteActivity
    from zorn.noise.weights.member_noise import MemberNoise


class Rule(ABC):
    """Runs one type of module under noise; register an instance with `register_rule`.

    The rows of all signs, members and group sequences lie along the first dimension of the module's inputs.
    `MemberNoise` holds the members' factors and adds their perturbation to an output. `active` and `pullback`
    run the module under activity noise; both have defaults. A layer that need not be fast needs no rule of
    its own: `MemberwiseRule` fits any layer. `zorn/noise/rules/standard.py` has more examples.

    Example: a layer that scales its input, y = x · gain

        >>> import torch, zorn
        >>> class Scale(torch.nn.Module):
        ...     def __init__(self, size):
        ...         super().__init__()
        ...         self.gain = torch.nn.Parameter(torch.ones(size))
        ...     def forward(self, x):
        ...         return x * self.gain
        >>> class ScaleRule(zorn.noise.Rule):
        ...     def layouts(self, module):
        ...         return {"gain": zorn.noise.Layout(rows=module.gain.numel())}
        ...     def perturbed(self, module, noise):
        ...         return {"forward": lambda x: noise.scale(x, module.gain, "gain")}
        >>> zorn.register_rule(Scale, ScaleRule())
    """

    @abstractmethod
    def layouts(self, module: Any) -> dict[str, Layout]:
        """The layout of the noise of each of the module's own parameters, by its name in the module."""

    @abstractmethod
    def perturbed(self, module: Any, noise: MemberNoise) -> dict[str, Callable[..., Any]]:
        """The methods to replace for the length of a `with` block, by name: what each computes with the
        members' noise in it.

        A parameter that is frozen has no noise; the operations of `noise` skip it by themselves.
        """

    def active(self, module: Any, site: SiteActivity) -> dict[str, Callable[..., Any]]:
        """The methods to replace under activity noise, by name: each computes what the module computes and
        passes it through `site.at(output, *inputs)`, inputs being the tensors that `pullback` needs.

        This default fits any module whose `forward` takes and returns one tensor.
        """
        plain = module.forward

        def forward(x: Any, *further: Any, **options: Any) -> Any:
            y = plain(x, *further, **options)
            if further or options or not (isinstance(x, Tensor) and isinstance(y, Tensor)):
                raise ConfigError(
                    f"activity noise: {type(module).__name__} takes or returns more than one tensor: "
                    "write `active` and `pullback` in a rule of its own (help(zorn.noise.Rule)), freeze its "
                    "parameters with requires_grad_(False), or use the structure RankOne"
                )
            return site.at(y.clone(), x)

        return {"forward": forward}

    def pullback(self, module: Any, gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """The gradient of the module's parameters from a gradient at its output, by name.

        It is summed over rows (and time), and linear in `gradient`.

        This default asks autograd for the derivative of this one layer, called with `inputs`. Nothing flows
        to other layers or back in time, and a layer that cannot be differentiated needs a rule with a
        `pullback` of its own.

        Args:
            gradient: of the shape of the output.
            inputs: the tensors that `active` gave to `site.at`. Calls without a time dimension come together,
                their rows one after another.
        """
        names = [name for name, p in module.named_parameters(recurse=False) if p.requires_grad]
        with torch.inference_mode(mode=False), torch.enable_grad():
            y = type(module).forward(module, *(tensor.clone() for tensor in inputs))
            if not y.requires_grad:
                raise ConfigError(
                    f"activity noise: the output of {type(module).__name__} does not depend on its weights "
                    "through autograd: write `pullback` in a rule of its own (help(zorn.noise.Rule)), or "
                    "freeze its parameters with requires_grad_(False)"
                )
            parameters = [getattr(module, name) for name in names]
            found = torch.autograd.grad(y, parameters, gradient.clone().to(y.dtype), materialize_grads=True)
        return dict(zip(names, found, strict=True))


_RULES: dict[type[nn.Module], Rule] = {}


def register_rule(module_type: type[nn.Module], rule: Rule) -> None:
    """Use `rule` for modules of `module_type`, and for its subclasses that keep its `forward`. The last
    registration holds.

    Raises:
        ConfigError: `module_type` is not a subclass of `nn.Module`, or `rule` not a `Rule`.
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise ConfigError(
            f"register_rule: got {module_type!r} as the module type, expected a subclass of torch.nn.Module"
        )
    if not isinstance(rule, Rule):
        raise ConfigError(
            f"register_rule: got {rule!r} as the rule, expected an instance of a subclass of zorn.noise.Rule"
        )
    _RULES[module_type] = rule


class Replaced(partial[Any]):
    """A method of a rule, in place of a module's own for the length of a `with` block."""


def find_rule(module: nn.Module) -> Rule | None:
    """The rule of the module's type, or of the nearest base class whose `forward` it has not overridden (in
    its class or on the instance); None without one."""
    if has_own_forward(module):
        return None
    for base in type(module).__mro__:
        rule = _RULES.get(base)
        if rule is not None:
            return rule if type(module).forward is base.forward else None
    return None


def has_own_forward(module: nn.Module) -> bool:
    """True if this instance has a forward of its own, which a rule for its type would not run."""
    return not isinstance(module.__dict__.get("forward"), Replaced | None)
