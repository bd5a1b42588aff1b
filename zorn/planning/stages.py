"""A training step as a few stages, and what lives at once in each: a peak is the largest stage.

`Stage` holds bytes by part, so that a table can say what memory is spent on.
"""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("weights", "optimizer", "gradients", "perturbations", "states", "activations", "logits")
"""What memory is spent on. optimizer: its moments, and what it holds for one parameter while it steps.
perturbations: rank-one factors, a dense member's weights and signs, tapes of activity or boundary noise.
activations: all that a forward pass computes on its way, and what autograd keeps of it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Bytes that live at once in one stage of a step, by part; `a + b` lives together with both.

    Example:
        >>> stage = Stage(weights=100, logits=20) + Stage(logits=5)
        >>> stage.total, stage.logits
        (125, 25)
    """

    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    perturbations: int = 0
    states: int = 0
    activations: int = 0
    logits: int = 0

    def __add__(self, other: Stage) -> Stage:
        return Stage(**{part: getattr(self, part) + getattr(other, part) for part in PARTS})

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(getattr(self, part) for part in PARTS)


@dataclass(frozen=True)
class Memory:
    """The stages of a training step, by what happens in them.

    Example:
        >>> memory = Memory({"forward": Stage(weights=100, logits=80), "update": Stage(weights=100)})
        >>> memory.peak, memory.fullest, memory.part("logits")
        (180, 'forward', 80)
    """

    stages: dict[str, Stage]

    @property
    def peak(self) -> int:
        """Bytes that live at once in the fullest stage."""
        return max(stage.total for stage in self.stages.values())

    @property
    def fullest(self) -> str:
        """The name of the fullest stage."""
        return max(self.stages, key=lambda name: self.stages[name].total)

    def part(self, name: str) -> int:
        """The most bytes of a part in any stage. Parts need not be at their largest together."""
        return max(getattr(stage, name) for stage in self.stages.values())


def all_with(base: Stage, stages: dict[str, Stage], within: str = "") -> dict[str, Stage]:
    """Every stage together with what lives all along; `within` is put before their names.

    >>> all_with(Stage(weights=1), {"loss": Stage(logits=2)}, within="evaluate")["evaluate: loss"].total
    3
    """
    before = f"{within}: " if within else ""
    return {before + name: base + stage for name, stage in stages.items()}
