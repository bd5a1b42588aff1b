"""The shape of a parameter's noise: a rank-one matrix a bᵀ for each block, whose row factor can be shared."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The parameter, flattened, seen as `[blocks, rows, columns]`: the noise of each block is a bᵀ, a over
    rows, b over columns.

    A bias or a gain is a matrix of one column, so its noise is dense. A bias that belongs to a weight borrows
    that weight's row factor (`row_source`): W x + b is one affine map of [x, 1], its noise one rank-one
    matrix, and adding it to the output one pass.

    Args:
        rows: of one block; the outputs of a linear map, the entries of a vector.
        columns: of one block; the inputs of a linear map, 1 for a vector.
        blocks: independent matrices along the parameter's leading dimension (the heads of a block-diagonal
            map).
        row_source: name, within the same module, of the parameter whose row factor is used; None for the
            parameter's own.
        fixed_rows: rows of block 0 that are never perturbed (the padding row of an embedding).
    """

    rows: int
    columns: int = 1
    blocks: int = 1
    row_source: str | None = None
    fixed_rows: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Elements of the parameter."""
        return self.blocks * self.rows * self.columns

    @property
    def has_column_factor(self) -> bool:
        """True if a factor b is drawn. A single column with a row factor of its own needs none: b is 1."""
        return self.columns > 1 or self.row_source is not None

    def without_fixed_rows_(self, a: Tensor, first: int = 0) -> Tensor:
        """Entries first, first + 1, … of row factors, [members, entries], with zeros for fixed rows."""
        for row in self.fixed_rows:
            if first <= row < first + a.shape[1]:
                a[:, row - first] = 0
        return a
