"""Where a folded gradient goes: into `.grad` for any torch optimizer, or straight into the weights, with no
gradient buffer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zorn.checks import check_number, wrong
from zorn.errors import NonFiniteLossError
from zorn.noise.draw import ROUNDING_FACTOR, Draw, stream_of
from zorn.noise.targets import Target
from zorn.noise.weights.kernel_fold import KernelFold, KernelPart
from zorn.noise.weights.structure import GradientBlock
from zorn.random.rounding import ROUNDING_COLUMNS, rounded_upper_, rounding_halves

DECAY = "learning_rate · weight_decay must be below 1"

IN_PLACE = (torch.float32, torch.float64, torch.bfloat16)
"""Number formats that `FusedSGD` updates."""


def fold_into_grad(blocks: Iterable[GradientBlock], targets: Sequence[Target]) -> float:
    """Write the blocks into every target's `.grad`, replacing what was there, in the parameter's dtype;
    returns the gradient's norm.

    Raises:
        NonFiniteLossError: a gradient that float16 cannot hold.
    """
    for target in targets:
        parameter = target.parameter
        if parameter.grad is None or not parameter.grad.is_contiguous():
            parameter.grad = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    if isinstance(blocks, KernelFold):
        grads = [(part, part.target.parameter.grad) for part in blocks.parts]
        return _root([blocks.add_to(part, grad.zero_()) for part, grad in grads if grad is not None])
    total = 0.0
    for block in blocks:
        grad = block.target.parameter.grad
        assert grad is not None
        written = grad.view(-1)[block.start : block.start + block.values.numel()]
        written.copy_(block.values)
        if grad.dtype == torch.float16 and not written.isfinite().all():
            raise NonFiniteLossError(
                f"the gradient of {block.target.name} is too large for its float16: train in bfloat16 or "
                "float32, or scale the objective down; the weights are unchanged"
            )
        total += _squared_norm(block.values)
    return total**0.5


@dataclass(frozen=True, kw_only=True)
class FusedSGD:
    """SGD with decoupled weight decay, applied block by block as the gradient is folded: w ← (1 − lr · decay)
    w − lr ĝ.

    No gradient is ever held whole, so a training step needs the memory of inference. bfloat16 weights are
    rounded stochastically (up or down with the probability that keeps the mean), with `RoundingBits` of the
    step, so that updates smaller than one unit in the last place are not lost and a run can be repeated.

    Args:
        learning_rate: lr, > 0.
        weight_decay: decay, ≥ 0 and such that lr · decay < 1.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch, zorn
        >>> model = zorn.LanguageModel(29, 16)
        >>> task = zorn.tasks.CopyTask(batch=8, minimum_length=2, maximum_length=4, seed=0)
        >>> batch = task.training_batch(0)
        >>> estimator = zorn.CDRGE(population=8, epsilon=0.01, group_size=1)
        >>> update = zorn.estimators.FusedSGD(learning_rate=1e-3)
        >>> estimate = estimator.estimate(model, batch, zorn.TokenCrossEntropy(), update=update)
        >>> model.head.weight.grad is None
        True
    """

    learning_rate: float
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, above=True)
        check_number("weight_decay", self.weight_decay, below=1 / self.learning_rate, hint=DECAY)

    def apply(self, blocks: Iterable[GradientBlock], draw: Draw) -> float:
        """Update the weights from the blocks and clear their `.grad`; returns the gradient's norm. `draw`
        seeds the rounding of bfloat16 weights."""
        total, kept = 0.0, 1 - self.learning_rate * self.weight_decay
        if isinstance(blocks, KernelFold):
            return _root([self._apply_part(blocks, part, draw, kept) for part in blocks.parts])
        bits: RoundingBits | None = None
        for block in blocks:
            total += _squared_norm(block.values)
            parameter = block.target.parameter
            parameter.grad = None
            weight = parameter.data.view(-1)[block.start : block.start + block.values.numel()]
            new = weight.to(block.values.dtype)  # the weight itself, but for bfloat16
            if kept != 1:
                new.mul_(kept)
            new.add_(block.values, alpha=-self.learning_rate)
            if weight.dtype == torch.bfloat16:
                if bits is None or bits.target is not block.target:
                    bits = RoundingBits(draw, block.target)
                weight.view(torch.int16).copy_(rounded_upper_(new, bits(block.start, new.numel())))
        return total**0.5

    def _apply_part(self, fold: KernelFold, part: KernelPart, draw: Draw, kept: float) -> Tensor:
        """Update one parameter; the squared norm of its gradient."""
        target = part.target
        target.parameter.grad = None
        rounding = draw.seed, draw.step, stream_of(target.number, ROUNDING_FACTOR)
        weight = target.parameter.data
        return fold.add_to(part, weight, keep=kept, scale=-self.learning_rate, rounding=rounding)

    def check(self, targets: Sequence[Target]) -> None:
        """Raise `ConfigError`, before any work, where a parameter cannot be updated in place."""
        for target in targets:
            parameter = target.parameter
            if not parameter.is_contiguous() or parameter.dtype not in IN_PLACE:
                expected = "a contiguous float32, float64 or bfloat16 parameter for FusedSGD"
                got = f"{parameter.dtype}, contiguous: {parameter.is_contiguous()}"
                fix = "convert it, or fill .grad (update=None) and use a torch optimizer"
                raise wrong(target.name, expected, got, fix)


def applied(
    blocks: Iterable[GradientBlock], targets: Sequence[Target], update: FusedSGD | None, draw: Draw
) -> float:
    """Fill `.grad` with the blocks, or apply `update` to the weights; returns the gradient's norm."""
    return fold_into_grad(blocks, targets) if update is None else update.apply(blocks, draw)


class RoundingBits:
    """The 16 random bits that round each weight of one parameter in one step.

    Weight e = 4096 k + j is rounded with u_k xor v_j, the halves of the stream (seed, step, member 0,
    parameter, `ROUNDING_FACTOR`): see `zorn.random.rounding_halves`.

    Args:
        draw: of the step.
        target: the parameter.

    Example:
        >>> target = Target("weight", 0, torch.nn.Parameter(torch.ones(9)))
        >>> bits = RoundingBits(Draw(seed=0, step=0, epsilon=0.1), target)
        >>> bits(3, 2).equal(bits(0, 9)[3:5])
        True
    """

    def __init__(self, draw: Draw, target: Target) -> None:
        self.target = target
        stream, parameter = stream_of(target.number, ROUNDING_FACTOR), target.parameter
        self._columns, self._rows = rounding_halves(
            draw.seed, draw.step, stream, parameter.numel(), device=parameter.device
        )

    def __call__(self, start: int, count: int) -> Tensor:
        """Bits of weights start .. start + count, [count] int32 from 0 to 65535; a tensor of its own."""
        width = ROUNDING_COLUMNS
        first, last = start // width, -(-(start + count) // width)
        return (self._rows[first:last, None] ^ self._columns).view(-1)[start - first * width :][:count]


def _root(squares: Sequence[Tensor]) -> float:
    """The norm whose square is the sum."""
    return sum(map(float, squares)) ** 0.5


def _squared_norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2
