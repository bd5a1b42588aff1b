"""Functions and files of zorn that `zorn train` calls: its whole command, and its first step alone.

A step is from `prepare_step` to the end of `update_weights`, which moves the weights. Counted are different
functions, lambdas included, that run in the main thread, and their files; not the bodies of modules and
classes. Each estimator runs in a process of its own. PYTHONPATH chooses the tree that is measured.

    python benchmarks/walk.py
"""

import argparse
import contextlib
import inspect
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import zorn

COMMAND = "train --task copy --batch 4 --hidden-size 8 --steps 1 --threads 1".split()  # noqa: SIM905
ESTIMATORS = {
    "cd-rge": ["--estimator", "cd-rge", "--population", "4"],
    "activity": ["--estimator", "activity"],
}
FIRST, LAST = "prepare_step", "update_weights"
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")


def walk(words: list[str]) -> tuple[set[CodeType], set[CodeType]]:
    """The functions that a command calls, and those of its first step."""
    package = str(Path(zorn.__file__).parent) + os.sep
    whole: set[CodeType] = set()
    step: set[CodeType] = set()
    stage = ["before"]

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(package):
            return
        if (event, code.co_name, stage[0]) == ("call", FIRST, "before"):
            stage[0] = "step"
        if code.co_flags & inspect.CO_OPTIMIZED and code.co_name not in COMPREHENSIONS:
            for functions in (whole, step) if stage[0] == "step" else (whole,):
                functions.add(code)
        if (event, code.co_name) == ("return", LAST):
            stage[0] = "after"

    sys.setprofile(profile)
    from zorn.cli.entry import main

    with contextlib.redirect_stdout(sys.stderr):
        code = main(words)
    sys.setprofile(None)
    assert (code, stage) == (0, ["after"]), f"exit code {code}, {stage[0]} the step"
    return whole, step


def main() -> None:
    """Measure both estimators, each in a process of its own; or the one that is named in this one."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--estimator", choices=ESTIMATORS, help="measure this one, in this process")
    name = parser.parse_args().estimator
    if name is None:
        for each in ESTIMATORS:
            subprocess.run([sys.executable, __file__, "--estimator", each], check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = walk([*COMMAND, *ESTIMATORS[name], "--out", f"{folder}/run"])
    for part, functions in zip(("command", "step"), found, strict=True):
        files = {code.co_filename for code in functions}
        print(f"{name:9} {part:8} {len(functions)} functions in {len(files)} files")


if __name__ == "__main__":
    main()
