"""Without a GPU the kernels are tested in Triton's interpreter, on the CPU; on a machine with one, compiled.

Which of the two is decided when the kernels are imported (`tests/conftest.py`); `TRITON_INTERPRET` is set
then, and while their tests run, but for no other test.
"""

import importlib.util

import pytest
import torch

INTERPRETED = importlib.util.find_spec("triton") is not None and not torch.cuda.is_available()


@pytest.fixture(
    params=[
        pytest.param(
            "cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="needs Triton and no GPU: interpreted")
        ),
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where kernels are tested: interpreted on the CPU, compiled on a GPU."""
    from zorn.kernels.language import interpreted  # not before tests/conftest.py has imported it

    if request.param == "cpu":
        assert interpreted, "zorn.kernels was imported before tests/conftest.py could have it interpreted"
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    else:
        assert not interpreted, "unset TRITON_INTERPRET to test compiled kernels"
    return torch.device(request.param)
