"""The command line: thin commands over the library."""

from zorn.cli.entry import main

__all__ = ["main"]
