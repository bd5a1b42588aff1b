"""A recurrent language model: embedding, layers of cells, linear head, with explicit state in and out."""

import math
from bisect import bisect_left
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zorn.errors import ConfigError
from zorn.models.cell import run
from zorn.models.gru import GRUCell
from zorn.models.initialise import normal_, uniform_, without_values
from zorn.models.lstm import LSTMCell
from zorn.models.sizes import head_size, require_positive
from zorn.models.state import State

CELLS: dict[str, type[LSTMCell] | type[GRUCell]] = {"lstm": LSTMCell, "gru": GRUCell}
"""The cells that a `LanguageModel` can be built of, by name."""

LARGEST_HIDDEN_SIZE = 2**20


class LanguageModel(nn.Module):
    """Next-token logits from an embedding, `num_layers` recurrent cells and a linear head with bias.

    The weights depend on the sizes and `seed` alone: the global generator of torch is neither read nor moved.
    Convert with `.to(torch.bfloat16)` or `.to("cuda")` like any module.

    Args:
        vocabulary: V, number of tokens.
        hidden_size: H, units of every layer, a multiple of `num_heads`.
        embedding_size: size of a token's vector; None is `hidden_size`.
        cell: "lstm" or "gru".
        num_layers: recurrent layers, one above the other.
        num_heads: blocks of the recurrent weights; 1 is dense.
        tie_embedding: the head's weight is the embedding's (Press & Wolf 2017).
        seed: of the first values, 0 up to 2⁶⁴ − 1. Embedding N(0, 1), or when tied the head's
            Uniform(−1/√H, 1/√H); cells as they say.

    Raises:
        ConfigError: a size below 1, an unknown cell, heads that do not divide H, or a tied embedding of
            another size than H.

    >>> model = LanguageModel(vocabulary=50, hidden_size=16, cell="gru")
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
        cell: str = "lstm",
        num_layers: int = 1,
        num_heads: int = 1,
        tie_embedding: bool = False,
        seed: int = 0,
    ) -> None:
        embedding_size = hidden_size if embedding_size is None else embedding_size
        require_positive(vocabulary=vocabulary, embedding_size=embedding_size, num_layers=num_layers)
        head_size(hidden_size, num_heads)
        cell_class = _cell_class(cell)
        if tie_embedding and embedding_size != hidden_size:
            raise ConfigError(
                f"embedding_size {embedding_size} differs from hidden_size {hidden_size}, but a tied "
                "embedding is the head's weight and needs both equal: leave embedding_size out or do not tie."
            )
        if not 0 <= seed < 2**64:
            raise ConfigError(f"seed is {seed}, but it must lie in 0 … 2**64 - 1: choose another.")
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = without_values(nn.Embedding(vocabulary, embedding_size, device="meta"))
        self.cells = nn.ModuleList(
            cell_class(
                embedding_size if layer == 0 else hidden_size, hidden_size, num_heads, generator=generator
            )
            for layer in range(num_layers)
        )
        self.head = without_values(nn.Linear(hidden_size, vocabulary, device="meta"))
        for parameter in self.head.parameters():
            uniform_(parameter, hidden_size**-0.5, generator)
        if tie_embedding:
            self.embedding.weight = self.head.weight
        else:
            normal_(self.embedding.weight, generator)

    @classmethod
    def with_parameters(
        cls,
        parameters: int,
        vocabulary: int,
        *,
        cell: str = "lstm",
        num_layers: int = 1,
        num_heads: int = 1,
        tie_embedding: bool = False,
        seed: int = 0,
    ) -> "LanguageModel":
        """The model whose number of parameters is closest to `parameters`: one dial for the size.

        The embedding is as wide as the hidden layers. Hidden sizes are multiples of `num_heads`, and above
        64 of 8.

        Raises:
            ConfigError: `parameters` below those of the smallest model, and whatever the class itself
                refuses.

        >>> parameter_count(LanguageModel.with_parameters(100_000, vocabulary=256))
        92736
        """
        require_positive(
            parameters=parameters, vocabulary=vocabulary, num_layers=num_layers, num_heads=num_heads
        )
        cell_class = _cell_class(cell)

        def count(hidden_size: int) -> int:
            tables = (1 if tie_embedding else 2) * vocabulary * hidden_size + vocabulary
            return tables + num_layers * cell_class.num_parameters(hidden_size, hidden_size, num_heads)

        if parameters < count(num_heads):
            raise ConfigError(
                f"parameters is {parameters}, but the smallest such model (hidden_size {num_heads}) has "
                f"{count(num_heads)}: give more parameters, or a smaller vocabulary or number of layers or "
                "heads."
            )
        multiple = num_heads if parameters <= count(64) else math.lcm(num_heads, 8)
        sizes = range(multiple, LARGEST_HIDDEN_SIZE, multiple)
        above = bisect_left(sizes, parameters, key=count)
        hidden_size = min(
            sizes[max(above - 1, 0) : above + 1], key=lambda size: abs(count(size) - parameters)
        )
        return cls(
            vocabulary,
            hidden_size,
            cell=cell,
            num_layers=num_layers,
            num_heads=num_heads,
            tie_embedding=tie_embedding,
            seed=seed,
        )

    def initial_state(self, rows: int) -> State:
        """The state before the first token: one cell state per layer."""
        return tuple(cell.initial_state(rows) for cell in self.cells)

    def forward(
        self, tokens: Int[Tensor, "rows time"], state: State = None
    ) -> tuple[Float[Tensor, "rows time vocabulary"], State]:
        """Logits after every token, and the state to go on from; `state` None starts afresh.

        The state that comes in is left as it was. Cutting a text into chunks changes nothing but rounding.
        """
        before = self.initial_state(tokens.shape[0]) if state is None else state
        after = []
        x = self.embedding(tokens).transpose(0, 1)
        for cell, cell_state in zip(self.cells, before, strict=True):
            x, cell_state = run(cell, x, cell_state)
            after.append(cell_state)
        return self.head(x.transpose(0, 1).contiguous()), tuple(after)


def parameter_count(model: nn.Module) -> int:
    """Number of trained parameters, a shared one counted once.

    >>> parameter_count(nn.Linear(3, 4))
    16
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _cell_class(name: str) -> type[LSTMCell] | type[GRUCell]:
    if name not in CELLS:
        raise ConfigError(f"cell is {name!r}, but it must be one of {', '.join(CELLS)}.")
    return CELLS[name]
