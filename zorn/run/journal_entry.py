"""One step in a journal, and its line: JSON with a checksum, so that a line that is not as it was written is
found."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch

from zorn.errors import ConfigError
from zorn.estimators.fold import Fold
from zorn.noise import Draw


@final
@dataclass(frozen=True, kw_only=True)
class JournalEntry:
    """One step: all that makes it again from the weights before it, and what is logged of it.

    Args:
        step: steps done with it, at least 1.
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
        >>> line = JournalEntry(step=5, fold=fold).encoded()
        >>> JournalEntry.decoded(line).fold.weights
        tensor([ 0.5000, -0.2500], dtype=torch.float64)
        >>> JournalEntry.decoded(line.replace(b"0.1", b"0.2")) is None
        True
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

    def encoded(self) -> bytes:
        """The line of the entry: its fields; those of the draw; the coefficients' bytes, little-endian, in
        base64."""
        fold, numbers = self.fold, self.fold.coded.cpu().numpy()
        little = numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()
        return sealed(
            {name: value for name, value in vars(self).items() if name != "fold"}
            | {"draw": asdict(fold.draw), "origin": fold.origin, "draws": fold.draws}
            | {"coded": base64.b64encode(little).decode(), "dtype": numbers.dtype.name}
        )

    @classmethod
    def decoded(cls, line: bytes) -> JournalEntry | None:
        """The entry of a line; None unless the line is whole, to the last byte."""
        fields = unsealed(line)
        if fields is None:
            return None
        dtype = np.dtype(fields.pop("dtype"))
        little = np.frombuffer(base64.b64decode(fields.pop("coded")), dtype.newbyteorder("<"))
        coded = torch.from_numpy(little.astype(dtype))
        draw, origin, draws = (fields.pop(name) for name in ("draw", "origin", "draws"))
        return cls(fold=Fold(draw=Draw(**draw), coded=coded, origin=origin, draws=draws), **fields)


def sealed(content: dict[str, Any]) -> bytes:
    """A line of JSON whose last field is the CRC-32 of all before it.

    >>> sealed({"step": 5})
    b'{"step": 5, "crc32": "3ac74723"}\\n'
    """
    return _with_checksum(json.dumps(content).encode()[:-1])


def unsealed(line: bytes) -> dict[str, Any] | None:
    """The content of a line from `sealed`; None where any byte of it is another.

    >>> unsealed(sealed({"step": 5})), unsealed(b'{"step": 5}')
    ({'step': 5}, None)
    """
    text = line[: -len(_with_checksum(b""))]
    if not text or line != _with_checksum(text):
        return None
    return {name: value for name, value in json.loads(line).items() if name != "crc32"}


def _with_checksum(text: bytes) -> bytes:
    return b'%b, "crc32": "%08x"}\n' % (text, zlib.crc32(text))
