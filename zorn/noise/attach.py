"""Putting a rule's methods in place of a module's own for the length of a `with` block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

from zorn.checks import some
from zorn.errors import UncoveredParameterError
from zorn.noise.rules.rule import Replaced

Replace: TypeAlias = Callable[[nn.Module, str, Callable[..., Any]], None]


@contextmanager
def replaced_methods() -> Iterator[Replace]:
    """Gives `replace(module, method, function)`, which holds on the instance until the block is left."""
    undo: list[Callable[[], None]] = []

    def replace(module: nn.Module, method: str, function: Callable[..., Any]) -> None:
        if method in module.__dict__:
            earlier = module.__dict__[method]
            undo.append(lambda: module.__dict__.__setitem__(method, earlier))
        else:
            undo.append(lambda: module.__dict__.__delitem__(method))
        module.__dict__[method] = Replaced(function)

    try:
        yield replace
    finally:
        for revert in reversed(undo):
            revert()


def refuse_silent(names: Sequence[str]) -> None:
    """Raise for parameters whose modules the model's forward never called."""
    if names:
        raise UncoveredParameterError(
            f"{some(names)} would be perturbed, but the model's forward never called the module(s) that "
            "hold them (it may read their weights directly, as nn.MultiheadAttention does): freeze them with "
            "requires_grad_(False), register a rule for the module that reads them, or use the Dense "
            "structure"
        )
