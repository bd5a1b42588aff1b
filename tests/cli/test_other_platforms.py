"""A run on a system that lacks what only Unix has: the modules, signals and functions are hidden."""

import os
import subprocess
import sys

WITHOUT_UNIX = """
import importlib.abc, os, signal, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "grp", "pwd", "resource", "termios"}:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

import torch, tensorboard, matplotlib  # they have guards of their own
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden())
del signal.SIGHUP, os.register_at_fork, os.O_DIRECTORY, os.fork

from zorn.cli import main

for words in sys.stdin.read().splitlines():
    if code := main(words.split()):
        sys.exit(code)
"""

COMMANDS = """\
train --source text.txt --steps 3 --batch 4 --length 6 --hidden-size 4 --draws 2 --threads 1 --out run
resume run --steps 5
evaluate run
generate run --length 5
inspect run
plan --task copy
train --task copy --estimator cd-rge --steps 3 --batch 4 --population 4 --hidden-size 4 --out copy
journal show copy
replay copy --to-step 2 --out again
"""


def test_every_command_runs_without_what_only_unix_has(tmp_path):
    (tmp_path / "text.txt").write_text("a plain text for a plain system, " * 40)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_UNIX],
        cwd=tmp_path,
        input=COMMANDS,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    assert "peak_memory_bytes" not in (tmp_path / "run" / "summary.json").read_text()
