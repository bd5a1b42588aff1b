"""What an interpreter does not see: that the kernels compile for a GPU, and fit it. None is needed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zorn.kernels as kernels

KERNELS = [name for name in kernels.__all__ if isinstance(getattr(kernels, name), kernels.Twins)]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_every_kernel_compiles_for_an_h100(tmp_path):
    script = Path(__file__).with_name("compile_for_hopper.py")
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, *KERNELS],
        env=plain | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(KERNELS) == 6
