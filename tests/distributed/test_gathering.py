"""Messages among any number of processes: all hear all, in the order of ranks, in ⌈log₂ N⌉ rounds."""

import pytest
import script
import torch
from processes import run_processes

from zorn.distributed.group import HEADER


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_all_hear_all_in_order(size, tmp_path):
    assert run_processes(script.gathering, size, tmp_path) == [0] * size
    rounds = (size - 1).bit_length()
    for rank in range(size):
        found = torch.load(tmp_path / f"{rank}.pt")
        for count, heard in zip((3, 0, 2), found["heard"], strict=True):
            assert [values.tolist() for values in heard] == [
                [100.0 * other + place for place in range(count + other)] for other in range(size)
            ]
        assert found["rounds"] == [2 * rounds, rounds, rounds]  # the first brings more than ever before
        longest = 3 + size - 1
        assert found["bytes"] == 8 * (size - 1) * (3 * HEADER + longest + 2 * longest)
        assert found["objects"] == ["rank " * other for other in range(size)]
