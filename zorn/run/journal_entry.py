"""One step in a journal, and its bytes.

    marker "STEP", the fields of `_HEAD` (little-endian), CRC-32 of the coefficients, CRC-32 of all before it
    the coefficients: `population` numbers of 4 or 8 bytes

100 bytes, and 4 for each member (8 where a parameter is float64).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from zorn.errors import ConfigError
from zorn.estimators.fold import Fold
from zorn.noise import Draw

MARKER = b"STEP"
_HEAD = struct.Struct("<4sQQIIIddddQIdB3xII")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size
_NUMBERS = {4: "<f4", 8: "<f8"}


@final
@dataclass(frozen=True, kw_only=True)
class JournalEntry:
    """One step: all that makes it again from the weights before it, and what is logged of it.

    Args:
        step: steps done with it, 1 to 2**64 - 1.
        fold: of the step's estimate.
        rate_factor: what the first learning rates were multiplied by.
        loss: nats, or the objective's unit.
        gradient_norm: Euclidean norm of the gradient, before clipping.
        forward_passes: sequences run through the model in training, of all steps so far.
        dropped: members of this step that were left out.
        seconds: of training so far.

    Raises:
        ConfigError: a step below 1.

    Example:
        >>> draw = Draw(seed=0, step=4, epsilon=0.1)
        >>> fold = Fold.of(draw, torch.tensor([0.5, -0.25], dtype=torch.float64))
        >>> data = JournalEntry(step=5, fold=fold).encoded()
        >>> len(data), JournalEntry.decoded(data).fold.weights
        (108, tensor([ 0.5000, -0.2500], dtype=torch.float64))
    """

    step: int
    fold: Fold
    rate_factor: float = 1.0
    loss: float = 0.0
    gradient_norm: float = 0.0
    forward_passes: int = 0
    dropped: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ConfigError(f"step: got {self.step}, expected the steps done, at least 1")

    @property
    def nbytes(self) -> int:
        """Size of the entry in bytes."""
        return HEAD_BYTES + self.fold.coded.nbytes

    def encoded(self) -> bytes:
        """The bytes of the entry: `HEAD_BYTES`, and those of the coefficients."""
        fold, draw, size = self.fold, self.fold.draw, self.fold.coded.element_size()
        numbers = fold.coded.cpu().numpy().astype(_NUMBERS[size]).tobytes()
        origin = draw.step if fold.origin is None else fold.origin
        head = _HEAD.pack(
            MARKER,
            self.step,
            *(draw.seed, draw.step, origin, fold.draws, draw.epsilon),
            *(self.rate_factor, self.loss, self.gradient_norm),
            *(self.forward_passes, self.dropped, self.seconds),
            *(size, len(fold.coded), zlib.crc32(numbers)),
        )
        return head + _CRC.pack(zlib.crc32(head)) + numbers

    @classmethod
    def decoded(cls, data: bytes) -> JournalEntry:
        """The entry of some bytes, which are whole (see `payload_bytes` and `is_whole`)."""
        (_, step, seed, draw_step, origin, draws, epsilon, *logged, size, _, _) = _HEAD.unpack_from(data)
        rate_factor, loss, gradient_norm, forward_passes, dropped, seconds = logged
        numbers = np.frombuffer(data, _NUMBERS[size], offset=HEAD_BYTES)
        return cls(
            step=step,
            fold=Fold(
                draw=Draw(seed=seed, step=draw_step, epsilon=epsilon),
                coded=torch.from_numpy(numbers.astype(f"=f{size}")),
                origin=origin,
                draws=draws,
            ),
            rate_factor=rate_factor,
            loss=loss,
            gradient_norm=gradient_norm,
            forward_passes=forward_passes,
            dropped=dropped,
            seconds=seconds,
        )


def payload_bytes(head: bytes) -> int | None:
    """Bytes of coefficients that follow a head of `HEAD_BYTES`; None where it is none, or damaged.

    >>> payload_bytes(b"STEP") is None
    True
    """
    if len(head) != HEAD_BYTES or not head.startswith(MARKER):
        return None
    if zlib.crc32(head[: _HEAD.size]) != _CRC.unpack_from(head, _HEAD.size)[0]:
        return None
    fields = _HEAD.unpack_from(head)
    return fields[-2] * fields[-3]


def is_whole(data: bytes) -> bool:
    """True for the bytes of an entry with coefficients as they were written.

    >>> fold = Fold.of(Draw(seed=0, step=0, epsilon=0.1), torch.zeros(2, dtype=torch.float64))
    >>> data = JournalEntry(step=1, fold=fold).encoded()
    >>> is_whole(data), is_whole(data[:-1])
    (True, False)
    """
    head, numbers = data[:HEAD_BYTES], data[HEAD_BYTES:]
    return payload_bytes(head) == len(numbers) and zlib.crc32(numbers) == _HEAD.unpack_from(head)[-1]


def step_of(head: bytes) -> int:
    """The step of a head that is not damaged."""
    return _HEAD.unpack_from(head)[1]
