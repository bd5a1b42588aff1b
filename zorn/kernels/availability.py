"""Where the kernels run; elsewhere their reference twins do, which is said once."""

import logging
from functools import lru_cache

import torch
from torch import Tensor

from zorn.kernels.language import installed, interpreted

MINIMUM_CAPABILITY = (8, 0)
"""The oldest CUDA compute capability with bfloat16 products: Ampere, 2020."""

_log = logging.getLogger(__name__)


def available(device: torch.device | str) -> bool:
    """Whether the Triton kernels run on a device; if not, the reference twins in plain PyTorch do.

    They run on GPUs from compute capability 8.0 up, with Triton installed. On a GPU where they do not, the
    reason and the fix are logged once, as a warning.

    Args:
        device: any device; a CPU never has kernels, its twins are what it runs best.

    Example:
        >>> available("cpu")
        False
    """
    device = torch.device(device)
    if device.type != "cuda":
        return False
    reason = _reason_against(device)
    if reason:
        _say_once(reason)
    return not reason


def runs_kernel(*tensors: Tensor) -> bool:
    """Whether a kernel serves tensors: available on their device, and no float64, which has twins only."""
    return all(tensor.dtype != torch.float64 for tensor in tensors) and available(tensors[0].device)


@lru_cache(maxsize=32)
def _reason_against(device: torch.device) -> str:
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
    return ""


@lru_cache(maxsize=32)
def _say_once(reason: str) -> None:
    _log.warning(reason)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
