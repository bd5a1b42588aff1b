"""Estimates of one gradient again and again, on a model and an estimator that are left as they were."""

import contextlib
import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from zorn.errors import NonFiniteLossError
from zorn.estimators import BPTT, Estimate, Estimator
from zorn.estimators.arguments import check_batch, check_model
from zorn.estimators.base import check_estimator
from zorn.estimators.population import Objective
from zorn.models import Batch, evaluation_mode
from zorn.noise.targets import trainable_targets

Gradient: TypeAlias = dict[str, Tensor]
"""A gradient by the names of the trained parameters, float32 or wider."""


@dataclass(frozen=True)
class Sampler:
    """Draws estimates of one and the same gradient: same weights, batch and estimator's state, another step
    each time. Made by `sampling`."""

    model: nn.Module
    batch: Batch
    objective: Objective
    estimator: Estimator
    state: dict[str, Any]

    def draw(self, number: int, epsilon: float | None = None) -> tuple[Gradient, Estimate, float]:
        """Estimate `number`, with the directions of that step, its record, and its seconds of processor time.

        The parts of an estimator that keeps some apart are added.
        """
        return self._estimate(number, epsilon, self.gradient)

    def draw_noisy_part(self, number: int, epsilon: float) -> Gradient:
        """The part of the estimate that depends on ε, which may be all of it."""
        return self._estimate(number, epsilon, lambda: self._part(-1))[0]

    def exact(self, micro_batch: int | None = None) -> Gradient:
        """The gradient of the batch's loss by backpropagation, `micro_batch` sequences at a time."""
        self._clear()
        BPTT(micro_batch=micro_batch).estimate(self.model, self.batch, self.objective)
        return self.gradient()

    def gradient(self) -> Gradient:
        """The gradient that the parameters hold now, its parts added."""
        first, *rest = [self._part(index) for index in range(len(self.estimator.parts(self.model)))]
        return {name: sum((part[name] for part in rest), start=own) for name, own in first.items()}

    def _part(self, index: int) -> Gradient:
        names = [target.name for target in trainable_targets(self.model)]
        found = {}
        for name, parameter in zip(names, self.estimator.parts(self.model)[index], strict=True):
            kind = torch.promote_types(parameter.dtype, torch.float32)
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found[name] = grad.detach().to(kind, copy=True)
        return found

    def _estimate(self, number: int, epsilon: float | None, read: Any) -> tuple[Gradient, Estimate, float]:
        self._clear()
        self.estimator.load_state_dict(copy.deepcopy(self.state))
        self.estimator.step = self.state["step"] + number
        if epsilon is not None:
            self.estimator.epsilon = epsilon  # pyright: ignore[reportAttributeAccessIssue]
        start = time.process_time()
        estimate = self.estimator.estimate(self.model, self.batch, self.objective)
        return read(), estimate, time.process_time() - start

    def _clear(self) -> None:
        for parameter in (parameter for part in self.estimator.parts(self.model) for parameter in part):
            parameter.grad = None


@contextmanager
def sampling(model: Any, batch: Any, objective: Objective, estimator: Any) -> Iterator[Sampler]:
    """A `Sampler` inside the `with` block; after it, also after an exception, weights, buffers, `.grad` and
    the estimator's state are as they were, bit for bit.

    Inside, the model is in evaluation mode, so that dropout does not tell estimates apart, and an estimator
    that carries recurrent state begins new sequences, as the exact gradient does, and one that has credit at
    some steps only has it at all. One estimate is made first, in which estimators measure the sizes that
    their noise is relative to.

    Args:
        model: any `nn.Module`.
        batch: `Batch(inputs, targets)` on the model's device.
        objective: as for the estimator.
        estimator: an `Estimator`.

    Raises:
        ConfigError: an argument of another kind.

    Example:
        >>> import zorn
        >>> model = zorn.LanguageModel(29, 8)
        >>> task = zorn.tasks.CopyTask(batch=4, minimum_length=2, maximum_length=2, seed=0)
        >>> estimator = zorn.CDRGE(population=4, epsilon=0.01, group_size=1)
        >>> with sampling(model, task.training_batch(0), task.objective, estimator) as sampler:
        ...     gradient, estimate, _ = sampler.draw(7)
        >>> gradient["head.bias"].shape, estimator.step, model.head.bias.grad
        (torch.Size([29]), 0, None)
    """
    check_model(model)
    check_batch(batch)
    check_estimator(estimator)
    epsilon = getattr(estimator, "epsilon", None)
    with torch.inference_mode(mode=False), torch.no_grad(), evaluation_mode(model), estimator.diagnosed():
        tensors = [*model.parameters(), *model.buffers()]
        values = [tensor.detach().clone() for tensor in tensors]
        parameters = list(model.parameters())
        grads = [parameter.grad for parameter in parameters]
        before = copy.deepcopy(estimator.state_dict())
        try:
            _begin(estimator, before["step"])
            for parameter in parameters:
                parameter.grad = None  # the old one is put back, and must not be written to
            with contextlib.suppress(NonFiniteLossError):  # the estimates that are asked for will tell
                estimator.estimate(model, batch, objective)  # measures what noise is relative to
            _begin(estimator, before["step"])
            state = copy.deepcopy(estimator.state_dict())
            yield Sampler(model, batch, objective, estimator, state)
        finally:
            estimator.load_state_dict(before)
            if epsilon is not None:
                estimator.epsilon = epsilon  # pyright: ignore[reportAttributeAccessIssue]
            for tensor, value in zip(tensors, values, strict=True):
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad


def _begin(estimator: Estimator, step: int) -> None:
    """Let new sequences begin at a step."""
    estimator.reset()
    estimator.step = step


def products(first: Gradient, second: Gradient) -> Float64[Tensor, " parameters"]:
    """⟨first, second⟩ of each parameter, on the CPU.

    >>> products({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
    tensor([11.], dtype=torch.float64)
    """
    return torch.stack([(first[name].double() * second[name].double()).sum().cpu() for name in first])


def cosine(first: Gradient, second: Gradient) -> float:
    """⟨first, second⟩ / (‖first‖‖second‖), -1 to 1; 0 where one of them is zero.

    >>> cosine({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([3.0, 4.0])})
    0.6
    """
    lengths = products(first, first).sum() * products(second, second).sum()
    return float(products(first, second).sum() / lengths.sqrt()) if lengths > 0 else 0.0
