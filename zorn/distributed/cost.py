"""Which of the two exchanges takes less time: a cost rule in members, parameters and bytes."""

from dataclasses import dataclass
from typing import Literal, final

from zorn.checks import check_number

Mode = Literal["scalars", "gradients"]


@final
@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a fold and the link between processes cost.

    With n members, d parameters and N processes a step spends, beside the forward passes,

        scalars:    n d / fold                            every process folds all; some kilobytes are sent
        gradients:  n d / (fold N) + 4 d (N − 1) / link   each folds its share, and sends it to the others

    so that the size of the model does not matter, but for the latency of messages, which is left out.

    Args:
        fold: members times parameters that a process folds in a second, above 0. The default is that of
            rank-one directions on one core.
        link: bytes that a process sends in a second, above 0. The default is that of 1 Gbit/s.

    Raises:
        ConfigError: a number outside its range.

    Example:
        >>> Costs().cheaper(members=64, parameters=10**7, processes=4)
        'scalars'
        >>> Costs(link=1e11).cheaper(members=64, parameters=10**7, processes=4)
        'gradients'
    """

    fold: float = 1e10
    link: float = 1.25e8

    def __post_init__(self) -> None:
        check_number("fold", self.fold, above=True)
        check_number("link", self.link, above=True)

    def scalars(self, *, members: int, parameters: int, processes: int) -> float:
        """Seconds of fold and exchange in a step where every process folds all members."""
        del processes
        return members * parameters / self.fold

    def gradients(self, *, members: int, parameters: int, processes: int) -> float:
        """Seconds of fold and exchange in a step where each folds its share."""
        sent = 4 * parameters * (processes - 1)
        return members * parameters / self.fold / processes + sent / self.link

    def cheaper(self, *, members: int, parameters: int, processes: int) -> Mode:
        """The mode that takes less time; "scalars" where both take the same."""
        sizes = {"members": members, "parameters": parameters, "processes": processes}
        return "gradients" if self.gradients(**sizes) < self.scalars(**sizes) else "scalars"
