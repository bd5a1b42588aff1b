"""The sizes of a model that its memory follows from, counted on torch's meta device: no memory is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zorn.estimators.carry import state_tensors
from zorn.models import DNCSettings, LanguageModel
from zorn.perturbations.drawn_factors import LARGEST_TABLE
from zorn.perturbations.targets import structured_sites
from zorn.random.draws import SIGNS_PER_BLOCK
from zorn.training.build import model_of
from zorn.training.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What the formulas of this package need to know of a language model. Sizes are numbers, not bytes,
    unless they say so.

    Attributes:
        cell: "lstm", "gru", "min-gru" or "dnc".
        vocabulary, embedding, hidden, layers, heads: V, E, H, layers, blocks of the recurrent weight.
        norm: "none", "layer" or "rms".
        residual: whether each layer's input is added to its output.
        memory: of a dnc, else None.
        element: bytes of a number in the dtype of the weights.
        parameters: size of each trained parameter, by name; a shared one once.
        state_bytes: of the recurrent state of one row.
        factors: lengths of the rank-one factors a and b of one member, without those of `tables`.
        tables: lengths of the row factors of large tables, whose signs are drawn where they are read.
    """

    cell: str
    vocabulary: int
    embedding: int
    hidden: int
    layers: int
    heads: int
    norm: str
    residual: bool
    memory: DNCSettings | None
    element: int
    parameters: Mapping[str, int]
    state_bytes: int
    factors: tuple[int, ...]
    tables: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return {2: torch.bfloat16, 4: torch.float32}.get(self.element, torch.float64)

    @classmethod
    def of(cls, settings: ModelConfig, vocabulary: int, dtype: torch.dtype = torch.float32) -> ModelSizes:
        """The sizes of the model that these settings make.

        >>> sizes = ModelSizes.of(ModelConfig(hidden_size=64), vocabulary=256)
        >>> sizes.by_part()
        {'embedding': 16384, 'layers': 33024, 'head': 16640}
        """
        model = model_of(settings, vocabulary, dtype=dtype, device="meta")
        state = state_tensors(model.initial_state(1))
        first = model.cells[0]
        factors, tables = _factor_lengths(model)
        return cls(
            cell=settings.cell,
            vocabulary=vocabulary,
            embedding=model.embedding.embedding_dim,
            hidden=model.head.in_features,
            layers=len(model.cells),
            heads=settings.num_heads,
            norm=settings.norm,
            residual=settings.residual,
            memory=first.memory.sizes if settings.cell == "dnc" else None,
            element=dtype.itemsize,
            parameters={name: parameter.numel() for name, parameter in model.named_parameters()},
            state_bytes=sum(bytes_of(tensor) for tensor in state),
            factors=factors,
            tables=tables,
        )

    @property
    def total(self) -> int:
        """d, all trained parameters."""
        return sum(self.parameters.values())

    @property
    def weight_bytes(self) -> int:
        """Of all parameters."""
        return self.total * self.element

    @property
    def largest(self) -> int:
        """Numbers in the largest parameter, which is what a temporary copy of one parameter takes."""
        return max(self.parameters.values())

    @property
    def inputs(self) -> list[int]:
        """Input size of each layer."""
        return [self.embedding, *[self.hidden] * (self.layers - 1)]

    def layer(self, number: int) -> dict[str, int]:
        """The parameters of one recurrent layer, by name."""
        prefix = f"cells.{number}."
        return {name: size for name, size in self.parameters.items() if name.startswith(prefix)}

    def by_part(self) -> dict[str, int]:
        """Parameters by part: embedding, layers (with the norms), head. A tied weight counts as embedding."""
        parts = {"embedding": 0, "layers": 0, "head": 0}
        for name, size in self.parameters.items():
            part = name.split(".", 1)[0]
            parts[part if part in ("embedding", "head") else "layers"] += size
        return parts

    def factor_bytes(self, rank: int, *, signs: bool, tables: bool = True) -> int:
        """Rank-one factors of one member: a and b of every parameter, `rank` times, in the weights' dtype
        (`_BoundRankOne._factors`). Signs come in whole blocks of 128, and with the words that they are
        unpacked from, a bit each, while they are made; those of `tables` may not be there at once."""
        lengths = self.factors + (self.tables if tables or not signs else ())
        if not signs:
            return rank * sum(lengths) * self.element
        return rank * sum(self.sign_bytes(length) for length in lengths)

    def sign_bytes(self, length: int) -> int:
        """That many signs of a member."""
        whole = math.ceil(length / SIGNS_PER_BLOCK) * SIGNS_PER_BLOCK
        return whole * self.element + whole // 8


def _factor_lengths(model: LanguageModel) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of every a, those that parameters share once, and of every b; those of large tables apart."""
    targets, _ = structured_sites(model)
    rows = {target.row_number: target.layout for target in targets}
    is_table = {number: layout.blocks == 1 and layout.rows > LARGEST_TABLE for number, layout in rows.items()}
    factors = [layout.blocks * layout.rows for number, layout in rows.items() if not is_table[number]]
    factors += [
        target.layout.blocks * target.layout.columns for target in targets if target.layout.has_column_factor
    ]
    return tuple(factors), tuple(layout.rows for number, layout in rows.items() if is_table[number])


def bytes_of(tensor: Tensor) -> int:
    """Of a tensor's numbers, wherever it lies."""
    return tensor.numel() * tensor.element_size()
