"""Components by name: those of the package, and those of a user's own file."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, final

from zorn.checks import wrong
from zorn.errors import ConfigError

Component = TypeVar("Component")

OWN = "zorn_own_"
"""The names that files are imported under begin so: a file's own name could hide a package, as `torch.py`
does."""


@final
class Registry(Generic[Component]):
    """The components of one kind, by name; and any other by `path/to/file.py:Name` or `package.module:Name`.

    Args:
        kind: of the components, for messages: "estimator".
        entries: the package's own, by name.
        base: the class that a component from outside must extend; None: anything that can be called.
        outside: False where there are only the package's own.

    Example:
        >>> sizes = Registry("size", {"small": 1, "large": 2})
        >>> sizes["large"], list(sizes)
        (2, ['small', 'large'])
        >>> sizes["lagre"]
        Traceback (most recent call last):
        zorn.errors.ConfigError: size must be one of small, large, or path/to/file.py:Name, got 'lagre': did \
you mean large?
    """

    def __init__(
        self, kind: str, entries: Mapping[str, Component], base: type | None = None, *, outside: bool = True
    ) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self._base = base
        self._outside = outside

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Component:
        """The component of this name; ConfigError for a name that is unknown."""
        if name in self._entries:
            return self._entries[name]
        if ":" in name and self._outside:
            return self._from_outside(name)
        near = closest(name, list(self))
        hint = f"did you mean {near}?" if near else "choose one of these"
        outside = ", or path/to/file.py:Name" * self._outside
        raise wrong(self.kind, f"one of {', '.join(self)}{outside}", repr(name), hint)

    def items(self) -> Iterator[tuple[str, Component]]:
        """Names and components of the package's own."""
        return iter(self._entries.items())

    def _from_outside(self, name: str) -> Any:
        found = load_object(name, self.kind)
        if self._base is None and not callable(found):
            raise wrong(f"{self.kind} {name}", "callable", repr(found))
        if self._base is not None and not (isinstance(found, type) and issubclass(found, self._base)):
            raise wrong(f"{self.kind} {name}", f"a class that extends {self._base.__name__}", repr(found))
        return found


def load_object(target: str, kind: str = "object") -> Any:
    """Import what stands before the last colon, and return what is called the name after it.

    A file is imported once. Meanwhile its folder can be imported from (for a module, the folder one stands
    in); no bytecode is written.

    Args:
        target: `path/to/file.py:name` or `package.module:name`.
        kind: of what is named, for messages.

    Raises:
        ConfigError: a file or module that is not there or cannot be imported, or a name that is not in it.

    >>> load_object("pathlib:Path").__name__
    'Path'
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise ConfigError(f"{target!r} names no {kind}: give path/to/file.py:name or package.module:name")
    file = Path(place) if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise ConfigError(f"there is no file {place}: give the path of the file that has {name}")
    with importing_from_file_of(target):
        try:
            module = importlib.import_module(place) if file is None else _module(file)
        except ModuleNotFoundError as error:
            if file is None and error.name is not None and f"{place}.".startswith(f"{error.name}."):
                raise ConfigError(
                    f"there is no module {error.name} to import: give package.module:name from the "
                    "folder that holds the package, or path/to/file.py:name"
                ) from error
            raise _raised(place, error) from error
        except (Exception, SystemExit) as error:
            raise _raised(place, error) from error
    if not hasattr(module, name):
        hint = closest(name, [known for known in vars(module) if not known.startswith("_")])
        fix = f"did you mean {place}:{hint}?" if hint else "check the name"
        raise ConfigError(f"{place} has no {name}: {fix}")
    return getattr(module, name)


def absolute(name: str) -> str:
    """A name from outside with the path of its file made absolute, so that it holds from any folder.

    >>> absolute("cd-rge")
    'cd-rge'
    """
    place, colon, attribute = name.rpartition(":")
    return f"{Path(place).absolute()}:{attribute}" if colon and place.endswith(".py") else name


def closest(word: str, known: Sequence[str]) -> str | None:
    """The known word that is most like this one; None when none is.

    >>> closest("--hiden-size", ["--hidden-size", "--heads"])
    '--hidden-size'
    """
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


@contextlib.contextmanager
def importing_from_file_of(target: str) -> Iterator[None]:
    """Within the `with` block modules can be imported from the folder of a target's file (for a module, from
    the one one stands in); no bytecode is written."""
    place = target.rpartition(":")[0]
    folder = Path(place).parent if place.endswith(".py") else Path()
    path, bytecode = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder.absolute()))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, bytecode


def _module(file: Path) -> ModuleType:
    """The module of a file, imported at the first call; again where the file has changed."""
    content = file.read_bytes()
    digest = hashlib.sha256(str(file.absolute()).encode() + content).hexdigest()[:16]
    name = f"{OWN}{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for what a file defines
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _raised(place: str, error: BaseException) -> ConfigError:
    return ConfigError(f"importing {place} raised {type(error).__name__}: {error}: mend it, then try again")
