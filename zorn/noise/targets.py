"""The perturbed parameters of a model, and the rule of each."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from zorn.checks import some
from zorn.errors import ConfigError, UncoveredParameterError, ZornError
from zorn.noise.draw import stream_of
from zorn.noise.layout import Layout
from zorn.noise.rules.rule import Rule, find_rule


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

    @property
    def row_stream(self) -> int:
        """The stream of a of the noise a bᵀ."""
        return stream_of(self.row_number, 0)

    @property
    def column_stream(self) -> int:
        """The stream of b."""
        return stream_of(self.number, 1)


@dataclass(frozen=True)
class Site:
    """A module that is run under noise: its rule, and its perturbed parameters by their names in it. Under
    noise on activities it can be a cell as a whole, with its `CellRule`."""

    name: str
    module: nn.Module
    rule: Any
    targets: dict[str, StructuredTarget]


def check_materialised(model: nn.Module) -> None:
    """Raise `ConfigError` for a parameter without a shape, of a lazy layer that has not run yet."""
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ConfigError(
            f"{lazy[0]} has no shape yet, since it belongs to a lazy layer that has not run: call the model "
            "once on a batch first"
        )


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
    for target in targets:
        if target.parameter.is_complex():
            raise _complex(target.name)
    if not targets:
        raise UncoveredParameterError(
            f"{type(model).__name__} has no parameter that requires a gradient: nothing to perturb; "
            "unfreeze some with requires_grad_(True)"
        )
    return targets


def _complex(name: str) -> ConfigError:
    return ConfigError(
        f"{name} is complex, and noise is real: hold it as real numbers (torch.view_as_real) and view "
        "them as complex in forward, or freeze it with requires_grad_(False)"
    )


@dataclass(frozen=True)
class Survey:
    """A model's parameters to train, and the rules that cover them."""

    targets: list[StructuredTarget]
    """Each once, in the order of `model.named_parameters()`, without those that are refused. The layout is
    that of a rule, or of the parameter's shape where none covers it, or rules disagree."""
    sites: list[Site]
    without_rule: dict[int, str]
    """By the number of a parameter that no rule covers alone: its name, and why."""
    refused: dict[int, ZornError]
    """Why a parameter gets no noise, by its number."""


def survey(model: nn.Module) -> Survey:
    """Look up the rule of every module with parameters to train; nothing is raised."""
    numbers = {id(parameter): number for number, parameter in enumerate(model.parameters())}
    names = [name for name, _ in model.named_parameters()]
    structured: dict[int, StructuredTarget] = {}
    sites: list[Site] = []
    without: dict[int, str] = {}
    refused: dict[int, ZornError] = {}
    for module_name, module in model.named_modules():
        own = {
            name: p
            for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
            if p.requires_grad
        }
        if not own:
            continue
        rule = find_rule(module)
        try:
            layouts = _layouts(rule, module, own) if rule is not None else {}
        except ZornError as error:
            refused.update((numbers[id(parameter)], error) for parameter in own.values())
            continue
        site_targets: dict[str, StructuredTarget] = {}
        for name, parameter in own.items():
            number = numbers[id(parameter)]
            if parameter.is_complex():
                refused[number] = _complex(names[number])
            if name not in layouts:
                without.setdefault(number, f"{names[number]} (in {type(module).__name__})")
                continue
            layout = layouts[name]
            source = parameter if layout.row_source is None else getattr(module, layout.row_source)
            # a source that is no parameter (a parametrized weight) has no noise to share
            row_number = numbers.get(id(source), number)
            found = StructuredTarget(names[number], number, parameter, layout, row_number)
            earlier = structured.setdefault(number, found)
            if (earlier.layout, earlier.row_number) != (layout, found.row_number):
                without[number] = (
                    f"{names[number]} (shared by modules that would lay its noise out differently)"
                )
            site_targets[name] = earlier
        if rule is not None:
            sites.append(Site(module_name, module, rule, site_targets))
    parameters = list(model.parameters())
    for number in without:
        layout = _layout_of(parameters[number])
        structured[number] = StructuredTarget(names[number], number, parameters[number], layout, number)
    targets = [structured[number] for number in sorted(structured) if number not in refused]
    return Survey(targets, sites, without, refused)


def _layout_of(parameter: nn.Parameter) -> Layout:
    """Without a rule: rank-one over the first dimension and the others, dense for a vector."""
    if parameter.dim() < 2 or parameter.numel() == 0:
        return Layout(rows=parameter.numel())
    return Layout(rows=len(parameter), columns=parameter.numel() // len(parameter))


def _layouts(rule: Rule, module: nn.Module, own: dict[str, nn.Parameter]) -> dict[str, Layout]:
    """A rule's layouts for a module; `ConfigError` where they (perhaps a user's) do not fit the module."""
    found: object = rule.layouts(module)
    kind = type(rule).__name__
    if not isinstance(found, dict) or not all(isinstance(layout, Layout) for layout in found.values()):
        raise ConfigError(
            f"{kind}.layouts must return a dictionary of a zorn.noise.Layout for each parameter of "
            f"{type(module).__name__}, got {type(found).__name__}: see help(zorn.noise.Rule)"
        )
    for name, layout in found.items():
        if name in own and layout.size != own[name].numel():
            raise ConfigError(
                f"{kind}.layouts gives {name} of {type(module).__name__} a layout of {layout.size} elements, "
                f"but it has {own[name].numel()}: blocks × rows × columns must be that many"
            )
        if layout.row_source is not None and not hasattr(module, layout.row_source):
            raise ConfigError(
                f"{kind}.layouts lets {name} take its row factor from {layout.row_source!r}, which "
                f"{type(module).__name__} does not have: name one of {', '.join(own)}"
            )
    return found


def every_target(model: nn.Module) -> tuple[list[StructuredTarget], list[Site] | None]:
    """The targets with their layouts, and the modules to attach to where rules cover all of them, else None.

    Raises:
        UncoveredParameterError: nothing requires a gradient.
        ConfigError: a rule refuses its module, or a parameter is complex.
    """
    trainable_targets(model)
    found = survey(model)
    for error in found.refused.values():
        raise error
    return found.targets, None if found.without_rule else found.sites


def structured_sites(model: nn.Module) -> tuple[list[StructuredTarget], list[Site]]:
    """The same for noise that goes by rules alone.

    Raises:
        UncoveredParameterError: nothing requires a gradient, or no rule covers a parameter that does; all are
            named.
        ConfigError: as of `every_target`.
    """
    targets, sites = every_target(model)
    if sites is None:
        named = some(list(survey(model).without_rule.values()))
        raise UncoveredParameterError(
            f"activity noise goes layer by layer, and no rule covers {named}: use noise on weights, which "
            "runs any model (zorn.CDRGE; --estimator cd-rge), freeze what need not be trained with "
            "requires_grad_(False), or write a rule (help(zorn.noise.Rule))"
        )
    return targets, sites
