"""A recurrent language model: embedding, layers of cells, linear head, with explicit state in and out."""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zorn.checks import check_choice, check_seed
from zorn.errors import ConfigError
from zorn.models.cell import run
from zorn.models.cell_registry import check_cell_settings, find_cell
from zorn.models.initialise import allocation, linear, normal_, without_values
from zorn.models.sizes import device_of, head_size, require_floating, require_positive
from zorn.models.state import State

NORMS: dict[str, Any] = {"none": nn.Identity, "layer": nn.LayerNorm, "rms": nn.RMSNorm}
"""The norms before each layer and before the head, by name: classes that are called with (size, eps=…)."""

NORM_EPSILON = 1e-5
"""Added under the root of every norm, the same in every dtype."""

LARGEST_HIDDEN_SIZE = 2**20


class LanguageModel(nn.Module):
    """Next-token logits from an embedding, `num_layers` recurrent cells and a linear head with bias.

    Each layer is x ← cell(norm(x)), or x ← x + cell(norm(x)) with residuals, and one more norm stands before
    the head (pre-norm, Xiong et al. 2020).

    The weights depend on the sizes and `seed` alone: the global generator of torch is neither read nor moved.
    `dtype` and `device` allocate each weight once where and as it is wanted, and fill it slice by slice: the
    values are those of `.to(device, dtype)`, without the memory of a float32 model beside it.

    Args:
        vocabulary: V, number of tokens.
        hidden_size: H, units of every layer, a multiple of `num_heads`.
        embedding_size: size of a token's vector; None is `hidden_size`.
        cell: "lstm", "gru", "min-gru" or "dnc" (see `CELLS`), or the class of another `Cell`.
        cell_settings: the cell's further arguments, by name, such as {"memory_slots": 8} for a "dnc"; what
            is left out has its default.
        num_layers: recurrent layers, one above the other.
        num_heads: blocks of the recurrent weights, those of its controller in a "dnc"; 1 is dense, and the
            only choice for "min-gru".
        norm: "none", "layer" (Ba et al. 2016) or "rms" (Zhang & Sennrich 2019).
        residual: add each layer's input to its output (He et al. 2015).
        tie_embedding: the head's weight is the embedding's (Press & Wolf 2017).
        seed: of the first values, 0 up to 2⁶⁴ − 1. Embedding N(0, 1), or when tied the head's
            Uniform(−1/√H, 1/√H); cells as they say.
        dtype: of the weights, floating; None is torch's default dtype.
        device: of the weights; None is torch's default device. On "meta" the model has shapes and no values.

    Raises:
        ConfigError: a size below 1, an unknown cell, norm or device, a dtype that is not floating,
            heads that do not divide H, a setting that the cell does not have or refuses, or a tied embedding
            or residuals with another embedding size than H.

    >>> model = LanguageModel(50, hidden_size=16, cell="gru", num_layers=2, norm="rms", residual=True)
    >>> logits, state = model(torch.zeros(2, 7, dtype=torch.int64))
    >>> logits.shape
    torch.Size([2, 7, 50])
    """

    cells: Any  # an nn.ModuleList of RecurrentCells: type checkers would see bare Modules

    def __init__(
        self,
        vocabulary: int,
        hidden_size: int,
        *,
        embedding_size: int | None = None,
        cell: str | Callable[..., Any] = "lstm",
        cell_settings: Mapping[str, Any] | None = None,
        num_layers: int = 1,
        num_heads: int = 1,
        norm: str = "none",
        residual: bool = False,
        tie_embedding: bool = False,
        seed: int = 0,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        embedding_size = hidden_size if embedding_size is None else embedding_size
        head_size(hidden_size, num_heads)
        require_positive(vocabulary=vocabulary, embedding_size=embedding_size, num_layers=num_layers)
        make_cell = find_cell(cell)
        further = dict(cell_settings or {})
        check_cell_settings(cell, further)
        check_choice("norm", norm, tuple(NORMS))
        norm_class = NORMS[norm]
        if (residual or tie_embedding) and embedding_size != hidden_size:
            why = (
                "a residual adds it to the first layer's output"
                if residual
                else "a tied one is the head's weight"
            )
            raise ConfigError(
                f"embedding_size {embedding_size} differs from hidden_size {hidden_size}, but {why}: leave "
                f"embedding_size out, or take {'residual' if residual else 'tie_embedding'}=False"
            )
        check_seed(seed)
        require_floating(dtype)
        device = device_of(device)
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = [embedding_size, *[hidden_size] * num_layers]
        self.residual = residual
        with allocation(dtype, device):
            self.embedding = nn.Embedding(vocabulary, embedding_size, device="meta")
            self.norms = nn.ModuleList(norm_class(size, eps=NORM_EPSILON) for size in sizes[:-1])
            self.final_norm = norm_class(hidden_size, eps=NORM_EPSILON)
            self.cells = nn.ModuleList(
                make_cell(size, hidden_size, num_heads, generator=generator, **further) for size in sizes[:-1]
            )
            self.head = linear(hidden_size, vocabulary, generator=generator)
            if tie_embedding:
                self.embedding.weight = self.head.weight
            else:
                normal_(without_values(self.embedding).weight, generator)
        self.to(dtype=dtype)

    @classmethod
    def with_parameters(
        cls, parameters: int, vocabulary: int, *, num_heads: int = 1, device: Any = None, **options: Any
    ) -> "LanguageModel":
        """The model whose number of parameters is closest to `parameters`: one dial for the size.

        The embedding is as wide as the hidden layers. Hidden sizes are multiples of `num_heads`, and above
        64 of 8. The other options are those of the class.

        Raises:
            ConfigError: `parameters` below those of the smallest model, and whatever the class itself
                refuses.

        >>> parameter_count(LanguageModel.with_parameters(100_000, vocabulary=256))
        92736
        """
        require_positive(parameters=parameters, num_heads=num_heads)

        def make(hidden_size: int, device: Any) -> LanguageModel:
            return cls(vocabulary, hidden_size, num_heads=num_heads, device=device, **options)

        @cache
        def count(hidden_size: int) -> int:
            return parameter_count(make(hidden_size, "meta"))

        if parameters < count(num_heads):
            raise ConfigError(
                f"parameters is {parameters}, but the smallest such model (hidden_size {num_heads}) has "
                f"{count(num_heads)}: give more parameters, or a smaller vocabulary or number of layers or "
                "heads."
            )
        multiple = num_heads if parameters <= count(64) else math.lcm(num_heads, 8)
        sizes = range(multiple, LARGEST_HIDDEN_SIZE, multiple)
        above = bisect_left(sizes, parameters, key=count)
        nearest = min(sizes[max(above - 1, 0) : above + 1], key=lambda size: abs(count(size) - parameters))
        return make(nearest, device)

    def initial_state(self, rows: int) -> State:
        """The state before the first token: one cell state per layer."""
        return tuple(cell.initial_state(rows) for cell in self.cells)

    def forward(
        self, tokens: Int[Tensor, "rows time"], state: State = None
    ) -> tuple[Float[Tensor, "rows time vocabulary"], State]:
        """Logits after every token, and the state after the last; `state` None is the initial state.

        The given state is not modified. Cutting a text into chunks changes nothing but rounding.
        """
        features, after = self.features(tokens, state)
        return self.head(features), after

    def features(
        self, tokens: Int[Tensor, "rows time"], state: State = None
    ) -> tuple[Float[Tensor, "rows time hidden_size"], State]:
        """The head's inputs after every token, and the last state; `state` None is the initial state."""
        before = self.initial_state(tokens.shape[0]) if state is None else state
        after = []
        x = self.embedding(tokens)
        # Time-major for the cells; rows first for every other module, as members side by side need it.
        for norm, cell, cell_state in zip(self.norms, self.cells, before, strict=True):
            y, cell_state = run(cell, norm(x).transpose(0, 1), cell_state)
            y = y.transpose(0, 1)
            x = x + y if self.residual else y
            after.append(cell_state)
        return self.final_norm(x).contiguous(), tuple(after)


def parameter_count(model: nn.Module) -> int:
    """Number of trained parameters, a shared one counted once.

    >>> parameter_count(nn.Linear(3, 4))
    16
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
