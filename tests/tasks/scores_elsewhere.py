"""Scores at module level, as worker processes need them."""

import os
import signal
import time


class UnreachableError(Exception):
    """An exception that cannot be pickled back: its arguments are not those of its constructor."""

    def __init__(self, host, port):
        super().__init__(f"{host}:{port}")


def count_wrong(prediction, target):
    time.sleep(0.001 * (target[0] % 5))  # rows do not come back in the order in which they are sent
    return sum(one != other for one, other in zip(prediction, target, strict=True)) + target[0] / 1000


def worker_id(prediction, target):
    return os.getpid()


def moody(prediction, target):
    if target[0] in (7, 9):
        raise KeyError(f"no score for {target[0]}")
    if target[0] == 20:
        raise UnreachableError("simulator", 80)
    return "good" if target[0] == 30 else 0.0


def die(prediction, target):
    os.kill(os.getpid(), signal.SIGKILL)
