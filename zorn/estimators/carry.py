"""The recurrent state that an estimator carries from one estimate to the next, along streams."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zorn.estimators.arguments import check_recurrent, check_streams
from zorn.estimators.workers import Workers
from zorn.models import State, map_state


class Carry:
    """The state that the next estimate starts from: the model's initial one until `keep`, and after `reset`.

    Kept as the plain list of its tensors, so that it can be saved and does not depend on a model's types.

    Example:
        >>> import zorn
        >>> model, carry = zorn.LanguageModel(29, 16), Carry()
        >>> carry.start(model, rows=4)[0].hidden.shape
        torch.Size([4, 16])
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] | None = None

    def start(self, model: nn.Module, rows: int) -> State:
        """The state before the next time step, `rows` rows.

        Raises:
            ConfigError: a model without an explicit state, or another number of rows than was kept.
        """
        initial = check_recurrent(model, "carry=True", "take carry=False").initial_state(rows)
        if self._tensors is None:
            return initial
        check_streams(rows, len(self._tensors[0]))
        kept = iter(self._tensors)
        return map_state(lambda tensor: next(kept).to(tensor.device), initial)

    def keep(self, states: Sequence[State]) -> None:
        """Remember the states after the last time step, of portions of rows in order, without their graph."""
        parts = zip(*map(state_tensors, states), strict=True)
        self._tensors = [torch.cat(tensors).detach() for tensors in parts]

    def reset(self) -> None:
        """Forget the state: new sequences begin."""
        self._tensors = None

    def state_dict(self, workers: Workers) -> dict[str, Any]:
        """Copies of the state's tensors, in order, with the rows of all processes; None where none is
        carried."""
        if self._tensors is None:
            return {"carried": None}
        if workers.size == 1:
            return {"carried": [tensor.clone() for tensor in self._tensors]}
        parts = workers.collect([tensor.cpu() for tensor in self._tensors])
        return {"carried": [torch.cat(tensors) for tensors in zip(*parts, strict=True)]}

    def load_state_dict(self, state: dict[str, Any], workers: Workers) -> None:
        """Restore the rows of this process of the state that `state_dict` gave."""
        carried = state["carried"]
        if carried is not None:
            rows = workers.rows(len(carried[0]))
            carried = [tensor[rows.start : rows.stop] for tensor in carried]
        self._tensors = carried


def state_tensors(state: State) -> list[Tensor]:
    """The tensors of a (nested) state, in a fixed order."""
    return [state] if isinstance(state, Tensor) else [t for part in state for t in state_tensors(part)]
