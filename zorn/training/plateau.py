"""When training no longer gets better: two windows of losses whose means differ by less than their error."""

import itertools
import math
from typing import Any, final

from zorn.checks import check_whole_number


@final
class Plateau:
    """Watches the losses of training, and says when they no longer fall.

    The losses are taken in windows. At the end of a window its mean is compared with that of the window
    before: a plateau is where it has fallen by no more than the standard error of the difference. The error
    comes from the differences of successive losses (von Neumann, 1941), σ² = ½ mean (x_{i+1} − x_i)², which a
    slow trend does not inflate; it takes the losses as independent, as fresh batches give them. After a
    plateau the count begins anew, so two are at least two windows apart.

    Without any trend a window says plateau with probability 0.84; with a fall of three standard errors a
    window, 0.02.

    Args:
        window: losses in a window, at least 2.

    Raises:
        ConfigError: a window below 2.

    Example:
        >>> plateau = Plateau(window=3)
        >>> [plateau.update(loss) for loss in (3.0, 3.1, 3.0, 2.0, 2.1, 2.0)]  # falls
        [False, False, False, False, False, False]
        >>> [plateau.update(loss) for loss in (2.1, 2.0, 2.1)]
        [False, False, True]
    """

    def __init__(self, *, window: int) -> None:
        check_whole_number("window", window, minimum=2)
        self.window = window
        self._losses: list[float] = []
        self._before: tuple[float, float] | None = None

    def update(self, loss: float) -> bool:
        """Take the loss of one step, finite; returns whether a plateau was found with it."""
        self._losses.append(loss)
        if len(self._losses) < self.window:
            return False
        mean, variance = _mean_and_variance_of_it(self._losses)
        before, self._before = self._before, (mean, variance)
        self._losses = []
        if before is None or before[0] - mean > math.sqrt(before[1] + variance):
            return False
        self._before = None
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        return {"losses": list(self._losses), "before": None if self._before is None else list(self._before)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._losses = list(state["losses"])
        self._before = None if state["before"] is None else (state["before"][0], state["before"][1])


def _mean_and_variance_of_it(losses: list[float]) -> tuple[float, float]:
    """The mean of a window, and the square of its standard error."""
    squares = [(after - before) ** 2 for before, after in itertools.pairwise(losses)]
    return math.fsum(losses) / len(losses), math.fsum(squares) / (2 * len(squares) * len(losses))
