"""Arguments of the compiled kernels: the noise of members side by side, and the parts of a map's result."""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zorn.errors import ConfigError

MAXIMUM_RANK = 64  # of recurrent.h, which could take more than the one a and b of a member


def _structure(name: str, fields: str) -> Any:
    """A structure of recurrent.h: 64-bit integers, `*` an address, `[]` one for each rank."""
    kinds = {"*": ctypes.c_void_p, "[": ctypes.c_void_p * MAXIMUM_RANK}
    parts = [(field.strip("*[]"), kinds.get(field[0], ctypes.c_int64)) for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": parts})


NoiseStructure = _structure("Noise", "rank members *scale []rows []columns []offsets")
StepStructure = _structure(
    "Step",
    "is_bfloat16 rows heads size *product product_row product_head *drive drive_row *bias *hidden *state "
    "*next_hidden *next_state *noise *carried group output_last",
)
AffineStructure = _structure(
    "Affine", "is_bfloat16 positions inner rows blocks outputs inputs *x *y *noise group"
)
RolloutStructure = _structure(
    "Rollout",
    "is_bfloat16 time rows heads size inputs *x x_step x_row *weight_input *weight_state *bias *hidden *cell "
    "*outputs *next_cell *input_noise *state_noise group *packed *factors *scratch *coefficients",
)


class LaneNoise:
    """s ε a (b·x + c) of members side by side: the noise of one affine map.

    Rows lie as [signs, members, group].

    Args:
        scale: s ε of every sign, [signs] float32.
        rows: a, [members, blocks, outputs].
        columns: b, [members, blocks, inputs]; None where the weight has no noise.
        offsets: c, [members, blocks, 1]; None where there is no bias with noise.

    Raises:
        ConfigError: a factor whose members or blocks differ from the others'.

    >>> signs = torch.ones(3, 1, 4)
    >>> LaneNoise(torch.tensor([0.1, -0.1]), signs, signs, None).lanes
    6
    """

    def __init__(self, scale: Tensor, rows: Tensor, columns: Tensor | None, offsets: Tensor | None) -> None:
        given = {"rows": rows, "columns": columns, "offsets": offsets}
        factors = {name: factor.contiguous() for name, factor in given.items() if factor is not None}
        self.members, self.blocks, self.outputs = rows.shape
        if any(factor.shape[:2] != rows.shape[:2] for factor in factors.values()):
            raise ConfigError(
                f"noise with factors {[tuple(factor.shape) for factor in factors.values()]}: expected the "
                "same [members, blocks, …] of all"
            )
        self.inputs = None if columns is None else columns.shape[2]
        self.lanes = len(scale) * self.members
        alike = all(factor.dtype == rows.dtype and factor.is_cpu for factor in factors.values())
        self._dtype = rows.dtype if alike else None
        self._held = scale.contiguous(), factors  # they live as long as their addresses
        places = {name: (ctypes.c_void_p * MAXIMUM_RANK)(f.data_ptr()) for name, f in factors.items()}
        scale_at = self._held[0].data_ptr()
        self._structure = NoiseStructure(rank=1, members=self.members, scale=scale_at, **places)
        self.address = ctypes.addressof(self._structure)

    def fits(self, dtype: torch.dtype, rows: int, blocks: int, inputs: int) -> bool:
        """True if it serves `rows` vectors of `blocks` × `inputs` of `dtype` on the CPU."""
        shaped = blocks == self.blocks and self.inputs in (None, inputs)
        return shaped and self._dtype == dtype and rows % self.lanes == 0


class Summands(NamedTuple):
    """The parts whose sum is the result of a recurrent map, not yet added up; see `zorn.native.sums`.

    Attributes:
        product: R h, `[heads, rows, gates · d]`; of any strides but in its last dimension.
        bias: `[heads · gates · d]`, or None.
        noise: of the members side by side, or None.
        carried: b·x + b₀ of the input of this step, `[rows, 1]` float32, or None.
    """

    product: Tensor
    bias: Tensor | None
    noise: LaneNoise | None
    carried: Tensor | None


def address(tensor: Tensor | None) -> int | None:
    """Of its first element; None for None."""
    return None if tensor is None else tensor.data_ptr()
