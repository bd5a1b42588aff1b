"""Losses over a large vocabulary without all logits: head and loss take one slice of outputs at a time.

A language model is a body, whose outputs are features `[rows, time, H]`, and a head. Where the vocabulary is
large, `streamed` runs the body alone. The objective then reads the head's outputs in slices of
`OUTPUT_SLICE`, so that no tensor `[rows, time, vocabulary]` exists.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zorn.models.language_model import LanguageModel
from zorn.models.maps import has_hooks
from zorn.models.rollout import TokenObjective
from zorn.models.state import State

OUTPUT_SLICE = 8192
"""Outputs of a head that are computed at once; a larger head is streamed."""

LOGITS_AT_ONCE = 2**21
"""Logits that exist at once, where one step of all rows has not more: 8 MiB in float32."""

SlicedOutputs = Callable[[int, int], Tensor]
"""The outputs first .. last of a head for features that are fixed, [rows, time, last − first]."""


class SlicedObjective(TokenObjective, Protocol):
    """A token objective that can read the outputs slice by slice."""

    def sliced_token_losses(
        self, outputs: SlicedOutputs, count: int, targets: Tensor, *, at_once: int
    ) -> Tensor:
        """`token_losses` from slices of at most `at_once` of the `count` outputs."""
        ...


def streamed(model: Any, objective: Any) -> tuple[Any, Any]:
    """A (model, objective) with the same losses as the given ones, in less memory where that is possible.

    A `LanguageModel` whose head has more than `OUTPUT_SLICE` outputs becomes its body, and an objective that
    can read slices becomes that objective over the head (`HeadObjective`). Anything else comes back as it is.
    Use the result without gradients only. Noise on the head is included: its rule adds it slice by slice.

    Example:
        >>> import zorn
        >>> model = LanguageModel(10, 4)
        >>> streamed(model, zorn.TokenCrossEntropy())[0] is model
        True
    """
    if type(model) is not LanguageModel or has_hooks(model) or not _reads_slices(objective):
        return model, objective
    if model.head.out_features <= OUTPUT_SLICE or "forward" in vars(model):
        return model, objective
    return Body(model), HeadObjective(model.head, objective)


class Body:
    """A `LanguageModel` without its head, to be run in chunks of time."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def initial_state(self, rows: int) -> State:
        """The model's."""
        return self._model.initial_state(rows)

    def __call__(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Features [rows, time, H] of tokens [rows, time], and the next state."""
        return self._model.features(tokens, state)


def outputs_at_once(body: Any, vocabulary: int) -> int:
    """Outputs of a token that are in memory at once, where `body` is what `streamed` says to run.

    Example:
        >>> model = LanguageModel(9000, 4)
        >>> outputs_at_once(model, 9000), outputs_at_once(Body(model), 9000)
        (9000, 8192)
    """
    return OUTPUT_SLICE if isinstance(body, Body) else vocabulary


class HeadObjective:
    """A token objective of features: the head runs inside, for a few steps and a slice of outputs at a time.

    Args:
        head: of the model.
        objective: of the head's outputs.
    """

    def __init__(self, head: nn.Linear, objective: SlicedObjective) -> None:
        self._head = head
        self._objective = objective

    def token_losses(self, features: Tensor, targets: Tensor) -> Tensor:
        """Loss of each token, [rows, time], from features [rows, time, H]."""
        sliceable = is_sliceable(self._head)
        outputs = self._head.out_features
        steps = max(1, LOGITS_AT_ONCE // (len(features) * (OUTPUT_SLICE if sliceable else outputs)))
        found = []
        for x, right in zip(features.split(steps, dim=1), targets.split(steps, dim=1), strict=True):
            x = x.contiguous()
            if sliceable:
                slices = sliced_outputs(self._head, x)
                losses = self._objective.sliced_token_losses(slices, outputs, right, at_once=OUTPUT_SLICE)
            else:
                losses = self._objective.token_losses(self._head(x), right)
            found.append(losses)
        return torch.cat(found, dim=1)

    def counts(self, targets: Tensor) -> Tensor:
        """Mask of the tokens that count, [rows, time]."""
        return self._objective.counts(targets)


def is_sliceable(head: nn.Linear) -> bool:
    """True if the head can be sliced: it is a plain `nn.Linear`, or its rule can slice the noise too."""
    own = vars(head)
    return type(head) is nn.Linear and not has_hooks(head) and ("forward" not in own or "sliced" in own)


def sliced_outputs(head: nn.Linear, x: Tensor) -> SlicedOutputs:
    """Slices of `head(x)`, made when they are asked for; with the noise of a block that is open."""
    rule = vars(head).get("sliced")
    if rule is not None:
        return rule(x)
    return lambda first, last: linear_slice(head, x, first, last)


def linear_slice(head: nn.Linear, x: Tensor, first: int, last: int) -> Tensor:
    """Outputs first .. last of W x + b."""
    bias = None if head.bias is None else head.bias[first:last]
    return F.linear(x, head.weight[first:last], bias)


def _reads_slices(objective: object) -> bool:
    """True if slices give the objective's own `token_losses`, because one class defines both."""
    owner = next((base for base in type(objective).__mro__ if "token_losses" in vars(base)), None)
    return owner is not None and "sliced_token_losses" in vars(owner)
