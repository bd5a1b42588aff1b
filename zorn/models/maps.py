"""The linear maps of recurrent cells, block-diagonal over heads: a head reads and writes its own units only.

Letters: H = heads · d hidden units, d = units per head, k = input size. Block-diagonal recurrence cuts the
state's weights from H² to H² / heads per gate (arXiv 2505.17852, 2025).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from zorn.models.initialise import Source, uniform_
from zorn.models.sizes import head_size, require_positive

Drive = tuple[Tensor, ...]
"""A cell's input, made ready: tensors `[time, rows, …]`, or `[rows, …]` for one step; opaque to cells."""


def has_hooks(module: nn.Module) -> bool:
    """True where a call of the module runs more than its forward: it has a forward hook, or all modules have
    a hook.

    `register_module_forward_hook` and its kin keep the hooks of all modules in these four dictionaries, in
    every version of torch from 2.0 on.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


class BlockLinear(nn.Module):
    """y = blockdiag(A_1, …, A_heads) x + b, over the last dimension; with one head, `nn.Linear`.

    Args:
        in_features: size of x, a multiple of `num_heads`.
        out_features: size of y, a multiple of `num_heads`.
        num_heads: number of blocks, at least 1.
        bias: whether to add b.
        generator: source of the first values, Uniform(−1, 1) / √in_features; None is the global one.

    Attributes:
        weight: `[heads, out_features / heads, in_features / heads]`.
        bias: `[out_features]`, or None.

    Raises:
        ConfigError: a size below 1, or features that the heads do not divide.

    >>> BlockLinear(8, 16, num_heads=4)(torch.zeros(3, 5, 8)).shape
    torch.Size([3, 5, 16])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_heads: int = 1,
        bias: bool = True,
        *,
        generator: Source = None,
    ) -> None:
        require_positive(in_features=in_features, out_features=out_features, num_heads=num_heads)
        block = head_size(out_features, num_heads), head_size(in_features, num_heads)
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, *block))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        for parameter in self.parameters():
            uniform_(parameter, in_features**-0.5, generator)

    def forward(self, x: Float[Tensor, "rows *mid in_features"]) -> Float[Tensor, "rows *mid out_features"]:
        """Map every vector of `x`."""
        heads, _, inside = self.weight.shape
        if heads == 1:
            return F.linear(x, self.weight[0], self.bias)
        blocks = x.reshape(-1, heads, inside).transpose(0, 1)
        y = torch.bmm(blocks, self.weight.mT).transpose(0, 1).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        heads, outside, inside = self.weight.shape
        return f"{heads * inside}, {heads * outside}, num_heads={heads}, bias={self.bias is not None}"


class RecurrentMap(nn.Module):
    """All gates of a recurrent cell before their nonlinearity: W x_t + R h_{t−1} + b, with R block-diagonal.

    The part that needs no state, `drive`, is one product for a whole chunk of time; a call adds R h for one
    step. The gates come out head-major, `[heads, gates, d]` flattened: for one head the usual `[gates, d]`.

    Args:
        input_size: k, size of x.
        hidden_size: H, size of h, a multiple of `num_heads`.
        num_gates: gates per hidden unit.
        num_heads: number of blocks of R, at least 1.
        generator: source of the first values, Uniform(−1/√H, 1/√H); None is the global one.

    Attributes:
        weight_input: W, `[heads * gates * d, k]`.
        weight_state: R, `[heads, gates * d, d]`.
        bias: b, `[heads * gates * d]`.

    Raises:
        ConfigError: a size below 1, or a hidden size that the heads do not divide.

    >>> gates = RecurrentMap(input_size=3, hidden_size=8, num_gates=4, num_heads=2)
    >>> (chunk,) = gates.drive(torch.zeros(10, 5, 3))
    >>> gates((chunk[0],), torch.zeros(5, 8)).shape
    torch.Size([5, 32])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_gates: int,
        num_heads: int = 1,
        *,
        generator: Source = None,
    ) -> None:
        require_positive(input_size=input_size, num_gates=num_gates)
        size = head_size(hidden_size, num_heads)
        super().__init__()
        self.weight_input = nn.Parameter(torch.empty(num_gates * hidden_size, input_size))
        self.weight_state = nn.Parameter(torch.empty(num_heads, num_gates * size, size))
        self.bias = nn.Parameter(torch.empty(num_gates * hidden_size))
        for parameter in self.parameters():
            uniform_(parameter, hidden_size**-0.5, generator)

    def drive(self, x: Float[Tensor, "time rows input_size"]) -> Drive:
        """(W x + b,) of a chunk, each tensor of the tuple `[time, rows, …]`."""
        # Contiguous first: torch's bfloat16 product of a transposed 3-D input is 8 times slower (2.13, CPU).
        return (F.linear(x.contiguous(), self.weight_input, self.bias),)

    def forward(
        self, drive_t: Drive, h: Float[Tensor, "rows hidden_size"]
    ) -> Float[Tensor, "rows gates_size"]:
        """Gates of one step, `drive_t[0]` + R h: always a fresh tensor, never a view of the drive."""
        (drive,) = drive_t
        heads, _, size = self.weight_state.shape
        if heads == 1:
            return drive.clone().addmm_(h, self.weight_state[0].t())  # faster than addmm, which copies too
        recurrent = torch.bmm(h.unflatten(-1, (heads, size)).transpose(0, 1), self.weight_state.mT)
        return (drive.unflatten(-1, (heads, -1)) + recurrent.transpose(0, 1)).flatten(1)

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        heads, outside, size = self.weight_state.shape
        sizes = f"{self.weight_input.shape[1]}, {heads * size}"
        return f"{sizes}, num_gates={outside // size}, num_heads={heads}"
