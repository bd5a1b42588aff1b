"""Joining the group that `torchrun` (or any launcher that sets its environment) has started."""

import os
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported later, by an optimizer, its defaults keep the group alive
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from zorn.checks import check_number
from zorn.distributed.group import Group
from zorn.errors import ConfigError

PLACE = ("RANK", "WORLD_SIZE")
MEETING = ("MASTER_ADDR", "MASTER_PORT")


def start(*, timeout: int | float = 600) -> Group:
    """Join the other processes: gloo between CPUs, and nccl for the gradients of GPUs where each process has
    its own (`group.device`).

    Reads what torchrun sets: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK and LOCAL_WORLD_SIZE.
    Without RANK and WORLD_SIZE this process is alone, and the same program runs. A process group that exists
    already is used.

    Args:
        timeout: seconds to wait for the others, now and in every exchange, above 0. Longer than the slowest
            process takes for its share of a step.

    Raises:
        ConfigError: a variable that is missing or no number, a port in use, or processes that do not come.

    Example:
        >>> group = start()  # not under torchrun
        >>> group.rank, group.size
        (0, 1)
    """
    check_number("timeout", timeout, above=True)
    if dist.is_available() and dist.is_initialized():
        return Group(rank=dist.get_rank(), size=dist.get_world_size(), device=_device(), timeout=timeout)
    if not any(name in os.environ for name in PLACE):
        return Group()
    rank, size = (_number(name) for name in PLACE)
    if not 0 <= rank < size:
        raise ConfigError(f"RANK must be from 0 to WORLD_SIZE − 1 = {size - 1}, got {rank}")
    if size > 1:
        _join(rank, size, timeout)
    return Group(rank=rank, size=size, device=_device(), timeout=timeout)


def _join(rank: int, size: int, timeout: int | float) -> None:
    missing = [name for name in MEETING if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not set, but RANK and WORLD_SIZE are: start the processes with torchrun, or "
            f"set {' and '.join(MEETING)} to where rank 0 listens"
        )
    place = f"{os.environ['MASTER_ADDR']}:{_number('MASTER_PORT')}"
    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.device_count() >= of_node else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(_device())
    patience = timedelta(seconds=timeout)
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=patience))
        store = _of_this_start(store, rank, size, timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    except (RuntimeError, ValueError) as error:
        if dist.is_initialized():
            dist.destroy_process_group()
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise ConfigError(
                f"port {os.environ['MASTER_PORT']} of {os.environ['MASTER_ADDR']} is in use: set MASTER_PORT "
                "(torchrun: --master-port, or --standalone for one machine) to a free one"
            ) from error
        raise ConfigError(
            f"rank {rank} of {size} did not meet the others at {place} within {timeout:g} s ({reason}): "
            "check that all processes were started, with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE, "
            "and that the port is reachable"
        ) from error


def _of_this_start(store: Store, rank: int, size: int, timeout: int | float) -> Store:
    """A part of the store that no process wrote to before.

    torchrun keeps one store over restarts, with the addresses of processes that are dead (issue 135712 of
    pytorch), and each machine counts its restarts alone. So rank 0 names the start, and tells its name to
    each process that asks, in a place that this process alone looks at.
    """
    own, others = uuid.uuid4().hex, range(1, size)
    if rank > 0:
        store.set(f"zorn/asks/{rank}", own)
        name = store.get(f"zorn/told/{own}").decode()
        store.set(f"zorn/heard/{name}/{rank}", "")
        return PrefixStore(name, store)
    deadline = time.monotonic() + timeout
    while not store.check([f"zorn/heard/{own}/{other}" for other in others]):
        for other in others:
            store.set(f"zorn/told/{store.get(f'zorn/asks/{other}').decode()}", own)
        if time.monotonic() > deadline:
            raise RuntimeError("they came, and went")
        time.sleep(0.01)
    return PrefixStore(own, store)


def _device() -> torch.device:
    """Where this process's model belongs: processes of a machine take its GPUs in turn."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", 0)))
    return torch.device("cuda", local % torch.cuda.device_count())


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise ConfigError(
            f"{name} must be a whole number of at least 0, got {text!r}: start the processes with torchrun, "
            "which sets it"
        )
    return int(text)
