"""Where a folded gradient goes: into `.grad` for any torch optimizer, or straight into the weights, with no
gradient buffer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zorn.errors import ConfigError, NonFiniteLossError
from zorn.perturbations.draw import ROUNDING_FACTOR, Draw, stream_of
from zorn.perturbations.perturbation import GradientBlock
from zorn.perturbations.targets import Target
from zorn.random import words


def fold_into_grad(blocks: Iterable[GradientBlock], targets: Sequence[Target]) -> float:
    """Write the blocks into every target's `.grad`, replacing what was there, in the parameter's dtype;
    returns the gradient's norm.

    Raises:
        NonFiniteLossError: a gradient that float16 cannot hold.
    """
    for target in targets:
        parameter = target.parameter
        vars(parameter).pop("credit_grad", None)  # of a Bridge before; not of this gradient
        if parameter.grad is None or not parameter.grad.is_contiguous():
            parameter.grad = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    total = 0.0
    for block in blocks:
        grad = block.target.parameter.grad
        assert grad is not None
        written = grad.view(-1)[block.start : block.start + block.values.numel()]
        written.copy_(block.values)
        if grad.dtype == torch.float16 and not written.isfinite().all():
            raise NonFiniteLossError(
                f"the gradient of {block.target.name} is too large for its float16: train in bfloat16 or "
                "float32, or "
                "scale the objective down; the weights are unchanged"
            )
        total += _squared_norm(block.values)
    return total**0.5


@dataclass(frozen=True, kw_only=True)
class FusedSGD:
    """SGD with decoupled weight decay, applied block by block as the gradient is folded: w ← (1 − lr · decay)
    w − lr ĝ.

    No gradient is ever held whole, so a training step needs the memory of inference. bfloat16 weights are
    rounded stochastically (up or down with the probability that keeps the mean), with counter-based bits of
    the step, so that updates smaller than one unit in the last place are not lost and a run can be repeated.

    Args:
        learning_rate: lr, > 0.
        weight_decay: decay, ≥ 0 and such that lr · decay < 1.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch, zorn
        >>> model = zorn.LanguageModel(29, 16)
        >>> task = zorn.CopyTask(batch=8, minimum_length=2, maximum_length=4, seed=0)
        >>> batch = task.training_batch(0)
        >>> estimator = zorn.CDRGE(population=8, epsilon=0.01, group_size=1)
        >>> update = zorn.FusedSGD(learning_rate=1e-3)
        >>> estimate = estimator.estimate(model, batch, zorn.TokenCrossEntropy(), update=update)
        >>> model.head.weight.grad is None
        True
    """

    learning_rate: float
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate: got {self.learning_rate}, expected a number above 0")
        if not 0 <= self.learning_rate * self.weight_decay < 1:
            raise ConfigError(
                f"weight_decay: got {self.weight_decay}, expected 0 or more with learning_rate · "
                "weight_decay below 1 "
                f"(learning_rate is {self.learning_rate})"
            )

    def apply(self, blocks: Iterable[GradientBlock], draw: Draw) -> float:
        """Update the weights from the blocks and clear their `.grad`; returns the gradient's norm. `draw`
        seeds the rounding of bfloat16 weights."""
        total = 0.0
        for block in blocks:
            total += _squared_norm(block.values)
            parameter = block.target.parameter
            parameter.grad = None
            weight = parameter.data.view(-1)[block.start : block.start + block.values.numel()]
            new = weight.to(block.values.dtype).mul_(1 - self.learning_rate * self.weight_decay)
            new.add_(block.values, alpha=-self.learning_rate)
            if weight.dtype == torch.bfloat16:
                stream = stream_of(block.target.number, ROUNDING_FACTOR)
                bits = words(
                    draw.seed,
                    draw.step,
                    range(1),
                    stream,
                    new.numel(),
                    offset=block.start,
                    device=weight.device,
                )
                new = round_stochastically(new, bits[0])
            weight.copy_(new)
        return total**0.5

    def check(self, targets: Sequence[Target]) -> None:
        """Raise `ConfigError`, before any work, where a parameter cannot be updated in place."""
        for target in targets:
            parameter = target.parameter
            if not parameter.is_contiguous() or parameter.dtype not in (
                torch.float32,
                torch.float64,
                torch.bfloat16,
            ):
                raise ConfigError(
                    f"FusedSGD cannot update {target.name} in place: it is {parameter.dtype}, contiguous: "
                    f"{parameter.is_contiguous()}; expected a contiguous float32, float64 or bfloat16 "
                    "parameter. "
                    "Convert it, or fill .grad (update=None) and use a torch optimizer"
                )


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """Round float32 to bfloat16, up or down with probability in proportion to the distance, so that the mean
    is kept.

    Args:
        values: [n] float32.
        bits: [n] integers, their low 16 bits uniformly random.

    Returns:
        [n] bfloat16; infinities and NaN stay what they are.
    """
    raw = values.contiguous().view(torch.int32)
    moved = raw + (bits & 0xFFFF).to(
        torch.int32
    )  # adding to the discarded half carries into the kept one with the right probability
    kept = moved.bitwise_and_(-0x10000).view(torch.float32)
    return torch.where(values.isfinite(), kept, values).to(torch.bfloat16)


def _squared_norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
