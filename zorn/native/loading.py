"""Finding and loading the compiled library, and when it may take over from torch."""

import ctypes
import logging
import os
import struct
import sys
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zorn.errors import ConfigError

LIMITED_BY = "ZORN_CPU_KERNELS"
"""Environment variable: "0" leaves the library out, the name of an instruction set caps what it uses."""

INTERFACE = 2
"""Of the library that this code calls: `zorn_interface` in recurrent.c."""

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")

_COST = "LSTMs under weight noise take 1.2 to 1.5 times as long in float32, 1.9 times in bfloat16"
_FIX = (
    "install a C compiler and reinstall zorn to have them: apt install gcc, then pip install . in its source"
)
_CAPABILITIES = {"AVX2": "avx2", "AVX512": "avx512"}  # torch's names

_NUMBERS = (torch.float32, torch.bfloat16)
_PLAIN = (Tensor, torch.nn.Parameter)
_logger = logging.getLogger("zorn")


@cache
def compiled() -> ctypes.CDLL | None:
    """The library; None where it was not built, cannot be loaded or is disabled. One message says why.

    Raises:
        ConfigError: `LIMITED_BY` is set to something else than 0, 1 or an instruction set.
    """
    limit = _limit()
    if limit is None:
        return None
    folder = Path(__file__).parent
    paths = [path for suffix in EXTENSION_SUFFIXES for path in folder.glob(f"_recurrent{suffix}")]
    if not paths:
        _warn("were not built (no C compiler at installation?)", f"{_COST}; {_FIX}")
        return None
    try:
        _check_whole(paths[0])
        loaded = ctypes.CDLL(str(paths[0]))
    except OSError as error:
        _warn(f"do not load ({error})", f"{_COST}; on this machine, {_FIX}")
        return None
    if not hasattr(loaded, "zorn_interface") or loaded.zorn_interface() != INTERFACE:
        _warn(
            f"{paths[0]} are of another version of zorn",
            "reinstall zorn, which needs a C compiler (apt install gcc, then pip install . in its source, or "
            "pip install -e . for a checkout)",
        )
        return None
    for name in ("zorn_lstm", "zorn_gru", "zorn_scores", "zorn_add_rank_one"):
        function = getattr(loaded, name)
        function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int64), None
    loaded.zorn_instruction_set.restype = ctypes.c_int64
    loaded.zorn_has_rollout.argtypes, loaded.zorn_has_rollout.restype = (ctypes.c_int64,), ctypes.c_int64
    loaded.zorn_limit_instruction_set.argtypes = (ctypes.c_int64,)
    loaded.zorn_limit_instruction_set.restype = None
    loaded.zorn_limit_instruction_set(limit)
    loaded.zorn_use_parallel(ctypes.c_void_p(_threads_of_torch()))
    if not _uses_the_processor(loaded.zorn_instruction_set(), has_rollout=hasattr(loaded, "zorn_rollout")):
        _logger.warning(
            "zorn: the compiled CPU kernels do without instructions that this processor has, as they were "
            "built without GCC 11, clang 14 or newer: %s; to have them all, in zorn's source: rm -rf build, "
            "then CC=gcc pip install .",
            _COST,
        )
    return loaded


def _warn(reason: str, advice: str) -> None:
    _logger.warning(
        "zorn: the compiled CPU kernels %s, so recurrent cells step in plain torch: %s", reason, advice
    )


def available() -> str | None:
    """The instruction set that the compiled kernels use, "avx512", "avx2" or "baseline"; None without them.

    >>> available() in (None, "baseline", "avx2", "avx512")
    True
    """
    loaded, limit = compiled(), _limit()
    if loaded is None or limit is None:
        return None
    return INSTRUCTION_SETS[min(loaded.zorn_instruction_set(), limit)]


def usable(*tensors: Tensor) -> bool:
    """True if a kernel may take these tensors: plain tensors on the CPU, all float32 or all bfloat16.

    False wherever autograd, tracing or a transform of torch.func would have to see the operation.

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


def _limit() -> int | None:
    """The index of the widest instruction set that the environment allows; None to leave the library out."""
    value = os.environ.get(LIMITED_BY, "1")
    if value in ("0", "1"):
        return None if value == "0" else len(INSTRUCTION_SETS) - 1
    if value not in INSTRUCTION_SETS:
        raise ConfigError(
            f"{LIMITED_BY} must be 0 (plain torch), 1 (all instructions of the processor) or the widest "
            f"instruction set to use, {', '.join(INSTRUCTION_SETS)}; got {value!r}: unset it to use all"
        )
    return INSTRUCTION_SETS.index(value)


def _check_whole(path: Path) -> None:
    """Raises OSError for a 64-bit ELF file that ends before its table of sections, which linkers write last:
    to load one that was cut short may end the process with a bus error."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) == 64 and head.startswith(b"\x7fELF\x02\x01"):  # another format is left to its loader
        (place,), (size, count) = struct.unpack_from("<Q", head, 40), struct.unpack_from("<HH", head, 58)
        if place + size * count > path.stat().st_size:
            raise OSError(f"{path} is cut short")


def _uses_the_processor(instruction_set: int, *, has_rollout: bool) -> bool:
    """True if a library has the widest vectors that torch finds here, and the rollout that needs them.

    A compiler older than GCC 11 or clang 14 leaves out the one or the other.
    """
    widest = _CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), "baseline")
    has_all = has_rollout or widest != "avx512" or sys.platform != "linux"
    return has_all and instruction_set >= INSTRUCTION_SETS.index(widest)


def _threads_of_torch() -> int | None:
    """The entry point of the OpenMP runtime that torch uses, for this library to share its threads; None
    (one thread) where the process has none under this name."""
    try:
        entry = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # no such symbol, or a system without a global namespace
        return None
    return ctypes.cast(entry, ctypes.c_void_p).value
