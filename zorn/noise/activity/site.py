"""The activity noise of one module, as a rule sees it: one object a site and pass, through which outputs go.

Rows lie as [signs, sequences, draws], flattened, with sequences without noise in front where there are any;
the noise at a step is that of the site, the sequence, the draw and the time, whatever runs side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zorn.errors import ConfigError
from zorn.noise.activity.output_layer import is_output
from zorn.noise.draw import Draw, NoiseKind, noise

STEPS_AHEAD = 16
"""Steps of a site that is called step by step whose noise is made, and whose gradient is summed, at once."""


class SiteActivity(ABC):
    """A module's output, and where it stands in time.

    Attributes:
        time: steps of the sequence that have passed.
    """

    def __init__(self) -> None:
        self.time = 0

    def at(self, y: Tensor, *inputs: Tensor, time: int = 1) -> Tensor:
        """Pass the module's output through: with the noise of its time steps added, or as it is.

        Args:
            y: the output [rows, units] of one step, or [rows, time, …]; a tensor of its own, which may be
                changed in place.
            inputs: the tensors that the rule's `pullback` needs, rows in front.
            time: the dimension of y that holds time steps, where y has more than two.
        """
        steps = y.shape[time] if y.dim() > 2 else 1
        before, self.time = self.time, self.time + steps
        return self._pass(y, inputs, before, steps, time if y.dim() > 2 else 0)

    @abstractmethod
    def _pass(self, y: Tensor, inputs: tuple[Tensor, ...], start: int, steps: int, dimension: int) -> Tensor:
        """`dimension` is that of time in y; 0 where y is one step."""


class NoiseTape:
    """The noise ξ of one site over time: made some steps ahead, read in order.

    Args:
        draw: seed and step.
        members: the sequences × draws that run side by side, by their numbers in the whole batch.
        stream: the site's.
        steps: of the whole sequence; no noise is made beyond them.

    Attributes:
        rows: sequences × draws.
    """

    def __init__(self, kind: NoiseKind, draw: Draw, members: range, stream: int, steps: int) -> None:
        self._kind: NoiseKind = kind
        self._draw, self._stream, self._steps = draw, stream, steps
        self._members, self.rows = members, len(members)
        self._start = 0
        self._made: Tensor | None = None

    def read(self, start: int, steps: int, like: Tensor, units: int) -> Tensor:
        """ξ of steps start … start + steps, [members, steps, units], in the dtype and on the device of
        `like`."""
        made, end = self._made, start + steps
        if made is None or start < self._start or end > self._start + made.shape[1]:
            ahead = max(steps, min(STEPS_AHEAD, self._steps - start))
            vector, first = (self._draw, self._members, self._stream, ahead * units), start * units
            flat = noise(self._kind, *vector, offset=first, dtype=like.dtype, device=like.device)
            self._start = start
            self._made = made = flat.unflatten(1, (ahead, units))
        first = start - self._start
        return made[:, first : first + steps]


class Perturbing(SiteActivity):
    """Adds s σ ξ to the output, sign by sign.

    Args:
        tape: ξ of sequences × draws.
        clean: rows in front that have no noise.
        signs: ±1, in the order of the rows.
        scale: σ, the standard deviation of the noise.
    """

    def __init__(self, tape: NoiseTape, clean: int, signs: tuple[int, ...], scale: float) -> None:
        super().__init__()
        self._tape, self._clean, self._signs, self._scale = tape, clean, signs, scale

    def _pass(self, y: Tensor, inputs: tuple[Tensor, ...], start: int, steps: int, dimension: int) -> Tensor:
        expected = self._clean + len(self._signs) * self._tape.rows
        if len(y) != expected:
            raise ConfigError(
                f"activity noise: a module returned {tuple(y.shape)}, expected {expected} rows in front: "
                "keep the batch in front in the model's forward, or use the structure RankOne or Dense"
            )
        lanes = y[self._clean :].unflatten(0, (len(self._signs), -1))
        units = lanes[0, 0].numel() // steps
        xi = as_output(self._tape.read(start, steps, y, units), lanes.shape[1:], dimension)
        for place, sign in enumerate(self._signs):
            lanes[place].add_(xi, alpha=sign * self._scale)
        return y


class Measuring(SiteActivity):
    """Leaves the output as it is and adds up its squares.

    Attributes:
        squares, count: the sum of the squares of all outputs, and how many numbers they were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.squares: Tensor | float = 0.0
        self.count = 0

    def _pass(self, y: Tensor, inputs: tuple[Tensor, ...], start: int, steps: int, dimension: int) -> Tensor:
        wide = torch.promote_types(y.dtype, torch.float32)
        self.squares = self.squares + torch.linalg.vector_norm(y, dtype=wide).square()
        self.count += y.numel()
        return y


class Surveying(Measuring):
    """Measures, and remembers the last call, to tell whether the module is the model's output layer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._calls = 0
        self._last: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def _pass(self, y: Tensor, inputs: tuple[Tensor, ...], start: int, steps: int, dimension: int) -> Tensor:
        self._calls += 1
        self._last = y, inputs
        return super()._pass(y, inputs, start, steps, dimension)

    def returned(self, outputs: object, calls: int) -> bool:
        """True if the module is an `nn.Linear` that was called `calls` times and last returned `outputs`."""
        if self._last is None or self._last[0] is not outputs or self._calls != calls:
            return False
        y, (x, *_) = self._last
        return type(self._module) is nn.Linear and y.dim() == 3 and is_output(self._module, x, y)


class Replaying(Measuring):
    """Leaves the output as it is and adds up what its noise and credit make of the parameters' gradients.

    Args:
        tape: the ξ of the pass before, of sequences × draws.
        credit: [sequences, draws, steps], already divided by the noise's scale and whatever a mean divides
            by; [sequences, draws, 1] for a module that is called once a sequence.
        pullback: of the module's rule: (gradient at the output, *inputs).
        keep: nobody writes into the inputs, so that they need no copy until their gradients are summed.
    """

    def __init__(
        self, tape: NoiseTape, credit: Tensor, pullback: Callable[..., dict[str, Tensor]], *, keep: bool
    ) -> None:
        super().__init__()
        self._tape, self._credit, self._pullback, self._keep = tape, credit, pullback, keep
        self._pending: list[tuple[Tensor, ...]] = []
        self._pending_like: Tensor | None = None
        self.gradients: dict[str, Tensor] = {}

    def _pass(self, y: Tensor, inputs: tuple[Tensor, ...], start: int, steps: int, dimension: int) -> Tensor:
        super()._pass(y, inputs, start, steps, dimension)
        if dimension == 0:
            self._pending.append(inputs if self._keep else tuple(tensor.clone() for tensor in inputs))
            self._pending_like = y
            if len(self._pending) == STEPS_AHEAD:
                self.flush()
        else:
            gradient = self._gradient(start, steps, y)
            self._add(as_output(gradient, y.shape, dimension), inputs)
        return y

    def flush(self) -> None:
        """Add the gradients of the steps that wait: one product for all of them."""
        if not self._pending:
            return
        waiting, self._pending = self._pending, []
        like = self._pending_like
        assert like is not None
        gradient = self._gradient(self.time - len(waiting), len(waiting), like)
        inputs = tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))
        self._add(gradient.transpose(0, 1).flatten(0, 1), inputs)

    def _gradient(self, start: int, steps: int, like: Tensor) -> Tensor:
        """Σ over draws of credit · ξ, [sequences, steps, units]."""
        sequences, draws, _ = self._credit.shape
        xi = self._tape.read(start, steps, like, like[0].numel() // (steps if like.dim() > 2 else 1))
        credit = self._credit[:, :, start : start + steps].to(xi.dtype)
        if draws == 1:
            return xi * credit.view(sequences, steps, 1)
        return torch.einsum("bdtu,bdt->btu", xi.unflatten(0, (sequences, draws)), credit)

    def _add(self, gradient: Tensor, inputs: tuple[Tensor, ...]) -> None:
        for name, value in self._pullback(gradient, *inputs).items():
            if name in self.gradients:
                self.gradients[name] += value
            else:
                self.gradients[name] = value.to(torch.promote_types(value.dtype, torch.float32))


def as_output(values: Tensor, shape: torch.Size, dimension: int) -> Tensor:
    """[rows, steps, units] in the shape of an output whose time is `dimension` (0: one step)."""
    if dimension == 0:
        return values.reshape(shape)
    rest = [size for place, size in enumerate(shape) if place not in (0, dimension)]
    return values.unflatten(2, rest).movedim(1, dimension)


def check_steps(name: str, found: int, expected: int) -> None:
    """Raise unless a site went over the whole sequence, or was called once for all of it."""
    if found not in (1, expected):
        raise ConfigError(
            f"activity noise: module {name!r} returned {found} time steps for sequences of {expected}; "
            "expected one output a step, [rows, units] or [rows, time, …], or one for the whole sequence, "
            "and no module called twice a step: freeze its parameters with requires_grad_(False), or use "
            "the structure RankOne"
        )
