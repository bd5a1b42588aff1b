"""A user's own model by name: `package.module:callable` or `path/to/file.py:callable`."""

from torch import nn

from zorn.cli.parsing import UsageError
from zorn.registry import importing_from_file_of, load_object


def own_model(target: str) -> nn.Module:
    """Import what stands before the colon, call what stands after it, and return the model that comes back.

    A name that is a model already is taken as it is.

    Raises:
        ConfigError: a file or module that is not there or cannot be imported, or a name that is not in it.
        UsageError: a call that raises, or something that is no `nn.Module`.
    """
    made, called = load_object(target, "model"), ""
    if callable(made) and not isinstance(made, nn.Module):
        called = "a function that returns "
        with importing_from_file_of(target):
            try:
                made = made()
            except (Exception, SystemExit) as error:
                raise UsageError(
                    f"calling {target} without arguments raised {type(error).__name__}: {error}: mend it, "
                    "then try again"
                ) from error
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"{target} must be a function that returns an nn.Module, got {called}a {type(made).__name__}: "
            "name another"
        )
    return made
