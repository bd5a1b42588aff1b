"""What the tests of runs share."""

import os
import subprocess
import sys

import pytest

LIMITED = """
import resource, sys
from zorn.cli import main
import zorn.cli.train
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def error_of_a_full_disk(tmp_path):
    """A function (size, words) -> the one line that `zorn train` with these words ends with, where the system
    refuses files beyond a size in bytes: a real refusal. The run lies in `tmp_path / "run"`."""

    def train(size, words):
        words = ["train", "--task", "copy", "--batch", "4", "--hidden-size", "4", *words, "--out", "run"]
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(size), *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=300,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    return train
