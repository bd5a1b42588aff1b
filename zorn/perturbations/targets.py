"""Which parameters of a model are perturbed, and by which rule."""

from dataclasses import dataclass

from torch import nn

from zorn.errors import UncoveredParameterError
from zorn.perturbations.layout import Layout
from zorn.perturbations.rules import Rule, find_rule


@dataclass(frozen=True)
class Target:
    """One perturbed parameter. Tied parameters are one target, with one noise."""

    name: str
    number: int
    """Place among `model.named_parameters()`, frozen ones counted: freezing one leaves the rest as they
    were."""
    parameter: nn.Parameter


@dataclass(frozen=True)
class StructuredTarget(Target):
    """A perturbed parameter with the layout of its noise, and the number of the parameter that lends its row
    factor."""

    layout: Layout
    row_number: int


@dataclass(frozen=True)
class Site:
    """A module that is run under noise: its rule, and its own perturbed parameters by their names in it."""

    name: str
    module: nn.Module
    rule: Rule
    targets: dict[str, StructuredTarget]


def trainable_targets(model: nn.Module) -> list[Target]:
    """Every parameter that requires a gradient, each once, in the order of `model.named_parameters()`.

    Raises:
        UncoveredParameterError: nothing requires a gradient.
    """
    targets = [
        Target(name, number, p)
        for number, (name, p) in enumerate(model.named_parameters())
        if p.requires_grad
    ]
    if not targets:
        raise UncoveredParameterError(
            f"{type(model).__name__} has no parameter that requires a gradient: nothing to perturb; "
            "unfreeze some with requires_grad_(True)"
        )
    return targets


def structured_sites(model: nn.Module) -> tuple[list[StructuredTarget], list[Site]]:
    """The targets with their layouts, and the modules to attach to.

    Raises:
        UncoveredParameterError: a parameter requires a gradient and no rule covers it (all are named), or two
        modules that share a
            parameter disagree on its layout.
    """
    targets = {id(target.parameter): target for target in trainable_targets(model)}
    numbers = {id(parameter): number for number, parameter in enumerate(model.parameters())}
    structured: dict[int, StructuredTarget] = {}
    sites: list[Site] = []
    uncovered: list[str] = []
    for module_name, module in model.named_modules():
        own = {
            name: p
            for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
            if p.requires_grad
        }
        if not own:
            continue
        rule = find_rule(module)
        layouts = rule.layouts(module) if rule is not None else {}
        site_targets: dict[str, StructuredTarget] = {}
        for name, parameter in own.items():
            if name not in layouts:
                uncovered.append(f"{module_name}.{name}".lstrip(".") + f" (in {type(module).__name__})")
                continue
            layout, target = layouts[name], targets[id(parameter)]
            assert layout.size == parameter.numel(), (
                f"{target.name}: a layout of {layout.size} for {parameter.numel()} elements"
            )
            source = parameter if layout.row_source is None else getattr(module, layout.row_source)
            # a source that is no parameter (a parametrized weight) has no noise to share
            row_number = numbers.get(id(source), target.number)
            found = StructuredTarget(target.name, target.number, parameter, layout, row_number)
            earlier = structured.setdefault(id(parameter), found)
            if (earlier.layout, earlier.row_number) != (layout, found.row_number):
                raise UncoveredParameterError(
                    f"{target.name} is shared by modules whose rules lay out its noise differently: "
                    f"{earlier.layout} "
                    f"with the row factor of parameter {earlier.row_number} and, in {module_name}, "
                    f"{layout} with that "
                    f"of parameter {found.row_number}: freeze it with requires_grad_(False), unshare it, "
                    "or use the "
                    "Dense structure"
                )
            site_targets[name] = earlier
        if rule is not None:
            sites.append(Site(module_name, module, rule, site_targets))
    if uncovered:
        raise UncoveredParameterError(
            f"no perturbation rule covers {', '.join(uncovered)}: register a rule for the module's type with "
            "zorn.register_rule(ModuleType, rule), freeze the parameter with requires_grad_(False), "
            "or use the Dense structure, which needs no rules"
        )
    return [structured[id(target.parameter)] for target in targets.values()], sites
