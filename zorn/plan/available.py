"""Memory that is free, and amounts of it in words."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from zorn.errors import ConfigError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str, name: str = "memory") -> int:
    """Bytes of an amount such as "8GiB", "500 MB" or "1.5GiB"; a unit is needed.

    Raises:
        ConfigError: no such amount; `name` names the setting in the message.

    >>> parse_bytes("8GiB"), parse_bytes("500 MB")
    (8589934592, 500000000)
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?I?B)\s*", text.upper())
    amount = float(found[1]) * UNITS[found[2]] if found else 0
    if amount < 1:
        raise ConfigError(
            f"{name} must be a number above 0 with a unit, B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, got "
            f"{text!r}: for example {name} 8GiB"
        )
    return int(amount)


def show_bytes(amount: int) -> str:
    """An amount of memory, to three digits.

    >>> show_bytes(8 * 2**30), show_bytes(1536 * 2**10), show_bytes(0)
    ('8.00 GiB', '1.50 MiB', '0')
    """
    if amount == 0:
        return "0"
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(amount) >= size:
            value = amount / size
            digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{amount:.0f} B"


def available_bytes(device: str = "cpu") -> int:
    """Free memory of a GPU, or of the machine within its control group's limit, in bytes.

    Raises:
        ConfigError: it cannot be found out here.

    >>> available_bytes() > 2**20
    True
    """
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return torch.cuda.mem_get_info(device)[0]
    amounts = [*_free_memory(), *_left_in_group()]
    if torch.device(device).type != "cpu" or not amounts:
        raise ConfigError(
            f"the free memory of {device} cannot be found out here: say it, for example --memory 8GiB"
        )
    return min(amounts)


def _free_memory() -> list[int]:
    """Of the machine, in Linux."""
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _left_in_group(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Of the control group that limits this process, as containers have one; empty where none does."""
    try:
        limit = (folder / "memory.max").read_text(encoding="utf-8").strip()
        used = int((folder / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [] if limit == "max" else [max(0, int(limit) - used)]
