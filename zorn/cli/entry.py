"""`zorn COMMAND ...`: finds the command, and turns errors into one line and an exit code.

Light to import, and a command's module is loaded when it is wanted: torch takes seconds, in which Ctrl-C must
be caught already.
"""

import importlib
import os
import sys
from collections.abc import Sequence

import zorn
from zorn.cli.process import STOPPED, prepare
from zorn.errors import ConfigError, NonFiniteLossError, PeerFailedError, ZornError

COMMANDS = {
    "train": "train a model; without options: the main job, about three minutes",
    "evaluate": "evaluate a trained model on the validation or the test split",
    "generate": "let a trained model write",
    "inspect": "list what would be perturbed in a model, and how",
    "diagnose": "measure the estimates of the gradient: signal, members, epsilon, step size",
    "tune": "find learning rate, epsilon, size of a step and discount for a budget",
    "plan": "what a run would need: memory for each estimator, what fits, seconds a step",
    "resume": "continue a run that was stopped, or extend one",
    "replay": "make the weights of a run after any step again",
    "journal": "look at or check the journal of a run",
}
"""Each a module of `zorn.cli` with a function `command`: words to exit code."""

_SMALLER = (
    "choose fewer rows at once (--batch, --population, --micro-batch), or a machine with more of it; "
    "zorn plan with these settings and --fit 8GiB (what there is) proposes some that fit"
)

_LISTED = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())

HELP = f"""usage: zorn COMMAND [OPTIONS]

Train recurrent networks with forward passes only.

commands:
{_LISTED}

  zorn COMMAND --help shows the options of a command, zorn --version the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; `argv` are its words without the program's name. Without them it is the process's own
    command, and its signals and standard output are set up.

    Returns the exit code: 0, 1 when training stopped on non-finite losses, 2 for bad input or a disk that
    refuses, 130 after Ctrl-C or SIGTERM.
    """
    if argv is None:
        prepare()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except NonFiniteLossError as error:
        return _fail(error, 1)
    except (ZornError, OSError, UnicodeError) as error:  # a mistake, a refusal of the disk, bytes, no text
        return _fail(error, 2)
    except (RuntimeError, MemoryError) as error:
        from zorn.training.limits import out_of_memory

        if (reason := out_of_memory(error)) is None:
            raise
        return _fail(ConfigError(f"this does not fit into the memory ({reason}): {_SMALLER}"), 2)
    except KeyboardInterrupt:
        print("zorn: stopped", file=sys.stderr)
        return STOPPED


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="", flush=True)
        return 0
    if words[0] == "--version":
        print(f"zorn {zorn.__version__}", flush=True)
        return 0
    if words[0] not in COMMANDS:
        from zorn.cli.parsing import UsageError, closest

        hint = closest(words[0], list(COMMANDS)) or f"one of {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {words[0]!r}: did you mean {hint}?")
    try:
        code = importlib.import_module(f"zorn.cli.{words[0]}").command(words[1:])
    except SystemExit as stop:  # tyro, after --help
        code = int(stop.code or 0)
    print(end="", flush=True)  # here, where a refusal is caught
    return code


def _fail(error: Exception, code: int) -> int:
    if isinstance(error, PeerFailedError) and os.environ.get("RANK", "0") != "0":
        return code  # it is told where it happened, and by rank 0
    print(f"zorn: {' '.join(str(error).split())}", file=sys.stderr)
    return code
