"""The recurrent state that an estimator carries from one estimate to the next, along streams."""

from typing import Any

from torch import Tensor, nn

from zorn.errors import ConfigError
from zorn.models import RecurrentModel, State, map_state


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
        if not isinstance(model, RecurrentModel):
            raise ConfigError(
                f"carrying state from one estimate to the next needs a recurrent model, but "
                f"{type(model).__name__} has no initial_state(rows): give it one, or take carry=False"
            )
        initial = model.initial_state(rows)
        if self._tensors is None:
            return initial
        if len(self._tensors[0]) != rows:
            raise ConfigError(
                f"the batch has {rows} rows, but the state carried from the last one has "
                f"{len(self._tensors[0])}: keep the number of streams, or call reset() before new sequences"
            )
        kept = iter(self._tensors)
        return map_state(lambda tensor: next(kept).to(tensor.device), initial)

    def keep(self, state: State) -> None:
        """Remember the state after the last time step, without its graph."""
        self._tensors = state_tensors(map_state(Tensor.detach, state))

    def reset(self) -> None:
        """Forget the state: new sequences begin."""
        self._tensors = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: copies of the state's tensors, in order; None where none is carried."""
        return {"carried": None if self._tensors is None else [tensor.clone() for tensor in self._tensors]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        carried = state["carried"]
        self._tensors = None if carried is None else list(carried)


def state_tensors(state: State) -> list[Tensor]:
    """The tensors of a (nested) state, in a fixed order."""
    return [state] if isinstance(state, Tensor) else [t for part in state for t in state_tensors(part)]
