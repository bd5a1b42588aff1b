"""Putting a rule's methods in place of a module's own for the length of a `with` block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from torch import nn

from zorn.checks import some
from zorn.errors import UncoveredParameterError
from zorn.noise.rules.rule import Replaced

Replace: TypeAlias = Callable[[nn.Module, Mapping[str, Callable[..., Any]]], None]


@contextmanager
def replaced_methods() -> Iterator[Replace]:
    """Gives `replace(module, methods)`, which holds on the instance until the block is left."""
    with ExitStack() as undo:

        def replace(module: nn.Module, methods: Mapping[str, Callable[..., Any]]) -> None:
            own = module.__dict__
            for name, function in methods.items():
                if name in own:
                    undo.callback(own.__setitem__, name, own[name])
                else:
                    undo.callback(own.__delitem__, name)
                own[name] = Replaced(function)

        yield replace


def refuse_silent(names: Sequence[str]) -> None:
    """Raise for parameters whose modules the model's forward never called."""
    if names:
        raise UncoveredParameterError(
            f"{some(names)} would be perturbed, but the model's forward never called the module(s) that "
            "hold them (it may read their weights directly, as nn.MultiheadAttention does): freeze them with "
            "requires_grad_(False), register a rule for the module that reads them, or use the Dense "
            "structure"
        )
