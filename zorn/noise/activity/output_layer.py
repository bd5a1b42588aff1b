"""The last layer of a model, where the derivative of the loss by the outputs is known."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zorn.errors import ConfigError

_CHANGED = (
    "exact_output: the model no longer returns the unchanged output of its output layer, once a chunk, as it "
    "did at the first step: take exact_output=False, or an estimator of its own for each model"
)


class OutputLayer:
    """y = W x + b at the end of a model, run for the sequences without noise alone.

    The objective gives e = ∂ loss / ∂ y (softmax − one-hot, for cross-entropy). Then the layer's own gradient
    Σ e xᵀ is exact. A change δx of its input changes the loss by (Wᵀ e) · δx to first order, so that rows
    under noise need no outputs.

    Args:
        module: the layer.
        clean: the first rows of its input, which have no noise.
        draws: rows under noise for each of them, which follow in that order.

    Attributes:
        gradients: those received so far, by the names of the layer's parameters.
    """

    def __init__(self, module: nn.Linear, *, clean: int, draws: int) -> None:
        self._module, self._clean, self._draws = module, clean, draws
        self._x: Tensor | None = None
        self._y: Tensor | None = None
        self.gradients: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """In place of the layer's own: y of the clean rows, and room for the others', which nobody reads."""
        if self._x is not None:
            raise ConfigError(_CHANGED)
        self._x = x
        weight, bias = self._module.weight, self._module.bias
        y = x.new_empty(*x.shape[:-1], len(weight))
        flat, room = x[: self._clean].flatten(0, -2), y[: self._clean].flatten(0, -2)
        if bias is None:
            torch.mm(flat, weight.mT, out=room)
        else:
            torch.addmm(bias, flat, weight.mT, out=room)
        self._y = y
        return y

    def outputs(self, returned: object) -> Tensor:
        """y of the clean rows, where the model has returned it as it came out.

        Raises:
            ConfigError: it has not.
        """
        if self._x is None or returned is not self._y or self._y is None:
            raise ConfigError(_CHANGED)
        y = self._y[: self._clean]
        if not is_output(self._module, self._x, y):
            raise ConfigError(_CHANGED)
        return y

    def receive(self, gradient: Tensor, share: float) -> Tensor:
        """Take e at the last outputs [clean, time, outputs], for the layer's gradient in which it counts
        `share`; returns the change of each token's loss by the noise, [clean, draws, time]."""
        assert self._x is not None
        x, self._x, self._y = self._x, None, None
        clean, noisy = x[: self._clean], x[self._clean :].unflatten(0, (self._clean, self._draws))
        flat = gradient.flatten(0, 1)
        own = {"weight": (flat.mT @ clean.flatten(0, 1)).mul_(share), "bias": flat.sum(0).mul_(share)}
        earlier = self.gradients
        self.gradients = {name: earlier[name] + own[name] for name in own} if earlier else own
        slope = (gradient @ self._module.weight).unsqueeze(1)  # [clean, 1, time, inputs]
        return torch.linalg.vecdot(noisy - clean.unsqueeze(1), slope)


def is_output(layer: nn.Linear, x: Tensor, y: Tensor) -> bool:
    """True if y is still the layer's output for x, judged by the first row.

    Half of the digits must agree, since a kernel rounds one row otherwise than many. Values that are not
    finite pass: the check of the losses finds them.
    """
    again = F.linear(x[:1], layer.weight, layer.bias)
    if not bool(again.isfinite().all()):
        return True
    return bool((y[:1] - again).abs().max() <= torch.finfo(y.dtype).eps ** 0.5 * again.abs().max())
