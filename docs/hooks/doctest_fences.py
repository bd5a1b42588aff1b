"""Docstrings for the site: complete ones of classes, and doctests in fences, as Markdown needs them."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from griffe import Extension, Object


def fenced(text: str) -> str:
    """The text with every doctest, from its first `>>>` to the next empty line, in a fence of its own."""
    lines: list[str] = []
    margin: str | None = None  # of the doctest that is open
    for line in text.splitlines():
        if margin is None and line.lstrip().startswith(">>> "):
            margin = line[: len(line) - len(line.lstrip())]
            lines.append(f"{margin}```pycon")
        elif margin is not None and not line.strip():
            lines.append(f"{margin}```")
            margin = None
        lines.append(line)
    if margin is not None:
        lines.append(f"{margin}```")
    return "\n".join(lines)


def completed(obj: Object) -> str | None:
    """The docstring of a class when zorn is loaded: with the arguments that base classes describe."""
    try:
        loaded = getattr(importlib.import_module(obj.module.path), obj.name)
    except (ImportError, AttributeError):
        return None
    return inspect.getdoc(loaded) if isinstance(loaded, type) else None


class DoctestFences(Extension):
    """Completes docstrings of classes, and puts the doctests of all docstrings into fences."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None and obj.is_class:
            obj.docstring.value = completed(obj) or obj.docstring.value
        if obj.docstring is not None and ">>> " in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)
