"""Starts the processes of a test, and leaves none of them behind."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

PATIENCE = 900
"""Seconds until the processes of a busy machine are given up."""


def free_port() -> int:
    """A port that nobody listens on, at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def context() -> ForkServerContext:
    """Forks children of one process that has imported torch, so that they start in a moment."""
    os.environ["OMP_NUM_THREADS"] = "1"
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["script"])
    return found


def _child(function: Callable[..., None], rank: int, size: int, port: int, arguments: tuple) -> None:
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    function(*arguments)


def run_processes(function: Callable[..., None], size: int, *arguments: object) -> list[int | None]:
    """Run a function in `size` processes that find each other by their environment; their exit codes.

    Whatever happens, also to the test, they are ended.
    """
    port, started = free_port(), time.monotonic()
    children = [
        context().Process(target=_child, args=(function, rank, size, port, arguments), daemon=True)
        for rank in range(size)
    ]
    try:
        for child in children:
            child.start()
        for child in children:
            child.join(max(0.0, PATIENCE - (time.monotonic() - started)))
        return [child.exitcode for child in children]
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
            child.join()


HERE = Path(__file__).parent
