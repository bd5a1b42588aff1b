"""A user's own model by name: `package.module:callable` or `path/to/file.py:callable`."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from torch import nn

from zorn.cli.parsing import UsageError, closest

OWN = "__zorn_own_model__"
"""The name that a file is imported under: its own could hide a package, such as `torch.py` does."""


def own_model(target: str) -> nn.Module:
    """Import what stands before the colon, call what stands after it, and return the model that comes back.

    A name that is a model already is taken as it is. While this runs, the file's folder (for a module, the
    folder one stands in) can be imported from; no bytecode is written.

    Raises:
        UsageError: a file or module that is not there or cannot be imported, a name that is not in it, a call
            that raises, or something that is no `nn.Module`.

    >>> own_model("torch.nn:Identity")
    Identity()
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise UsageError(
            f"{target!r} names no model: give a run's folder, path/to/file.py:function or "
            "package.module:function"
        )
    file = Path(place) if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise UsageError(f"there is no file {place}: give the path of the file that makes the model")
    with _importing_from(Path() if file is None else file.parent):
        try:
            module = _module(place, file)
        except ModuleNotFoundError as error:
            if file is None and error.name is not None and f"{place}.".startswith(f"{error.name}."):
                raise UsageError(
                    f"there is no module {error.name} to import: give package.module:function from the "
                    "folder that holds the package, or path/to/file.py:function"
                ) from error
            raise _raised(f"importing {place}", error) from error
        except (Exception, SystemExit) as error:
            raise _raised(f"importing {place}", error) from error
        if not hasattr(module, name):
            hint = closest(name, [known for known in vars(module) if not known.startswith("_")])
            raise UsageError(
                f"{place} has no {name}" + (f": did you mean {place}:{hint}?" if hint else ": check the name")
            )
        made = getattr(module, name)
        if not isinstance(made, nn.Module):
            if not callable(made):
                raise _no_model(target, f"a {type(made).__name__}")
            try:
                made = made()
            except (Exception, SystemExit) as error:
                raise _raised(f"calling {target} without arguments", error) from error
    if not isinstance(made, nn.Module):
        raise _no_model(target, f"a function that returns a {type(made).__name__}")
    return made


def _module(place: str, file: Path | None) -> ModuleType:
    if file is None:
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(OWN, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[OWN] = module  # where dataclasses look for what a file defines
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    path, bytecode = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder.absolute()))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, bytecode


def _raised(doing: str, error: BaseException) -> UsageError:
    return UsageError(f"{doing} raised {type(error).__name__}: {error}: mend it, then try again")


def _no_model(target: str, found: str) -> UsageError:
    return UsageError(f"{target} must be a function that returns an nn.Module, got {found}: name another")
