"""Files that are there whole or not at all, and on the disk when somebody counts on them."""

import os
from pathlib import Path


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Windows has no such wait for a folder."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows asks for leave to write
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a file in one move, onto the disk: at any moment it is as before or whole.

    Raises OSError when the disk refuses; the file is as before.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder) / "a.json", "{}")
    ...     [file.name for file in Path(folder).iterdir()]
    ['a.json']
    """
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        synchronise(temporary)
        temporary.replace(path)
        synchronise(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
