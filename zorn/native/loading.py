"""Finding and loading the compiled library, and when it may take over from torch."""

import ctypes
import logging
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

DISABLED_BY = "ZORN_CPU_KERNELS"
"""Environment variable: "0" leaves the library out."""

INTERFACE = 2
"""Of the library that this code calls: `zorn_interface` in recurrent.c."""

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")

_NUMBERS = (torch.float32, torch.bfloat16)
_PLAIN = (Tensor, torch.nn.Parameter)
_logger = logging.getLogger("zorn")


@cache
def compiled() -> ctypes.CDLL | None:
    """The library; None where it was not built, cannot be loaded or is disabled, which is said once."""
    if os.environ.get(DISABLED_BY) == "0":
        return None
    folder = Path(__file__).parent
    paths = [path for suffix in EXTENSION_SUFFIXES for path in folder.glob(f"_recurrent{suffix}")]
    if not paths:
        _logger.warning(
            "zorn: the compiled CPU kernels were not built (no C compiler at installation?), so recurrent "
            "cells step in plain torch: install a C compiler and reinstall zorn to have them"
        )
        return None
    try:
        loaded = ctypes.CDLL(str(paths[0]))
    except OSError as error:
        _logger.warning(
            "zorn: the compiled CPU kernels do not load (%s), so recurrent cells step in plain torch: "
            "reinstall zorn on this machine to have them",
            error,
        )
        return None
    if not hasattr(loaded, "zorn_interface") or loaded.zorn_interface() != INTERFACE:
        _logger.warning(
            "zorn: the compiled CPU kernels %s are of another version of zorn, so recurrent cells step in "
            "plain torch: reinstall zorn (pip install -e . in a checkout) to have them",
            paths[0],
        )
        return None
    for name in ("zorn_lstm", "zorn_gru", "zorn_scores", "zorn_add_rank_one"):
        function = getattr(loaded, name)
        function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int64), None
    loaded.zorn_instruction_set.restype = ctypes.c_int64
    loaded.zorn_has_rollout.argtypes, loaded.zorn_has_rollout.restype = (ctypes.c_int64,), ctypes.c_int64
    loaded.zorn_use_parallel(ctypes.c_void_p(_threads_of_torch()))
    return loaded


def available() -> str | None:
    """The instruction set that the compiled kernels use, "avx512", "avx2" or "baseline"; None without them.

    >>> available() in (None, "baseline", "avx2", "avx512")
    True
    """
    loaded = compiled()
    return None if loaded is None else INSTRUCTION_SETS[loaded.zorn_instruction_set()]


def usable(*tensors: Tensor) -> bool:
    """Whether a kernel may take these tensors: plain ones on the CPU, all float32 or all bfloat16, with
    nothing recorded, traced or transformed.

    >>> x = torch.zeros(3)
    >>> usable(x), usable(x.double())
    (False, False)
    """
    if torch.is_grad_enabled() or compiled() is None:
        return False
    dtype = tensors[0].dtype
    return (
        dtype in _NUMBERS
        and all(type(t) in _PLAIN and t.dtype == dtype and t.is_cpu for t in tensors)
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and torch._C._functorch.maybe_current_level() is None  # pyright: ignore[reportAttributeAccessIssue]
        and forward_ad._current_level < 0
    )


def _threads_of_torch() -> int | None:
    """The entry point of the OpenMP runtime that torch uses, for this library to share its threads; None
    (one thread) where the process has none under this name."""
    try:
        entry = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # no such symbol, or a system without a global namespace
        return None
    return ctypes.cast(entry, ctypes.c_void_p).value
