"""The noise of one step is named, not stored: its seed, step and scale, and the names of its random streams.

Every number of a perturbation is a pure function of (run seed, step, member, parameter, factor, element), by
Philox 4x32-10 (Salmon et al. 2011). So any of them can be made again anywhere, in any order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zorn.errors import ConfigError
from zorn.random import normals, sign_table, signs

NoiseKind = Literal["rademacher", "gaussian"]

_FACTOR_BITS = 8
ROUNDING_FACTOR = 255  # the stream of a parameter's stochastic rounding
ACTIVITY_FACTOR = 254  # the stream of the noise at a module's output; numbers are then those of modules


@dataclass(frozen=True, kw_only=True)
class Draw:
    """All that determines the noise of one step; carried from `ask` to `tell`, so that nothing re-reads a
    schedule later.

    Args:
        seed: of the run, 0 to 2**64 - 1.
        step: counted from 0, below 2**32.
        epsilon: ε, the standard deviation of one weight's perturbation, > 0.
    """

    seed: int
    step: int
    epsilon: float


def stream_of(parameter: int, factor: int) -> int:
    """The 32-bit name of one vector of noise: the parameter's number in the model, and which factor of its
    noise it is."""
    assert 0 <= factor < 1 << _FACTOR_BITS
    assert 0 <= parameter < 1 << (32 - _FACTOR_BITS)
    return parameter << _FACTOR_BITS | factor


def noise(
    kind: NoiseKind,
    draw: Draw,
    members: range,
    stream: int,
    count: int,
    *,
    offset: int = 0,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Elements offset .. offset + count of a stream, for each member: [len(members), count], signs or
    normals."""
    make = signs if kind == "rademacher" else normals
    return make(draw.seed, draw.step, members, stream, count, offset=offset, dtype=dtype, device=device)


def noise_table(
    kind: NoiseKind,
    draw: Draw,
    members: range,
    streams: Mapping[int, int],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[int, Tensor]:
    """The first elements of many streams (stream: count) at once, each [len(members), count]; the values of
    `noise`."""
    if kind == "rademacher":
        requests = list(streams.items())
        found = sign_table(draw.seed, draw.step, members, requests, dtype=dtype, device=device)
        return dict(zip(streams, found, strict=True))
    return {
        stream: noise(kind, draw, members, stream, count, dtype=dtype, device=device)
        for stream, count in streams.items()
    }


def check_noise_kind(kind: str) -> None:
    """Raise `ConfigError` unless `kind` names a distribution that zorn draws from."""
    if kind not in ("rademacher", "gaussian"):
        raise ConfigError(f"noise: got {kind!r}, expected 'rademacher' or 'gaussian'")
