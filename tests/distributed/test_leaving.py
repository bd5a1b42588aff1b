"""A group that is closed leaves no thread behind: one that ends after the interpreter aborts the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import free_port

PROGRAM = """
import os, torch
from pathlib import Path

def threads():
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}

from zorn.distributed import start
with start() as group:
    group.message()
    assert any("gloo" in name for name in threads())
    torch.optim.Adam(torch.nn.Linear(2, 2).parameters())  # imports much of torch
assert not any("gloo" in name for name in threads()), threads()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists threads as Linux does")
def test_no_thread_outlives_the_group():
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=os.environ | meeting | {"RANK": rank}, stderr=subprocess.PIPE
        )
        for rank in "01"
    ]
    try:
        printed = [process.communicate(timeout=120)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
