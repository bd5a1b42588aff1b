"""`zorn COMMAND ...`: finds the command, and turns errors into one line and an exit code."""

import sys
from collections.abc import Callable, Sequence

from zorn.cli import evaluate, generate, resume, train
from zorn.cli.parsing import UsageError, closest
from zorn.errors import NonFiniteLossError, ZornError

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train.command,
    "evaluate": evaluate.command,
    "generate": generate.command,
    "resume": resume.command,
}

HELP = """usage: zorn COMMAND [OPTIONS]

Train recurrent networks with forward passes only.

commands:
  train      train a model; without options: the main job, about three minutes
  evaluate   evaluate a trained model on the validation or the test split
  generate   let a trained model write
  resume     go on with a run that was stopped, or extend one

  zorn COMMAND --help shows the options of a command, zorn --version the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; `argv` are its words without the program's name, by default those of the process.

    Returns the exit code: 0, 1 when training stopped on non-finite losses, 2 for bad input, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        import zorn

        print(f"zorn {zorn.__version__}")
        return 0
    try:
        if words[0] not in COMMANDS:
            hint = closest(words[0], list(COMMANDS)) or f"one of {', '.join(COMMANDS)}"
            raise UsageError(f"unknown command {words[0]!r}: did you mean {hint}?")
        return COMMANDS[words[0]](words[1:])
    except NonFiniteLossError as error:
        return _fail(error, 1)
    except (
        ZornError,
        OSError,
        UnicodeError,
    ) as error:  # a mistake, a file or pipe that refuses, bytes that are no text
        return _fail(error, 2)
    except SystemExit as stop:  # tyro, after --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("zorn: stopped", file=sys.stderr)
        return 130


def _fail(error: Exception, code: int) -> int:
    print(f"zorn: {' '.join(str(error).split())}", file=sys.stderr)
    return code
