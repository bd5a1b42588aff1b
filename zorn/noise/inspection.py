"""A report of the noise that each parameter of a model would get, made without running the model."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from zorn.errors import ConfigError
from zorn.noise.rules.memberwise import MemberwiseRule
from zorn.noise.targets import StructuredTarget, check_materialised, survey
from zorn.noise.weights.dense import Dense
from zorn.noise.weights.rank_one import RankOne
from zorn.noise.weights.structure import Perturbation


@dataclass(frozen=True, kw_only=True)
class ParameterReport:
    """One parameter of a model, under one of its names.

    Args:
        name: in the model.
        module_type: name of the class that holds it.
        shape: its dimensions.
        count: its elements. To count a model, add those with `tied_to` None.
        dtype: of the weights.
        status: "perturbed"; "frozen" (`requires_grad` is off); or "refused", where an estimate would raise.
        how: the structure of its noise, such as "rank-one, 64 × 32", and "by operation" where
            some parameter of the model has no rule, so that all are served where they are read; the reason
            for a refused one; "" for a frozen one.
        tied_to: the name under which the same parameter came before; None for the first.
        noise_numbers: random numbers drawn for it for each member: rows and columns of factors, every element
            of dense noise. A row factor that several parameters share counts once, with its owner where that
            is perturbed. 0 where tied.
    """

    name: str
    module_type: str
    shape: tuple[int, ...]
    count: int
    dtype: torch.dtype
    status: Literal["perturbed", "frozen", "refused"]
    how: str
    tied_to: str | None
    noise_numbers: int


def inspect_model(model: Any, perturbation: Perturbation | None = None) -> list[ParameterReport]:
    """Report the noise that each parameter would get from this perturbation, in the order of the modules.

    Nothing is run, drawn or changed.

    Args:
        model: any `nn.Module`.
        perturbation: `RankOne()` (the default) or `Dense()`.

    Raises:
        ConfigError: another kind of perturbation, no module, or one with a lazy layer that has not run yet.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.PReLU())
        >>> for report in inspect_model(model):
        ...     print(f"{report.name:<9} {report.status:<10} {report.noise_numbers:>2} {report.how}")
        0.weight  perturbed  96 rank-one, 64 × 32, by operation
        0.bias    perturbed   1 column of 0.weight, by operation
        1.weight  perturbed   1 dense vector, by operation
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"inspect_model: got a value of type {type(model).__name__}, expected a torch.nn.Module: give "
            "the model itself"
        )
    check_materialised(model)
    plan = _plan(model, RankOne() if perturbation is None else perturbation)
    reports: list[ParameterReport] = []
    first_names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied_to = first_names.setdefault(id(parameter), name)
        status, how, numbers = plan[id(parameter)]
        reports.append(
            ParameterReport(
                name=name,
                module_type=type(model.get_submodule(name.rpartition(".")[0])).__name__,
                shape=tuple(parameter.shape),
                count=parameter.numel(),
                dtype=parameter.dtype,
                status=status,
                how=how,
                tied_to=None if tied_to == name else tied_to,
                noise_numbers=numbers if tied_to == name else 0,
            )
        )
    return reports


_Fate = tuple[Literal["perturbed", "frozen", "refused"], str, int]


def _plan(model: nn.Module, perturbation: Perturbation) -> dict[int, _Fate]:
    """Status, structure and drawn numbers of every parameter, by its `id`."""
    if isinstance(perturbation, Dense):
        return {
            id(p): ("perturbed", "dense", p.numel()) if p.requires_grad else ("frozen", "", 0)
            for p in model.parameters()
        }
    if not isinstance(perturbation, RankOne):
        raise ConfigError(
            f"inspect_model: got {type(perturbation).__name__} as the perturbation, expected RankOne() or "
            "Dense()"
        )
    found, names = survey(model), [name for name, _ in model.named_parameters()]
    plan: dict[int, _Fate] = {id(parameter): ("frozen", "", 0) for parameter in model.parameters()}
    memberwise = {
        target.number
        for site in found.sites
        if isinstance(site.rule, MemberwiseRule)
        for target in site.targets.values()
    }
    by_operation = ", by operation" if found.without_rule else ""
    for target, numbers in zip(found.targets, _drawn(found.targets), strict=True):
        how = "member by member" if target.number in memberwise else _structure(target, names)
        plan[id(target.parameter)] = ("perturbed", how + by_operation, numbers)
    by_number = list(model.parameters())
    for number, error in found.refused.items():
        plan[id(by_number[number])] = ("refused", str(error), 0)
    return plan


def _structure(target: StructuredTarget, names: list[str]) -> str:
    layout = target.layout
    borrowed = target.row_number != target.number
    if layout.columns == 1 and layout.row_source is not None and borrowed:
        return f"column of {names[target.row_number]}"
    if layout.columns == 1 and layout.blocks == 1:
        return "dense vector"
    blocks = "" if layout.blocks == 1 else f"{layout.blocks} blocks of "
    rows = f", rows of {names[target.row_number]}" if borrowed else ""
    return f"rank-one, {blocks}{layout.rows} × {layout.columns}{rows}"


def _drawn(targets: list[StructuredTarget]) -> list[int]:
    """Numbers drawn for each target; a shared row factor once, for its owner or else the first to borrow."""
    drawers: dict[int, int] = {}  # of each row factor
    for target in targets:
        drawers.setdefault(target.row_number, target.number)
    drawers |= {target.number: target.number for target in targets if target.number in drawers}
    return [
        target.layout.blocks
        * (
            (target.layout.rows if drawers[target.row_number] == target.number else 0)
            + (target.layout.columns if target.layout.has_column_factor else 0)
        )
        for target in targets
    ]
