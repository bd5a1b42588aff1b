"""One process at a time in a run's folder: a lock that the kernel releases when its holder ends, however it
ends."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TextIO

from zorn.errors import ConfigError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has none, and runs without the lock
    fcntl = None

LOCK = ".lock"
"""The lock's file; it stays in the folder and holds the process id of the last holder."""

_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder, and hold it in a `with` block.

    The lock is flock(2)'s: a process that is killed leaves nothing to clean up, and workers that it spawned
    do not hold it. Where the system or the file system has no such locks, none is taken.

    Raises:
        ConfigError: another process holds it, or this one somewhere else; or it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
        ...     (Path(folder) / LOCK).read_text() == f"{os.getpid()}\\n"
        True
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder} ({error.strerror}): change its permissions, or choose another folder"
        ) from error
    with file:
        _lock(file, folder)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _lock(file: TextIO, folder: Path) -> None:
    """Lock an open file until it is closed; ConfigError when it is locked."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise ConfigError(
            f"{folder} is in use by process {file.read().strip() or 'unknown'}: wait until it ends, stop it, "
            "or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
