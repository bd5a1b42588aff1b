"""zorn: Zero-Order Recurrent Networks, trained with forward passes only.

The names that most scripts need stand here; `zorn.public` lists them. The rest is in the rooms, which are
loaded with them: `zorn.tasks`, `zorn.models`, `zorn.noise`, `zorn.estimators`, `zorn.diagnostics`,
`zorn.errors`. The trainer is `zorn.training`, the command line `zorn`.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from zorn import diagnostics as diagnostics
    from zorn import errors as errors
    from zorn import estimators as estimators
    from zorn import models as models
    from zorn import noise as noise
    from zorn import tasks as tasks
    from zorn.public import *  # noqa: F403
    from zorn.public import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        """Load the public names when the first is used: torch takes seconds, and the command line must be
        able to catch Ctrl-C before."""
        import importlib

        if "__all__" not in globals() and (name == "__all__" or not name.startswith("__")):
            public = importlib.import_module("zorn.public")
            globals().update({known: getattr(public, known) for known in [*public.__all__, "__all__"]})
            if name in globals():
                return globals()[name]
        for room in ("errors", "tasks", "models", "noise", "estimators", "diagnostics"):
            known = vars(globals()[room]) if room in globals() else {}
            if name in known.get("__all__", [each for each in known if each.endswith("Error")]):
                return known[name]  # a name of a room, which stood here before
        raise AttributeError(f"module 'zorn' has no attribute {name!r}")
