"""Joining the group that `torchrun` (or any launcher that sets its environment) has started."""

import os
import socket
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported later, by an optimizer, its defaults keep the group alive
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from zorn.checks import check_number, wrong
from zorn.distributed.group import Group
from zorn.errors import ConfigError

PLACE = ("RANK", "WORLD_SIZE")
MEETING = ("MASTER_ADDR", "MASTER_PORT")
HIGHEST_PORT = 65_535


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
        ConfigError: a variable that is missing or outside its range, a port in use, processes that do not
            come, or a process group that exists already and cannot send tensors of the CPU.

    Example:
        >>> group = start()  # not under torchrun
        >>> group.rank, group.size
        (0, 1)
    """
    check_number("timeout", timeout, above=True)
    if dist.is_available() and dist.is_initialized():
        return _of_existing(timeout)
    if not any(name in os.environ for name in PLACE):
        return Group()
    size = _number("WORLD_SIZE", least=1)
    rank = _number("RANK", most=size - 1, bound="WORLD_SIZE − 1")
    of_node = _number("LOCAL_WORLD_SIZE", least=1, most=size, bound="WORLD_SIZE", default=size)
    local = _number("LOCAL_RANK", most=of_node - 1, bound="LOCAL_WORLD_SIZE − 1", default=rank)
    device = _device(local)
    if size > 1:
        _join(rank, size, of_node, device, timeout)
    return Group(rank=rank, size=size, device=device, timeout=timeout)


def _of_existing(timeout: int | float) -> Group:
    rank, size = dist.get_rank(), dist.get_world_size()
    backends = dist.get_backend_config()
    if size > 1 and "cpu:" not in backends:
        expected = "one that can send losses, which are on the CPU"
        fix = 'make it with backend="cpu:gloo,cuda:nccl", or leave it to start()'
        raise wrong("the process group that exists already", expected, str(backends), fix)
    return Group(rank=rank, size=size, device=_device(_number("LOCAL_RANK", default=rank)), timeout=timeout)


def _join(rank: int, size: int, of_node: int, device: torch.device, timeout: int | float) -> None:
    missing = [name for name in MEETING if not os.environ.get(name)]
    if missing:
        fix = f"start the processes with torchrun, or set {' and '.join(MEETING)} to where rank 0 listens"
        raise wrong(missing[0], "set where RANK and WORLD_SIZE are", "nothing", fix)
    _check_interfaces()
    place = f"{os.environ['MASTER_ADDR']}:{_number('MASTER_PORT', least=1, most=HIGHEST_PORT)}"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.device_count() >= of_node else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(device)
    patience, began = timedelta(seconds=timeout), time.monotonic()
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
            f"rank {rank} of {size} did not meet the others at {place} and gave up after "
            f"{time.monotonic() - began:.0f} s of {timeout:g} ({reason}): "
            "check that all processes were started, with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE, "
            "and that the port is reachable"
        ) from error


def _check_interfaces() -> None:
    """Raise ConfigError where GLOO_SOCKET_IFNAME names an interface that this machine does not have."""
    present = [name for _, name in socket.if_nameindex()]
    wanted = os.environ.get("GLOO_SOCKET_IFNAME", "")
    lacking = [name for name in wanted.split(",") if name and name not in present]
    if lacking:
        expected = f"network interfaces of this machine ({', '.join(present)})"
        raise wrong("GLOO_SOCKET_IFNAME", expected, repr(wanted), "set it to one of them, or unset it")


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


def _device(local: int) -> torch.device:
    """Where this process's model belongs: processes of a machine take its GPUs in turn."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local % torch.cuda.device_count())


def _number(
    name: str, *, least: int = 0, most: int | None = None, bound: str = "", default: int | None = None
) -> int:
    """A variable of the environment; `bound`: what its largest value follows from. `default`: where it is not
    set; None: it must be."""
    if default is not None and name not in os.environ:
        return default
    text = os.environ.get(name, "")
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        limits = f"of at least {least}"
        if most is not None:
            limits = f"from {least} to {f'{bound} = ' if bound else ''}{most}"
        fix = "start the processes with torchrun, which sets it (MASTER_PORT by --master-port)"
        raise wrong(name, f"a whole number {limits}", repr(text), fix)
    return int(text)
