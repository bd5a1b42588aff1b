"""The decision where the kernels run. Elsewhere their reference twins run, and one warning says so.

`SWITCH` in the environment, read once for each device:

- `ZORN_GPU_KERNELS=0`: no kernel runs anywhere;
- `ZORN_GPU_KERNELS=interpret` beside `TRITON_INTERPRET=1`: kernels run on the CPU too, in Triton's
  interpreter, thousands of times slower. The tests use this, so that they need no GPU.
"""

import logging
import os
from functools import lru_cache

import torch

from zorn.kernels.language import installed, interpreted

SWITCH = "ZORN_GPU_KERNELS"
"""Environment variable: "0" or "interpret"; anything else leaves the choice to the device."""

MINIMUM_CAPABILITY = (8, 0)
"""The oldest CUDA compute capability with bfloat16 products: Ampere, 2020."""

_UNSAID = ""
_log = logging.getLogger(__name__)


def available(device: torch.device | str) -> bool:
    """True if the Triton kernels run on a device; if not, the reference twins in plain PyTorch do.

    They run on GPUs from compute capability 8.0 up, with Triton installed, unless `SWITCH` turns them off.
    On a GPU where they do not, the reason and the fix are logged once, as a warning.

    Args:
        device: any device; a CPU has kernels only where `SWITCH` asks for the interpreter.

    Example:
        >>> available("cpu")
        False
    """
    reason = _reason_against(torch.device(device))
    if reason:
        say_once(reason)
    return reason is None


@lru_cache(maxsize=32)
def _reason_against(device: torch.device) -> str | None:
    """Why a device has no kernels; None where it has, `_UNSAID` where nothing is to be said."""
    switch = os.environ.get(SWITCH)
    if switch == "0":
        return _UNSAID
    if switch == "interpret" and device.type == "cpu" and not interpreted:
        return (
            f"{SWITCH}=interpret asks for zorn's GPU kernels in Triton's interpreter, which is off: install "
            "Triton (pip install 'zorn[kernels]') and set TRITON_INTERPRET=1 before zorn is imported"
        )
    if switch == "interpret" and device.type == "cpu":
        return None
    if device.type != "cuda":
        return _UNSAID
    if not installed:
        return (
            "zorn's GPU kernels need Triton, which is not installed: pip install 'zorn[kernels]'; "
            "plain PyTorch is used instead, which is slower"
        )
    if interpreted:
        return (
            "zorn's GPU kernels are off because TRITON_INTERPRET is set, which runs them on the CPU: "
            "unset it; plain PyTorch is used instead, which is slower"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < MINIMUM_CAPABILITY:
        return (
            f"zorn's GPU kernels need compute capability {_dotted(MINIMUM_CAPABILITY)} or more, "
            f"{torch.cuda.get_device_name(device)} has {_dotted(capability)}: plain PyTorch is used instead, "
            "which is slower; take a newer GPU"
        )
    return None


@lru_cache(maxsize=256)
def say_once(reason: str) -> None:
    """Log a warning, the first time that it is given.

    Example:
        >>> say_once("plain PyTorch is used instead")
    """
    _log.warning(reason)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
