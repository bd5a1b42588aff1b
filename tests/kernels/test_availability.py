"""Where kernels run, what is said where they do not, and that zorn needs no Triton."""

import logging
import re
import subprocess
import sys

import pytest
import torch

from zorn.kernels import availability, available


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch):
    monkeypatch.delenv(availability.SWITCH, raising=False)
    availability._reason_against.cache_clear()
    availability.say_once.cache_clear()
    yield
    availability._reason_against.cache_clear()
    availability.say_once.cache_clear()


def test_a_cpu_runs_the_twins_and_nothing_is_said(caplog):
    assert not available("cpu")
    assert not caplog.records


@pytest.mark.parametrize(
    ("installed", "interpreted", "capability", "said"),
    [
        (False, False, (9, 0), r"Triton, which is not installed: pip install 'zorn\[kernels\]'"),
        (True, True, (9, 0), "TRITON_INTERPRET is set.*unset it"),
        (True, False, (7, 5), "compute capability 8.0 or more, an old GPU has 7.5"),
        (True, False, (8, 0), None),
    ],
)
def test_a_gpu_that_cannot_is_named_once(monkeypatch, caplog, installed, interpreted, capability, said):
    monkeypatch.setattr(availability, "installed", installed)
    monkeypatch.setattr(availability, "interpreted", interpreted)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    with caplog.at_level(logging.WARNING):
        assert [available("cuda") for _ in range(3)] == [said is None] * 3
    assert len(caplog.records) == (said is not None)
    if said:
        assert re.search(said, caplog.text)


@pytest.mark.parametrize(
    ("switch", "interpreted", "device", "expected", "said"),
    [
        ("0", False, "cuda", False, False),
        ("1", False, "cuda", True, False),
        ("0", True, "cpu", False, False),
        ("interpret", True, "cpu", True, False),
        ("interpret", False, "cpu", False, True),
        ("interpret", False, "meta", False, False),
    ],
)
def test_the_switch(monkeypatch, caplog, switch, interpreted, device, expected, said):
    monkeypatch.setenv(availability.SWITCH, switch)
    monkeypatch.setattr(availability, "interpreted", interpreted)
    monkeypatch.setattr(availability, "installed", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert [available(device) for _ in range(2)] == [expected] * 2
    assert len(caplog.records) == said
    assert ("set TRITON_INTERPRET=1 before zorn is imported" in caplog.text) == said


def test_importing_the_kernels_needs_no_triton_and_the_twins_run():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from zorn.kernels import Fold, available, fold_dense_\n"
        "w, fold = torch.zeros(4), Fold(seed=0, step=0, members=range(1))\n"
        "fold_dense_(w, torch.ones(1), (0,), fold)\n"
        "print(w.tolist(), available('cpu'))"
    )
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[-1.0, 1.0, -1.0, 1.0] False", found.stderr
