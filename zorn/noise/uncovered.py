"""The error message for parameters that no rule covers: it names them, and shows code that helps."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from zorn.checks import MOST_NAMED, some
from zorn.noise.rules.memberwise import obstacle
from zorn.noise.rules.rule import has_own_forward

_HELD = """\
    class Held(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = torch.nn.Parameter(value)

        def forward(self, x):  # x: any tensor with rows in front
            return self.value.expand(len(x), *self.value.shape)

    zorn.register_rule(Held, zorn.noise.MemberwiseRule())"""


@dataclass(frozen=True)
class Uncovered:
    """A parameter that requires a gradient and that no rule covers, with its full name and its module."""

    name: str
    parameter: nn.Parameter
    module: nn.Module

    @property
    def module_name(self) -> str:
        """The module's full name in the model; "" for the model itself."""
        return self.name.rpartition(".")[0]


def explain(uncovered: Sequence[Uncovered]) -> str:
    """The message for these parameters: their names and types, then the ways out, each with code to run.

    Lines of code are indented by four spaces; they expect `torch`, `zorn` and the user's `model`. A way that
    cannot work for one of the modules is not offered for it.

    Example:
        >>> layer = nn.PReLU()
        >>> print(explain([Uncovered("body.slope.weight", layer.weight, layer)]))
        no perturbation rule covers body.slope.weight (in PReLU). Ways out:
        - Run the layer member by member (slow; for a fast rule of your own see help(zorn.noise.Rule)):
            from torch.nn import PReLU
            zorn.register_rule(PReLU, zorn.noise.MemberwiseRule())
        - Freeze what need not be trained:
            model.get_parameter("body.slope.weight").requires_grad_(False)
        - Perturb all weights densely, one member at a time, without rules:
            estimator = zorn.CDRGE(population=64, epsilon=0.01, perturbation=zorn.Dense())
    """
    named = some([f"{one.name} (in {type(one.module).__name__})" for one in uncovered])
    lines = [f"no perturbation rule covers {named}. Ways out:"]
    reasons = {id(one.module): _why_not(one.module) for one in uncovered}
    runnable = {type(one.module): one for one in uncovered if reasons[id(one.module)] is None}
    if runnable:
        lines.append(
            "- Run the layer member by member (slow; for a fast rule of your own see help(zorn.noise.Rule)):"
        )
        lines += [line for one in runnable.values() for line in _registration(one)]
    stuck = [one for one in uncovered if reasons[id(one.module)] is not None]
    if stuck:
        lines.append("- MemberwiseRule, which runs a layer member by member, does not serve all of them:")
        why = [f"  {one.name}: {type(one.module).__name__} {reasons[id(one.module)]}." for one in stuck]
        lines += some(why, "\n").splitlines()
    if any(_is_the_users(one.module) for one in stuck):
        lines.append("  Hold such a parameter of your own in a small module, and read it as self.held(x):")
        lines += _HELD.splitlines()
    lines.append("- Freeze what need not be trained:")
    lines += _freezing(uncovered)
    lines.append("- Perturb all weights densely, one member at a time, without rules:")
    lines.append("    estimator = zorn.CDRGE(population=64, epsilon=0.01, perturbation=zorn.Dense())")
    return "\n".join(lines)


def _freezing(uncovered: Sequence[Uncovered]) -> list[str]:
    """Code that freezes these parameters: by name where they are few, else by the types of their modules."""
    if len(uncovered) <= MOST_NAMED:
        return [f'    model.get_parameter("{one.name}").requires_grad_(False)' for one in uncovered]
    kinds = sorted({type(one.module).__name__ for one in uncovered})
    return [
        "    for module in model.modules():",
        f"        if type(module).__name__ in {kinds}:",
        "            for parameter in module.parameters(recurse=False):",
        "                parameter.requires_grad_(False)",
    ]


def _is_the_users(module: nn.Module) -> bool:
    """True if the module's class is the user's, so that its parameters can be moved elsewhere."""
    lists = isinstance(module, nn.ParameterList | nn.ParameterDict)
    return lists or not type(module).__module__.startswith("torch.")


def _why_not(module: nn.Module) -> str | None:
    if has_own_forward(module):
        return "has a forward that was replaced on the instance, where no rule looks"
    return obstacle(module)


def _registration(one: Uncovered) -> list[str]:
    """Code that registers a `MemberwiseRule` for the type of the parameter's module."""
    kind = type(one.module)
    outer = kind.__qualname__.partition(".")[0]
    register = f"    zorn.register_rule({kind.__qualname__}, zorn.noise.MemberwiseRule())"
    if getattr(nn, kind.__name__, None) is kind:
        return [f"    from torch.nn import {kind.__name__}", register]
    if _find(kind.__module__, kind.__qualname__) is kind:
        return [f"    from {kind.__module__} import {outer}", register]
    path = f'model.get_submodule("{one.module_name}")'  # a class made in a function has no name to import
    return [f"    zorn.register_rule(type({path}), zorn.noise.MemberwiseRule())"]


def _find(module_name: str, qualified_name: str) -> object:
    found: object = sys.modules.get(module_name)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    return found
