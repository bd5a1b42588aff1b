"""e-prop: the gradient along each unit's own path through time, not through recurrent matrices.

A unit's state reaches later losses in two ways: through its own next state (an LSTM's memory, by its forget
gate), and through the recurrent matrix, by way of all other units. The first is elementwise, and carries
credit exactly over any span that the gates keep open; the second is left out. The result is biased, has no
noise, and learns what crosses time where TBPTT(1) does not. It can be run forward in time, with a trace for
every weight; here it is differentiated within the batch, which gives the same numbers in less memory where
sequences are shorter than the hidden layer.

Bellec et al. (2020), "A solution to the learning dilemma for recurrent networks of spiking neurons" (e-prop,
with symmetric feedback). For the LSTM it is the gradient of its inventors: Hochreiter and Schmidhuber (1997)
truncate errors that leave a memory cell.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from torch import nn

from zorn.checks import Count, wrong
from zorn.estimators.population import Objective
from zorn.estimators.tbptt import ChunkedGradient
from zorn.models import Batch, RecurrentCell
from zorn.noise.attach import replaced_methods


@final
class EProp(ChunkedGradient):
    """The gradient without the paths through recurrent matrices. For models of cells that say which of their
    modules read the state (`zorn.models.Cell.state_maps`): LSTM, GRU, DNC (its memory's paths stay) and
    minGRU, which has no recurrent matrix, so that it is `BPTT`; and for an objective that adds up over
    tokens.

    Args:
        truncation: k, steps after which the units' own paths are cut too, at least 1; None: not within the
            batch. Bounds the memory.
        carry: for streams: row i of a batch continues where row i of the last batch ended, from its state.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import zorn
        >>> model = zorn.LanguageModel(29, 16)
        >>> task = zorn.tasks.CopyTask(batch=8, minimum_length=2, maximum_length=4, seed=0)
        >>> estimate = zorn.EProp().estimate(model, task.training_batch(0), zorn.TokenCrossEntropy())
        >>> estimate.forward_passes
        24
    """

    learning_rate = 0.005  # log, "what forward-only learning gains"

    truncation: Count | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def _check(self, model: nn.Module, batch: Batch, objective: Objective) -> None:
        super()._check(model, batch, objective)
        cells = [module for module in model.modules() if isinstance(module, RecurrentCell)]
        silent = [type(cell).__name__ for cell in cells if not hasattr(cell, "state_maps")]
        if silent or not cells:
            got = f"{silent[0]}, which does not" if silent else f"{type(model).__name__}, which has none"
            raise wrong(
                "model",
                "one of cells that say which of their modules read the state, for EProp",
                got,
                "give the cell state_maps = ('name', …), () where none does (help(zorn.models.Cell)), or use "
                "TBPTT",
            )

    @contextmanager
    def _paths(self, model: nn.Module) -> Iterator[None]:
        """Within the `with` block recurrent matrices read the state without what made it."""
        with replaced_methods() as replace:
            for module in model.modules():
                for name in getattr(module, "state_maps", ()):
                    map = module.get_submodule(name)
                    replace(map, {"forward": _detached_state(map)})
            yield


def _detached_state(map: nn.Module) -> Any:
    """The module's forward, its last input without what made it."""
    plain = map.forward
    return lambda *inputs: plain(*inputs[:-1], inputs[-1].detach())
