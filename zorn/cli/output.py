"""Lines and tables on standard output."""

import sys

from rich.console import Console


def console(piped: int | None = None) -> Console:
    """Standard output, where text is printed as it is; `piped` columns where no terminal sets them."""
    width = None if sys.stdout.isatty() else piped
    return Console(width=width, highlight=False, markup=False, soft_wrap=True)
