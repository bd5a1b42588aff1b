"""Arguments of the compiled kernels: the noise of members side by side, and the parts of a map's result."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zorn.errors import ConfigError

MAXIMUM_RANK = 64
Places = ctypes.c_void_p * MAXIMUM_RANK
_Integer, _Place = ctypes.c_int64, ctypes.c_void_p


class NoiseStructure(ctypes.Structure):
    """`Noise` of recurrent.h."""

    _fields_ = (
        ("rank", _Integer),
        ("members", _Integer),
        ("scale", _Place),
        ("rows", Places),
        ("columns", Places),
        ("offsets", Places),
    )


class StepStructure(ctypes.Structure):
    """`Step` of recurrent.h."""

    _fields_ = (
        *((name, _Integer) for name in ("is_bfloat16", "rows", "heads", "size")),
        ("product", _Place),
        *((name, _Integer) for name in ("product_row", "product_head")),
        ("drive", _Place),
        ("drive_row", _Integer),
        *((name, _Place) for name in ("bias", "hidden", "state", "next_hidden", "next_state")),
        *((name, _Place) for name in ("noise", "carried")),
        ("group", _Integer),
    )


class AffineStructure(ctypes.Structure):
    """`Affine` of recurrent.h."""

    _fields_ = (
        *(
            (name, _Integer)
            for name in ("is_bfloat16", "positions", "inner", "rows", "blocks", "outputs", "inputs")
        ),
        *((name, _Place) for name in ("x", "y", "noise")),
        ("group", _Integer),
    )


class RolloutStructure(ctypes.Structure):
    """`Rollout` of recurrent.h."""

    _fields_ = (
        *((name, _Integer) for name in ("is_bfloat16", "time", "rows", "heads", "size", "inputs")),
        ("x", _Place),
        *((name, _Integer) for name in ("x_step", "x_row")),
        *((name, _Place) for name in ("weight_input", "weight_state", "bias", "hidden", "cell")),
        *((name, _Place) for name in ("outputs", "next_cell", "input_noise", "state_noise")),
        ("group", _Integer),
        *((name, _Place) for name in ("packed", "factors", "scratch", "coefficients")),
    )


class LaneNoise:
    """s ε / √rank Σ_i a_i (b_i·x + c_i) of members side by side: the noise of one affine map.

    Rows lie as [signs, members, group].

    Args:
        scale: s ε / √rank of every sign, [signs] float32.
        rows: a_i of each rank, [members, blocks, outputs].
        columns: b_i of each rank, [members, blocks, inputs]; None where the weight has no noise.
        offsets: c_i of each rank, [members, blocks, 1]; None where there is no bias with noise.

    Raises:
        ConfigError: more ranks than 64, or a factor whose members or blocks differ from the others'.

    >>> signs = torch.ones(3, 1, 4)
    >>> LaneNoise(torch.tensor([0.1, -0.1]), [signs], [signs], None).lanes
    6
    """

    def __init__(
        self,
        scale: Tensor,
        rows: Sequence[Tensor],
        columns: Sequence[Tensor] | None,
        offsets: Sequence[Tensor] | None,
    ) -> None:
        count, (members, blocks, self.outputs) = len(rows), rows[0].shape
        given = [*rows, *(columns or ()), *(offsets or ())]
        if count > MAXIMUM_RANK or any(factor.shape[:2] != (members, blocks) for factor in given):
            raise ConfigError(
                f"noise of {count} ranks with factors {[tuple(factor.shape) for factor in given]}: expected "
                f"at most {MAXIMUM_RANK} ranks, and the same [members, blocks, …] of all factors"
            )
        self.members, self.blocks, self.rank = members, blocks, count
        self.inputs = None if columns is None else columns[0].shape[2]
        self.lanes = len(scale) * members
        self._factors = [factor.contiguous() for factor in given]  # they live as long as their addresses
        self._dtype = given[0].dtype if all(_is_like(factor, given[0]) for factor in given) else None
        self._scale = scale.contiguous()
        places = iter([factor.data_ptr() for factor in self._factors])
        self._structure = NoiseStructure(
            rank=count,
            members=members,
            scale=self._scale.data_ptr(),
            rows=Places(*(next(places) for _ in rows)),
            columns=Places(*(next(places) for _ in columns or ())),
            offsets=Places(*(next(places) for _ in offsets or ())),
        )
        self.address = ctypes.addressof(self._structure)

    def fits(self, dtype: torch.dtype, rows: int, blocks: int, inputs: int) -> bool:
        """True if it serves `rows` vectors of `blocks` × `inputs` of `dtype` on the CPU."""
        shaped = blocks == self.blocks and self.inputs in (None, inputs)
        return shaped and self._dtype == dtype and rows % self.lanes == 0


def _is_like(factor: Tensor, other: Tensor) -> bool:
    return factor.dtype == other.dtype and factor.is_cpu


class Summands(NamedTuple):
    """The parts whose sum is the result of a recurrent map, not yet added up; see `zorn.native.sums`.

    Attributes:
        product: R h, `[heads, rows, gates · d]`; of any strides but in its last dimension.
        bias: `[heads · gates · d]`, or None.
        noise: of the members side by side, or None.
        carried: b·x + b₀ of the input of this step, `[rows, rank]` float32, or None.
    """

    product: Tensor
    bias: Tensor | None
    noise: LaneNoise | None
    carried: Tensor | None
